//! Dormouse's own kernel module: `/dev/dormouse`, the jump on kernels that cannot make it themselves.
//!
//! agent/module/dormouse.h has the other side of this, and the meaning of each field.

#![expect(unsafe_code, reason = "ioctl(2) with structures that hold addresses")]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};

use crate::kexec::Segment;

/// The device.
pub const DEVICE: &str = "/dev/dormouse";
/// The most segments that one image may have: `MOST_SEGMENTS`, agent/module/image.c.
pub const MAX_SEGMENTS: usize = 256;
/// What this agent and a module must have in common.
const ABI: u32 = 2;

/// `struct dormouse_segment`: a range of physical memory that the jump exchanges, and what is put there.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RawSegment {
    /// An address of this process.
    pub data: u64,
    /// In bytes; the rest of the range is zero.
    pub data_size: u64,
    /// Physical.
    pub start: u64,
    /// In bytes.
    pub size: u64,
}

mod raw {
    //! The requests and their structures.
    #![expect(unreachable_pub, reason = "nix's macros make public functions of them")]

    /// `struct dormouse_info`.
    #[repr(C)]
    #[derive(Debug, Default)]
    pub struct Info {
        pub abi: u32,
        pub obstacles: u32,
    }

    /// `struct dormouse_load`.
    #[repr(C)]
    pub struct Load {
        pub entry: u64,
        pub segments: u64,
        pub count: u64,
    }

    /// `struct dormouse_jump`.
    #[repr(C)]
    #[derive(Debug, Default)]
    pub struct Jump {
        pub jumped: u32,
        pub lost_cpus: u32,
    }

    /// `struct dormouse_range`.
    #[repr(C)]
    pub struct Range {
        pub start: u64,
        pub end: u64,
    }

    /// `struct dormouse_ranges`.
    #[repr(C)]
    pub struct Ranges {
        pub ranges: u64,
        pub count: u64,
    }

    nix::ioctl_read!(dormouse_info, 0xd0, 0, Info);
    nix::ioctl_write_ptr!(dormouse_load, 0xd0, 1, Load);
    nix::ioctl_read!(dormouse_jump, 0xd0, 2, Jump);
    nix::ioctl_write_ptr!(dormouse_ranges, 0xd0, 16, Ranges);
}

/// Why this kernel cannot be jumped from, as the module reports it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Obstacles(u32);

impl Obstacles {
    /// Memory is encrypted: SME, SEV or TDX.
    #[must_use]
    pub fn memory_is_encrypted(self) -> bool {
        self.0 & 1 << 0 != 0
    }

    /// A Xen PV guest.
    #[must_use]
    pub fn is_paravirtual(self) -> bool {
        self.0 & 1 << 1 != 0
    }

    /// Lockdown forbids it.
    #[must_use]
    pub fn is_locked_down(self) -> bool {
        self.0 & 1 << 2 != 0
    }

    /// The first CPU is offline.
    #[must_use]
    pub fn boot_cpu_is_offline(self) -> bool {
        self.0 & 1 << 3 != 0
    }
}

/// The module, open. What it has loaded is unloaded when this is dropped, however the process ends.
#[derive(Debug)]
pub struct Module {
    device: File,
}

impl Module {
    /// Opens it. `Ok(None)` is a module that an agent of another version goes with.
    ///
    /// # Errors
    /// `NotFound` without the module, `EBUSY` where another process has it open, `EPERM` without root.
    pub fn open() -> io::Result<Option<Module>> {
        let device = OpenOptions::new().read(true).custom_flags(libc::O_CLOEXEC).open(DEVICE)?;
        let module = Module { device };
        Ok((module.info()?.abi == ABI).then_some(module))
    }

    /// The one that another process has open as this descriptor, with what that has loaded, which stays loaded until
    /// both have closed it. `Ok(None)` is something else by now.
    ///
    /// # Errors
    /// There is no such process or descriptor, or no right to it.
    pub fn of_process(process: u32, descriptor: RawFd) -> io::Result<Option<Module>> {
        let device = File::from(descriptor_of(process, descriptor)?);
        let (found, wanted) = (device.metadata()?, std::fs::metadata(DEVICE)?);
        if (found.rdev(), found.mode()) != (wanted.rdev(), wanted.mode()) {
            return Ok(None);
        }
        let module = Module { device };
        Ok((module.info()?.abi == ABI).then_some(module))
    }

    /// Where this process has it open, for [`Module::of_process`].
    #[must_use]
    pub fn descriptor(&self) -> RawFd {
        self.device.as_raw_fd()
    }

    fn info(&self) -> io::Result<raw::Info> {
        let mut info = raw::Info::default();
        // SAFETY: the descriptor is open, and the kernel writes a `struct dormouse_info`, which `Info` is.
        unsafe { raw::dormouse_info(self.device.as_raw_fd(), &raw mut info) }?;
        Ok(info)
    }

    /// Why the running kernel cannot be jumped from.
    ///
    /// # Errors
    /// Those of `ioctl(2)`.
    pub fn obstacles(&self) -> io::Result<Obstacles> {
        Ok(Obstacles(self.info()?.obstacles))
    }

