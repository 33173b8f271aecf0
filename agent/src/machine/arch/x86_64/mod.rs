//! x86-64: which CPU it is, what it can do, and where its firmware's tables begin.

mod acpi_root;
mod cpuinfo;
mod features;
mod madt;
mod microcode_file;

pub use acpi_root::acpi_root;
pub use cpuinfo::identify;
pub use madt::cpus as cpus_of_firmware;
pub use microcode_file::microcode_file;
