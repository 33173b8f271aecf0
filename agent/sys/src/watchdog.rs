//! A hardware watchdog: a timer that restarts the machine unless it is set back in time.

#![expect(unsafe_code, reason = "ioctl(2)")]

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::time::Duration;

mod raw {
    //! The requests, from include/uapi/linux/watchdog.h.
    nix::ioctl_readwrite!(wdioc_settimeout, b'W', 6, libc::c_int);
}

/// The first one.
const DEVICE: &str = "/dev/watchdog0";
/// Whether it cannot be stopped once it has been started (drivers/watchdog/watchdog_dev.c, `nowayout_show`).
const NO_WAY_OUT: &str = "/sys/class/watchdog/watchdog0/nowayout";

/// A watchdog that is running.
#[derive(Debug)]
pub struct Watchdog {
    device: File,
    /// After how long it restarts the machine.
    pub timeout: Duration,
}

impl Watchdog {
    /// Starts the machine's watchdog with about this timeout. `None` where there is none, or where it is not certain
    /// that it can be stopped again.
    ///
    /// # Errors
    /// It exists and cannot be used.
    pub fn start(timeout: Duration) -> io::Result<Option<Watchdog>> {
        if std::fs::read_to_string(NO_WAY_OUT).ok().is_none_or(|text| text.trim() != "0") {
            return Ok(None);
        }
        let device = OpenOptions::new().write(true).open(DEVICE)?;
        let mut seconds = libc::c_int::try_from(timeout.as_secs()).map_err(io::Error::other)?;
        // SAFETY: the descriptor is open for the whole call, and the kernel reads and writes one int at `seconds`.
        let set = unsafe { raw::wdioc_settimeout(device.as_raw_fd(), &raw mut seconds) };
        if set.is_err() {
            // One that has a timeout of its own keeps it.
            seconds = 0;
        }
        let mut watchdog = Watchdog { device, timeout: Duration::from_secs(u64::try_from(seconds).unwrap_or(0)) };
        watchdog.set_back()?;
        Ok(Some(watchdog))
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
}
