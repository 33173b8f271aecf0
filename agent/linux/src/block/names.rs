//! Names of disks and partitions that are the same in every kernel that runs on a machine.
//!
//! ```text
//!   WWID=naa.5002538d40f0a1b2      what the disk calls itself everywhere
//!   SERIAL=S3Z9NB0K123456          its serial number
//!   PARTUUID=1b2c...-03            of a partition: its UUID in a GPT, or the disk's signature and its number in an MBR
//!   PATH=pci-0000:00:05.0          where it is plugged in
//! ```
//!
//! What is not named by PARTUUID is a disk, and a partition of it has `-part` and its number at the end. What the
//! hardware says of itself comes first: a copy of a disk has the partition table of the original.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use super::{BlockDevice, Hardware};

/// What is smaller is no disk: empty drives, floppies.
const LEAST: u64 = 64 << 10;

/// The disks and partitions of this machine, each with all of its names, the best first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Names(Vec<(PathBuf, Vec<String>)>);

impl Names {
    /// Those of the disks and partitions that are there now. Devices that are put together of others have none.
    #[must_use]
    pub fn read() -> Names {
        let devices = BlockDevice::of_at_least(LEAST).into_iter();
        let hardware = devices.filter(|device| Hardware::of_node(&device.path).is_ok());
        Names(hardware.map(|device| (device.path.clone(), names_of(&device))).collect())
    }

    /// The same of these devices and names.
    #[must_use]
    pub fn of(devices: Vec<(PathBuf, Vec<String>)>) -> Names {
        Names(devices)
    }

    /// The best name of a device that no other has. `None` where there is none.
    #[must_use]
    pub fn unique(&self, node: &Path) -> Option<&str> {
        let mut counts: HashMap<&str, usize> = HashMap::new();
        for name in self.0.iter().flat_map(|(_, names)| names) {
            *counts.entry(name).or_default() += 1;
        }
        let (_, names) = self.0.iter().find(|(device, _)| device == node)?;
        names.iter().map(String::as_str).find(|name| counts.get(name) == Some(&1))
    }

    /// The nodes of all devices.
    pub fn all(&self) -> impl Iterator<Item = &Path> {
        self.0.iter().map(|(node, _)| node.as_path())
    }

    /// The nodes of all devices with this name: more than one where a disk was copied.
    pub fn nodes<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Path> {
        let has_it = move |(_, names): &&(PathBuf, Vec<String>)| names.iter().any(|other| other == name);
        self.0.iter().filter(has_it).map(|(node, _)| node.as_path())
    }
}

fn names_of(device: &BlockDevice) -> Vec<String> {
    let Ok(directory) = device.sysfs.canonicalize() else { return Vec::new() };
    let part_uuid = device.partition().map(|partition| partition.uuid.to_lowercase());
    names_in_sysfs(&directory, part_uuid.as_deref())
}

/// The names of the device whose own directory in sysfs this is.
fn names_in_sysfs(directory: &Path, part_uuid: Option<&str>) -> Vec<String> {
    let number = attribute(&directory.join("partition"));
    let disk = if number.is_some() { directory.parent().unwrap_or(directory) } else { directory };
    let end = number.map(|number| format!("-part{number}")).unwrap_or_default();
    let of_disk = |key: &str, value: String| format!("{key}={value}{end}");
    let first = |places: &[&str]| places.iter().find_map(|place| attribute(&disk.join(place)));
    let mut names = Vec::new();
    names.extend(first(&["wwid", "device/wwid"]).map(|value| of_disk("WWID", value)));
    names.extend(first(&["serial", "device/serial", "device/cid"]).map(|value| of_disk("SERIAL", value)));
    // A disk without a signature gives all of its partitions this one.
    names.extend(part_uuid.filter(|uuid| !uuid.starts_with("00000000-")).map(|uuid| format!("PARTUUID={uuid}")));
    names.extend(path_of(disk).map(|value| of_disk("PATH", value)));
    names
}

/// An attribute on one line, without blanks and what else does not belong into a name; `None` where it is empty.
fn attribute(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let words: Vec<&str> = text.split(|char: char| char.is_whitespace() || char.is_control()).collect();
    let name = words.into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>().join("_");
    (!name.is_empty()).then_some(name)
}

