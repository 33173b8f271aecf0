//! Telling drivers of a hibernation that the kernel does not carry out itself.
//!
//! Drivers prepare for a hibernation when they get `PM_HIBERNATION_PREPARE`, and for what follows when they get
//! `PM_POST_HIBERNATION`. The kernel sends the first when `/dev/snapshot` is opened for reading, and the second when it
//! is closed, whoever closes it (Linux 6.12, kernel/power/user.c, `snapshot_open` and `snapshot_release`). In between
//! it holds the lock that keeps hibernations apart. That alone freezes nothing and needs no swap space, and
//! `system_transition_mutex` is free again when open(2) returns.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::Path;

use dormouse_sys::snapshot;
use nix::errno::Errno;
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use thiserror::Error;

const NODE: &str = "/dev/snapshot";
/// The device's number, which a kernel without `CONFIG_HIBERNATION_SNAPSHOT_DEV` does not have.
const NUMBER: &str = "/sys/class/misc/snapshot/dev";

/// For as long as this lives, drivers take the machine for one that is being hibernated.
#[derive(Debug)]
#[must_use]
pub struct Announced {
    device: File,
}

/// For as long as this lives, every process but the calling thread is frozen.
#[derive(Debug)]
#[must_use]
pub struct Frozen<'a> {
    device: &'a File,
}

impl Announced {
    /// Freezes every process. What this returns thaws them when it is dropped.
    ///
    /// # Errors
    /// One did not stop, which the kernel log names. All go on.
    pub fn freeze(&self) -> io::Result<Frozen<'_>> {
        snapshot::freeze(&self.device)?;
        Ok(Frozen { device: &self.device })
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        // The device does the same when it is closed.
        if let Err(error) = snapshot::thaw(self.device) {
            log::warn!("{NODE}: processes are not thawed yet: {error}");
        }
    }
}

/// Why drivers could not be told.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Unannounced {
    /// The kernel has no such device.
    #[error("this kernel lacks CONFIG_HIBERNATION_SNAPSHOT_DEV")]
    Unsupported,
    /// The kernel hibernates already, or a program has the device open.
    #[error("{NODE} is in use")]
    Busy,
    /// The device cannot be made or opened by this process.
    #[error("{NODE} cannot be made")]
    NoNode(#[source] io::Error),
    /// A driver refused, or the kernel allows no hibernation; `/sys/power/disk` shows the latter.
    #[error("{NODE} cannot be opened")]
    Refused(#[source] io::Error),
}

/// Sends `PM_HIBERNATION_PREPARE`. What it returns sends `PM_POST_HIBERNATION` when it is dropped.
///
/// # Errors
/// [`Unannounced`] says why not. Drivers that have prepared themselves have been called back then.
pub fn announce() -> Result<Announced, Unannounced> {
    match File::open(NODE) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            make_node(Path::new(NUMBER))?;
            announced(File::open(NODE))
        }
        opened => announced(opened),
    }
}

/// Whether the running kernel can tell its drivers.
#[must_use]
pub fn is_supported() -> bool {
    Path::new(NUMBER).exists() || Path::new(NODE).exists()
}

fn announced(opened: io::Result<File>) -> Result<Announced, Unannounced> {
    let error = match opened {
        Ok(device) => return Ok(Announced { device }),
        Err(error) => error,
    };
    Err(match error.raw_os_error().map(Errno::from_raw) {
        // A node without a driver (drivers/char/misc.c, `misc_open`; fs/char_dev.c, `chrdev_open`).
        Some(Errno::ENOENT | Errno::ENODEV | Errno::ENXIO) => Unannounced::Unsupported,
        Some(Errno::EBUSY) => Unannounced::Busy,
        _ => Unannounced::Refused(error),
    })
}

/// Makes the node where devtmpfs has not, or somebody has removed it.
fn make_node(number: &Path) -> Result<(), Unannounced> {
    let text = match fs::read_to_string(number) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Err(Unannounced::Unsupported),
        text => text.map_err(Unannounced::NoNode)?,
    };
    let number =
        text.trim().split_once(':').and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
    let (major, minor) = number.ok_or_else(|| Unannounced::NoNode(ErrorKind::InvalidData.into()))?;
    match mknod(NODE, SFlag::S_IFCHR, Mode::S_IRUSR | Mode::S_IWUSR, makedev(major, minor)) {
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(error) => Err(Unannounced::NoNode(error.into())),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn of(errno: Errno) -> Unannounced {
        announced(Err(errno.into())).unwrap_err()
    }

    #[test]
    fn tells_a_kernel_without_it_from_one_that_is_busy_and_from_a_driver() {
        for errno in [Errno::ENOENT, Errno::ENODEV, Errno::ENXIO] {
            assert!(matches!(of(errno), Unannounced::Unsupported), "{errno}");
        }
        assert!(matches!(of(Errno::EBUSY), Unannounced::Busy));
        // NOTIFY_BAD arrives as EPERM (include/linux/notifier.h, `notifier_to_errno`).
        for errno in [Errno::EPERM, Errno::ENOMEM, Errno::EIO] {
            assert!(matches!(of(errno), Unannounced::Refused(_)), "{errno}");
        }
    }

    #[test]
    fn a_missing_number_is_a_kernel_without_it() {
        let directory = tempfile::tempdir().unwrap();
        let number = directory.path().join("dev");
        assert!(matches!(make_node(&number).unwrap_err(), Unannounced::Unsupported));
        fs::write(&number, "ten:231\n").unwrap();
        assert!(matches!(make_node(&number).unwrap_err(), Unannounced::NoNode(_)));
    }
}
