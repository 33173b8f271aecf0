//! `dormouse prepare`: what is seen to once at each boot, when the filesystems are mounted (`dormouse.service`).
//!
//! An image that still waits then was missed by the boot's initramfs, and is given up before a later boot resumes it
//! over filesystems that this one has written to. The rest is the doctor's: problems are named where the journal keeps
//! them, as long as there is time to mend them.

use std::path::Path;

use dormouse_linux::kmsg;

use crate::cycle::lock::Lock;
use crate::cycle::resume;
use crate::host::doctor::Diagnosis;
use crate::policy::{Policy, PolicyError};

/// Sees to the image, then looks at everything else, and says line by line what it found.
///
/// What the doctor finds is not an error: a machine that cannot be hibernated yet has booted well all the same, and a
/// unit that fails would mark the whole boot as degraded.
///
/// # Errors
/// An image that waits could not be looked at or given up, so that a later boot may resume it; or the policy cannot be
/// read, so that it is not known where it is.
pub fn run(config: &Path, mut say: impl FnMut(&str) -> anyhow::Result<()>) -> anyhow::Result<()> {
    kmsg::init();
    let unresumed = match Policy::load(config) {
        Err(PolicyError::Missing { .. }) => Ok(None),
        Err(error) => Err(error.into()),
        // Nothing else changes the image's state at the same time. What does so now is waited for: where it is refused,
        // what it would have written over is still there.
        Ok(policy) => Lock::wait().and_then(|_lock| resume::give_up_unresumed(&policy)),
    };
    let diagnosis = Diagnosis::of_this_machine(config);
    for problem in diagnosis.problems() {
        say(&problem)?;
    }
    say(&diagnosis.verdict())?;
    if let Some(line) = unresumed? {
        // To every console as well: a session was lost, and the next one will be if nothing is done.
        log::error!("{line}");
        say(&line)?;
    }
    Ok(())
}