/// Where a disk is plugged in: the last PCI device on its way, the port of a SATA controller, USB's ports, target and
/// unit of SCSI, and the namespace of NVMe. Numbers that are given in the order in which things are found do not count.
fn path_of(disk: &Path) -> Option<String> {
    let parts: Vec<&str> = disk.iter().filter_map(OsStr::to_str).collect();
    let pci = parts.iter().rposition(|part| is_pci(part))?;
    let mut path = format!("pci-{}", parts[pci]);
    for (at, part) in parts.iter().enumerate().skip(pci + 1) {
        let here: PathBuf = disk.iter().take(at + 1).collect();
        if part.starts_with("ata") {
            let port = attribute(&here.join("ata_port").join(part).join("port_no"));
            path.extend(port.map(|port| format!("-ata-{port}")));
        } else if let Some((_, ports)) = part.split_once('-').filter(|_| part.contains(':')) {
            path.push_str("-usb-");
            path.push_str(ports);
        } else if let [_, channel, target, unit] = part.split(':').collect::<Vec<_>>()[..] {
            path.push_str(&format!("-scsi-{channel}:{target}:{unit}"));
        } else if let Some((_, namespace)) = part.strip_prefix("nvme").and_then(|rest| rest.split_once('n')) {
            path.push_str(&format!("-nvme-{namespace}"));
        }
    }
    Some(path)
}

/// Whether this is the name of a PCI device: domain, bus, device and function.
fn is_pci(part: &str) -> bool {
    let lens: Vec<usize> = part.split([':', '.']).map(str::len).collect();
    lens.len() == 4 && lens[1..] == [2, 2, 1] && lens[0] >= 4 && part.matches('.').count() == 1
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const PCI: &str = "devices/pci0000:00/0000:00:1f.2";

    /// A machine with these files.
    fn sysfs(files: &[(String, &str)]) -> tempfile::TempDir {
        let sysfs = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = sysfs.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        sysfs
    }

    #[test]
    fn a_partition_is_named_by_its_disk_its_uuid_and_its_place() {
        let port = format!("{PCI}/ata3");
        let disk = format!("{port}/host2/target2:0:0/2:0:0:0/block/sda");
        let sysfs = sysfs(&[
            (format!("{port}/ata_port/ata3/port_no"), "2\n"),
            (format!("{disk}/device/wwid"), "t10.ATA     Disk 1    S3Z9 \n"),
            (format!("{disk}/sda1/partition"), "1\n"),
        ]);
        let names = names_in_sysfs(&sysfs.path().join(&disk).join("sda1"), Some("0a1b-01"));
        let expected =
            ["WWID=t10.ATA_Disk_1_S3Z9-part1", "PARTUUID=0a1b-01", "PATH=pci-0000:00:1f.2-ata-2-scsi-0:0:0-part1"];
        assert_eq!(names, expected);
        let disk = names_in_sysfs(&sysfs.path().join(&disk), None);
        assert_eq!(disk, ["WWID=t10.ATA_Disk_1_S3Z9", "PATH=pci-0000:00:1f.2-ata-2-scsi-0:0:0"]);
    }

    #[test]
    fn numbers_that_depend_on_the_order_of_discovery_are_not_in_a_name() {
        for (place, file, name) in [
            ("virtio7/block/vdc", "virtio7/block/vdc/serial", "PATH=pci-0000:00:1f.2"),
            (
                "usb2/2-1/2-1:1.0/host6/target6:0:0/6:0:0:3/block/sdb",
                "usb2/2-1/2-1:1.0/host6/target6:0:0/6:0:0:3/block/sdb/size",
                "PATH=pci-0000:00:1f.2-usb-1:1.0-scsi-0:0:3",
            ),
            ("nvme/nvme4/nvme4n2", "nvme/nvme4/nvme4n2/size", "PATH=pci-0000:00:1f.2-nvme-2"),
        ] {
            let sysfs = sysfs(&[(format!("{PCI}/{file}"), "")]);
            assert_eq!(names_in_sysfs(&sysfs.path().join(PCI).join(place), None), [name]);
        }
    }

    #[test]
    fn an_mbr_without_a_signature_does_not_name_its_partitions() {
        let sysfs = sysfs(&[(format!("{PCI}/virtio1/block/vda/vda1/partition"), "1")]);
        let directory = sysfs.path().join(PCI).join("virtio1/block/vda/vda1");
        assert_eq!(names_in_sysfs(&directory, Some("00000000-01")), ["PATH=pci-0000:00:1f.2-part1"]);
    }

    #[test]
    fn a_name_that_two_disks_have_is_not_taken() {
        let device = |node: &str, names: &[&str]| {
            (PathBuf::from(node), names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>())
        };
        let names = Names::of(vec![
            device("/dev/sda1", &["PARTUUID=x", "PATH=a"]),
            device("/dev/sdb1", &["PARTUUID=x", "PATH=b"]),
            device("/dev/sdc", &["PARTUUID=x"]),
        ]);
        assert_eq!(names.unique(Path::new("/dev/sda1")), Some("PATH=a"));
        assert_eq!(names.unique(Path::new("/dev/sdc")), None);
        assert_eq!(names.unique(Path::new("/dev/sdd")), None);
        assert_eq!(names.nodes("PARTUUID=x").count(), 3);
        assert_eq!(names.nodes("PATH=b").collect::<Vec<_>>(), [Path::new("/dev/sdb1")]);
    }
}
