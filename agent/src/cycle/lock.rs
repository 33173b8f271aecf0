//! One hibernation at a time, and none while `dormouse prepare` sees to the image.

use std::fs::{File, OpenOptions};
use std::path::Path;

use anyhow::{Context, anyhow};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::cycle::last;

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
    let path = Path::new(last::FOLDER).join("lock");
    let open = || {
        std::fs::create_dir_all(last::FOLDER)?;
        OpenOptions::new().create(true).truncate(false).write(true).open(&path)
    };
    let file = open().with_context(|| format!("{}: cannot open it; run as root", path.display()))?;
    let file = Flock::lock(file, how).map_err(|(_, error)| match error {
        Errno::EWOULDBLOCK => {
            anyhow!("another `dormouse hibernate` or `dormouse prepare` is running; try again when it has finished")
        }
        error => anyhow!("{}: cannot lock it: {error}", path.display()),
    })?;
    Ok(Lock { _file: file })
}
