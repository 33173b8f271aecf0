//! What a block device reports about itself.

#![expect(unsafe_code, reason = "ioctl(2)")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

mod raw {
    //! The requests, from include/uapi/linux/fs.h.
    nix::ioctl_read!(blkgetsize64, 0x12, 114, libc::size_t);
    nix::ioctl_write_ptr_bad!(blkdiscard, nix::request_code_none!(0x12, 119), [u64; 2]);
    nix::ioctl_write_ptr_bad!(blkzeroout, nix::request_code_none!(0x12, 127), [u64; 2]);
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

/// Tells the block device `device` that it need not keep `len` bytes at `offset`. What they read as then is its own
/// affair.
///
/// # Errors
/// `EOPNOTSUPP` where it does not take this; `EINVAL` where the range is not whole sectors of it; its own.
pub fn discard(device: &File, offset: u64, len: u64) -> io::Result<()> {
    // SAFETY: the descriptor is open for the whole call, and the kernel reads two u64 from the range.
    unsafe { raw::blkdiscard(device.as_raw_fd(), &[offset, len]) }?;
    Ok(())
}

/// Makes `len` bytes at `offset` of the block device `device` read as zeroes, by whatever is fastest with it.
///
/// # Errors
/// As [`discard`].
pub fn zero_out(device: &File, offset: u64, len: u64) -> io::Result<()> {
    // SAFETY: the descriptor is open for the whole call, and the kernel reads two u64 from the range.
    unsafe { raw::blkzeroout(device.as_raw_fd(), &[offset, len]) }?;
    Ok(())
}
