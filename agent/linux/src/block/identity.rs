//! Which disk a block device lies on, by what the disk itself reports: the same in every kernel and at every port.
//!
//! Sources, in Linux 6.12: `serial` of a USB device (drivers/usb/core/sysfs.c), `wwid` of an NVMe namespace
//! (drivers/nvme/host/sysfs.c) and of a SCSI or SATA disk (drivers/scsi/scsi_sysfs.c), `serial` of virtio
//! (drivers/block/virtio_blk.c), `cid` of a memory card (drivers/mmc/core/mmc.c). A USB disk goes by its USB serial
//! number whatever driver it has: usb-storage does not ask for what `wwid` is made of, and uas does.

use std::path::{Path, PathBuf};

use super::BlockDevice;
use crate::disk::DiskIdentity;

/// The disk under a block device's node; `None` where sysfs does not list it.
#[must_use]
pub fn disk_of(path: &Path) -> Option<DiskIdentity> {
    let device = BlockDevice::of_node(path)?;
    let partition = device.partition();
    Some(identity(&device.sysfs, partition.map(|partition| partition.uuid.to_lowercase()).as_deref()))
}

/// The disk whose directory in sysfs, or that of whose partition, is `device`.
fn identity(device: &Path, partition: Option<&str>) -> DiskIdentity {
    let disk = if device.join("partition").exists() { device.parent().unwrap_or(device) } else { device };
    let (bus, serial) = bus_and_serial(disk);
    let is_removable = attribute(disk, "removable").as_deref() == Some("1");
    DiskIdentity::new(bus, serial.as_deref(), partition, is_removable)
}

/// What a disk's directory and those above it show.
fn bus_and_serial(disk: &Path) -> (&'static str, Option<String>) {
    let name = disk.file_name().unwrap_or_default().to_string_lossy();
    if let Some(usb) = disk.ancestors().find(|dir| dir.join("idVendor").exists()) {
        return ("usb", usb_serial(usb, disk));
    }
    let device = disk.join("device");
    let (bus, found) = match &*name {
        name if name.starts_with("nvme") => ("nvme", attribute(disk, "wwid")),
        name if name.starts_with("mmcblk") => ("mmc", attribute(&device, "cid")),
        name if name.starts_with("vd") => ("virtio", attribute(disk, "serial")),
        name if name.starts_with("sd") => ("scsi", attribute(&device, "wwid")),
        _ => ("other", None),
    };
    (bus, found)
}

/// Vendor, product, serial number, and which of its units: a reader of cards has several.
fn usb_serial(usb: &Path, disk: &Path) -> Option<String> {
    let part = |name| attribute(usb, name);
    // The directory of a SCSI device is called host:channel:target:unit.
    let address = disk.join("device").canonicalize().unwrap_or_default();
    let unit = address.file_name().and_then(|name| name.to_str()?.rsplit(':').next().map(str::to_owned));
    let unit = unit.filter(|unit| unit.parse::<u64>().is_ok()).unwrap_or_else(|| "0".to_owned());
    Some(format!("{}:{}:{}:{unit}", part("idVendor")?, part("idProduct")?, part("serial")?))
}

/// A file of sysfs, if it says something.
fn attribute(dir: &Path, name: &str) -> Option<String> {
    let text = std::fs::read(dir.join(name)).ok()?;
    let text = String::from_utf8_lossy(&text).trim_matches(['\0', ' ', '\n']).to_owned();
    (!text.is_empty()).then_some(text)
}

/// What is still on its way: disks that a driver has found and has not listed yet.
pub(super) fn is_pending(sysfs: &Path) -> bool {
    let devices = |bus: &str| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(sysfs.join("bus").join(bus).join("devices"));
        entries.into_iter().flatten().flatten().map(|entry| entry.path()).collect()
    };
    // A disk (type 0) whose driver is looking at it; without that driver it stays so.
    let has_driver = sysfs.join("bus/scsi/drivers/sd").exists();
    let is_unlisted = |dir: &PathBuf| attribute(dir, "type").as_deref() == Some("0") && !dir.join("block").exists();
    // usb-storage waits a second before it looks (drivers/usb/storage/usb.c, `delay_use`).
    let is_waiting = |dir: &PathBuf| {
        let is_storage = attribute(dir, "bInterfaceClass").as_deref() == Some("08") && dir.join("driver").exists();
        is_storage && !children(dir, "host").iter().any(|host| !children(host, "target").is_empty())
    };
    has_driver && devices("scsi").iter().any(is_unlisted) || devices("usb").iter().any(is_waiting)
}

