//! What a block device is made of, layer by layer, for people to read.

use std::path::{Path, PathBuf};
use std::{fmt, fs};

use super::node;

/// More devices over one another than anybody has.
const DEPTH: usize = 16;

/// One layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Layer {
    /// A volume of LVM.
    Lvm(String),
    /// An encrypted volume that is open.
    Crypt(String),
    /// Another device of device-mapper's.
    Mapped(String),
    /// A RAID of md's, with its level.
    Raid(String, String),
    /// A loop device.
    Loop(PathBuf),
    /// A disk or partition.
    Disk(PathBuf),
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Layer::Lvm(name) => write!(f, "LVM {name}"),
            Layer::Crypt(name) => write!(f, "dm-crypt {name}"),
            Layer::Mapped(name) => write!(f, "device-mapper {name}"),
            Layer::Raid(name, level) => write!(f, "{level} {name}"),
            Layer::Loop(node) | Layer::Disk(node) => write!(f, "{}", node.display()),
        }
    }
}

/// The layers of a block device from the top, each once, in the order in which they are met; empty where the kernel
/// does not list the device, whose number is written `major:minor`.
#[must_use]
pub fn stack(number: &str) -> Vec<Layer> {
    stack_in(Path::new("/sys"), number)
}

fn stack_in(sysfs: &Path, number: &str) -> Vec<Layer> {
    let mut layers = Vec::new();
    if let Ok(directory) = sysfs.join("dev/block").join(number).canonicalize() {
        descend(&directory, 0, &mut layers);
    }
    layers
}

fn descend(directory: &Path, depth: usize, layers: &mut Vec<Layer>) {
    let layer = layer(directory);
    if depth > DEPTH || layers.contains(&layer) {
        return;
    }
    layers.push(layer);
    let mut below: Vec<PathBuf> = fs::read_dir(directory.join("slaves"))
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.path().canonicalize().ok())
        .collect();
    below.sort();
    below.iter().for_each(|directory| descend(directory, depth + 1, layers));
}

fn layer(directory: &Path) -> Layer {
    let text = |name: &str| fs::read_to_string(directory.join(name)).unwrap_or_default().trim().to_owned();
    let name = directory.file_name().unwrap_or_default();
    if directory.join("dm").is_dir() {
        // LVM and cryptsetup begin the UUIDs of their devices so (libdevmapper's users, dm_prepare_uuid).
        let mapped = text("dm/name");
        return match text("dm/uuid") {
            uuid if uuid.starts_with("LVM-") => Layer::Lvm(mapped),
            uuid if uuid.starts_with("CRYPT-") => Layer::Crypt(mapped),
            _ => Layer::Mapped(mapped),
        };
    }
    if directory.join("md").is_dir() {
        return Layer::Raid(name.to_string_lossy().into_owned(), text("md/level"));
    }
    if directory.join("loop").is_dir() { Layer::Loop(node(name)) } else { Layer::Disk(node(name)) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::symlink;

    use super::*;

    fn device(sysfs: &Path, name: &str, number: &str, files: &[(&str, &str)], slaves: &[&str]) {
        let directory = sysfs.join("devices").join(name);
        fs::create_dir_all(directory.join("slaves")).unwrap();
        for (file, text) in files {
            fs::create_dir_all(directory.join(file).parent().unwrap()).unwrap();
            fs::write(directory.join(file), format!("{text}\n")).unwrap();
        }
        for slave in slaves {
            symlink(sysfs.join("devices").join(slave), directory.join("slaves").join(slave)).unwrap();
        }
        fs::create_dir_all(sysfs.join("dev/block")).unwrap();
        symlink(directory, sysfs.join("dev/block").join(number)).unwrap();
    }

    #[test]
    fn lvm_on_luks_on_a_mirror_is_named_from_the_top() {
        let sysfs = tempfile::tempdir().unwrap();
        let sysfs = sysfs.path();
        device(sysfs, "sda2", "8:2", &[], &[]);
        device(sysfs, "sdb2", "8:18", &[], &[]);
        device(sysfs, "md0", "9:0", &[("md/level", "raid1")], &["sda2", "sdb2"]);
        device(sysfs, "dm-0", "254:0", &[("dm/name", "cr"), ("dm/uuid", "CRYPT-LUKS2-0-cr")], &["md0"]);
        device(sysfs, "dm-1", "254:1", &[("dm/name", "vg-root"), ("dm/uuid", "LVM-x")], &["dm-0"]);
        device(sysfs, "dm-2", "254:2", &[("dm/name", "mpatha"), ("dm/uuid", "mpath-1")], &["sda2"]);
        let text = |number| stack_in(sysfs, number).iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        assert_eq!(text("254:1"), "LVM vg-root, dm-crypt cr, raid1 md0, /dev/sda2, /dev/sdb2");
        assert_eq!(text("254:2"), "device-mapper mpatha, /dev/sda2");
        assert_eq!(text("8:2"), "/dev/sda2");
        assert_eq!(text("7:7"), "");
    }
}
