//! The disks of this machine that are in use: those under mounted filesystems and swap, through whatever is put
//! together of them (device-mapper, RAID, loop devices).
//!
//! A disk is known to another kernel of the same machine by its *place*: the way from the root of its bus, without the
//! numbers that a kernel gives out in the order in which it finds things.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::sys::stat::{major, minor};

use super::Hardware;
use super::hardware::SYSFS;
use crate::mountinfo::Mount;

/// A whole disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// Where the machine has it, which is the same in each of its kernels.
    pub place: String,
    /// Its node and its drivers.
    pub hardware: Hardware,
}

/// How many layers are looked through: a file of a filesystem may carry the next one.
const LAYERS: u32 = 16;

/// The disks under these mounts and swap areas, by their place. What is on a network or in memory has none.
#[must_use]
pub fn disks_in_use(mounts: &[Mount], swaps: &[PathBuf]) -> Vec<Disk> {
    let sources = mounts.iter().map(|mount| mount.source.as_path()).chain(swaps.iter().map(PathBuf::as_path));
    let numbers = mounts.iter().map(|mount| mount.number.clone()).chain(sources.filter_map(number_of));
    under(Path::new(SYSFS), numbers)
}

/// All disks that this kernel has.
#[must_use]
pub fn all_disks() -> Vec<Disk> {
    let names = fs::read_dir(Path::new(SYSFS).join("class/block")).into_iter().flatten().flatten();
    let numbers = names.filter_map(|entry| fs::read_to_string(entry.path().join("dev")).ok());
    under(Path::new(SYSFS), numbers.map(|number| number.trim().to_owned()))
}

/// The number of the block device at `path`, or of the one that the file there lies on.
fn number_of(path: &Path) -> Option<String> {
    let metadata = fs::metadata(path).ok().filter(|_| path.is_absolute())?;
    let number = match metadata.file_type() {
        kind if kind.is_block_device() => metadata.rdev(),
        kind if kind.is_file() => metadata.dev(),
        _ => return None,
    };
    Some(format!("{}:{}", major(number), minor(number)))
}

/// Disks by their place and their node.
type Found = BTreeMap<(String, PathBuf), Hardware>;

fn under(sysfs: &Path, numbers: impl Iterator<Item = String>) -> Vec<Disk> {
    let mut found = Found::new();
    for number in numbers {
        descend(sysfs, &sysfs.join("dev/block").join(number), LAYERS, &mut found);
    }
    // A btrfs has one device as its source, and all of them here (fs/btrfs/sysfs.c, Linux 6.12).
    let of_btrfs = glob::glob(&sysfs.join("fs/btrfs/*/devices/*").to_string_lossy());
    for device in of_btrfs.into_iter().flatten().flatten() {
        descend(sysfs, &device, LAYERS, &mut found);
    }
    found.into_iter().map(|((place, _), hardware)| Disk { place, hardware }).collect()
}

/// Adds the disks under the block device whose directory in `sysfs`, or a link to it, is `device`.
fn descend(sysfs: &Path, device: &Path, layers: u32, found: &mut Found) {
    let Some(layers) = layers.checked_sub(1) else { return };
    let Ok(mut device) = device.canonicalize() else { return };
    // A partition's directory lies in its disk's.
    if device.join("partition").exists() {
        device.pop();
    }
    let slaves: Vec<PathBuf> =
        fs::read_dir(device.join("slaves")).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    for slave in &slaves {
        descend(sysfs, slave, layers, found);
    }
    if let Ok(file) = fs::read_to_string(device.join("loop/backing_file")) {
        if let Some(number) = number_of(Path::new(file.trim_end_matches('\n'))) {
            descend(sysfs, &sysfs.join("dev/block").join(number), layers, found);
        }
    } else if slaves.is_empty()
        && let Ok(hardware) = Hardware::at(sysfs, &device)
    {
        found.insert((place(&hardware), hardware.node.clone()), hardware);
    }
}

/// The place of a disk.
fn place(hardware: &Hardware) -> String {
    let Some(end) = hardware.end() else { return String::new() };
    let mut place = place_of(end);
    // A namespace of NVMe that hangs in its subsystem, whose way is that of its controller.
    let node = hardware.node.file_name().unwrap_or_default().to_string_lossy();
    if end.file_name().is_some_and(|name| name.to_string_lossy() != node)
        && let Some(namespace) = namespace(&node)
    {
        place.push('/');
        place.push_str(&namespace);
    }
    place
}

