//! Which kernel modules the initramfs of B and D holds: those that are named, or that the target needs. With the latter
//! come the drivers of the machine's watchdogs, one of which may be running, and of its other disks, whose caches must
//! be written before the power goes off.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use dormouse_linux::error_chain::in_full;
use dormouse_linux::firmware::{self, Firmware};
use dormouse_linux::watchdogs::HardwareWatchdog;
use dormouse_linux::{bzimage_release, kmod};

use crate::cycle::drivers;
use crate::handoff::places::MODULE;
use crate::host::initramfs::{carried_policy, remembered};
use crate::policy::Policy;
use crate::target::{self, Needs, TargetError};

/// The static program that becomes PID 1, where a package puts it.
pub const INIT: &str = "/usr/lib/dormouse/dormouse-init";
/// Where firmware is installed, and where it goes.
pub(super) const FIRMWARE: &str = "/lib/firmware";
/// As the name of a module: those that the target needs.
pub const AUTO: &str = "auto";
/// As the name of a module: none.
pub const NONE: &str = "none";

/// What is to be built, beyond the policy.
#[derive(Debug, Clone)]
pub struct Options {
    /// The bzImage that becomes the policy's `kernel.image` first; without it, the one that exists there is used.
    pub kernel: Option<PathBuf>,
    /// The static program that becomes PID 1.
    pub init: PathBuf,
    /// Names of modules; [`AUTO`] stands for those that the target needs, [`NONE`] for nothing.
    pub modules: Vec<String>,
    /// The modules' directory, in place of the one that belongs to the kernel.
    pub modules_dir: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Options {
        Options { kernel: None, init: INIT.into(), modules: vec![AUTO.to_owned()], modules_dir: None }
    }
}

/// Modules or their names, in the order in which they must be loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Carried<T> {
    /// Those that are named, or that the target needs.
    pub target: Vec<T>,
    /// What the watchdogs need besides.
    pub watchdogs: Vec<T>,
    /// What the session's other disks need besides.
    pub disks: Vec<T>,
    /// Dormouse's own module, where that kernel has it: without it they write memory another way.
    pub memory: Vec<T>,
    /// The firmware that they ask for, where they are read.
    pub firmware: Vec<Firmware>,
}

impl<T> Default for Carried<T> {
    fn default() -> Carried<T> {
        Carried {
            target: Vec::new(),
            watchdogs: Vec::new(),
            disks: Vec::new(),
            memory: Vec::new(),
            firmware: Vec::new(),
        }
    }
}

impl<T> Carried<T> {
    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = &T> {
        self.target.iter().chain(&self.watchdogs).chain(&self.disks).chain(&self.memory)
    }
}

impl Carried<String> {
    /// With what each of them needs itself, and without what is in an earlier list. What this machine has a module for
    /// and that kernel has not, is left out of the later ones.
    fn in_order(&self, directory: &Path) -> anyhow::Result<Carried<String>> {
        let target = match self.target.as_slice() {
            [] => Vec::new(),
            names => kmod::order(directory, names)?,
        };
        let mut seen: BTreeSet<String> = target.iter().cloned().collect();
        let mut besides = |names: &[String]| {
            let mut list = Vec::new();
            for name in names {
                match kmod::order(directory, std::slice::from_ref(name)) {
                    Ok(names) => list.extend(names.into_iter().filter(|name| seen.insert(name.clone()))),
                    Err(error) => log::warn!("{}", in_full(&error)),
                }
            }
            list
        };
        let (watchdogs, disks, memory) = (besides(&self.watchdogs), besides(&self.disks), besides(&self.memory));
        Ok(Carried { target, watchdogs, disks, memory, firmware: Vec::new() })
    }
}

/// The names of the modules that are asked for, or that the target needs.
///
/// # Errors
/// The target or its modules cannot be found.
pub fn list_modules(policy: &Policy, options: &Options) -> anyhow::Result<Carried<String>> {
    let names = names(policy, options)?;
    if names.all().next().is_none() {
        return Ok(Carried::default());
    }
    names.in_order(&directory(policy, options)?)
}

/// The same modules, read.
///
/// # Errors
/// As [`list_modules`]; a module cannot be read.
pub fn load_modules(policy: &Policy, options: &Options) -> anyhow::Result<Carried<kmod::Module>> {
    let names = list_modules(policy, options)?;
    if names.all().next().is_none() {
        return Ok(Carried::default());
    }
    let directory = directory(policy, options)?;
    let mut files: BTreeMap<String, kmod::Module> = BTreeMap::new();
    let all: Vec<String> = names.all().cloned().collect();
    for module in kmod::resolve(&directory, &all)? {
        files.insert(kmod::name_of_path(&module.file_name), module);
    }
    let mut read = |names: Vec<String>| names.iter().filter_map(|name| files.remove(name)).collect();
    let mut carried = Carried {
        target: read(names.target),
        watchdogs: read(names.watchdogs),
        disks: read(names.disks),
        memory: read(names.memory),
        firmware: Vec::new(),
    };
    let release = directory.file_name().unwrap_or_default().to_string_lossy().into_owned();
    carried.firmware = firmware::of(&carried.all().collect::<Vec<_>>(), &release, Path::new(FIRMWARE));
    Ok(carried)
}

