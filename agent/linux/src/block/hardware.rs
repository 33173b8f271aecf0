//! Which block devices the kernels that save and restore have as soon as they have their drivers: disks and partitions
//! of disks. These kernels put nothing together (device-mapper, RAID) and reach nothing over a network.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::{fs, io};

use thiserror::Error;

use super::node;

/// Where the kernel shows its devices.
pub(super) const SYSFS: &str = "/sys";

/// Why the kernels that save and restore would not have a block device.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum NoHardware {
    /// There is no such block device.
    #[error("{}: not a block device that sysfs lists", place.display())]
    NoDevice {
        /// Its node, or its place in sysfs.
        place: PathBuf,
        /// What the system reported.
        source: io::Error,
    },
    /// It is not a disk or a partition of one.
    #[error("{} is {what}: the save kernel does not have it", node.display())]
    Virtual {
        /// Its node.
        node: PathBuf,
        /// What it is instead.
        what: &'static str,
    },
}

/// A disk, or a partition of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hardware {
    /// Its node.
    pub node: PathBuf,
    /// The directories in sysfs of the devices at which the ways to it end: its own, but for a namespace of NVMe that
    /// may have several controllers.
    ends: Vec<PathBuf>,
    sysfs: PathBuf,
}

impl Hardware {
    /// The hardware of a block device's node.
    ///
    /// # Errors
    /// [`NoHardware`].
    pub fn of_node(path: &Path) -> Result<Hardware, NoHardware> {
        let no_device = |source| NoHardware::NoDevice { place: path.to_owned(), source };
        let metadata = fs::metadata(path).map_err(no_device)?;
        if !metadata.file_type().is_block_device() {
            return Err(no_device(io::Error::new(io::ErrorKind::InvalidInput, "it is something else")));
        }
        let (major, minor) = (nix::sys::stat::major(metadata.rdev()), nix::sys::stat::minor(metadata.rdev()));
        Hardware::of_number(&format!("{major}:{minor}"))
    }

    /// The hardware of the block device with this number, written `major:minor`.
    ///
    /// # Errors
    /// [`NoHardware`].
    pub fn of_number(number: &str) -> Result<Hardware, NoHardware> {
        Hardware::at(Path::new(SYSFS), &Path::new("dev/block").join(number))
    }

    /// The hardware of the block device whose directory in `sysfs`, or a link to it, is `place`.
    pub fn at(sysfs: &Path, place: &Path) -> Result<Hardware, NoHardware> {
        let real = |path: PathBuf| path.canonicalize().map_err(|source| NoHardware::NoDevice { place: path, source });
        let (device, sysfs) = (real(sysfs.join(place))?, real(sysfs.to_owned())?);
        let node = node(device.file_name().unwrap_or_default());
        let ends = controllers(&sysfs, &device).unwrap_or_else(|| vec![device.clone()]);
        match ends.iter().find_map(|end| virtual_kind(&sysfs, end)) {
            Some(what) => Err(NoHardware::Virtual { node, what }),
            None => Ok(Hardware { node, ends, sysfs }),
        }
    }

    /// The directory in sysfs at which the first way ends.
    pub(super) fn end(&self) -> Option<&Path> {
        self.ends.first().map(PathBuf::as_path)
    }

    /// The directories in sysfs on the ways to the device, its own and that of each bus among them.
    pub fn ways(&self) -> impl Iterator<Item = &Path> {
        let is_below = |dir: &&Path| dir.parent() != Some(&self.sysfs);
        self.ends.iter().flat_map(move |end| end.ancestors().take_while(is_below))
    }
}

