//! The system calls, memory maps and machine code that Dormouse needs, behind safe signatures.
//!
//! This is the only crate of the project with `unsafe` code. Each module opts in by name, and each block
//! says what makes it sound. Nothing here knows what an image or a session is.

pub mod blockdev;
pub mod btrfs;
pub mod cpuid;
pub mod fiemap;
pub mod kexec;
pub mod memory;
pub mod phys;
pub mod pin;
pub mod power;

pub mod stub;
pub mod watchdog;

/// The page size of x86-64, in bytes.
pub const PAGE_SIZE: u64 = 4096;
