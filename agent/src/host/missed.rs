//! `dormouse prepare`: what is seen to once at each boot, when the filesystems are mounted (`dormouse.service`).
//!
//! An image that still waits then was missed by the boot's initramfs, and is given up before a later boot resumes it
//! over filesystems that this one has written to. The rest is the doctor's: problems are named where the journal keeps
//! them, as long as there is time to mend them.

use std::fmt;
use std::path::Path;

use dormouse_linux::kmsg;
use serde::Serialize;

use crate::cycle::lock::Lock;
use crate::cycle::outcome::ResumeOutcome;
use crate::cycle::{direct, keys, resume, wipe};
use crate::host::doctor::Diagnosis;
use crate::host::map_history;
use crate::policy::{Policy, PolicyError};

/// What was found at this boot.
#[derive(Debug, Clone, Serialize)]
pub struct Found {
    /// What the doctor finds.
    pub diagnosis: Diagnosis,
    /// The image that this boot has missed, if it has.
    pub missed: Option<ResumeOutcome>,
}

/// Sees to the image, then looks at everything else.
///
/// What the doctor finds is not an error: a machine that cannot be hibernated yet has booted well all the same, and a
/// unit that fails would mark the whole boot as degraded.
///
/// # Errors
/// An image that waits could not be looked at or given up, so that a later boot may resume it; or the policy cannot be
/// read, so that it is not known where it is. Given with what else was found.
pub fn run(config: &Path) -> (Found, anyhow::Result<()>) {
    kmsg::init();
    map_history::record();
    let missed = match Policy::load(config) {
        Err(PolicyError::Missing { .. }) => Ok(None),
        Err(error) => Err(error.into()),
        // Nothing else changes the image's state at the same time. What does so now is waited for: where it is refused,
        // what it would have written over is still there.
        Ok(policy) => {
            let given_up = Lock::wait().and_then(|_lock| {
                let given_up = resume::give_up_unresumed(&policy);
                keys_of_this_boot(&policy);
                if let Err(error) = direct::remove_left() {
                    log::warn!("the boot loader may start a restore kernel in vain: {error:#}");
                }
                given_up
            });
            wipe::begin(&policy, config);
            given_up
        }
    };
    let diagnosis = Diagnosis::of_this_machine(config);
    let (missed, result) = match missed {
        Ok(missed) => (missed, Ok(())),
        Err(error) => (None, Err(error)),
    };
    if let Some(outcome) = &missed {
        // To every console as well: a session was lost, and the next one will be if nothing is done.
        log::error!("{outcome}");
    }
    (Found { diagnosis, missed }, result)
}

/// Makes the TPM's key again. Without it the image is opened by the others, or not at all.
fn keys_of_this_boot(policy: &Policy) {
    match keys::renew_tpm(policy) {
        Ok(Some(id)) => log::info!("key {id} of the image is sealed to this boot by the TPM"),
        Ok(None) => {}
        Err(error) => log::error!("the TPM's key of the image is not of this boot: {error:#}"),
    }
}

/// A line for each problem, the verdict, and the image that was missed.
impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.diagnosis.problems().iter().try_for_each(|problem| writeln!(f, "{problem}"))?;
        write!(f, "{}", self.diagnosis.verdict())?;
        self.missed.as_ref().map_or(Ok(()), |outcome| write!(f, "\n{outcome}"))
    }
}
