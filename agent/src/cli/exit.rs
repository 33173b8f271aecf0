//! The statuses that the command exits with.

use std::process::ExitCode;

use crate::cycle::refusal::{Class, Complaint};

/// What a process's exit status says. The numbers are part of the command's interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum ExitStatus {
    /// Done.
    Done = 0,
    /// Failed, and the session is safe; of `doctor`: a check has failed.
    Failed = 1,
    /// The command line is not valid.
    Usage = 2,
    /// Refused, and nothing was changed.
    Refused = 3,
    /// Failed, and an image must be discarded by hand.
    DiscardByHand = 4,
}

impl ExitStatus {
    /// The status of a command that ended with this.
    pub(crate) fn of(complaint: &Complaint) -> ExitStatus {
        match complaint.class {
            Class::Refused => ExitStatus::Refused,
            Class::Failed => ExitStatus::Failed,
            Class::DiscardByHand => ExitStatus::DiscardByHand,
        }
    }
}

impl From<ExitStatus> for ExitCode {
    fn from(status: ExitStatus) -> ExitCode {
        ExitCode::from(status as u8)
    }
}
