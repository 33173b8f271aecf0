//! May the session in an image be resumed here and now? The riskiest decision of all, as a pure function of what is
//! known.
//!
//! What is known comes in as [`Known`]. Out comes a [`Verdict`], or the one [`Fact`] that must be looked at first: some
//! take seconds to find, and none is looked at that does not count. In order, the first that applies:
//!
//! ```text
//!   in the initramfs         state says: no session            nothing
//!                            state says: saving or failed      discard
//!                            boot arguments, resume.enabled,
//!                            too many attempts                 discard
//!                            the key is in a volume that is
//!                            not unlocked yet                  later
//!                            header cannot be read, forged, an
//!                            old copy, or not sealed           discard
//!                            no key opens it                   keep by policy (+), else discard
//!                            another machine, or filesystems
//!                            written since the save, or may
//!                            have been and resume.unsure says
//!                            so                                keep by policy (*), else discard; another memory map
//!                                                              or older microcode is kept for a few boots
//!                            none of these                     resume
//!   after it (missed)        no session waits                  nothing
//!                            the session is this very boot     discard
//!                            it is another one                 keep by policy (*), else discard
//!   several devices          no session waits                  nothing
//!   have the image's name    one waits                         keep (*), else discard
//!
//!   (*) and only if the next boot can tell whether this one writes to the session's filesystems
//!   (+) the same, which is certain only where none was saved without that (resume.unsure); for a few boots by default
//! ```

use std::fmt;

use dormouse_image::{Commit, Header, State};
use serde::Serialize;
use thiserror::Error;

use crate::machine::compat::Mismatch;
use crate::policy::{ResumePolicy, Unfit, Unsure};

/// Restores that may begin without reaching their end: a power cut during the first one must not cost the session, and
/// an image that kills its restore must not be tried forever.
pub const ATTEMPTS: u16 = 2;

/// Boots that keep an image although the memory map or the microcode differs: some firmware has the old map again at
/// the next power-on, and another initramfs the newer microcode.
pub const KEPT: u16 = 3;

/// What is known of an image, and of the boot that found it. `None` is a fact that has not been looked at.
#[derive(Debug, Clone)]
pub struct Known<'a> {
    /// When the question is asked.
    pub moment: Moment,
    /// The image's commit record.
    pub commit: &'a Commit,
    /// The policy's `[resume]`.
    pub policy: &'a ResumePolicy,
    /// [`Fact::Header`].
    pub header: Option<Result<Header, HeaderFault>>,
    /// [`Fact::Machine`].
    pub machine: Option<Result<(), Misfit>>,
    /// [`Fact::Filesystems`].
    pub written: Option<Written>,
    /// [`Fact::Comparable`].
    pub is_comparable: Option<bool>,
}

/// When the question is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Moment {
    /// In an initramfs, before anything is mounted; with what the kernel command line asks for.
    Boot(Switches),
    /// The same, of an image whose key is in a volume that this boot has not unlocked yet.
    Locked(Switches),
    /// In a system that has mounted its filesystems, and found an image.
    Missed {
        /// The running kernel's boot_id.
        boot_id: String,
        /// What `dormouse resume` reported in this boot's initramfs, if it ran.
        resume: Option<String>,
    },
    /// At any time, of an image that may not be the one that is meant: several devices have its name, as this text
    /// says.
    Ambiguous(String),
}

/// What a boot's kernel command line asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Switches {
    /// Nothing.
    Resume,
    /// Not to: `noresume` or `dormouse=off`.
    Off,
}

/// Something that is to be looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fact {
    /// The image's header, or why it cannot be read.
    Header,
    /// Whether this machine is the one that the session was saved on.
    Machine,
    /// Whether one of the session's filesystems was written since the save.
    Filesystems,
    /// Whether the next boot can tell if this one writes to the session's filesystems.
    Comparable,
}

/// Whether the session's filesystems and swap areas were written since the save.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Written {
    /// They were not, as far as they are here.
    No,
    /// They were not, and too little was recorded of these, in words.
    Perhaps(String),
    /// The first that was, in words.
    Since(String),
}