/// The directories in `dir` whose names begin with `prefix`.
fn children(dir: &Path, prefix: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix)).map(|entry| entry.path()).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;

    use super::*;

    /// A sysfs of files.
    fn sysfs(files: &[(&str, &str)]) -> tempfile::TempDir {
        let top = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = top.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("{text}\n")).unwrap();
        }
        top
    }

    fn found(place: &str, files: &[(&str, &str)]) -> String {
        let top = sysfs(files);
        fs::create_dir_all(top.path().join(place)).unwrap();
        identity(&top.path().join(place), None).to_string()
    }

    #[test]
    fn each_kind_of_disk_has_its_own_mark() {
        let usb = "devices/usb1/1-2";
        let stick = format!("{usb}/1-2:1.0/host3/target3:0:0/3:0:0:1");
        let file = |dir: &str, name: &str| format!("{dir}/{name}");
        let files = [
            (file(usb, "idVendor"), "0781"),
            (file(usb, "idProduct"), "5583"),
            (file(usb, "serial"), "4C53 00"),
            (file(&stick, "block/sda/removable"), "1"),
            (file(&stick, "block/sda/sda1/partition"), "1"),
            (file(&stick, "wwid"), "t10.usb"),
        ];
        let top = sysfs(&files.each_ref().map(|(path, text)| (path.as_str(), *text)));
        let disk = top.path().join(&stick).join("block/sda");
        std::os::unix::fs::symlink(top.path().join(&stick), disk.join("device")).unwrap();
        let stick = identity(&disk.join("sda1"), Some("1234abcd-01")).to_string();
        assert_eq!(stick, "usb serial=0781:5583:4C53_00:1 partition=1234abcd-01 removable");

        let pci = "devices/pci0000:00";
        let nvme = format!("{pci}/nvme/nvme0/nvme0n1");
        let disk = found(&nvme, &[(&file(&nvme, "wwid"), "eui.0025385b11"), (&file(&nvme, "removable"), "0")]);
        assert_eq!(disk, "nvme serial=eui.0025385b11");
        let ata = format!("{pci}/ata1/host0/target0:0:0/0:0:0:0/block/sda");
        let disk = found(&ata, &[(&file(&ata, "device/wwid"), "t10.ATA     QEMU HARDDISK   QM1  ")]);
        assert_eq!(disk, "scsi serial=t10.ATA_____QEMU_HARDDISK___QM1");
        let card = format!("{pci}/mmc0/mmc0:1/block/mmcblk0");
        assert_eq!(found(&card, &[(&file(&card, "device/cid"), "0353")]), "mmc serial=0353");
        let virtio = format!("{pci}/virtio1/block/vda");
        assert_eq!(found(&virtio, &[(&file(&virtio, "serial"), "")]), "virtio");
        assert_eq!(found(&virtio, &[(&file(&virtio, "serial"), "one")]), "virtio serial=one");
        assert_eq!(found("devices/virtual/block/loop0", &[]), "other");
    }

    #[test]
    fn a_disk_on_its_way_is_waited_for() {
        assert!(!is_pending(sysfs(&[]).path()));
        let driver = ("bus/scsi/drivers/sd/module", "");
        let disk = ("bus/scsi/devices/0:0:0:0/type", "0");
        assert!(is_pending(sysfs(&[driver, disk]).path()));
        assert!(!is_pending(sysfs(&[disk]).path()));
        assert!(!is_pending(sysfs(&[driver, disk, ("bus/scsi/devices/0:0:0:0/block/sda/size", "8")]).path()));
        assert!(!is_pending(sysfs(&[driver, ("bus/scsi/devices/0:0:0:0/type", "5")]).path()));
        let stick = [("bus/usb/devices/1-2:1.0/bInterfaceClass", "08"), ("bus/usb/devices/1-2:1.0/driver/x", "")];
        assert!(is_pending(sysfs(&stick).path()));
        let scanned = [stick[0], stick[1], ("bus/usb/devices/1-2:1.0/host3/target3:0:0/x", "")];
        assert!(!is_pending(sysfs(&scanned).path()));
        assert!(!is_pending(sysfs(&stick[..1]).path()));
        assert!(!is_pending(sysfs(&[("bus/usb/devices/1-2:1.0/bInterfaceClass", "03")]).path()));
    }
}
