//! A hardware watchdog: a timer that restarts the machine unless it is set back in time.

#![expect(unsafe_code, reason = "ioctl(2)")]

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, IntoRawFd};
use std::path::Path;
use std::time::Duration;

mod raw {
    //! The requests, from include/uapi/linux/watchdog.h.
    nix::ioctl_readwrite!(wdioc_settimeout, b'W', 6, libc::c_int);
}

/// A watchdog that is running.
#[derive(Debug)]
pub struct Watchdog {
    device: File,
    /// After how long it restarts the machine.
    pub timeout: Duration,
}

impl Watchdog {
    /// Starts the watchdog with this node with about this timeout.
    ///
    /// # Errors
    /// It cannot be used.
    pub fn start(node: &Path, timeout: Duration) -> io::Result<Watchdog> {
        let device = OpenOptions::new().write(true).open(node)?;
        let mut watchdog = Watchdog { device, timeout: Duration::ZERO };
        // One that has a timeout of its own keeps it.
        let _ = watchdog.set_timeout(timeout);
        watchdog.set_back()?;
        Ok(watchdog)
    }

    /// Gives it about this timeout.
    ///
    /// # Errors
    /// Those of the driver.
    pub fn set_timeout(&mut self, timeout: Duration) -> io::Result<()> {
        let mut seconds = libc::c_int::try_from(timeout.as_secs()).map_err(io::Error::other)?;
        // SAFETY: the descriptor is open for the whole call, and the kernel reads and writes one int at `seconds`.
        unsafe { raw::wdioc_settimeout(self.device.as_raw_fd(), &raw mut seconds) }?;
        self.timeout = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
        Ok(())
    }

    /// Sets it back.
    ///
    /// # Errors
    /// Those of the driver.
    pub fn set_back(&mut self) -> io::Result<()> {
        self.device.write_all(b"\0")
    }

    /// Stops it: what is written last before it is closed is the sign that this is meant
    /// (Documentation/watchdog/watchdog-api.rst, 'Magic Close').
    ///
    /// # Errors
    /// Those of the driver.
    pub fn stop(mut self) -> io::Result<()> {
        self.device.write_all(b"V")
    }

    /// Sets it back once more and leaves it running, for whoever comes next. Its node stays open, since the kernel
    /// complains where one is closed that runs.
    ///
    /// # Errors
    /// Those of the driver.
    pub fn leave(mut self) -> io::Result<()> {
        let result = self.set_back();
        let _ = self.device.into_raw_fd();
        result
    }
}
