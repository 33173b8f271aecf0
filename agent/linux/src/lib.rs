//! What a Linux system reports about itself: its files, devices, kernels and modules. Nothing here knows what an image
//! or a session is, and nothing here has unsafe code.

#![forbid(unsafe_code)]

pub mod acpi_events;
pub mod ask;
pub mod atomic_file;
pub mod block;
pub mod bzimage_release;
pub mod cpio;
pub mod cpio_file;
pub mod cpu_bindings;
pub mod disk;
pub mod efi_variable;
pub mod error_chain;
pub mod firmware;
pub mod foreign_page;
pub mod free_memory;
pub mod hibernation_events;
pub mod kernel_args;
pub mod kernel_config;
pub mod kernel_log;
pub mod kernels;
pub mod kexec_loads;
pub mod kmod;
pub mod kmsg;
pub mod link;
pub mod luks;
pub mod memory_watch;
pub mod mountinfo;
pub mod network;
pub mod not_frozen;
pub mod plymouth;
pub mod procfs;
pub mod shrink;
pub mod swaps;
pub mod system;
pub mod tpm;
pub mod units;
pub mod vmcoreinfo;
pub mod volatile_memory;
pub mod wait;
pub mod watchdogs;
