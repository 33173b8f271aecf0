//! Names for block devices, assembled ones included, that are the same in every kernel and with every order of
//! discovery.

use std::fs;
use std::path::{Path, PathBuf};

use super::{CLASS, Partition, node};

/// What stands before the UUID of a device-mapper device, and of a partition.
const MAPPER: &str = "dm:";
const PARTITION: &str = "partuuid:";

/// What cryptsetup begins the UUID of its devices with, and what it appends after the volume's own: the mapping's name,
/// which another boot may choose otherwise (lib/libdevmapper.c, `dm_prepare_uuid`).
const CRYPT: &str = "CRYPT-";

/// The name of the block device with this number, written `major:minor`; `None` where nothing tells it from others.
#[must_use]
pub fn stable_name(number: &str) -> Option<String> {
    let directory = Path::new("/sys/dev/block").join(number).canonicalize().ok()?;
    name_of(&directory)
}

/// The nodes of all block devices that have this name.
#[must_use]
pub fn named(name: &str) -> Vec<PathBuf> {
    named_in(Path::new(CLASS), name)
}

/// Whether the block device with this number, or one that it consists of, is encrypted by dm-crypt.
#[must_use]
pub fn is_encrypted(number: &str) -> bool {
    let Ok(directory) = Path::new("/sys/dev/block").join(number).canonicalize() else { return false };
    is_encrypted_at(&directory, 0)
}

fn is_encrypted_at(directory: &Path, depth: u32) -> bool {
    let is_crypt = mapper_uuid(directory).is_some_and(|uuid| uuid.starts_with(CRYPT));
    let below = || {
        let slaves: Vec<PathBuf> =
            fs::read_dir(directory.join("slaves")).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
        // All that it consists of.
        !slaves.is_empty() && slaves.iter().all(|slave| is_encrypted_at(slave, depth + 1))
    };
    // No stack is as deep as that.
    is_crypt || depth < 16 && below()
}

fn named_in(class: &Path, name: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(class).into_iter().flatten().flatten();
    let found = entries.filter(|entry| {
        entry.path().canonicalize().is_ok_and(|directory| name_of(&directory).as_deref() == Some(name))
    });
    let mut nodes: Vec<PathBuf> = found.map(|entry| node(&entry.file_name())).collect();
    nodes.sort();
    nodes
}

fn mapper_uuid(directory: &Path) -> Option<String> {
    let uuid = fs::read_to_string(directory.join("dm/uuid")).ok()?.trim().to_owned();
    (!uuid.is_empty()).then_some(uuid)
}

/// The name of the device whose directory in sysfs this is.
fn name_of(directory: &Path) -> Option<String> {
    if let Some(uuid) = mapper_uuid(directory) {
        return Some(format!("{MAPPER}{}", without_mapping(&uuid)));
    }
    let number: u32 = fs::read_to_string(directory.join("partition")).ok()?.trim().parse().ok()?;
    let disk = node(directory.parent()?.file_name()?);
    let uuid = Partition::read(&disk, number)?.uuid.to_ascii_lowercase();
    Some(format!("{PARTITION}{uuid}"))
}

/// `CRYPT-LUKS2-0123..-root` without `-root`.
fn without_mapping(uuid: &str) -> &str {
    let mut dashes = uuid.match_indices('-').map(|(at, _)| at);
    match dashes.nth(2) {
        Some(at) if uuid.starts_with("CRYPT-LUKS") => &uuid[..at],
        _ => uuid,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const LUKS: &str = "CRYPT-LUKS2-0123456789abcdef0123456789abcdef-";

    fn device(class: &Path, name: &str, uuid: &str, slaves: &[&str]) {
        let directory = class.join(name);
        fs::create_dir_all(directory.join("dm")).unwrap();
        fs::create_dir_all(directory.join("slaves")).unwrap();
        fs::write(directory.join("dm/uuid"), format!("{uuid}\n")).unwrap();
        for slave in slaves {
            std::os::unix::fs::symlink(class.join(slave), directory.join("slaves").join(slave)).unwrap();
        }
    }

    #[test]
    fn a_mapped_device_is_known_by_its_volume_whatever_it_is_called() {
        let class = tempfile::tempdir().unwrap();
        let class = class.path();
        fs::create_dir_all(class.join("vda1")).unwrap();
        device(class, "dm-0", &format!("{LUKS}sda3_crypt"), &["vda1"]);
        device(class, "dm-1", "LVM-abcdef", &["dm-0"]);
        device(class, "dm-2", "CRYPT-PLAIN-swap", &["vda1"]);
        device(class, "dm-3", "", &["dm-0", "vda1"]);
        let luks = format!("dm:{}", LUKS.trim_end_matches('-'));
        assert_eq!(name_of(&class.join("dm-0")), Some(luks.clone()));
        assert_eq!(name_of(&class.join("dm-2")).as_deref(), Some("dm:CRYPT-PLAIN-swap"));
        assert_eq!([name_of(&class.join("dm-3")), name_of(&class.join("vda1"))], [None, None]);
        for (name, found) in [(luks.as_str(), "/dev/dm-0"), ("dm:LVM-abcdef", "/dev/dm-1")] {
            assert_eq!(named_in(class, name), [PathBuf::from(found)]);
        }
        assert!(named_in(class, "dm:LVM-abcde").is_empty());
        for (name, expected) in [("dm-0", true), ("dm-1", true), ("dm-2", true), ("dm-3", false), ("vda1", false)] {
            assert_eq!(is_encrypted_at(&class.join(name), 0), expected, "{name}");
        }
    }
}
