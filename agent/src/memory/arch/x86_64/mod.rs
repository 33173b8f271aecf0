//! x86-64: page tables, and where the kernel maps what.

mod paging;

pub use goblin::elf::header::EM_X86_64 as ELF_MACHINE;
pub use paging::Paging;

/// Where the kernel's image is mapped: `__START_KERNEL_map`, arch/x86/include/asm/page_64_types.h.
pub const KERNEL_MAP: u64 = 0xffff_ffff_8000_0000;

/// The lower end of the kernel's half of the address space, with 5-level paging.
pub const KERNEL_HALF: u64 = 0xff00_0000_0000_0000;
