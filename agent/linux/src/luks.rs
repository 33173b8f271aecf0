//! Encrypted volumes that are open.

use std::fs;
use std::path::Path;

/// The names of the open volumes of cryptsetup (LUKS, plain, TrueCrypt): their keys are in the kernel's memory.
///
/// `sysfs` is `/sys`. cryptsetup begins the UUID of each of its device-mapper devices with `CRYPT-`
/// (lib/libdevmapper.c, `dm_prepare_uuid`).
#[must_use]
pub fn open_volumes(sysfs: &Path) -> Vec<String> {
    let entries = fs::read_dir(sysfs.join("block")).into_iter().flatten().flatten();
    let name_of = |device: &Path| {
        let text = |name: &str| fs::read_to_string(device.join("dm").join(name)).ok();
        let uuid = text("uuid")?;
        uuid.starts_with("CRYPT-").then(|| text("name").unwrap_or_default().trim().to_owned())
    };
    let mut names: Vec<String> = entries.filter_map(|entry| name_of(&entry.path())).collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn open_volumes_are_those_of_cryptsetup() {
        let sysfs = tempfile::tempdir().unwrap();
        assert!(open_volumes(sysfs.path()).is_empty());
        for (device, uuid, name) in [
            ("dm-0", "CRYPT-LUKS2-0123456789abcdef0123456789abcdef-home\n", "home\n"),
            ("dm-1", "LVM-abcdef\n", "vg-root\n"),
            ("dm-2", "CRYPT-PLAIN-swap\n", "cryptswap\n"),
            ("dm-3", "\n", "loose\n"),
        ] {
            let directory = sysfs.path().join("block").join(device).join("dm");
            fs::create_dir_all(&directory).unwrap();
            fs::write(directory.join("uuid"), uuid).unwrap();
            fs::write(directory.join("name"), name).unwrap();
        }
        fs::create_dir_all(sysfs.path().join("block/sda")).unwrap();
        assert_eq!(open_volumes(sysfs.path()), ["cryptswap", "home"]);
    }
}
