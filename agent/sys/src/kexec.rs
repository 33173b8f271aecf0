//! `kexec_load(2)`: handing segments to the kernel.
//!
//! `kexec_file_load(2)` cannot preserve the caller's context, so a hibernation needs this older call
//! (Linux 6.12, kernel/kexec.c and include/uapi/linux/kexec.h).

#![expect(unsafe_code, reason = "kexec_load(2) has no wrapper and takes raw pointers")]

use std::io;

use crate::arch::KEXEC_ARCH;

/// The most segments that one image may have: `KEXEC_SEGMENT_MAX`, include/linux/kexec.h.
pub const MAX_SEGMENTS: usize = 16;

const KEXEC_PRESERVE_CONTEXT: libc::c_ulong = 0x2;

/// One range of physical memory that the jump fills, and with a preserved context swaps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// First byte of the destination, a physical address on a page boundary.
    pub start: u64,
    /// Length of the destination in bytes, a multiple of the page size.
    pub size: u64,
    /// What is placed at `start`; the rest of the destination is zero. May be empty.
    pub data: Vec<u8>,
}

/// What becomes of the running kernel at the jump.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Context {
    /// It is frozen and continues when the other kernel jumps back: every destination page is swapped.
    Preserve,
    /// It is shut down and gone.
    Discard,
}

/// `struct kexec_segment` of the kernel's interface.
#[repr(C)]
struct RawSegment {
    buf: *const libc::c_void,
    bufsz: libc::size_t,
    mem: *const libc::c_void,
    memsz: libc::size_t,
}

/// Loads `segments`, replacing whatever was loaded; the jump will enter at the physical address `entry`.
///
/// # Errors
/// The call's own: `EPERM` (not root, lockdown, or `kernel.kexec_load_disabled`), `EINVAL` (no
/// `CONFIG_KEXEC_JUMP` with [`Context::Preserve`], overlapping segments, or more than half of RAM),
/// `EADDRNOTAVAIL` (a destination that is not page aligned), `ENOMEM`, `EBUSY`.
pub fn load(entry: u64, segments: &[Segment], context: Context) -> io::Result<()> {
    let raw: Vec<RawSegment> = segments
        .iter()
        .map(|segment| {
            Ok(RawSegment {
                buf: segment.data.as_ptr().cast(),
                bufsz: segment.data.len(),
                mem: std::ptr::without_provenance(to_usize(segment.start)?),
                memsz: to_usize(segment.size)?,
            })
        })
        .collect::<io::Result<_>>()?;
    let preserve = match context {
        Context::Preserve => KEXEC_PRESERVE_CONTEXT,
        Context::Discard => 0,
    };
    kexec_load(entry, &raw, preserve | KEXEC_ARCH)
}

/// Unloads whatever is loaded, which frees the memory that it holds.
///
/// # Errors
/// As [`load`]; `EPERM` in the main.
pub fn unload() -> io::Result<()> {
    kexec_load(0, &[], KEXEC_ARCH)
}

/// Whether this kernel takes images that preserve its context, that is, has `CONFIG_KEXEC_JUMP`.
///
/// Without the option the kernel refuses the flag before it looks at the segments (`kexec_load_check`, kernel/kexec.c);
/// with it, it fails to copy the list of segments, which is at an address of its own. Nothing is loaded or unloaded.
/// Where `kernel.kexec_load_limit_reboot` is set, the question counts as a load.
///
/// # Errors
/// Everything but these two answers: `EPERM` in the main.
pub fn can_preserve_context() -> io::Result<bool> {
    let unreadable = usize::MAX & !0xffff;
    // SAFETY: one segment at an address of the kernel's, which `copy_from_user` refuses before it reads.
    let result =
        unsafe { libc::syscall(libc::SYS_kexec_load, 0_u64, 1_usize, unreadable, KEXEC_PRESERVE_CONTEXT | KEXEC_ARCH) };
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        _ if result == 0 => Ok(true),
        Some(libc::EFAULT) => Ok(true),
        Some(libc::EINVAL) => Ok(false),
        _ => Err(error),
    }
}

fn kexec_load(entry: u64, segments: &[RawSegment], flags: libc::c_ulong) -> io::Result<()> {
    // SAFETY: `segments` is a live array of `struct kexec_segment` of the length given, and each `buf` is
    // valid for `bufsz` bytes for the whole call, which only reads. `mem` is a physical address that the
    // kernel never follows in this call.
    let result = unsafe { libc::syscall(libc::SYS_kexec_load, entry, segments.len(), segments.as_ptr(), flags) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn to_usize(value: u64) -> io::Result<usize> {
    usize::try_from(value).map_err(io::Error::other)
}
