//! One hibernation at a time, and none while another command changes the image.

use std::fs::{File, OpenOptions};
use std::path::Path;
use std::time::Duration;

use dormouse_linux::wait::wait_for;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::cycle::last;
use crate::cycle::refusal::Unready;

/// What wipes an image holds the lock for as long as a step of it takes.
const A_MOMENT: Duration = Duration::from_secs(3);

/// Held for as long as it lives.
#[derive(Debug)]
#[must_use]
pub(crate) struct Lock {
    _file: Flock<File>,
}

impl Lock {
    /// Takes the lock, or fails where another process has it, and keeps it for longer than a moment.
    ///
    /// # Errors
    /// Another process has it, or it cannot be taken.
    pub(crate) fn take() -> anyhow::Result<Lock> {
        let mut result = lock(FlockArg::LockExclusiveNonblock);
        wait_for(A_MOMENT, || {
            let is_busy = result.as_ref().is_err_and(|error| matches!(error.downcast_ref(), Some(Unready::Busy)));
            if is_busy {
                result = lock(FlockArg::LockExclusiveNonblock);
            }
            (!is_busy).then_some(())
        });
        result
    }

    /// Waits for the lock: a hibernation that is under way goes first.
    ///
    /// # Errors
    /// It cannot be taken.
    pub(crate) fn wait() -> anyhow::Result<Lock> {
        lock(FlockArg::LockExclusive)
    }

    /// As [`Lock::take_for_image`], but waits for the lock.
    ///
    /// # Errors
    /// It cannot be taken.
    pub(crate) fn wait_if_any() -> anyhow::Result<Option<Lock>> {
        if_any(Lock::wait())
    }

    /// Takes the lock for a command that changes an image. There is none for a user who could not hibernate this
    /// machine either, and whose image is a file of his own.
    ///
    /// # Errors
    /// Another process has it.
    pub(crate) fn take_for_image() -> anyhow::Result<Option<Lock>> {
        if_any(Lock::take())
    }
}

fn if_any(result: anyhow::Result<Lock>) -> anyhow::Result<Option<Lock>> {
    match result {
        Err(error) if matches!(error.downcast_ref(), Some(Unready::Lock { .. })) => Ok(None),
        result => result.map(Some),
    }
}

fn lock(how: FlockArg) -> anyhow::Result<Lock> {
    let path = Path::new(last::DIRECTORY).join("lock");
    let open = || {
        std::fs::create_dir_all(last::DIRECTORY)?;
        OpenOptions::new().create(true).truncate(false).write(true).open(&path)
    };
    let file = open().map_err(|source| Unready::Lock { path: path.clone(), source })?;
    let file = Flock::lock(file, how).map_err(|(_, error)| match error {
        Errno::EWOULDBLOCK => Unready::Busy,
        error => Unready::Lock { path, source: error.into() },
    })?;
    Ok(Lock { _file: file })
}
