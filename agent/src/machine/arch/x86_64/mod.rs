//! x86-64: which CPU it is, and what it can do.

mod cpuinfo;
mod features;
mod madt;

pub use cpuinfo::identify;
pub use madt::cpus as cpus_of_firmware;
