//! `/dev/snapshot`, as far as it freezes processes for whoever has it open.

#![expect(unsafe_code, reason = "ioctl(2)")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

mod raw {
    //! The requests, from include/uapi/linux/suspend_ioctls.h.
    nix::ioctl_none!(snapshot_freeze, b'3', 1);
    nix::ioctl_none!(snapshot_unfreeze, b'3', 2);
}

/// Freezes every process and thread but the calling thread. What `device` has frozen is thawed when it is closed, also
/// by the end of the process (Linux 6.12, kernel/power/user.c).
///
/// # Errors
/// `EBUSY` where one does not stop; all go on then.
pub fn freeze(device: &File) -> io::Result<()> {
    // SAFETY: the request has no argument.
    unsafe { raw::snapshot_freeze(device.as_raw_fd()) }?;
    Ok(())
}

/// Lets them go on.
///
/// # Errors
/// Those of `ioctl(2)`.
pub fn thaw(device: &File) -> io::Result<()> {
    // SAFETY: the request has no argument.
    unsafe { raw::snapshot_unfreeze(device.as_raw_fd()) }?;
    Ok(())
}
