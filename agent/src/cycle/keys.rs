//! The keys of the image that a policy names: used by a hibernation, and changed by `dormouse key`.

use std::io::{self, IsTerminal};
use std::path::Path;

use dormouse_image::Uuid;
use dormouse_image::seal::{SaveKey, Sealing};
use dormouse_linux::error_chain::in_full;
use dormouse_linux::tpm::Tpm;

use crate::console::phase::Phase;
use crate::cycle::disk::open_image;
use crate::cycle::lock::Lock;
use crate::key::manage::{self, Added, Bunch, Listed, Removed};
use crate::key::{self, KeyError, Ring};
use crate::policy::{Policy, SealKey, Then};
use crate::store::{Access, Image};
use crate::target::{self, Opened};

/// A kind of key that is to be added.
#[derive(Debug)]
pub enum NewKey<'a> {
    /// A secret in a new file.
    File(&'a Path),
    /// A passphrase, and the memory that trying one takes, in KiB, where it is chosen.
    Passphrase(&'a [u8], Option<u32>),
    /// The machine's TPM, with these registers.
    Tpm2(u32),
}

/// Adds a key to the policy's image.
///
/// # Errors
/// [`KeyError`]; the image cannot be opened. Nothing has changed then.
pub fn add(policy: &Policy, new: &NewKey<'_>, is_reset: bool) -> anyhow::Result<Added> {
    let _lock = Lock::take_for_image()?;
    let Opened { target, image } = open_image(policy, Access::Write)?;
    let mut bunch = Bunch::open(&target, &image, is_reset)?;
    Ok(match new {
        NewKey::File(path) => bunch.add_file(path)?,
        NewKey::Passphrase(passphrase, memory_kib) => bunch.add_passphrase(passphrase, *memory_kib)?,
        NewKey::Tpm2(pcrs) => bunch.add_tpm(*pcrs)?,
    })
}

/// The keys of the policy's image.
///
/// # Errors
/// They cannot be read.
pub fn list(policy: &Policy) -> anyhow::Result<Listed> {
    Ok(manage::list(&open_image(policy, Access::Read)?.image)?)
}

/// Takes a key away from the policy's image.
///
/// # Errors
/// [`KeyError`]; the image cannot be opened. Nothing has changed then.
pub fn remove(policy: &Policy, id: u32) -> anyhow::Result<Removed> {
    let _lock = Lock::take_for_image()?;
    let Opened { target, image } = open_image(policy, Access::Write)?;
    Ok(Bunch::open(&target, &image, false)?.remove(id)?)
}

/// Makes the TPM's key again, for what this boot has measured; at each ordinary boot. Returns its number, or `None`
/// where there is none, or a session waits that the old one opens.
///
/// # Errors
/// The TPM does not do it; then the image cannot be opened by it.
pub fn renew_tpm(policy: &Policy) -> anyhow::Result<Option<u32>> {
    let Opened { target, image } = match open_image(policy, Access::Write) {
        Ok(opened) => opened,
        // What has no key is not looked for.
        Err(_) if policy.image.key != SealKey::Tpm2 => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    if image.commit().state.is_waiting() || Ring::load(image.label().uuid)?.is_none() {
        return Ok(None);
    }
    Ok(Bunch::open(&target, &image, false)?.renew_tpm(&mut || Ok(Box::new(Tpm::open()?)))?)
}

/// Whether images of this policy are sealed.
#[must_use]
pub fn seals(policy: &Policy) -> bool {
    let has_keys = || {
        let target = target::resolve(&policy.image.device).ok().flatten()?;
        let image = target.open(Access::Read).ok()?;
        let ring = Ring::load(image.label().uuid).ok().flatten()?;
        Some(!ring.keys.slots.is_empty())
    };
    policy.image.key != SealKey::None || has_keys() == Some(true)
}

/// The key of the save in an image, if it is at hand in a running system: by a secret in a file.
///
/// # Errors
/// [`KeyError`].
pub fn at_hand(image: &Image) -> anyhow::Result<Option<SaveKey>> {
    Ok(key::for_reading(image)?)
}

/// The same, or by a passphrase that is asked for where there is a terminal.
///
/// # Errors
/// [`KeyError`].
pub fn asked_for(image: &Image) -> anyhow::Result<Option<SaveKey>> {
    match key::for_reading(image)? {
        None if io::stdin().is_terminal() => Ok(key::by_asking_here(image)?),
        key => Ok(key),
    }
}

/// What the next save of an image is to be sealed with.
///
/// # Errors
/// [`KeyError`]: it must be sealed, and cannot be.
pub(super) fn for_save(policy: &Policy, opened: &Opened, save_id: Uuid) -> Result<Option<Sealing>, KeyError> {
    let sealing = key::for_save(policy, &opened.target, &opened.image, save_id)?;
    match &sealing {
        Some(sealing) => {
            let (suite, count) = (sealing.suite, sealing.wraps.len());
            log::info!("{}: the image is sealed with {suite}, for {count} keys", Phase::HibernatePrepare);
        }
        None => log::info!("{}: the image is not sealed", Phase::HibernatePrepare),
    }
    Ok(sealing)
}

/// Opens an image with a key that is at hand in a running system, if there is one.
pub(super) fn unlock_here(image: &mut Image) {
    if !image.is_sealed() || !image.commit().state.holds_a_session() {
        return;
    }
    let unlocked = key::for_reading(image).map(|key| key.map(|key| image.unlock(Some(&key))));
    if let Err(error) = unlocked {
        log::debug!("{}", in_full(&error));
    }
}

/// That the next boot expects a save: it is recorded where only a holder of the key can write it, as long as this
/// lives.
#[derive(Debug)]
#[must_use]
pub(super) struct Expectation {
    image: Uuid,
    is_needed: bool,
    is_raised: bool,
}

impl Expectation {
    /// None yet. A session that goes on expects no boot, and an image that is not sealed has nowhere to record it.
    pub(super) fn of(image: Uuid, then: Then, is_sealed: bool) -> Expectation {
        Expectation { image, is_needed: is_sealed && then != Then::Return, is_raised: false }
    }

    /// Records it, durably.
    ///
    /// # Errors
    /// [`KeyError::File`].
    pub(super) fn raise(mut self, save_id: Uuid) -> Result<Expectation, KeyError> {
        if self.is_needed {
            // Half of it may have been done.
            self.is_raised = true;
            key::expect(self.image, save_id)?;
        }
        Ok(self)
    }
}

impl Drop for Expectation {
    fn drop(&mut self) {
        if self.is_raised
            && let Err(error) = key::expect_none(self.image)
        {
            log::warn!("{}: a save is still expected: {}", Phase::HibernateReturn, in_full(&error));
        }
    }
}
