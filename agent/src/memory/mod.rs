//! The stopped kernel's memory: read, written, which of its pages matter, and the report that is left in it.

pub mod arch;
pub mod deliver;
pub mod next_order;
pub mod physmem;
pub mod select;
pub mod under_tables;
pub mod vmcore;
