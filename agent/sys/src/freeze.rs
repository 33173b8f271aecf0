//! Freezing a filesystem for a moment, which writes its journal to the places that it is about: what reads the
//! filesystem without its journal, such as a boot loader, sees all of it then.

#![expect(unsafe_code, reason = "ioctl(2)")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

mod raw {
    //! include/uapi/linux/fs.h: FIFREEZE and FITHAW, declared with an int that they do not read.
    nix::ioctl_readwrite_bad!(fifreeze, nix::request_code_readwrite!(b'X', 119, size_of::<libc::c_int>()), libc::c_int);
    nix::ioctl_readwrite_bad!(fithaw, nix::request_code_readwrite!(b'X', 120, size_of::<libc::c_int>()), libc::c_int);
}

/// Freezes the filesystem of an open file, and thaws it at once. Nothing of this process must write to it meanwhile.
///
/// # Errors
/// It cannot be frozen, is frozen already, or could not be thawed.
pub fn settle(file: &File) -> io::Result<()> {
    let mut unused = 0;
    // SAFETY: the descriptor is open, and the kernel does not use the argument.
    unsafe { raw::fifreeze(file.as_raw_fd(), &raw mut unused) }?;
    // SAFETY: as above.
    unsafe { raw::fithaw(file.as_raw_fd(), &raw mut unused) }?;
    Ok(())
}
