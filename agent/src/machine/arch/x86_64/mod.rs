//! x86-64: which CPU it is, and what it can do.

mod cpuinfo;
mod features;

pub use cpuinfo::identify;
