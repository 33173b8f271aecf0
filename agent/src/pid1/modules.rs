//! Loading the modules that the initramfs carries, in the order of its list.

use std::fs::File;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::Context;
use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};

use crate::initramfs::{MODULES_DIR, MODULES_LIST};

/// Loads all of them. An initramfs without a list has none to load.
///
/// # Errors
/// A module that is listed cannot be read or is refused by the kernel.
pub(super) fn load() -> anyhow::Result<()> {
    let list = Path::new(MODULES_LIST);
    let names = match std::fs::read_to_string(list) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        result => result.with_context(|| format!("{}: cannot read it", list.display()))?,
    };
    for name in names.lines().filter(|name| !name.is_empty()) {
        let path = Path::new(MODULES_DIR).join(name);
        let file = File::open(&path).with_context(|| format!("module {}: cannot open it", path.display()))?;
        let no_parameters = c"";
        match finit_module(&file, no_parameters, ModuleInitFlags::empty()) {
            // Built in, or loaded by another one's request.
            Ok(()) | Err(Errno::EEXIST) => log::debug!("module {name} is loaded"),
            // One of several that do the same, such as an algorithm in instructions that this processor lacks.
            Err(Errno::ENODEV) => log::debug!("module {name}: nothing here needs it"),
            Err(error) => {
                return Err(error).with_context(|| format!("module {name}: the kernel refused it"));
            }
        }
    }
    Ok(())
}
