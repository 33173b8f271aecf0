//! One hibernation at a time, and none while `dormouse prepare` sees to the image.

use std::fs::{File, OpenOptions};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::cycle::last;
use crate::cycle::refusal::Unready;

/// Held for as long as it lives.
#[derive(Debug)]
#[must_use]
pub(crate) struct Lock {
    _file: Flock<File>,
}

impl Lock {
    /// Takes the lock, or fails where another process has it.
    ///
    /// # Errors
    /// Another process has it, or it cannot be taken.
    pub(crate) fn take() -> anyhow::Result<Lock> {
        lock(FlockArg::LockExclusiveNonblock)
    }

    /// Waits for the lock: a hibernation that is under way goes first.
    ///
    /// # Errors
    /// It cannot be taken.
    pub(crate) fn wait() -> anyhow::Result<Lock> {
        lock(FlockArg::LockExclusive)
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