/// The place of a device whose directory in sysfs is `end`: the way from the root of its bus, without what a kernel
/// counts as it finds it.
#[must_use]
pub fn place_of(end: &Path) -> String {
    let ways: Vec<&Path> = end.ancestors().collect();
    let words: Vec<String> = ways
        .iter()
        .rev()
        .skip_while(|dir| dir.file_name().is_none_or(|name| name != "devices"))
        .skip(1)
        .filter_map(|dir| Some((dir, dir.file_name()?.to_string_lossy())))
        .take_while(|(_, name)| name != "block")
        .map(|(dir, name)| word(dir, &name))
        .collect();
    words.join("/")
}

/// The name of a directory on the way to a disk, without what a kernel counts as it finds it.
fn word(dir: &Path, name: &str) -> String {
    let counted = |prefix: &str| {
        name.strip_prefix(prefix).filter(|rest| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit()))
    };
    if counted("ata").is_some() {
        let port = fs::read_to_string(dir.join("ata_port").join(name).join("port_no")).unwrap_or_default();
        return format!("ata{}", port.trim());
    }
    if let Some(namespace) = namespace(name) {
        return namespace;
    }
    if let Some(prefix) = ["host", "virtio", "usb", "nvme", "mmc"].into_iter().find(|prefix| counted(prefix).is_some())
    {
        return prefix.to_owned();
    }
    // The number of a SCSI host, of a USB bus or of an MMC host, before what counts from there.
    for (prefix, mark) in
        [("target", ':'), ("port-", ':'), ("end_device-", ':'), ("expander-", ':'), ("mmc", ':'), ("", '-')]
    {
        if let Some((number, rest)) = name.strip_prefix(prefix).and_then(|rest| rest.split_once(mark))
            && !number.is_empty()
            && number.bytes().all(|byte| byte.is_ascii_digit())
        {
            return format!("{prefix}{rest}");
        }
    }
    let numbers: Vec<&str> = name.split(':').collect();
    match numbers.as_slice() {
        [_, rest @ ..] if rest.len() == 3 && numbers.iter().all(|number| number.parse::<u64>().is_ok()) => {
            rest.join(":")
        }
        _ => name.to_owned(),
    }
}

