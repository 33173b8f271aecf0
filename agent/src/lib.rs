//! Dormouse hibernates a running Linux machine through a second kernel.
//!
//! Kernel A (the user's) jumps by kexec into kernel B, which saves A's memory and powers off; after power-on, kernel
//! C's initramfs starts kernel D, which writes the memory back and jumps into A. This crate is what runs in each of the
//! four; `docs/ARCHITECTURE.md` is its map.
//!
//! ```text
//!   A  hibernate ──> launch ─────────────────────────────────────────── kexec jump ──> B
//!   B  save ───────> memory::vmcore ──> pipeline::save ──> store::Writer (commit) ──> pid1::ending
//!   C  resume ─────> store::Image, verdict ──> launch ───────────────────── kexec ──> D
//!   D  restore ────> store::Reader ──> pipeline::restore ──> memory::physmem ───────> pid1::ending ──> A
//!
//!      export ─────> store::Reader ──> pipeline::restore ──> a core file, on any machine
//! ```
//!
//! Each module below may import those after it, and none before it; `tests/architecture.rs` checks that.

#![forbid(unsafe_code)]

pub mod cli;
pub mod pid1;

pub mod host;

pub mod cycle;

pub mod key;

pub mod target;

pub mod filesystems;
pub mod launch;
pub mod store;

pub mod memory;

pub mod pipeline;

pub mod console;
pub mod handoff;

pub mod policy;

pub mod machine;