    /// Loads `segments`, ascending, in place of what was loaded; the jump will enter at the physical address `entry`.
    ///
    /// # Errors
    /// `EPERM` (lockdown), `EOPNOTSUPP` ([`Obstacles`]), `EADDRNOTAVAIL` (not pages of RAM), `EINVAL` (they overlap, or
    /// the entry is in none), `ENOMEM`. Nothing is loaded then.
    pub fn load(&self, entry: u64, segments: &[Segment]) -> io::Result<()> {
        let segments: Vec<RawSegment> = segments
            .iter()
            .map(|segment| RawSegment {
                data: segment.data.as_ptr().expose_provenance() as u64,
                data_size: segment.data.len() as u64,
                start: segment.start,
                size: segment.size,
            })
            .collect();
        self.load_raw(entry, &segments)
    }

    /// The same, where `data` of each segment may be any number: the kernel reads what it finds there.
    ///
    /// # Errors
    /// Those of [`Module::load`], and `EFAULT` where nothing is mapped.
    pub fn load_raw(&self, entry: u64, segments: &[RawSegment]) -> io::Result<()> {
        let load =
            raw::Load { entry, segments: segments.as_ptr().expose_provenance() as u64, count: segments.len() as u64 };
        // SAFETY: the kernel reads a `struct dormouse_load` and the array that it points to, which live until the call
        // has returned. The data of each segment it only reads, too, or finds that it cannot, and it keeps no address.
        unsafe { raw::dormouse_load(self.device.as_raw_fd(), &raw const load) }?;
        Ok(())
    }

    /// Jumps, and returns how many CPUs have not come back, when this kernel goes on. This thread must have frozen all
    /// others ([`crate::snapshot`]). A kernel that has come back by such a jump of its own, and waits, is entered where
    /// it made that.
    ///
    /// # Errors
    /// No other kernel has run: `EPERM` (not frozen), `ENOEXEC` (nothing is loaded, or what was has come back for
    /// good), or what a device or a CPU that did not go down returned.
    pub fn jump(&self) -> io::Result<u32> {
        let mut jump = raw::Jump::default();
        // SAFETY: the descriptor is open, and the kernel writes a `struct dormouse_jump`, which `Jump` is. What it does
        // to the machine meanwhile it undoes: the process finds all of its memory as it was.
        let result = unsafe { raw::dormouse_jump(self.device.as_raw_fd(), &raw mut jump) };
        // What was done decides, not how it ended.
        if jump.jumped == 0 {
            result?;
        }
        Ok(jump.lost_cpus)
    }
}

/// A duplicate of another process's descriptor.
fn descriptor_of(process: u32, descriptor: RawFd) -> io::Result<OwnedFd> {
    let pidfd = owned(|| {
        // SAFETY: pidfd_open(2) takes two numbers and returns a descriptor that is nobody else's, or -1.
        unsafe { libc::syscall(libc::SYS_pidfd_open, process, 0) }
    })?;
    owned(|| {
        // SAFETY: pidfd_getfd(2) takes three numbers and returns a descriptor that is nobody else's, or -1.
        unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), descriptor, 0) }
    })
}

/// The descriptor that a system call has just made.
fn owned(made: impl FnOnce() -> libc::c_long) -> io::Result<OwnedFd> {
    let number = RawFd::try_from(made()).ok().filter(|number| *number >= 0).ok_or_else(io::Error::last_os_error)?;
    // SAFETY: the system call returned it just now, so nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Names the ranges of physical memory, `(start, end)` in bytes, that `file`, an open `/dev/oldmem`, gives access to.
///
/// # Errors
/// `EPERM` where one is not memory of a stopped kernel, `ENOMEM`, or `ENOTTY` where the device is somebody else's.
pub fn oldmem_ranges(file: &File, ranges: impl IntoIterator<Item = (u64, u64)>) -> io::Result<()> {
    let ranges: Vec<raw::Range> = ranges.into_iter().map(|(start, end)| raw::Range { start, end }).collect();
    let argument = raw::Ranges { ranges: ranges.as_ptr().expose_provenance() as u64, count: ranges.len() as u64 };
    // SAFETY: the kernel reads a `struct dormouse_ranges` and the array that it points to, which live until the call
    // has returned.
    unsafe { raw::dormouse_ranges(file.as_raw_fd(), &raw const argument) }?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::{Read, Seek, Write};

    use super::*;

    #[test]
    fn a_descriptor_of_a_process_is_the_same_open_file() {
        let mut file = tempfile::tempfile().unwrap();
        let own = std::process::id();
        let mut other = File::from(descriptor_of(own, file.as_raw_fd()).unwrap());
        file.write_all(b"abc").unwrap();
        other.rewind().unwrap();
        let mut read = String::new();
        file.read_to_string(&mut read).unwrap();
        assert_eq!(read, "abc");
        assert!(descriptor_of(own, -1).is_err() && descriptor_of(u32::MAX, 0).is_err());
    }
}
