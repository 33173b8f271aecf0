//! The initramfs of B and D: the agent, the policy, and the modules that the target needs. The list of what is in it is
//! `manifest.rs`; `initramfs/README.md` explains it.
//!
//! The same inputs give the same bytes.

pub mod files;
mod manifest;
pub mod needs;
mod remembered;

use std::io::{self, Write};
use std::path::Path;

use anyhow::Context;
use dormouse_linux::cpio::{Archive, CpioError};
use dormouse_linux::kmod::Module;
use goblin::elf::Elf;
use manifest::{Content, ITEMS, Item};
use needs::Carried;
use thiserror::Error;

use crate::cycle::boots;
use crate::handoff::places::MODULES_DIR;
use crate::policy::Policy;
use crate::target::TargetError;

/// The kernel reads any level in a moment, so that only size counts.
const LEVEL: i32 = 19;

/// Why there is no initramfs.
#[derive(Debug, Error)]
pub enum InitramfsError {
    /// What is to become `/init` is not a program.
    #[error("the program for PID 1 is not an ELF file that could be read")]
    NotElf(#[source] goblin::error::Error),
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

/// The policy as an initramfs carries it, where no filesystem is mounted and devices may have other names: bound to
/// the disk that the image lies on now. Where the image device is not there, it is looked for as before.
///
/// # Errors
/// The image is in a file that does not exist, or that no boot would find.
pub fn carried_policy(policy: &Policy) -> Result<Policy, TargetError> {
    remembered::carried_policy(Path::new(remembered::FILE), policy)
}

/// Notes that the boot's initramfs of a kernel is about to be built: nobody knows what becomes of it. Where that cannot
/// be noted, an older record is still one of another time.
pub fn begin(release: &str) {
    if let Err(error) = boots::remove(Path::new("/"), release) {
        log::warn!("{}: {error}", boots::about(release));
    }
}

/// Records that the boot's initramfs of a kernel has all that it must hold.
///
/// # Errors
/// It cannot be recorded; or the image cannot be found, and never was.
pub fn done(policy: &Policy, release: &str) -> anyhow::Result<()> {
    boots::write(Path::new("/"), release, &carried_policy(policy)?).with_context(|| boots::about(release))
}

/// Builds the initramfs: `init` is the static program that becomes PID 1.
///
/// # Errors
/// `init` is not a static ELF program, or the archive's form cannot hold something.
pub fn build(policy: &Policy, init: &[u8], modules: &Carried<Module>) -> Result<Vec<u8>, InitramfsError> {
    check_static(init)?;
    compress(&archive(policy, init, modules)?)
}

/// Without its program interpreter `/init` fails, and B then panics instead of returning to A.
fn check_static(init: &[u8]) -> Result<(), InitramfsError> {
    let elf = Elf::parse(init).map_err(InitramfsError::NotElf)?;
    match elf.interpreter {
        Some(interpreter) => Err(InitramfsError::NotStatic(interpreter.to_owned())),
        None => Ok(()),
    }
}

fn archive(policy: &Policy, init: &[u8], modules: &Carried<Module>) -> Result<Vec<u8>, CpioError> {
    let list = |modules: &[Module]| {
        modules.iter().map(|module| format!("{}\n", module.file_name)).collect::<String>().into_bytes()
    };
    let fixed = ITEMS.into_iter().fold(Archive::new(), |archive, item| match item {
        Item::Dir(path) => archive.dir(path, 0o755),
        Item::Node { path, mode, number: (major, minor) } => archive.node(path, mode, major, minor),
        Item::File { path, mode, content } => match content {
            Content::Init => archive.file(path, mode, init),
            Content::Policy => archive.file(path, mode, policy.to_toml().into_bytes()),
            Content::Modules => archive.file(path, mode, list(&modules.target)),
            Content::Watchdogs => archive.file(path, mode, list(&modules.watchdogs)),
            Content::Disks => archive.file(path, mode, list(&modules.disks)),
            Content::Memory => archive.file(path, mode, list(&modules.memory)),
        },
    });
    let with_modules = modules.all().fold(fixed, |archive, module| {
        archive.file(&format!("{MODULES_DIR}/{}", module.file_name), 0o644, module.bytes.as_slice())
    });
    let with_firmware = modules.firmware.iter().fold(with_modules, |archive, firmware| {
        archive.file(&format!("{}/{}", needs::FIRMWARE, firmware.name), 0o644, firmware.bytes.as_slice())
    });
    with_firmware.finish()
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
