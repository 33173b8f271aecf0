//! Loading the modules that the initramfs carries, in the order of its list.

use std::path::Path;

use anyhow::Context;
use dormouse_linux::kmod::{self, Module};
use dormouse_linux::procfs;
use nix::errno::Errno;
use nix::kmod::init_module;

use crate::handoff::places::{MEMORY_MODULES_LIST, MODULE, MODULES_DIR, MODULES_LIST};

/// The watchdogs' own module, which stops all of them before a kernel is left, also for another that believes one of
/// them runs, unless it is asked not to (drivers/watchdog/watchdog_core.c, `stop_on_reboot`, Linux 6.12). Where it is
/// built in, the command line has the same.
const WATCHDOG_CORE: &str = "watchdog";

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

/// Loads what gives access to the session's memory, where nothing else does: PID 1 looks into it before the worker is
/// there, and must be able to leave a report when that is gone. Otherwise the worker loads it, which can be lost.
pub(super) fn load_to_reach_memory() {
    if !Path::new("/dev/mem").exists() {
        load_besides(MEMORY_MODULES_LIST);
    }
}

/// Loads those of another list, without which the work can be done. One that cannot be loaded is named in the log.
pub(super) fn load_besides(list: &str) {
    let names = procfs::text_if_present(list).unwrap_or_else(|error| {
        log::warn!("{error:#}");
        None
    });
    for name in names.unwrap_or_default().lines().filter(|name| !name.is_empty()) {
        let module = kmod::find(Path::new(MODULES_DIR), name).and_then(|file| kmod::load(&file));
        if let Err(error) = module.map_err(anyhow::Error::from).and_then(|module| insert(&module)) {
            log::warn!("{error:#}; going on without it");
        }
    }
}

fn insert(Module { file_name, bytes }: &Module) -> anyhow::Result<()> {
    let parameters = match kmod::name_of_path(file_name).as_str() {
        WATCHDOG_CORE => c"stop_on_reboot=0",
        MODULE => c"oldmem=1",
        _ => c"",
    };
    match init_module(bytes, parameters) {
        // Built in, or loaded by another one's request.
        Ok(()) | Err(Errno::EEXIST) => log::debug!("module {file_name} is loaded"),
        // One of several that do the same, such as an algorithm in instructions that this CPU lacks.
        Err(Errno::ENODEV) => log::debug!("module {file_name}: nothing here needs it"),
        Err(error) => return Err(error).with_context(|| format!("module {file_name}: the kernel refused it")),
    }
    Ok(())
}
