//! The initramfs of B and D: the agent, the policy, and the modules that the image device needs.
//!
//! ```text
//!   /init                     dormouse-init
//!   /etc/dormouse.toml        the merged policy
//!   /etc/dormouse/modules     file names in the order of loading, one per line
//!   /lib/modules/NAME.ko      those files
//!   /dev/{console,null,kmsg}  what PID 1 needs before it has mounted devtmpfs
//!   /proc /sys /run           to mount on
//! ```
//!
//! The same inputs give the same bytes.

pub mod devices;
pub mod files;

use std::io::{self, Write};

use dormouse_linux::cpio::{Archive, CpioError};
use dormouse_linux::kmod::Module;
use goblin::elf::Elf;
use thiserror::Error;

use crate::policy::{DEFAULT_PATH, Policy};

/// Where B and D find the order in which modules are loaded: on each line a module's name or its file's, which is
/// anywhere under [`MODULES_DIR`].
pub const MODULES_LIST: &str = "/etc/dormouse/modules";
/// Where B and D find the modules.
pub const MODULES_DIR: &str = "/lib/modules";

/// Read by the kernel in a moment at any level, so that only size counts.
const LEVEL: i32 = 19;

/// Why there is no initramfs.
#[derive(Debug, Error)]
pub enum InitramfsError {
    /// What is to become `/init` is no program.
    #[error("the program for PID 1 is not an ELF file that could be read: {0}")]
    NotElf(goblin::error::Error),
    /// `/init` could not start in an initramfs without libraries.
    #[error("the program for PID 1 needs {0} to start, which the initramfs does not have: link it statically")]
    NotStatic(String),
    /// The archive cannot hold it.
    #[error(transparent)]
    Cpio(#[from] CpioError),
    /// zstd failed.
    #[error("compressing the initramfs failed")]
    Compress(#[source] io::Error),
}

/// Builds the initramfs: `init` is the static program that becomes PID 1, `modules` are in loading order.
///
/// # Errors
/// `init` is not a static ELF program, or the archive's form cannot hold something.
pub fn build(policy: &Policy, init: &[u8], modules: &[Module]) -> Result<Vec<u8>, InitramfsError> {
    check_static(init)?;
    compress(&archive(policy, init, modules)?)
}

/// A program interpreter that is not there lets `/init` fail, and B then panics instead of returning to A.
fn check_static(init: &[u8]) -> Result<(), InitramfsError> {
    let elf = Elf::parse(init).map_err(InitramfsError::NotElf)?;
    match elf.interpreter {
        Some(interpreter) => Err(InitramfsError::NotStatic(interpreter.to_owned())),
        None => Ok(()),
    }
}

fn archive(policy: &Policy, init: &[u8], modules: &[Module]) -> Result<Vec<u8>, CpioError> {
    let list: String = modules.iter().map(|module| format!("{}\n", module.file_name)).collect();
    let fixed = Archive::new()
        .file("/init", 0o755, init)
        .dir("/dev", 0o755)
        .dir("/etc", 0o755)
        .dir(MODULES_DIR, 0o755)
        .dir("/proc", 0o555)
        .dir("/run", 0o755)
        .dir("/sys", 0o555)
        .node("/dev/console", 0o600, 5, 1)
        .node("/dev/kmsg", 0o644, 1, 11)
        .node("/dev/null", 0o666, 1, 3)
        .file(DEFAULT_PATH, 0o644, policy.to_toml().into_bytes())
        .file(MODULES_LIST, 0o644, list.into_bytes());
    let with_modules = modules.iter().fold(fixed, |archive, module| {
        archive.file(&format!("{MODULES_DIR}/{}", module.file_name), 0o644, module.bytes.as_slice())
    });
    with_modules.finish()
}

/// One thread, since zstd's output depends on how the work is divided; the size in the frame, since the
/// kernel's decompressor then takes no larger window than it needs; the checksum, since B trusts nothing else.
fn compress(archive: &[u8]) -> Result<Vec<u8>, InitramfsError> {
    let compressed = || {
        let mut encoder = zstd::Encoder::new(Vec::new(), LEVEL)?;
        encoder.include_checksum(true)?;
        encoder.include_contentsize(true)?;
        encoder.set_pledged_src_size(u64::try_from(archive.len()).ok())?;
        encoder.write_all(archive)?;
        encoder.finish()
    };
    compressed().map_err(InitramfsError::Compress)
}

#[cfg(test)]
mod tests;