/// Why a header cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeaderFault {
    /// It is not what was written, or needs a newer program.
    Damaged(String),
    /// The device does not give it back.
    Unreadable(String),
    /// It is sealed, and no key at hand opens it.
    NoKey(String),
    /// It was not sealed with the key that opens the image.
    Forged(String),
    /// It is that of an older save.
    Replayed(String),
    /// It is not sealed, and the policy demands that it is.
    NotSealed,
}

/// Why a session cannot go on on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Misfit {
    /// The machine differs.
    Differs(Mismatch),
    /// It cannot be found out what this machine is.
    Unknown(String),
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// No session waits in the image.
    Nothing,
    /// A session waits in it, and more can be told only when the volumes are unlocked.
    Later,
    /// The session goes on here.
    Resume,
    /// It does not.
    Refuse {
        /// Why.
        reason: Reason,
        /// What becomes of the image.
        image: Fate,
    },
}

/// What becomes of an image that is not resumed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Fate {
    /// It waits for another boot.
    #[serde(rename = "kept")]
    Keep,
    /// It is given up.
    #[serde(rename = "discarded")]
    Discard,
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Fate::Keep => "kept",
            Fate::Discard => "discarded",
        })
    }
}

/// What [`verdict`] answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// This must be looked at first.
    Look(Fact),
    /// Enough is known.
    Verdict(Verdict),
}

/// Why a session is not resumed. Its text is a clause that follows "not resuming:".
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Reason {
    /// The save died.
    #[error("the last save never finished")]
    SaveUnfinished,
    /// The save failed; why, as the image says.
    #[error("{0}")]
    SaveFailed(String),
    /// A restore failed before its jump; why, as the image says.
    #[error("{0}")]
    RestoreFailed(String),
    /// `noresume` or `dormouse=off`.
    #[error("the kernel command line says so")]
    BootArgument,
    /// `resume.enabled` is false.
    #[error("the policy says so (resume.enabled)")]
    PolicyDisabled,
    /// [`ATTEMPTS`] have died.
    #[error("{0} restores of it have already died")]
    TooManyAttempts(u16),
    /// The header is damaged.
    #[error("{0}")]
    HeaderDamaged(String),
    /// The header cannot be read from the device.
    #[error("{0}")]
    HeaderUnreadable(String),
    /// No key opens the image.
    #[error("{0}")]
    NoKey(String),
    /// The image was not made by a holder of its key.
    #[error("{0}")]
    Forged(String),
    /// The image is an old copy.
    #[error("{0}")]
    Replayed(String),
    /// The image is not sealed, and the policy demands it.
    #[error("it is not sealed, and the policy demands that it is (image.key): anybody may have written it")]
    NotSealed,
    /// Another machine.
    #[error("{0}")]
    Machine(Mismatch),
    /// It cannot be found out what this machine is.
    #[error("{0}")]
    MachineUnknown(String),
    /// Another system has written to a filesystem of the session.
    #[error("{0}")]
    FilesystemWritten(String),
    /// Another system may have written to a filesystem of the session, and too little was recorded to tell.
    #[error("it is not known whether another system has written to {0}")]
    FilesystemUnsure(String),
    /// Several devices have the name of the image device.
    #[error("{0}")]
    AmbiguousDevices(String),
    /// The image is that of the running session.
    #[error("the session in it goes on")]
    SessionGoesOn,
    /// A boot asked for the image, did not resume it, and mounted filesystems.
    #[error("a boot went on without it and mounted filesystems ({0})")]
    BootWentOn(String),
    /// A boot mounted filesystems without asking for the image.
    #[error("a boot mounted filesystems without asking for it: its initramfs does not run `dormouse resume`")]
    BootDidNotAsk,
}

