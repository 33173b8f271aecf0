//! The conductor in C: finds out what there is to know of an image, does what the [`verdict`] on it says, and starts D.

use std::time::Duration;

use anyhow::Context;
use dormouse_image::seal::SaveKey;
use dormouse_image::{Header, State};
use dormouse_linux::error_chain::in_full;
use dormouse_linux::plymouth::Splash;
use dormouse_linux::{kmsg, procfs};
use dormouse_sys::kexec::MAX_SEGMENTS;

use crate::console::phase::Phase;
use crate::cycle::disk;
use crate::cycle::evidence::{self, Found};
use crate::cycle::judge::{Judge, NO_HEADER, judge};
use crate::cycle::last::Last;
use crate::cycle::look::{self, Left, Look};
use crate::cycle::outcome::ResumeOutcome;
use crate::cycle::refusal::Complaint;
use crate::cycle::verdict::{Fate, Moment, Reason, Switches, Verdict};
use crate::handoff::arguments::BootSwitches;
use crate::handoff::order::{Order, RestoreOrder};
use crate::key::OfThisBoot;
use crate::launch::SecondKernel;
use crate::machine::Machine;
use crate::policy::Policy;
use crate::store::{Access, Image, NotDiscarded, StoreError};
use crate::target::{self, IfFile, Opened, Opening, Reached, Target, TargetError};

/// Between two looks for an image device without which no boot goes on.
const PAUSE: Duration = Duration::from_secs(2);

/// Resumes the saved session, or returns why there is nothing to resume; `None` where this boot has reported that
/// already.
///
/// An image that exists and is not resumed is discarded: once this boot has mounted its filesystems, resuming would
/// destroy them. A first look leaves to the second what only that one can tell.
///
/// # Errors
/// The image device could not be read, or an image not be discarded. The boot goes on all the same.
pub fn run(policy: &Policy, look: Look) -> anyhow::Result<Option<ResumeOutcome>> {
    kmsg::init();
    let mut wait = policy.image.wait;
    if let Some(first) = Last::resume_of_this_boot().filter(|_| look == Look::AfterUnlock) {
        match look::left(&first) {
            Left::Evidence => {
                evidence::record_unlocked(policy, first);
                return Ok(None);
            }
            Left::All => {}
            // The first look has waited for it already.
            Left::Device => wait = Duration::ZERO,
        }
    }
    disk::record(policy);
    let mut found = Found::nothing_yet(policy);
    let result = look_and_resume(policy, look, wait, &mut found);
    if look != Look::BeforeUnlock {
        found.unlocked = Some(evidence::unlocked(policy));
    }
    let ended = result.as_ref().map(|outcome| (outcome.id(), outcome.to_string())).map_err(Complaint::of);
    evidence::record(ended, found);
    result.map(Some)
}

fn look_and_resume(policy: &Policy, look: Look, wait: Duration, found: &mut Found) -> anyhow::Result<ResumeOutcome> {
    let switches = BootSwitches::parse(&procfs::text("/proc/cmdline")?);
    if let Some(mistake) = &switches.mistake {
        log::warn!("{}: {mistake}; it changes nothing", Phase::ResumeCheck);
    }
    let switches = if switches.forbids() { Switches::Off } else { Switches::Resume };
    log::info!("{}: looking for {}", Phase::ResumeCheck, policy.image.device);
    let (_reached, opened) = loop {
        let (reached, opened) = reach_and_open(policy, wait);
        let is_awaited = policy.resume.require && switches == Switches::Resume;
        match &opened {
            Err(error) if is_awaited && is_absent(error) => {
                log::warn!("{}: {}; still waiting (resume.require)", Phase::ResumeCheck, in_full(error));
                std::thread::sleep(PAUSE);
            }
            _ => break (reached, opened),
        }
    };
    found.look(&opened);
    let Opened { target, mut image } = match opened {
        Err(TargetError::Store(StoreError::NotInitialised { name: device })) => {
            return Ok(ResumeOutcome::NoImage { device, state: None });
        }
        Err(error @ TargetError::Ambiguous { .. }) => return leave_several(policy, &error),
        Err(error @ TargetError::OtherDisk { .. }) => return Ok(ResumeOutcome::OtherDisk { reason: in_full(&error) }),
        result => result?,
    };
    let device = target.to_string();
    let moment = match look {
        Look::BeforeUnlock if look::needs_unlock(policy, &image) => Moment::Locked(switches),
        Look::Only | Look::BeforeUnlock | Look::AfterUnlock => Moment::Boot(switches),
    };
    match judged(&mut image, moment, policy) {
        (Verdict::Nothing, ..) => Ok(ResumeOutcome::NoImage { device, state: Some(image.commit().state) }),
        (Verdict::Later, ..) => Ok(ResumeOutcome::AwaitsUnlock { device }),
        (Verdict::Refuse { reason, image: fate }, ..) => {
            if fate == Fate::Keep {
                // Durably, before the boot goes on.
                image.keep().context(NotCounted)?;
                target.confirm(&image)?;
            }
            carry_out(&target, &mut image, &reason, fate)?;
            Ok(ResumeOutcome::Refused { device, reason, image: fate })
        }
        (Verdict::Resume, header, key) => {
            let started = header.context(NO_HEADER).and_then(|header| start(policy, &mut image, &header, key));
            let error = match started {
                Ok(never) => match never {},
                Err(error) => error,
            };
            let reason = format!("the restore kernel could not be started: {error:#}");
            discard(&target, &mut image, &reason)?;
            Ok(ResumeOutcome::StartFailed { device, reason })
        }
    }
}

