//! The hardware watchdogs of this machine, as sysfs shows them (Documentation/ABI/testing/sysfs-class-watchdog).

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::kmod;

/// What the watchdog that is a timer of the kernel's calls itself (drivers/watchdog/softdog.c).
const SOFTWARE: &str = "Software Watchdog";
/// Its module.
const SOFTDOG: &str = "softdog";
/// Where the kernel's source has the drivers, and so the modules' directory; and one that is elsewhere.
const DRIVERS: &str = "drivers/watchdog";
const IPMI: &str = "ipmi_watchdog";

/// A watchdog that counts in hardware.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HardwareWatchdog {
    /// Its name, such as `watchdog0`, which may be another in another kernel.
    pub name: String,
    /// What its driver calls it, in every kernel.
    pub identity: String,
    /// Whether a program has started it: it restarts the machine unless that program goes on setting it back.
    pub is_active: bool,
    /// After how long.
    pub timeout: Duration,
    /// The directory in sysfs of its device, which not every driver names.
    device: Option<PathBuf>,
}

impl HardwareWatchdog {
    /// All of them, by name. A kernel without CONFIG_WATCHDOG_SYSFS shows none.
    #[must_use]
    pub fn all(sysfs: &Path) -> Vec<HardwareWatchdog> {
        let class = fs::read_dir(sysfs.join("class/watchdog")).into_iter().flatten().flatten();
        let mut found: Vec<HardwareWatchdog> = class
            .map(|entry| {
                let path = entry.path();
                let text = |name: &str| fs::read_to_string(path.join(name)).unwrap_or_default().trim().to_owned();
                HardwareWatchdog {
                    name: entry.file_name().to_string_lossy().into_owned(),
                    identity: text("identity"),
                    is_active: text("state") == "active",
                    timeout: Duration::from_secs(text("timeout").parse().unwrap_or(0)),
                    device: path.join("device").canonicalize().ok(),
                }
            })
            .filter(|watchdog| watchdog.identity != SOFTWARE)
            .collect();
        found.sort_by(|a, b| a.name.cmp(&b.name));
        found
    }

    /// The directories in sysfs on the way to its device, its own and that of each bus among them.
    pub fn ways(&self) -> impl Iterator<Item = &Path> {
        let is_below = |dir: &&Path| dir.file_name().is_some_and(|name| name != "devices");
        self.device.iter().flat_map(move |device| device.ancestors().take_while(is_below))
    }

    /// Whether its driver names its device.
    #[must_use]
    pub fn has_device(&self) -> bool {
        self.device.is_some()
    }
}

/// The drivers of hardware watchdogs that are loaded as modules: those that hold the watchdogs' own module, where that
/// is one, and those that `modules`, a directory of depmod's, has among them.
#[must_use]
pub fn loaded_drivers(sysfs: &Path, modules: &Path) -> BTreeSet<String> {
    let entries = |place: &str| {
        let entries = fs::read_dir(sysfs.join(place)).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect::<BTreeSet<String>>()
    };
    let known = kmod::below(modules, DRIVERS);
    let of_place = entries("module").into_iter().filter(|name| known.contains(name) || name == IPMI);
    let mut drivers: BTreeSet<String> = of_place.chain(entries("module/watchdog/holders")).collect();
    drivers.remove(SOFTDOG);
    drivers
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn reads_those_that_are_hardware() {
        let sysfs = tempfile::tempdir().unwrap();
        let root = sysfs.path().canonicalize().unwrap();
        let watchdog = |name: &str, state: &str, device: Option<&str>| {
            let directory = root.join("class/watchdog").join(name);
            fs::create_dir_all(&directory).unwrap();
            let identity = if name == "watchdog2" { SOFTWARE } else { "i6300ESB timer" };
            for (file, text) in [("identity", identity), ("state", state), ("timeout", "10")] {
                fs::write(directory.join(file), format!("{text}\n")).unwrap();
            }
            if let Some(device) = device {
                fs::create_dir_all(root.join(device)).unwrap();
                symlink(root.join(device), directory.join("device")).unwrap();
            }
        };
        watchdog("watchdog1", "inactive", Some("devices/pci0000:00/0000:00:1f.3/iTCO_wdt"));
        // Its driver does not name its device.
        watchdog("watchdog0", "active", None);
        watchdog("watchdog2", "active", None);
        let found = HardwareWatchdog::all(&root);
        assert_eq!(found.iter().map(|watchdog| watchdog.is_active).collect::<Vec<_>>(), [true, false]);
        assert_eq!((found[0].timeout.as_secs(), &*found[0].identity), (10, "i6300ESB timer"));
        let ways: Vec<&Path> = found[1].ways().collect();
        let [device, bridge, bus] = ["pci0000:00/0000:00:1f.3/iTCO_wdt", "pci0000:00/0000:00:1f.3", "pci0000:00"]
            .map(|place| root.join("devices").join(place));
        assert_eq!(ways, [device, bridge, bus]);
        assert!(!found[0].has_device() && found[0].ways().next().is_none());
        assert!(HardwareWatchdog::all(Path::new("/nonexistent")).is_empty());
    }

    #[test]
    fn drivers_are_known_by_their_place_and_by_what_they_use() {
        let (sysfs, modules) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for module in ["watchdog/holders/i6300esb", "watchdog/holders/softdog", "it87_wdt", "ext4", "softdog"] {
            fs::create_dir_all(sysfs.path().join("module").join(module)).unwrap();
        }
        let drivers = || loaded_drivers(sysfs.path(), modules.path()).into_iter().collect::<Vec<_>>();
        assert_eq!(drivers(), ["i6300esb"]);
        let dep = "kernel/drivers/watchdog/it87_wdt.ko.xz: kernel/drivers/watchdog/watchdog.ko.xz\n\
                   kernel/drivers/watchdog/sp5100_tco.ko.xz:\nkernel/fs/ext4/ext4.ko.xz:\n";
        fs::write(modules.path().join("modules.dep"), dep).unwrap();
        assert_eq!(drivers(), ["i6300esb", "it87_wdt"]);
    }
}
