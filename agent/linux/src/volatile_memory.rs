//! Memory that is not RAM to the kernel and loses its content with the power: DRAM that the command line (`memmap=n!s`)
//! or the firmware calls persistent (drivers/nvdimm/e820.c), and DRAM that the firmware sets aside for a purpose (Soft
//! Reserved; drivers/dax/hmem). Real persistent memory, which firmware tables describe, is neither.

use std::fs;
use std::path::{Path, PathBuf};

use crate::block::{self, Disk};

/// Such memory, in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Used {
    /// Its device.
    pub node: PathBuf,
    /// What uses it, as a clause.
    pub by: String,
}

/// The bus of legacy persistent memory, below which its devices are.
const LEGACY: &str = "e820_pmem";
/// How the devices of memory for a purpose begin.
const PURPOSE: &str = "hmem";

/// The first device of such memory that is in use; `disks` are those that are.
#[must_use]
pub fn in_use(disks: &[Disk]) -> Option<Used> {
    let disk = disks.iter().find(|disk| disk.place.split('/').any(|word| word == LEGACY));
    let by = "a filesystem or swap on it is in use".to_owned();
    let used = disk.map(|disk| Used { node: disk.hardware.node.clone(), by });
    used.or_else(|| open_in(Path::new("/proc"), &nodes(Path::new("/sys"))))
}

/// The nodes of all such devices.
fn nodes(sysfs: &Path) -> Vec<PathBuf> {
    let is_volatile = |device: &Path| {
        let device = device.canonicalize().unwrap_or_default();
        device.iter().any(|name| name == LEGACY || name.to_string_lossy().starts_with(PURPOSE))
    };
    let entries = |class: &str| fs::read_dir(sysfs.join(class)).into_iter().flatten().flatten();
    let devices = entries("class/block").chain(entries("bus/dax/devices"));
    devices.filter(|entry| is_volatile(&entry.path())).map(|entry| block::node(&entry.file_name())).collect()
}

/// The first of `nodes` that a process has open or mapped.
fn open_in(proc: &Path, nodes: &[PathBuf]) -> Option<Used> {
    if nodes.is_empty() {
        return None;
    }
    let processes = fs::read_dir(proc).ok()?.flatten();
    processes.filter(|entry| entry.file_name().to_string_lossy().parse::<u32>().is_ok()).find_map(|entry| {
        let process = entry.path();
        let files = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
        let open = files.filter_map(|file| fs::read_link(file.path()).ok()).find(|file| nodes.contains(file));
        let mapped = || {
            let maps = fs::read_to_string(process.join("maps")).unwrap_or_default();
            // Addresses, permissions, offset, device, inode, path.
            let mut files = maps.lines().filter_map(|line| line.split_whitespace().nth(5)).map(PathBuf::from);
            files.find(|file| nodes.contains(file))
        };
        let name = fs::read_to_string(process.join("comm")).unwrap_or_default();
        let by = format!("process {} ({}) has it open", entry.file_name().to_string_lossy(), name.trim());
        open.or_else(mapped).map(|node| Used { node, by })
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn knows_memory_that_loses_its_content() {
        let sysfs = tempfile::tempdir().unwrap();
        let root = sysfs.path();
        let device = |class: &str, place: &str| {
            let target = root.join("devices").join(place);
            fs::create_dir_all(&target).unwrap();
            fs::create_dir_all(root.join(class)).unwrap();
            symlink(&target, root.join(class).join(target.file_name().unwrap())).unwrap();
        };
        device("class/block", "platform/e820_pmem/ndbus0/region0/namespace0.0/block/pmem0");
        device("class/block", "LNXSYSTM:00/LNXSYBUS:00/ACPI0012:00/ndbus1/region1/namespace1.0/block/pmem1");
        device("class/block", "pci0000:00/0000:00:05.0/virtio1/block/vda");
        device("bus/dax/devices", "platform/hmem.0/dax0.0");
        device("bus/dax/devices", "LNXSYSTM:00/LNXSYBUS:00/ACPI0012:00/ndbus1/region2/dax2.0");
        let mut found = nodes(root);
        found.sort();
        assert_eq!(found, [Path::new("/dev/dax0.0"), Path::new("/dev/pmem0")]);
    }

    #[test]
    fn finds_who_has_it_open_or_mapped() {
        let proc = tempfile::tempdir().unwrap();
        let root = proc.path();
        let process = |number: &str, name: &str, file: &str, maps: &str| {
            let directory = root.join(number);
            fs::create_dir_all(directory.join("fd")).unwrap();
            symlink(file, directory.join("fd/3")).unwrap();
            fs::write(directory.join("maps"), maps).unwrap();
            fs::write(directory.join("comm"), format!("{name}\n")).unwrap();
        };
        let [pmem, dax] = ["/dev/pmem0", "/dev/dax0.0"].map(PathBuf::from);
        process("12", "sh", "/dev/null", "7f00-7f01 rw-s 00000000 00:05 7 /dev/dax1.0\n");
        assert_eq!(open_in(root, &[pmem.clone(), dax.clone()]), None);
        process("13", "base", "/dev/pmem0", "");
        let used = open_in(root, std::slice::from_ref(&pmem)).unwrap();
        assert_eq!((used.node, &*used.by), (pmem, "process 13 (base) has it open"));
        process("14", "cache", "/dev/null", "7f00-7f01 rw-s 00000000 00:05 7    /dev/dax0.0\n");
        assert_eq!(open_in(root, std::slice::from_ref(&dax)).unwrap().by, "process 14 (cache) has it open");
        assert_eq!(open_in(root, &[]), None);
    }
}