/// Gives up an image that waits although this boot is over with its initramfs; `None` where none does. The filesystems
/// are mounted by now, so that it stays only by policy, and only where the next boot can tell what this one has done to
/// them.
///
/// # Errors
/// There is an image device that cannot be looked at or written to.
pub fn give_up_unresumed(policy: &Policy) -> anyhow::Result<Option<ResumeOutcome>> {
    let Opened { target, mut image } = match open(policy, IfFile::Trust, policy.image.wait) {
        Err(
            TargetError::NotFound { .. }
            | TargetError::OtherDisk { .. }
            | TargetError::Store(StoreError::NotInitialised { .. }),
        ) => return Ok(None),
        Err(error @ TargetError::Ambiguous { .. }) => return leave_several(policy, &error).map(Some),
        // The network is the system's own affair. A session that waits there is known by its filesystems to be over.
        Err(TargetError::Store(error @ StoreError::Open { .. })) if policy.image.device.is_remote() => {
            log::warn!("{}", in_full(&error));
            return Ok(None);
        }
        result => result?,
    };
    let boot_id = procfs::boot_id()?;
    let resume = Last::resume_of_this_boot().map(|last| last.text);
    match judged(&mut image, Moment::Missed { boot_id, resume }, policy).0 {
        Verdict::Refuse { reason, image: fate } => {
            carry_out(&target, &mut image, &reason, fate)?;
            Ok(Some(ResumeOutcome::Missed { device: target.to_string(), reason, image: fate }))
        }
        Verdict::Nothing | Verdict::Later | Verdict::Resume => Ok(None),
    }
}

/// Several devices have the name of the image device: an image stays only where the next boot can tell what this one
/// does to the session's filesystems.
fn leave_several(policy: &Policy, error: &TargetError) -> anyhow::Result<ResumeOutcome> {
    let text = in_full(error);
    let mut discarded = Vec::new();
    if let TargetError::Ambiguous { first, second, .. } = error {
        for target in [first, second] {
            let Ok(mut image) = target.open(Access::Write) else { continue };
            let (verdict, ..) = judged(&mut image, Moment::Ambiguous(text.clone()), policy);
            if let Verdict::Refuse { reason, image: fate @ Fate::Discard } = verdict {
                carry_out(target, &mut image, &reason, fate)?;
                discarded.push(target.to_string());
            }
        }
    }
    Ok(ResumeOutcome::SeveralDevices { reason: Reason::AmbiguousDevices(text), discarded })
}

/// A boot that keeps an image could not be counted.
#[derive(Debug, thiserror::Error)]
#[error("the image is kept, and that could not be counted")]
struct NotCounted;

/// The verdict of this boot.
fn judged(image: &mut Image, moment: Moment, policy: &Policy) -> (Verdict, Option<Header>, Option<SaveKey>) {
    let mut means = OfThisBoot { wait: policy.image.wait };
    judge(image, moment, &mut Judge { policy, machine: Machine::read, means: &mut means })
}

/// Opens the image where nothing is mounted, and by a network if it takes one, which is taken down when that is
/// dropped.
fn reach_and_open(policy: &Policy, wait: Duration) -> (Option<Reached>, Result<Opened, TargetError>) {
    match target::reach_in_boot(&policy.image.device, policy.image.link.as_ref(), wait) {
        Ok(reached) => (Some(reached), open(policy, IfFile::Refuse, wait)),
        Err(error) => (None, Err(error)),
    }
}

/// Whether the image device is not there, and may come.
fn is_absent(error: &TargetError) -> bool {
    match error {
        TargetError::NotFound { .. } | TargetError::NoWay(_) | TargetError::Down(_) => true,
        // A server that does not answer.
        TargetError::Store(StoreError::Open { .. }) => true,
        _ => false,
    }
}

fn open(policy: &Policy, if_file: IfFile, wait: Duration) -> Result<Opened, TargetError> {
    let how = Opening { access: Access::Write, wait, if_file };
    target::open_on(&policy.image.device, disk::expected(policy).as_ref(), how)
}

fn carry_out(target: &Target, image: &mut Image, reason: &Reason, fate: Fate) -> anyhow::Result<()> {
    match fate {
        Fate::Keep => Ok(()),
        Fate::Discard => discard(target, image, &reason.to_string()),
    }
}

fn discard(target: &Target, image: &mut Image, reason: &str) -> anyhow::Result<()> {
    image.transition(State::Discarded, reason).context(NotDiscarded)?;
    target.confirm(image).context(NotDiscarded)
}

/// Loads D into the image's region and jumps. Returns only with the reason why it could not.
fn start(
    policy: &Policy,
    image: &mut Image,
    header: &Header,
    key: Option<SaveKey>,
) -> anyhow::Result<std::convert::Infallible> {
    log::info!("{}: kernel D goes to {}", Phase::ResumeLoad, header.session.region);
    let mut splash = Splash::say("Resuming from hibernation");
    let machine = Machine::read()?;
    let (name, save_id) = (image.name(), header.session.save_id);
    let link = target::link_to(&name)?;
    let order = Order::Restore(RestoreOrder { image: name, save_id, key, link });
    let kernel =
        SecondKernel::plan(&machine, policy, &order, header.session.region, &header.session.low, MAX_SEGMENTS)?;
    log::debug!("{}: command line of D: {}", Phase::ResumeLoad, kernel.command_line());
    let loaded = kernel.load().context("kexec_load was refused")?;
    // From here on only the kernel that is loaded needs the key.
    drop(order);
    image.lock();
    // Counted here and not in D, which may be unable to find the device: a restore that dies is not tried forever.
    image.begin_restore()?;
    log::info!("{}: resuming the session of {}", Phase::ResumeJump, header.session.hostname);
    if let Some(splash) = &mut splash {
        splash.hide();
    }
    loaded.jump_for_good().context("the jump was refused")
}
