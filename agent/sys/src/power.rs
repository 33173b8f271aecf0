//! `reboot(2)`: the ways in which a kernel stops running.

#![expect(unsafe_code, reason = "nix's reboot() cannot report a return, and a kexec jump returns after the resume")]

use std::io;

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
