//! The hardware watchdogs of this machine, as sysfs shows them (Documentation/ABI/testing/sysfs-class-watchdog).

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A watchdog with a device of its own; one that is a timer of the kernel's has none.
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
    /// The directory in sysfs of its device.
    device: PathBuf,
}

impl HardwareWatchdog {
    /// All of them, by name. A kernel without CONFIG_WATCHDOG_SYSFS shows none.
    #[must_use]
    pub fn all(sysfs: &Path) -> Vec<HardwareWatchdog> {
        let class = fs::read_dir(sysfs.join("class/watchdog")).into_iter().flatten().flatten();
        let mut found: Vec<HardwareWatchdog> = class
            .filter_map(|entry| {
                let path = entry.path();
                let text = |name: &str| fs::read_to_string(path.join(name)).unwrap_or_default().trim().to_owned();
                Some(HardwareWatchdog {
                    name: entry.file_name().to_string_lossy().into_owned(),
                    identity: text("identity"),
                    is_active: text("state") == "active",
                    timeout: Duration::from_secs(text("timeout").parse().unwrap_or(0)),
                    device: path.join("device").canonicalize().ok()?,
                })
            })
            .collect();
        found.sort_by(|a, b| a.name.cmp(&b.name));
        found
    }

    /// The directories in sysfs on the way to its device, its own and that of each bus among them.
    pub fn ways(&self) -> impl Iterator<Item = &Path> {
        let is_below = |dir: &&Path| dir.file_name().is_some_and(|name| name != "devices");
        self.device.ancestors().take_while(is_below)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn reads_those_with_a_device() {
        let sysfs = tempfile::tempdir().unwrap();
        let root = sysfs.path().canonicalize().unwrap();
        let watchdog = |name: &str, state: &str, device: Option<&str>| {
            let directory = root.join("class/watchdog").join(name);
            fs::create_dir_all(&directory).unwrap();
            for (file, text) in [("identity", "i6300ESB timer"), ("state", state), ("timeout", "10")] {
                fs::write(directory.join(file), format!("{text}\n")).unwrap();
            }
            if let Some(device) = device {
                fs::create_dir_all(root.join(device)).unwrap();
                symlink(root.join(device), directory.join("device")).unwrap();
            }
        };
        watchdog("watchdog1", "inactive", Some("devices/pci0000:00/0000:00:1f.3/iTCO_wdt"));
        watchdog("watchdog0", "active", Some("devices/pci0000:00/0000:00:06.0"));
        // softdog's.
        watchdog("watchdog2", "active", None);
        let found = HardwareWatchdog::all(&root);
        assert_eq!(found.iter().map(|watchdog| watchdog.is_active).collect::<Vec<_>>(), [true, false]);
        assert_eq!((found[0].timeout.as_secs(), &*found[0].identity), (10, "i6300ESB timer"));
        let ways: Vec<&Path> = found[1].ways().collect();
        let [device, bridge, bus] = ["pci0000:00/0000:00:1f.3/iTCO_wdt", "pci0000:00/0000:00:1f.3", "pci0000:00"]
            .map(|place| root.join("devices").join(place));
        assert_eq!(ways, [device, bridge, bus]);
        assert!(HardwareWatchdog::all(Path::new("/nonexistent")).is_empty());
    }
}
