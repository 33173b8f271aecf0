//! The system calls, memory maps and machine code that Dormouse needs, with safe signatures.
//!
//! This is the only crate of the project with `unsafe` code. Each module opts in by name, and each block
//! states what makes it sound. Nothing here knows what an image or a session is.

mod arch;
pub mod blockdev;
pub mod btrfs;
pub mod device_mapper;
pub mod fiemap;
pub mod freeze;
pub mod immutable;
pub mod kexec;
pub mod memory;
pub mod module;
pub mod network;
pub mod phys;
pub mod pin;
pub mod power;
pub mod random;
pub mod snapshot;
pub mod watchdog;
pub mod wiped;

pub use arch::*;

/// The size of a page as the length of a buffer.
#[expect(clippy::cast_possible_truncation, reason = "a page fits into memory")]
pub const PAGE_LEN: usize = PAGE_SIZE as usize;
