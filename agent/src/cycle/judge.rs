//! The verdict on an image, with the facts that it asks for: what C and a D that a boot loader has started have in
//! common.

use dormouse_image::seal::SaveKey;
use dormouse_image::{FormatError, Header};
use dormouse_linux::error_chain::in_full;

use crate::console::phase::Phase;
use crate::cycle::verdict::{Answer, Fact, HeaderFault, Known, Misfit, Moment, Verdict, Written, verdict};
use crate::filesystems::{self, Names};
use crate::key::{self, KeyError, Means};
use crate::machine::{Machine, compat, microcode};
use crate::policy::Policy;
use crate::store::{Image, StoreError};

/// Stands in for facts about a session whose header is not known: nobody asks for them, and they refuse.
pub(super) const NO_HEADER: &str = "the image's header has not been read";

/// Who asks, and what there is to find an answer with.
pub(super) struct Judge<'a> {
    /// The policy of this boot.
    pub(super) policy: &'a Policy,
    /// The machine, as the kernel that is to start the session's again finds it.
    pub(super) machine: fn() -> anyhow::Result<Machine>,
    /// What a sealed image is opened with.
    pub(super) means: &'a mut dyn Means,
}

/// The verdict on an image, with all that it asks for; the header, if that was read; and the key that opened it.
pub(super) fn judge(
    image: &mut Image,
    moment: Moment,
    by: &mut Judge<'_>,
) -> (Verdict, Option<Header>, Option<SaveKey>) {
    let policy = by.policy;
    let commit = image.commit().clone();
    let mut key = None;
    let mut known = Known {
        moment,
        commit: &commit,
        policy: &policy.resume,
        header: None,
        machine: None,
        written: None,
        is_comparable: None,
    };
    loop {
        let fact = match verdict(&known) {
            Answer::Verdict(verdict) => return (verdict, known.header.and_then(Result::ok), key),
            Answer::Look(fact) => fact,
        };
        let header = known.header.as_ref().and_then(|header| header.as_ref().ok());
        match fact {
            Fact::Header => {
                let opened = unlock(image, &known.moment, policy, by.means);
                let read = opened.and_then(|found| {
                    key = found;
                    image.header().map_err(|error| fault_of(&error))
                });
                known.header = Some(read);
            }
            Fact::Machine => {
                let fits = |header: &Header| fits(header, by.machine);
                known.machine = Some(header.map_or_else(|| Err(Misfit::Unknown(NO_HEADER.into())), fits));
            }
            Fact::Filesystems => {
                known.written =
                    Some(header.map_or_else(|| Written::Since(NO_HEADER.into()), |header| written(header, policy)));
            }
            Fact::Comparable => known.is_comparable = Some(header.is_some_and(can_tell)),
        }
    }
}

/// Opens an image that is sealed, with a key that is at hand at this moment: only a boot that is about to resume asks
/// for a passphrase.
fn unlock(
    image: &mut Image,
    moment: &Moment,
    policy: &Policy,
    means: &mut dyn Means,
) -> Result<Option<SaveKey>, HeaderFault> {
    if !image.is_sealed() {
        let is_allowed = !key::must_be_sealed(policy, image) || !matches!(moment, Moment::Boot(_));
        return if is_allowed { Ok(None) } else { Err(HeaderFault::NotSealed) };
    }
    let key = match moment {
        Moment::Boot(_) => key::for_resume(policy, image, means).map(Some),
        Moment::Missed { .. } => key::for_reading(image),
        Moment::Locked(_) | Moment::Ambiguous(_) => Ok(None),
    };
    let key = key.map_err(|error| fault_of_key(&error))?;
    let key = key.ok_or_else(|| HeaderFault::NoKey("the image is sealed, and no key is at hand".to_owned()))?;
    image.unlock(Some(&key)).map_err(|error| fault_of(&error))?;
    Ok(Some(key))
}

fn fault_of_key(error: &KeyError) -> HeaderFault {
    let text = in_full(error);
    match error {
        KeyError::Replayed => HeaderFault::Replayed(text),
        KeyError::Format(FormatError::Forged(_)) => HeaderFault::Forged(text),
        KeyError::Format(_) => HeaderFault::Damaged(text),
        KeyError::Store(error) => fault_of(error),
        _ => HeaderFault::NoKey(text),
    }
}

fn fault_of(error: &StoreError) -> HeaderFault {
    match error {
        StoreError::Io { .. } => HeaderFault::Unreadable(in_full(error)),
        StoreError::Format { source: FormatError::Forged(_), .. } => HeaderFault::Forged(in_full(error)),
        _ => HeaderFault::Damaged(in_full(error)),
    }
}

/// Whether this machine is the one that the session was saved on.
fn fits(header: &Header, machine: fn() -> anyhow::Result<Machine>) -> Result<(), Misfit> {
    let machine = machine().map_err(|error| Misfit::Unknown(format!("{error:#}")))?;
    compat::check(&header.session, &machine).map_err(Misfit::Differs)?;
    if let Some(text) = microcode::newer(&header.session.cpu, &machine.cpu) {
        log::info!("{}: {text}", Phase::ResumeCheck);
    }
    Ok(())
}

/// Whether the session's filesystems and swap areas were written since the save. A disk that is not here keeps nothing
/// from being resumed: the session finds it gone too.
fn written(header: &Header, policy: &Policy) -> Written {
    let found = filesystems::compare_within(&header.session, policy.image.wait, Names::read);
    let list = [found.absent, found.unsure.clone()].concat().join(", ");
    if !list.is_empty() && found.changed.is_none() {
        log::warn!("{}: it is not known whether another system has written to them: {list}", Phase::ResumeCheck);
    }
    match found.changed {
        Some(changed) => Written::Since(changed),
        None if found.unsure.is_empty() => Written::No,
        None => Written::Perhaps(found.unsure.join(", ")),
    }
}

/// Whether the next boot can tell if this one writes to the session's filesystems or swap areas.
fn can_tell(header: &Header) -> bool {
    let found = filesystems::compare(&header.session, &Names::read());
    let list = [found.absent, found.unsure].concat();
    if !list.is_empty() {
        log::warn!("{}: the image cannot be kept: {} cannot be compared", Phase::ResumeCheck, list.join(", "));
    }
    list.is_empty()
}
