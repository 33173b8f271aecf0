//! D without C: the boot loader starts D itself, so that a resume takes one boot.
//!
//! ```text
//!   A  prepare   D's kernel, initramfs, order and command line where the boot loader finds them, and a block that says
//!                "no"; B gets that block, and where on the disk it lies
//!   B  arm       when the image is complete: the block says "yes"
//!   boot loader  reads the block; where it says "yes", writes "no" into it and starts D
//!   D  look      the block says "no", or it is made to; then all that C asks, and the restore
//! ```
//!
//! Whatever is not as it should be, in any of them, the next boot is an ordinary one, whose C decides: the block is
//! good for one try. D gives no image up and discards none.
//!
//! systemd-boot reads no such block. It boots once what an EFI variable names, which A sets before it jumps, and takes
//! back when the session goes on: [`systemd_boot`].

mod block;
mod look;
mod prepare;
mod systemd_boot;

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::Context;
use dormouse_linux::atomic_file::replace;
use dormouse_sys::freeze;

pub(crate) use block::arm;
pub(crate) use look::run as look;
pub(super) use prepare::{Prepared, note_way, prepare};
pub(crate) use prepare::{is_armed, why_not};
pub(crate) use systemd_boot::{SystemdBoot, remove_left};

/// Where the boot loader finds all of it. It is on the filesystem that the boot loader itself was read from.
pub(crate) const DIRECTORY: &str = "/boot/dormouse";
/// The block, as a file of one block.
pub(crate) const BLOCK_FILE: &str = "direct.env";
/// What the boot loader's own configuration reads.
pub(crate) const CONFIGURATION: &str = "direct.cfg";
/// D's kernel.
pub(crate) const KERNEL: &str = "kernel";
/// D's initramfs, without its order.
pub(crate) const INITRAMFS: &str = "initramfs";
/// D's order, an archive.
pub(crate) const ORDER: &str = "order";

/// One of these files.
pub(crate) fn file(name: &str) -> PathBuf {
    Path::new(DIRECTORY).join(name)
}

/// Has what was made for the boot loader in its place on the disk, and not in a journal, which the boot loader does not
/// read.
///
/// # Errors
/// The filesystem cannot be frozen for a moment.
pub(crate) fn settle() -> anyhow::Result<()> {
    let about = || format!("{DIRECTORY}: its filesystem cannot be frozen for a moment");
    freeze::settle(&File::open(DIRECTORY).with_context(about)?).with_context(about)
}

/// Writes a file where it is not what it should be. Whether it was not.
fn put(path: &Path, bytes: &[u8]) -> anyhow::Result<bool> {
    let is_same = fs::read(path).is_ok_and(|found| found == bytes);
    if is_same {
        return Ok(false);
    }
    // An initramfs holds the policy.
    replace(path, bytes, 0o600).with_context(|| format!("{}: cannot write it", path.display()))?;
    Ok(true)
}
