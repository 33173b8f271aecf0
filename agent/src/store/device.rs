//! Which block device a name means.

use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use dormouse_image::layout::DEVICE_MIN;
use dormouse_image::{BLOCK, Uuid};
use nix::errno::Errno;

use super::{Access, Disk, Hardware, Place, StoreError};
use crate::policy::ImageDevice;

/// Where the kernel lists block devices.
const CLASS: &str = "/sys/class/block";

/// The unit of a block device's `size` in sysfs, in bytes, whatever the device's own sectors are.
const SECTOR: u64 = 512;

/// How long to wait between two looks for a device that is not there yet.
const PAUSE: Duration = Duration::from_millis(50);

/// The place of `device`, waiting up to `wait` for it to appear. A file is not waited for.
///
/// # Errors
/// [`StoreError::NotFound`], [`StoreError::NoFile`], [`StoreError::Ambiguous`].
pub fn find(device: &ImageDevice, wait: Duration) -> Result<Place, StoreError> {
    let began = Instant::now();
    loop {
        if let Some(place) = resolve(device)? {
            return Ok(place);
        }
        if began.elapsed() >= wait {
            return Err(StoreError::NotFound { device: device.clone(), seconds: wait.as_secs() });
        }
        std::thread::sleep(PAUSE);
    }
}

/// The place of `device` as things are now, or `None` where there is none.
///
/// # Errors
/// [`StoreError::NoFile`]; [`StoreError::Ambiguous`] where several devices have the name: none of them is chosen.
pub fn resolve(device: &ImageDevice) -> Result<Option<Place>, StoreError> {
    let mut offset = 0;
    let is_meant: Box<dyn Fn(&BlockDevice) -> bool> = match device {
        ImageDevice::Path(path) => return Ok(is_there(path).then(|| path.as_path().into())),
        ImageDevice::File(path) if !path.exists() => return Err(StoreError::NoFile { path: path.clone() }),
        ImageDevice::File(path) => return Ok(Some(path.as_path().into())),
        ImageDevice::ImageUuid(uuid) => {
            let uuid = *uuid;
            Box::new(move |device| device.image_uuid(0) == Some(uuid))
        }
        ImageDevice::ImageAt { uuid, offset: at } => {
            let uuid = *uuid;
            offset = *at;
            Box::new(move |device| device.image_uuid(offset) == Some(uuid))
        }
        ImageDevice::PartUuid(uuid) => {
            Box::new(|device| device.partition().is_some_and(|partition| partition.uuid.eq_ignore_ascii_case(uuid)))
        }
        ImageDevice::PartLabel(label) => {
            Box::new(|device| device.partition().is_some_and(|partition| partition.name == *label))
        }
    };
    let mut found: Option<Place> = None;
    for candidate in BlockDevice::all() {
        if is_meant(&candidate) {
            let place = Place { path: candidate.path, offset };
            if let Some(first) = found {
                return Err(StoreError::Ambiguous { device: device.clone(), first, second: place });
            }
            found = Some(place);
        }
    }
    Ok(found)
}

/// The block devices that are there and large enough for anything, by path.
#[must_use]
pub fn block_devices() -> Vec<PathBuf> {
    BlockDevice::all().into_iter().map(|device| device.path).collect()
}

/// A block device that an image could be put on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectDevice {
    /// Its node.
    pub path: PathBuf,
    /// Bytes.
    pub size: u64,
    /// Its name in the partition table, if it is a partition and has one.
    pub name: String,
}

/// The block devices that the kernels that save and restore have too, by path: see [`Hardware`].
#[must_use]
pub fn direct_devices() -> Vec<DirectDevice> {
    let devices = BlockDevice::all().into_iter().filter(|device| Hardware::of_node(&device.path).is_ok());
    let describe = |device: BlockDevice| DirectDevice {
        size: device.size(),
        name: device.partition().map(|partition| partition.name).unwrap_or_default(),
        path: device.path,
    };
    devices.map(describe).collect()
}

/// The node of the block device that sysfs calls `name`: the kernel writes a slash in it as an exclamation mark.
#[must_use]
pub fn node(name: &OsStr) -> PathBuf {
    Path::new("/dev").join(name.to_string_lossy().replace('!', "/"))
}

/// Whether there is something at `path` that can be opened, now or never: a disk's node may be there before the disk is.
fn is_there(path: &Path) -> bool {
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
struct BlockDevice {
    path: PathBuf,
    sysfs: PathBuf,
}

impl BlockDevice {
    fn all() -> Vec<BlockDevice> {
        let Ok(entries) = std::fs::read_dir(CLASS) else {
            return Vec::new();
        };
        let mut devices: Vec<BlockDevice> = entries
            .flatten()
            .map(|entry| BlockDevice { path: node(&entry.file_name()), sysfs: entry.path() })
            // Empty drives and floppies take seconds to open.
            .filter(|device| device.size() >= DEVICE_MIN)
            .collect();
        devices.sort_by(|a, b| a.path.cmp(&b.path));
        devices
    }

    /// Its size in bytes, without opening it; 0 where sysfs does not say.
    fn size(&self) -> u64 {
        let sectors = std::fs::read_to_string(self.sysfs.join("size")).ok().and_then(|text| text.trim().parse().ok());
        sectors.map_or(0, |sectors: u64| sectors.saturating_mul(SECTOR))
    }

    /// The UUID of the image that begins at `offset` of it.
    fn image_uuid(&self, offset: u64) -> Option<Uuid> {
        if self.size() < offset.checked_add(BLOCK as u64)? {
            return None;
        }
        let disk = Disk::open(&self.path, Access::Read).ok()?;
        disk.label_at(offset).ok().map(|label| label.uuid)
    }

    /// Its entry in the partition table of the disk that it is part of.
    fn partition(&self) -> Option<Partition> {
        let number: u32 = std::fs::read_to_string(self.sysfs.join("partition")).ok()?.trim().parse().ok()?;
        // A partition's folder lies in its disk's.
        let disk = node(self.sysfs.canonicalize().ok()?.parent()?.file_name()?);
        Partition::read(&disk, number)
    }
}

/// What a partition table says of one partition.
#[derive(Debug, PartialEq, Eq)]
struct Partition {
    uuid: String,
    name: String,
}

impl Partition {
    fn read(disk: &Path, number: u32) -> Option<Partition> {
        let table = gpt::GptConfig::new().writable(false).open(disk).ok();
        if let Some(entry) = table.as_ref().and_then(|table| table.partitions().get(&number)) {
            return Some(Partition { uuid: entry.part_guid.to_string(), name: entry.name.clone() });
        }
        // An MBR has no names; the kernel's own convention for its UUIDs is disk signature and number
        // (block/partitions/msdos.c, set_info).
        let start = Disk::open(disk, Access::Read).ok()?.read(0, BLOCK).ok()?;
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

    #[test]
    fn a_node_without_a_device_behind_it_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        // Opening a socket's node fails as that of a disk that is not ready does: with ENXIO.
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let error = find(&ImageDevice::Path(path), Duration::from_millis(10)).unwrap_err();
        assert!(matches!(error, StoreError::NotFound { .. }), "{error}");
    }

    #[test]
    fn a_path_that_is_not_there_is_waited_for_and_then_named() {
        let device = ImageDevice::Path("/dev/no-such-device".into());
        let error = find(&device, Duration::from_millis(10)).unwrap_err().to_string();
        assert!(error.contains("/dev/no-such-device") && error.contains("not found"), "{error}");
    }
}
