//! Block devices: which ones the kernel lists, and the hardware of each.

pub mod below;
mod hardware;
mod identity;
mod in_use;
pub mod layers;
mod names;
mod settle;
mod stable;
mod stack;

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

pub use hardware::{Hardware, NoHardware, refuse_virtual};
pub use identity::disk_of;
pub use in_use::{Disk, all_disks, disks_in_use, place_of};
pub use names::Names;
pub use settle::Settling;
pub use stable::{is_encrypted, named, stable_name};
pub use stack::{Layer, stack};

/// Where the kernel lists block devices.
const CLASS: &str = "/sys/class/block";

/// The unit of a block device's `size` in sysfs, in bytes, whatever the device's own sectors are.
const SECTOR: u64 = 512;

/// The node of the block device that sysfs calls `name`: the kernel writes a slash in it as an exclamation mark.
#[must_use]
pub fn node(name: &OsStr) -> PathBuf {
    Path::new("/dev").join(name.to_string_lossy().replace('!', "/"))
}

/// Whether something at `path` can be opened, or never will be: a disk's node may exist before the disk does.
#[must_use]
pub fn exists(path: &Path) -> bool {
    let not_yet = [Errno::ENXIO, Errno::ENODEV, Errno::ENOMEDIUM];
    match File::open(path) {
        Ok(_) => true,
        Err(error) => {
            let errno = error.raw_os_error().map(Errno::from_raw);
            path.exists() && errno.is_none_or(|errno| !not_yet.contains(&errno))
        }
    }
}

/// A block device as sysfs lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockDevice {
    /// Its node.
    pub path: PathBuf,
    sysfs: PathBuf,
}

impl BlockDevice {
    /// All that hold at least `bytes`, by path. Empty drives and floppies, which take seconds to open, hold nothing.
    #[must_use]
    pub fn of_at_least(bytes: u64) -> Vec<BlockDevice> {
        let Ok(entries) = std::fs::read_dir(CLASS) else {
            return Vec::new();
        };
        let mut devices: Vec<BlockDevice> = entries
            .flatten()
            .map(|entry| BlockDevice { path: node(&entry.file_name()), sysfs: entry.path() })
            .filter(|device| device.size() >= bytes)
            .collect();
        devices.sort_by(|a, b| a.path.cmp(&b.path));
        devices
    }

    /// The one with this node; `None` where sysfs does not list it.
    #[must_use]
    pub fn of_node(path: &Path) -> Option<BlockDevice> {
        let number = below::number_of_node(path)?;
        let sysfs = Path::new("/sys/dev/block").join(number).canonicalize().ok()?;
        Some(BlockDevice { path: path.to_owned(), sysfs })
    }

    /// Its size in bytes, without opening it; 0 if sysfs does not list it.
    #[must_use]
    pub fn size(&self) -> u64 {
        let sectors = std::fs::read_to_string(self.sysfs.join("size")).ok().and_then(|text| text.trim().parse().ok());
        sectors.map_or(0, |sectors: u64| sectors.saturating_mul(SECTOR))
    }

    /// Its entry in the partition table of the disk that it is part of.
    #[must_use]
    pub fn partition(&self) -> Option<Partition> {
        let number: u32 = std::fs::read_to_string(self.sysfs.join("partition")).ok()?.trim().parse().ok()?;
        // A partition's directory lies in its disk's.
        let disk = node(self.sysfs.canonicalize().ok()?.parent()?.file_name()?);
        Partition::read(&disk, number)
    }
}

/// A partition's entry in the partition table.
#[derive(Debug, PartialEq, Eq)]
pub struct Partition {
    /// Its own UUID.
    pub uuid: String,
    /// Its name; empty on an MBR disk.
    pub name: String,
}

impl Partition {
    fn read(disk: &Path, number: u32) -> Option<Partition> {
        let table = gpt::GptConfig::new().writable(false).open(disk).ok();
        if let Some(entry) = table.as_ref().and_then(|table| table.partitions().get(&number)) {
            return Some(Partition { uuid: entry.part_guid.to_string(), name: entry.name.clone() });
        }
        // An MBR has no names; the kernel's own convention for its UUIDs is disk signature and number
        // (block/partitions/msdos.c, set_info).
        let mut start = [0; 512];
        File::open(disk).ok()?.read_exact(&mut start).ok()?;
        let signature: [u8; 4] = start.get(440..444)?.try_into().ok()?;
        let is_mbr = start.get(510..512)? == [0x55, 0xaa];
        is_mbr.then(|| Partition {
            uuid: format!("{:08x}-{number:02x}", u32::from_le_bytes(signature)),
            name: String::new(),
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_gpt_partition_has_its_uuid_and_its_name() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(8 << 20).unwrap();
        let mut disk = gpt::GptConfig::new().writable(true).create(file.path()).unwrap();
        disk.add_partition("other", 1 << 20, gpt::partition_types::LINUX_FS, 0, None).unwrap();
        disk.add_partition("hibernate", 2 << 20, gpt::partition_types::LINUX_FS, 0, None).unwrap();
        let uuid = disk.partitions()[&2].part_guid.to_string();
        disk.write().unwrap();
        let partition = Partition::read(file.path(), 2).unwrap();
        assert_eq!(partition.name, "hibernate");
        assert!(partition.uuid.eq_ignore_ascii_case(&uuid));
    }

    #[test]
    fn an_mbr_partition_has_the_disk_signature_and_its_number() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut sector = vec![0; 8192];
        sector[440..444].copy_from_slice(&[0x78, 0x56, 0x34, 0x12]);
        sector[510..512].copy_from_slice(&[0x55, 0xaa]);
        std::fs::write(file.path(), sector).unwrap();
        let partition = Partition::read(file.path(), 3).unwrap();
        assert_eq!(partition, Partition { uuid: "12345678-03".into(), name: String::new() });
    }
}