impl Reason {
    /// Its identifier, which stays the same from version to version.
    #[must_use]
    pub fn id(&self) -> &'static str {
        match self {
            Reason::SaveUnfinished => "save-unfinished",
            Reason::SaveFailed(_) => "save-failed",
            Reason::RestoreFailed(_) => "restore-failed",
            Reason::BootArgument => "boot-argument",
            Reason::PolicyDisabled => "policy-disabled",
            Reason::TooManyAttempts(_) => "too-many-attempts",
            Reason::HeaderDamaged(_) => "header-damaged",
            Reason::HeaderUnreadable(_) => "header-unreadable",
            Reason::NoKey(_) => "image-no-key",
            Reason::Forged(_) => "image-forged",
            Reason::Replayed(_) => "image-replayed",
            Reason::NotSealed => "image-not-sealed",
            Reason::Machine(mismatch) => mismatch.id(),
            Reason::MachineUnknown(_) => "machine-unknown",
            Reason::FilesystemWritten(_) => "filesystem-written",
            Reason::FilesystemUnsure(_) => "filesystem-unsure",
            Reason::AmbiguousDevices(_) => "ambiguous-devices",
            Reason::SessionGoesOn => "session-goes-on",
            Reason::BootWentOn(_) => "boot-went-on",
            Reason::BootDidNotAsk => "boot-did-not-ask",
        }
    }
}

/// Decides, or names what must be looked at first. A fact that is known is not asked for again.
#[must_use]
pub fn verdict(known: &Known<'_>) -> Answer {
    match &known.moment {
        Moment::Boot(switches) => at_boot(known, switches, false),
        Moment::Locked(switches) => at_boot(known, switches, true),
        Moment::Missed { boot_id, resume } => missed(known, boot_id, resume.as_deref()),
        Moment::Ambiguous(text) => ambiguous(known, text),
    }
}

fn at_boot(known: &Known<'_>, switches: &Switches, is_locked: bool) -> Answer {
    let Known { commit, policy, .. } = known;
    match commit.state {
        State::Empty | State::Consumed | State::Discarded | State::Snapshot => {
            return Answer::Verdict(Verdict::Nothing);
        }
        // Reported once; from then on the image is discarded.
        State::Saving => return refuse(Reason::SaveUnfinished, Fate::Discard),
        State::Failed if commit.attempts == 0 => {
            return refuse(Reason::SaveFailed(commit.reason.clone()), Fate::Discard);
        }
        State::Failed => return refuse(Reason::RestoreFailed(commit.reason.clone()), Fate::Discard),
        State::Complete | State::Restoring => {}
    }
    let refused = match switches {
        Switches::Off => Some(Reason::BootArgument),
        Switches::Resume if !policy.enabled => Some(Reason::PolicyDisabled),
        Switches::Resume if commit.attempts >= ATTEMPTS => Some(Reason::TooManyAttempts(commit.attempts)),
        Switches::Resume => None,
    };
    if let Some(reason) = refused {
        return refuse(reason, Fate::Discard);
    }
    if is_locked {
        return Answer::Verdict(Verdict::Later);
    }
    match &known.header {
        None => return Answer::Look(Fact::Header),
        Some(Err(HeaderFault::NoKey(text))) => {
            return keep_unread(known, Reason::NoKey(text.clone()), known.commit.kept < KEPT);
        }
        Some(Err(fault)) => return refuse(fault.clone().into(), Fate::Discard),
        Some(Ok(_)) => {}
    }
    match &known.machine {
        None => return Answer::Look(Fact::Machine),
        Some(Err(Misfit::Differs(mismatch))) => return keep_by_policy(known, Reason::Machine(mismatch.clone())),
        Some(Err(Misfit::Unknown(text))) => return keep_by_policy(known, Reason::MachineUnknown(text.clone())),
        Some(Ok(())) => {}
    }
    match &known.written {
        None => Answer::Look(Fact::Filesystems),
        Some(Written::Since(written)) => keep_by_policy(known, Reason::FilesystemWritten(written.clone())),
        Some(Written::Perhaps(unsure)) if policy.unsure == Unsure::Refuse => {
            keep_by_policy(known, Reason::FilesystemUnsure(unsure.clone()))
        }
        Some(Written::No | Written::Perhaps(_)) => Answer::Verdict(Verdict::Resume),
    }
}