/// `n1` of `nvme0n1`.
fn namespace(name: &str) -> Option<String> {
    let (controller, namespace) = name.strip_prefix("nvme")?.split_once('n')?;
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    (is_number(controller) && is_number(namespace)).then(|| format!("n{namespace}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::symlink;

    use super::*;

    const PCI: &str = "devices/pci0000:00/0000:00:05.0";

    struct Sysfs(tempfile::TempDir);

    impl Sysfs {
        fn new() -> Sysfs {
            let sysfs = Sysfs(tempfile::tempdir().unwrap());
            fs::create_dir_all(sysfs.0.path().join("dev/block")).unwrap();
            sysfs
        }

        fn root(&self) -> PathBuf {
            self.0.path().canonicalize().unwrap()
        }

        fn device(&self, number: &str, place: &str) -> PathBuf {
            let device = self.root().join(place);
            fs::create_dir_all(&device).unwrap();
            symlink(&device, self.root().join("dev/block").join(number)).unwrap();
            device
        }

        fn partition(&self, number: &str, place: &str) -> PathBuf {
            let device = self.device(number, place);
            fs::write(device.join("partition"), "1\n").unwrap();
            device
        }

        /// Device `upper` is made of `lower`.
        fn layer(&self, upper: &Path, lower: &Path) {
            fs::create_dir_all(upper.join("slaves")).unwrap();
            symlink(lower, upper.join("slaves").join(lower.file_name().unwrap())).unwrap();
        }

        fn nodes(&self, numbers: &[&str]) -> Vec<String> {
            let disks = under(&self.root(), numbers.iter().map(ToString::to_string));
            disks.iter().map(|disk| disk.hardware.node.display().to_string()).collect()
        }
    }

    #[test]
    fn partitions_lead_to_their_disk_and_layers_to_all_of_theirs() {
        let sysfs = Sysfs::new();
        sysfs.device("254:0", &format!("{PCI}/virtio1/block/vda"));
        let vda1 = sysfs.partition("254:1", &format!("{PCI}/virtio1/block/vda/vda1"));
        let sda2 = sysfs.partition("8:2", &format!("{PCI}/ata3/host2/target2:0:0/2:0:0:0/block/sda/sda2"));
        let sdb = sysfs.device("8:16", &format!("{PCI}/ata4/host3/target3:0:0/3:0:0:0/block/sdb"));
        let md = sysfs.device("9:0", "devices/virtual/block/md0");
        let crypt = sysfs.device("253:0", "devices/virtual/block/dm-0");
        let volume = sysfs.device("253:1", "devices/virtual/block/dm-1");
        sysfs.layer(&md, &sda2);
        sysfs.layer(&md, &sdb);
        sysfs.layer(&crypt, &md);
        sysfs.layer(&volume, &crypt);
        sysfs.layer(&volume, &vda1);
        assert_eq!(sysfs.nodes(&["254:1", "254:0"]), ["/dev/vda"]);
        assert_eq!(sysfs.nodes(&["253:1"]).len(), 3);
        assert_eq!(sysfs.nodes(&["253:0", "8:2"]).len(), 2);
        // What has no disk, or does not exist, adds none; nor does a device that is made of itself.
        sysfs.device("251:0", "devices/virtual/block/zram0");
        let around = sysfs.device("253:9", "devices/virtual/block/dm-9");
        sysfs.layer(&around, &around);
        assert!(sysfs.nodes(&["251:0", "0:30", "253:9"]).is_empty());
    }

    #[test]
    fn every_device_of_a_btrfs_is_in_use() {
        let sysfs = Sysfs::new();
        let vdb = sysfs.device("254:16", &format!("{PCI}/virtio2/block/vdb"));
        let devices = sysfs.root().join("fs/btrfs/1234/devices");
        fs::create_dir_all(&devices).unwrap();
        symlink(vdb, devices.join("vdb")).unwrap();
        assert_eq!(sysfs.nodes(&["0:40"]), ["/dev/vdb"]);
    }

    /// The same disk as two kernels see it, which have found other devices before it.
    #[test]
    fn a_place_is_the_same_in_every_kernel() {
        let cases = [
            ("virtio1/block/vda", "virtio7/block/vdc", "pci0000:00/0000:00:05.0/virtio"),
            (
                "ata3/host2/target2:0:0/2:0:0:0/block/sda",
                "ata9/host8/target8:0:0/8:0:0:0/block/sdk",
                "pci0000:00/0000:00:05.0/ata/host/target0:0/0:0:0",
            ),
            (
                "usb2/2-1/2-1.4/2-1.4:1.0/host6/target6:0:0/6:0:0:1/block/sdc",
                "usb4/4-1/4-1.4/4-1.4:1.0/host1/target1:0:0/1:0:0:1/block/sda",
                "pci0000:00/0000:00:05.0/usb/1/1.4/1.4:1.0/host/target0:0/0:0:1",
            ),
            ("nvme/nvme0/nvme0n2", "nvme/nvme3/nvme3n2", "pci0000:00/0000:00:05.0/nvme/nvme/n2"),
            (
                "mmc_host/mmc0/mmc0:aaaa/block/mmcblk0",
                "mmc_host/mmc1/mmc1:aaaa/block/mmcblk1",
                "pci0000:00/0000:00:05.0/mmc_host/mmc/mmcaaaa",
            ),
        ];
        for (one, other, expected) in cases {
            for place in [one, other] {
                let sysfs = Sysfs::new();
                sysfs.device("8:0", &format!("{PCI}/{place}"));
                let disks = under(&sysfs.root(), ["8:0".to_owned()].into_iter());
                assert_eq!(disks[0].place, expected, "{place}");
            }
        }
        // Two ports of one controller are told apart by their own numbers.
        let sysfs = Sysfs::new();
        let mut places = Vec::new();
        for (ata, port) in [(3, 1), (4, 2)] {
            let place = format!("{PCI}/ata{ata}/host{ata}/target{ata}:0:0/{ata}:0:0:0/block/sd{ata}");
            sysfs.device(&format!("8:{ata}"), &place);
            let about = sysfs.root().join(format!("{PCI}/ata{ata}/ata_port/ata{ata}"));
            fs::create_dir_all(&about).unwrap();
            fs::write(about.join("port_no"), format!("{port}\n")).unwrap();
            places.push(format!("pci0000:00/0000:00:05.0/ata{port}/host/target0:0/0:0:0"));
        }
        let disks = under(&sysfs.root(), ["8:4".to_owned(), "8:3".to_owned()].into_iter());
        assert_eq!(disks.into_iter().map(|disk| disk.place).collect::<Vec<_>>(), places);
    }
}
