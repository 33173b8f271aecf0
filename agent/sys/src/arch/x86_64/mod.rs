//! x86-64.

pub mod cpuid;
pub mod hardware_random;
pub mod stub;
pub mod ticks;

/// The size of a page in bytes.
pub const PAGE_SIZE: u64 = 4096;

/// `KEXEC_ARCH_X86_64`, include/uapi/linux/kexec.h.
pub(crate) const KEXEC_ARCH: libc::c_ulong = 62 << 16;
