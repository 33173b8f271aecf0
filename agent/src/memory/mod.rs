//! The stopped kernel's memory: read, written, and which of its pages matter.

pub mod arch;
pub mod physmem;
pub mod select;
pub mod vmcore;