/// The filesystems are mounted by now.
///
/// A session that was resumed does not find its own image waiting: it was marked before the jump.
fn missed(known: &Known<'_>, boot_id: &str, resume: Option<&str>) -> Answer {
    if !known.commit.state.is_waiting() {
        return Answer::Verdict(Verdict::Nothing);
    }
    let went_on = match resume {
        Some(text) => Reason::BootWentOn(text.to_owned()),
        None => Reason::BootDidNotAsk,
    };
    match &known.header {
        None => Answer::Look(Fact::Header),
        Some(Ok(header)) if header.session.boot_id.to_string() == boot_id => {
            refuse(Reason::SessionGoesOn, Fate::Discard)
        }
        Some(Ok(_)) => keep_by_policy(known, went_on),
        Some(Err(HeaderFault::NoKey(_))) => {
            let was_counted = known.commit.kept > 0 && matches!(went_on, Reason::BootWentOn(_));
            keep_unread(known, went_on, was_counted)
        }
        Some(Err(_)) => refuse(went_on, Fate::Discard),
    }
}

/// Which of the devices is meant must not be guessed. What this boot goes on to do to the session's filesystems must
/// not be lost on the next one.
fn ambiguous(known: &Known<'_>, text: &str) -> Answer {
    if !known.commit.state.is_waiting() {
        return Answer::Verdict(Verdict::Nothing);
    }
    let reason = Reason::AmbiguousDevices(text.to_owned());
    match &known.header {
        None => Answer::Look(Fact::Header),
        Some(Ok(_)) => keep_if_comparable(known, reason),
        Some(Err(HeaderFault::NoKey(_))) if known.policy.unsure == Unsure::Refuse => refuse(reason, Fate::Keep),
        Some(Err(_)) => refuse(reason, Fate::Discard),
    }
}

fn keep_by_policy(known: &Known<'_>, reason: Reason) -> Answer {
    let keeps = match known.policy.mismatch {
        Unfit::Discard => false,
        Unfit::Keep => true,
        Unfit::Retry => match &reason {
            Reason::Machine(mismatch) => mismatch.may_return() && known.commit.kept < KEPT,
            // What this boot's initramfs has kept and counted, the rest of the boot keeps too.
            Reason::BootWentOn(_) => known.commit.kept > 0,
            _ => false,
        },
    };
    if keeps { keep_if_comparable(known, reason) } else { refuse(reason, Fate::Discard) }
}

/// Of an image that is not opened, nobody sees which filesystems it names. A policy that saves none that could not be
/// compared has saved none; a boot that has the key compares. `retries` is whether the default keeps it.
fn keep_unread(known: &Known<'_>, reason: Reason, retries: bool) -> Answer {
    let keeps = match known.policy.mismatch {
        Unfit::Discard => false,
        Unfit::Keep => true,
        Unfit::Retry => retries,
    };
    refuse(reason, if keeps && known.policy.unsure == Unsure::Refuse { Fate::Keep } else { Fate::Discard })
}

fn keep_if_comparable(known: &Known<'_>, reason: Reason) -> Answer {
    match known.is_comparable {
        None => Answer::Look(Fact::Comparable),
        Some(true) => refuse(reason, Fate::Keep),
        Some(false) => refuse(reason, Fate::Discard),
    }
}

fn refuse(reason: Reason, image: Fate) -> Answer {
    Answer::Verdict(Verdict::Refuse { reason, image })
}

impl From<HeaderFault> for Reason {
    fn from(fault: HeaderFault) -> Reason {
        match fault {
            HeaderFault::Damaged(text) => Reason::HeaderDamaged(text),
            HeaderFault::Unreadable(text) => Reason::HeaderUnreadable(text),
            HeaderFault::NoKey(text) => Reason::NoKey(text),
            HeaderFault::Forged(text) => Reason::Forged(text),
            HeaderFault::Replayed(text) => Reason::Replayed(text),
            HeaderFault::NotSealed => Reason::NotSealed,
        }
    }
}

#[cfg(test)]
mod tests;
