//! x86-64: what the CPU can do.

pub mod features;