/// Refuses a block device that the kernels that save and restore would not have. Anything that is not a block device,
/// such as a file, passes.
///
/// # Errors
/// [`NoHardware::Virtual`].
pub fn refuse_virtual(path: &Path) -> Result<(), NoHardware> {
    match Hardware::of_node(path) {
        Ok(_) | Err(NoHardware::NoDevice { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// The directory of devices that no driver has found (Linux 6.12, drivers/base/core.c, `virtual_device_parent`).
fn virtuals(sysfs: &Path) -> PathBuf {
    sysfs.join("devices/virtual")
}

/// The controllers of a namespace of NVMe's multipath, which hangs in its subsystem, in which links lead to them (Linux
/// 6.12, drivers/nvme/host/multipath.c).
fn controllers(sysfs: &Path, device: &Path) -> Option<Vec<PathBuf>> {
    let subsystems = virtuals(sysfs).join("nvme-subsystem");
    let subsystem = device.ancestors().find(|dir| dir.parent() == Some(&subsystems))?;
    let links = fs::read_dir(subsystem).ok()?.flatten().filter(|entry| {
        entry.file_name().to_string_lossy().starts_with("nvme") && entry.file_type().is_ok_and(|kind| kind.is_symlink())
    });
    let found: Vec<PathBuf> = links.filter_map(|link| link.path().canonicalize().ok()).collect();
    (!found.is_empty()).then_some(found)
}

/// What is at the end of a way, if it is not hardware of this machine.
fn virtual_kind(sysfs: &Path, end: &Path) -> Option<&'static str> {
    const NETWORK: &str = "on the network";
    if end.starts_with(virtuals(sysfs).join("nvme-fabrics"))
        || end.ancestors().any(|dir| dir.join("iscsi_session").is_dir())
    {
        return Some(NETWORK);
    }
    if !end.starts_with(virtuals(sysfs)) {
        return None;
    }
    // A partition's directory lies in its disk's.
    let disk = if end.join("partition").exists() { end.parent().unwrap_or(end) } else { end };
    Some(match disk.file_name().unwrap_or_default().to_string_lossy() {
        name if name.starts_with("dm-") => "a device-mapper device (LVM, LUKS, multipath)",
        name if name.starts_with("md") => "a software RAID",
        name if name.starts_with("loop") => "a loop device",
        name if name.starts_with("bcache") => "a bcache device",
        name if name.starts_with("nbd") || name.starts_with("rbd") || name.starts_with("drbd") => NETWORK,
        _ => "no disk of its own",
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::symlink;

    use super::*;

    const VIRTUAL: &str = "devices/virtual/block";
    const PCI: &str = "devices/pci0000:00/0000:00:04.0";

    fn sysfs(dirs: &[&str]) -> tempfile::TempDir {
        let sysfs = tempfile::tempdir().unwrap();
        dirs.iter().for_each(|dir| fs::create_dir_all(sysfs.path().join(dir)).unwrap());
        sysfs
    }

    /// The refusal of the one device of a machine.
    fn refusal(place: &str, dirs: &[&str]) -> String {
        let dirs = [&[place], dirs].concat();
        Hardware::at(sysfs(&dirs).path(), Path::new(place)).unwrap_err().to_string()
    }

    #[test]
    fn accepts_disks_and_their_partitions() {
        for (place, node) in [
            ("virtio1/block/vda", "/dev/vda"),
            ("virtio1/block/vda/vda1", "/dev/vda1"),
            ("block/cciss!c0d0", "/dev/cciss/c0d0"),
            ("nvme/nvme0/nvme0n1", "/dev/nvme0n1"),
        ] {
            let place = format!("{PCI}/{place}");
            let sysfs = sysfs(&[&place]);
            let hardware = Hardware::at(sysfs.path(), Path::new(&place)).unwrap();
            assert_eq!(hardware.node, Path::new(node));
            let ways: Vec<&Path> = hardware.ways().collect();
            let root = sysfs.path().canonicalize().unwrap();
            assert_eq!(
                (ways.first(), ways.last()),
                (Some(&&*root.join(&place)), Some(&&*root.join("devices/pci0000:00")))
            );
        }
    }

    #[test]
    fn refuses_virtual_devices() {
        for (name, what) in [
            ("dm-0", "/dev/dm-0 is a device-mapper device"),
            ("md0", "a software RAID"),
            ("loop0", "a loop device"),
            ("nbd0", "on the network"),
            ("zram0", "no disk of its own"),
        ] {
            let text = refusal(&format!("{VIRTUAL}/{name}"), &[]);
            assert!(text.contains(what), "{text}");
        }
        let partition = refusal(&format!("{VIRTUAL}/md0/md0p1"), &[&format!("{VIRTUAL}/md0/md0p1/partition")]);
        assert!(partition.contains("/dev/md0p1 is a software RAID"), "{partition}");
    }

    #[test]
    fn refuses_disks_on_a_network() {
        let session = "devices/platform/host3/session1";
        let text = refusal(
            &format!("{session}/target3:0:0/3:0:0:1/block/sdb/sdb1"),
            &[&format!("{session}/iscsi_session/session1")],
        );
        assert!(text.contains("/dev/sdb1 is on the network"), "{text}");
        let text = refusal("devices/virtual/nvme-fabrics/ctl/nvme0/nvme0n1", &[]);
        assert!(text.contains("/dev/nvme0n1 is on the network"), "{text}");
    }

    #[test]
    fn an_nvme_namespace_with_multipath_leads_to_its_controllers() {
        let subsystem = "devices/virtual/nvme-subsystem/nvme-subsys0";
        let (local, remote) = (format!("{PCI}/nvme/nvme0"), "devices/virtual/nvme-fabrics/ctl/nvme1");
        let partition = format!("{subsystem}/nvme0n1/nvme0n1p3");
        let sysfs = sysfs(&[&local, remote, &partition]);
        let root = sysfs.path().canonicalize().unwrap();
        let link = |to: &str, name: &str| symlink(root.join(to), root.join(subsystem).join(name)).unwrap();
        link(&local, "nvme0");
        let found = Hardware::at(&root, Path::new(&partition)).unwrap();
        assert_eq!((found.node, found.ends), ("/dev/nvme0n1p3".into(), vec![root.join(&local)]));
        // Which of its controllers another kernel finds is not certain.
        link(remote, "nvme1");
        let text = Hardware::at(&root, Path::new(&partition)).unwrap_err().to_string();
        assert!(text.contains("on the network"), "{text}");
    }

    #[test]
    fn refuses_anything_that_is_not_a_block_device() {
        for path in ["/proc/self/status", "/dev/null", "/nonexistent"] {
            let error = Hardware::of_node(Path::new(path)).unwrap_err();
            assert!(matches!(error, NoHardware::NoDevice { .. }), "{error}");
            refuse_virtual(Path::new(path)).unwrap();
        }
        assert!(matches!(Hardware::of_number("0:45"), Err(NoHardware::NoDevice { .. })));
    }
}