/// The modules that are asked for, with what [`AUTO`] and [`NONE`] stand for in their place.
fn names(policy: &Policy, options: &Options) -> anyhow::Result<Carried<String>> {
    let mut names = Carried::default();
    for name in &options.modules {
        match name.as_str() {
            NONE => {}
            AUTO => {
                names.target.extend(of_target(policy, options)?);
                let directory = directory(policy, options)?;
                for watchdog in HardwareWatchdog::all(Path::new("/sys")) {
                    names.watchdogs.extend(Needs::of_watchdog(&watchdog, &directory)?.modules);
                }
                for disk in drivers::disks_of_session() {
                    names.disks.extend(Needs::of(&disk.hardware, &directory)?.modules);
                }
                let module = MODULE.to_owned();
                names.memory.extend(Some(module).filter(|name| kmod::has(&directory, name)));
            }
            // Not as one without which they stop.
            MODULE => names.memory.push(name.clone()),
            _ => names.target.push(name.clone()),
        }
    }
    Ok(names)
}

/// The modules that the target needs; those that it needed the last time where it is not there.
fn of_target(policy: &Policy, options: &Options) -> anyhow::Result<Vec<String>> {
    let found = target::find(&policy.image.device, Duration::ZERO)
        .context("what it needs can be found out only where it is; name the modules with --modules")
        .and_then(|target| target.drivers().context("what it needs cannot be found out"));
    let is_absent = found.as_ref().is_err_and(|error| {
        let absent = |error| {
            matches!(error, &(TargetError::NotFound { .. } | TargetError::NoFile { .. } | TargetError::NoWay(_)))
        };
        error.chain().filter_map(|cause| cause.downcast_ref()).any(absent)
    });
    let drivers = match remembered::drivers(Path::new(remembered::FILE), policy).filter(|_| is_absent) {
        Some(drivers) => {
            remembered::warn(policy, "its modules are found as they were when an initramfs was built last");
            drivers
        }
        None => {
            let drivers = found?;
            if let Ok(carried) = carried_policy(policy) {
                remembered::remember(Path::new(remembered::FILE), policy, &carried, &drivers);
            }
            drivers
        }
    };
    Ok(Needs::of_drivers(&drivers, &directory(policy, options)?).context("what it needs cannot be found out")?.modules)
}

/// The directory of the modules that belong to the kernel.
fn directory(policy: &Policy, options: &Options) -> anyhow::Result<PathBuf> {
    if let Some(directory) = &options.modules_dir {
        return Ok(directory.clone());
    }
    let kernel = options.kernel.as_ref().unwrap_or(&policy.kernel.image);
    let cannot =
        || format!("{}: cannot tell this kernel's release; name its modules with --modules-dir", kernel.display());
    Ok(Path::new("/lib/modules").join(bzimage_release::of_file(kernel).with_context(cannot)?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn each_module_is_in_the_first_list_that_needs_it() {
        let modules = tempfile::tempdir().unwrap();
        let dep = "virtio_blk.ko: virtio.ko\nvirtio.ko:\nahci.ko: libata.ko\nlibata.ko:\nsd_mod.ko:\nit_wdt.ko:\n\
                   updates/dkms/dormouse.ko:\n";
        std::fs::write(modules.path().join("modules.dep"), dep).unwrap();
        let names = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        let wanted = Carried {
            target: names(&["virtio_blk"]),
            // The last one is a module of this kernel alone.
            watchdogs: names(&["it_wdt", "other_wdt"]),
            disks: names(&["virtio_blk", "ahci", "sd_mod", "ahci"]),
            memory: names(&["dormouse"]),
            firmware: Vec::new(),
        };
        let expected = Carried {
            target: names(&["virtio", "virtio_blk"]),
            watchdogs: names(&["it_wdt"]),
            disks: names(&["libata", "ahci", "sd_mod"]),
            memory: names(&["dormouse"]),
            firmware: Vec::new(),
        };
        assert_eq!(wanted.in_order(modules.path()).unwrap(), expected);
        let unknown = Carried { target: names(&["other"]), ..Carried::default() };
        assert!(unknown.in_order(modules.path()).is_err());
    }
}
