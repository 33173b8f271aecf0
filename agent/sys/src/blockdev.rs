//! What a block device reports about itself.

#![expect(unsafe_code, reason = "ioctl(2)")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

mod raw {
    //! The requests, from include/uapi/linux/fs.h.
    nix::ioctl_read!(blkgetsize64, 0x12, 114, libc::size_t);
    nix::ioctl_read_bad!(blksszget, nix::request_code_none!(0x12, 104), libc::c_int);
}

/// The size of the block device `device`, in bytes.
///
/// # Errors
/// `ENOTTY` where it is not a block device.
pub fn size(device: &File) -> io::Result<u64> {
    let mut bytes: libc::size_t = 0;
    // SAFETY: the descriptor is open for the whole call, and the kernel writes one u64 to `bytes`.
    unsafe { raw::blkgetsize64(device.as_raw_fd(), &raw mut bytes) }?;
    u64::try_from(bytes).map_err(io::Error::other)
}

/// The logical sector size of the block device `device`, in bytes: the alignment of direct I/O.
///
/// # Errors
/// `ENOTTY` where it is not a block device.
pub fn sector_size(device: &File) -> io::Result<u64> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the descriptor is open for the whole call, and the kernel writes one int to `bytes`.
    unsafe { raw::blksszget(device.as_raw_fd(), &raw mut bytes) }?;
    u64::try_from(bytes).map_err(io::Error::other)
}
