//! Dormouse hibernates a running Linux machine through a second kernel.
//!
//! Kernel A (the user's) jumps by kexec into kernel B, which saves A's memory and powers off; after power-on, kernel C's
//! initramfs starts kernel D, which writes the memory back and jumps into A. This crate is what runs in each of the
//! four; `docs/ARCHITECTURE.md` is its map.
//!
//! ```text
//!   A  hibernate ──> loader ─────────────────────────────────────────── kexec jump ──> B
//!   B  save ───────> vmcore ──> pipeline::save ──> store::Writer (commit) ──> exit
//!   C  resume ─────> store::Image, compat (check) ──> loader ───────────────── kexec ──> D
//!   D  restore ────> store::Reader ──> pipeline::restore ──> physmem ──> exit ─────────> A
//!
//!      export ─────> store::Reader ──> pipeline::restore ──> a core file, on any machine
//! ```
//!
//! The stages (`vmcore`, `select`, `pipeline`, `store`, `physmem`) do not import one another: they meet in the types of
//! `dormouse_image` and the traits of [`stage`], and only the conductors wire them together.

#![forbid(unsafe_code)]

// What a boot is told, and what it is to do. Pure.
pub mod cmdline;
pub mod mode;
pub mod phase;
pub mod policy;

// The conductors, in the order of a hibernation.
pub mod hibernate;
pub mod save;

pub mod restore;
pub mod resume;

// The conductor beside them: an image, to be looked into.
pub mod export;

// What A and C know of their machine.
pub mod compat;
pub mod features;
pub mod filesystems;
pub mod free_content;
pub mod kernel_config;
pub mod kernels;
pub mod machine;
pub mod obstacle;

// A kernel and an initramfs, made ready to be jumped into.
pub mod initramfs;
pub mod loader;

// The stages, and the seams between them.
pub mod buffers;
pub mod physmem;
pub mod pipeline;
pub mod select;
pub mod stage;
pub mod store;
pub mod vmcore;
pub mod vmcoreinfo;
pub mod window;

// PID 1 of B and D, and its ends.
pub mod exit;
pub mod pid1;

// What is said, and where.
pub mod kmsg;
pub mod last;
mod plymouth;
pub mod progress;
pub mod report;
mod screen;
pub mod vitals;

// The command.
pub mod cli;
pub mod generate;
pub mod image_cmd;
pub mod image_file;
pub mod signature;
pub mod status;

// A machine on which all of this works, and stays so.
pub mod boot_initramfs;
pub mod build;
pub mod doctor;
pub mod prepare;
mod replace;
pub mod setup;
pub mod sleep_hooks;
pub mod systemd;
pub mod update;
