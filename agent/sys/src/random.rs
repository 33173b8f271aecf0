//! The kernel's random number generator: adding to what it draws from, and having it draw again.

#![expect(unsafe_code, reason = "ioctl(2)")]

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::fd::AsRawFd;

mod raw {
    //! The request, from include/uapi/linux/random.h.
    nix::ioctl_none!(rndreseedcrng, b'R', 0x07);
}

/// Mixes `bytes` into the pool, and makes the generator's next key of the pool. Nothing that the pool holds is lost,
/// and no entropy is credited, whatever the bytes are.
///
/// # Errors
/// `EPERM` without `CAP_SYS_ADMIN`; `ENODATA` where the kernel has not gathered enough to begin with.
pub fn reseed(bytes: &[u8]) -> io::Result<()> {
    let mut device = OpenOptions::new().write(true).open("/dev/urandom")?;
    device.write_all(bytes)?;
    // SAFETY: the descriptor is open for the whole call, and the request takes no argument.
    unsafe { raw::rndreseedcrng(device.as_raw_fd()) }?;
    Ok(())
}
