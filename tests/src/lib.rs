//! Dormouse's end-to-end harness: guest machines under QEMU, what runs in them, and whole cycles of hibernation.
//!
//! ```text
//!   tests, demo ──> cycle ──> guest ──> qemu      one run of the machine
//!                               │  ├──> qmp       QEMU itself, asked for the guest's memory
//!                               │  ├──> console   its first serial port, followed line by line
//!                               │  └──> channel   its second one: commands for guest A
//!                               ├──> userland     the initramfs of A and C, built from artifacts
//!                               ├──> grub         a disk to boot it from, where QEMU is not the boot loader
//!                               └──> debian       or a whole system, with an initramfs that it has made itself
//!   workload                                      runs in guest A; its reports prove a resume
//!   soak                                          cycle upon cycle in one session, by random policies
//!   synthetic                                     vmcores of machines that nobody here has
//! ```

#![forbid(unsafe_code)]

pub mod artifacts;
pub mod channel;
pub mod console;
pub mod cycle;
pub mod debian;
pub mod filesystem;
pub mod fuzz;
pub mod grub;
pub mod guest;
pub mod image;
pub mod machine;
pub mod memory;
pub mod nbd_server;
pub mod nfs_server;
pub mod qemu;
pub mod qmp;
pub mod random;
pub mod soak;
pub mod synthetic;
pub mod systemd_boot;
pub mod tap;
mod tpm;
pub mod userland;
pub mod workload;
