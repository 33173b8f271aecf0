//! Loading the modules that the initramfs carries, in the order of its list.

use std::path::Path;

use anyhow::Context;
use dormouse_linux::kmod::{self, Module};
use dormouse_linux::procfs;
use nix::errno::Errno;
use nix::kmod::init_module;

use crate::handoff::places::{MODULES_DIR, MODULES_LIST};

/// Loads all of them. An initramfs without a list has none to load.
///
/// # Errors
/// A module that is listed cannot be read or is refused by the kernel.
pub(super) fn load() -> anyhow::Result<()> {
    let Some(names) = procfs::text_if_present(MODULES_LIST)? else { return Ok(()) };
    for name in names.lines().filter(|name| !name.is_empty()) {
        // The list has what each of them needs before it.
        insert(&kmod::load(&kmod::find(Path::new(MODULES_DIR), name)?)?)?;
    }
    Ok(())
}

fn insert(Module { file_name, bytes }: &Module) -> anyhow::Result<()> {
    let no_parameters = c"";
    match init_module(bytes, no_parameters) {
        // Built in, or loaded by another one's request.
        Ok(()) | Err(Errno::EEXIST) => log::debug!("module {file_name} is loaded"),
        // One of several that do the same, such as an algorithm in instructions that this CPU lacks.
        Err(Errno::ENODEV) => log::debug!("module {file_name}: nothing here needs it"),
        Err(error) => return Err(error).with_context(|| format!("module {file_name}: the kernel refused it")),
    }
    Ok(())
}
