//! What this boot is to do, decided from what it was told and from what it finds. Pure.

use dormouse_image::{ImageDevice, Uuid};
use thiserror::Error;

use crate::handoff::arguments::{BootMode, Cmdline};
use crate::launch::WayBack;
use crate::policy::Then;

/// What a boot finds, whatever it was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Evidence {
    /// There is a `/proc/vmcore`: some kernel was stopped before this one.
    pub vmcore: bool,
    /// There is a session record in the initramfs: a loader of ours put it there.
    pub session: bool,
}

/// What a boot is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mode {
    /// This is B.
    Save(SavePlan),
    /// This is D.
    Restore(RestorePlan),
}

/// How B is to save.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SavePlan {
    /// The way back into A.
    pub way: WayBack,
    /// The image device.
    pub image: ImageDevice,
    /// The save that this boot was started for.
    pub session: Uuid,
    /// What follows.
    pub then: Then,
}

/// How D is to restore.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestorePlan {
    /// Where the bridge may be put; the entry that it leads to is in the image.
    pub bridge: u64,
    /// The image device.
    pub image: ImageDevice,
    /// The save that C looked at and decided to resume.
    pub session: Uuid,
}

/// Why a boot has nothing that it could do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Decline {
    /// Not started by our loader.
    #[error(
        "the kernel command line has no dormouse.mode; this initramfs is started by `dormouse`, not by a boot loader"
    )]
    NoMode,
    /// An argument that the loader always gives is not there.
    #[error("the kernel command line has no {0}")]
    Missing(&'static str),
    /// The entry stub did not run.
    #[error("dormouse.entry was not filled in: this kernel was not entered by a jump that preserves its caller")]
    NoEntry,
    /// The stopped kernel's memory cannot be read.
    #[error("there is no /proc/vmcore; the save kernel needs CONFIG_PROC_VMCORE")]
    NoVmcore,
    /// The loader's record is not there.
    #[error("the initramfs has no session record")]
    NoSession,
}

/// The way back into A, as soon as anything is known of it: whatever else is wrong, B must take it.
#[must_use]
pub fn way_back(cmdline: &Cmdline) -> Option<WayBack> {
    let entry = cmdline.entry.filter(|entry| *entry != 0)?;
    Some(WayBack { entry, bridge: cmdline.bridge? })
}

/// Decides.
///
/// A jump-back entry alone proves nothing: other loaders leave one on the command lines of ordinary boots too.
///
/// # Errors
/// [`Decline`] says what is missing.
pub fn decide(cmdline: &Cmdline, evidence: Evidence) -> Result<Mode, Decline> {
    let mode = cmdline.mode.ok_or(Decline::NoMode)?;
    let image = cmdline.image.clone().ok_or(Decline::Missing("dormouse.image"))?;
    let session = cmdline.session.ok_or(Decline::Missing("dormouse.session"))?;
    let bridge = cmdline.bridge.ok_or(Decline::Missing("dormouse.bridge"))?;
    match mode {
        BootMode::Restore => Ok(Mode::Restore(RestorePlan { bridge, image, session })),
        BootMode::Save => {
            let way = way_back(cmdline).ok_or(Decline::NoEntry)?;
            let then = cmdline.then.ok_or(Decline::Missing("dormouse.then"))?;
            match evidence {
                Evidence { vmcore: false, .. } => Err(Decline::NoVmcore),
                Evidence { session: false, .. } => Err(Decline::NoSession),
                _ => Ok(Mode::Save(SavePlan { way, image, session, then })),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const ALL: Evidence = Evidence { vmcore: true, session: true };
    const SAVE: &str = "dormouse.mode=save dormouse.image=/dev/vda dormouse.then=poweroff dormouse.bridge=0x8ff0000 \
        dormouse.session=01234567-89ab-cdef-0123-456789abcdef dormouse.entry=0x000000002f1e3050";

    fn decide_without(argument: &str, evidence: Evidence) -> Result<Mode, Decline> {
        let line: Vec<&str> = SAVE.split_whitespace().filter(|word| !word.starts_with(argument)).collect();
        decide(&Cmdline::parse(&line.join(" ")).unwrap(), evidence)
    }

    #[test]
    fn a_save_has_all_its_arguments_and_a_vmcore() {
        let Mode::Save(plan) = decide_without("nothing", ALL).unwrap() else { unreachable!() };
        assert_eq!(plan.way, WayBack { entry: 0x2f1e_3050, bridge: 0x8ff_0000 });
        for (argument, expected) in [
            ("dormouse.mode", Decline::NoMode),
            ("dormouse.image", Decline::Missing("dormouse.image")),
            ("dormouse.then", Decline::Missing("dormouse.then")),
            ("dormouse.bridge", Decline::Missing("dormouse.bridge")),
            ("dormouse.session", Decline::Missing("dormouse.session")),
            ("dormouse.entry", Decline::NoEntry),
        ] {
            assert_eq!(decide_without(argument, ALL), Err(expected));
        }
        assert_eq!(decide_without("nothing", Evidence { vmcore: false, ..ALL }), Err(Decline::NoVmcore));
        assert_eq!(decide_without("nothing", Evidence { session: false, ..ALL }), Err(Decline::NoSession));
    }

    #[test]
    fn a_restore_needs_neither_entry_nor_vmcore() {
        let line = SAVE.replace("mode=save", "mode=restore");
        let mode = decide(&Cmdline::parse(&line).unwrap(), Evidence::default()).unwrap();
        assert!(matches!(mode, Mode::Restore(RestorePlan { bridge: 0x8ff_0000, .. })));
    }

    #[test]
    fn an_entry_that_was_not_filled_in_is_no_way_back() {
        let line = SAVE.replace("2f1e3050", "00000000");
        assert_eq!(way_back(&Cmdline::parse(&line).unwrap()), None);
    }
}
