//! The flag of a file that keeps everybody from writing or removing it. efivarfs sets it on most variables.

#![expect(unsafe_code, reason = "ioctl(2)")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use nix::errno::Errno;

mod raw {
    //! include/uapi/linux/fs.h. Both are declared with a long, and read or write an int.
    nix::ioctl_read!(get_flags, b'f', 1, libc::c_long);
    nix::ioctl_write_ptr!(set_flags, b'f', 2, libc::c_long);
}

/// `FS_IMMUTABLE_FL`.
const IMMUTABLE: libc::c_long = 0x10;

/// Takes the flag from an open file, where it has it.
///
/// # Errors
/// The flags cannot be read or set. A filesystem without flags is none.
pub fn clear(file: &File) -> io::Result<()> {
    let mut flags: libc::c_long = 0;
    // SAFETY: the descriptor is open, and the kernel writes an int to a long.
    match unsafe { raw::get_flags(file.as_raw_fd(), &raw mut flags) } {
        Ok(_) if flags & IMMUTABLE != 0 => {}
        Ok(_) | Err(Errno::ENOTTY) => return Ok(()),
        Err(error) => return Err(error.into()),
    }
    flags &= !IMMUTABLE;
    // SAFETY: as above; the kernel reads it.
    unsafe { raw::set_flags(file.as_raw_fd(), &raw const flags) }?;
    Ok(())
}
