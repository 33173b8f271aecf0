//! `reboot(2)`: the ways in which a kernel stops running.

#![expect(
    unsafe_code,
    reason = "nix's reboot() cannot report a return, and a kexec jump returns after the resume; ioctl(2)"
)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

mod raw {
    //! The requests, from include/uapi/linux/suspend_ioctls.h.
    nix::ioctl_write_int_bad!(snapshot_platform_support, nix::request_code_none!(b'3', 15));
    nix::ioctl_none_bad!(snapshot_power_off, nix::request_code_none!(b'3', 16));
}

/// The kernel's interface for a hibernation from user space.
const SNAPSHOT: &str = "/dev/snapshot";

/// What `reboot(2)` is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Power off.
    PowerOff,
    /// Restart through the firmware.
    Restart,
    /// Enter what `kexec_load(2)` loaded.
    Kexec,
}

/// Asks for `command`. Nothing is synced.
///
/// Returns `Ok` only from [`Command::Kexec`] with a preserved context, after the other kernel has jumped back.
///
/// # Errors
/// `EPERM`; from [`Command::Kexec`] also `EINVAL` (nothing is loaded) and `EBUSY` (a process or a device
/// could not be frozen; everything continues as before).
pub fn reboot(command: Command) -> io::Result<()> {
    let how = match command {
        Command::PowerOff => libc::RB_POWER_OFF,
        Command::Restart => libc::RB_AUTOBOOT,
        Command::Kexec => libc::RB_KEXEC,
    };
    // SAFETY: the call takes a number and no pointers.
    let result = unsafe { libc::reboot(how) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Enters ACPI's sleep state S4, with nothing saved by the kernel itself (kernel/power/user.c, `snapshot_ioctl`;
/// kernel/power/hibernate.c, `hibernation_platform_enter`). Devices are suspended as for a power-off, and write their
/// caches. Returns only with the reason why the machine is still on.
#[must_use]
pub fn enter_s4() -> io::Error {
    let request = || -> io::Result<()> {
        let snapshot = File::open(SNAPSHOT)?;
        // SAFETY: the descriptor is open for the whole call, which takes a number and no pointers.
        unsafe { raw::snapshot_platform_support(snapshot.as_raw_fd(), 1) }?;
        // SAFETY: the descriptor is open for the whole call, which takes nothing else.
        unsafe { raw::snapshot_power_off(snapshot.as_raw_fd()) }?;
        Ok(())
    };
    request().err().unwrap_or_else(|| io::Error::other("the kernel has done nothing"))
}
