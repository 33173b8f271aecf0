//! Where the bytes of a block device lie on a disk: through partitions, device-mapper's `linear` and `crypt`, RAID 1 of
//! md, and loop devices that are over a device.
//!
//! [`place`] follows a few bytes of a filesystem, to compare them. [`below`](super::below) follows all of an image, to
//! write it, and is stricter.
//!
//! Nothing is written, and nothing but the kernel's own tables is read. What lies on a disk in another way (spread,
//! copied later, in a cache, in a file) has no place here, and the reason says why.

use std::path::{Path, PathBuf};
use std::{fs, io};

use dormouse_sys::device_mapper::{self, Target};
use thiserror::Error;

use super::{Hardware, NoHardware, SECTOR, node};

/// More devices over one another than anybody has; a loop of them has no end.
const DEPTH: usize = 16;

/// Bytes that lie in one piece on a disk, or on each of several that are alike.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The disk or partition, and the first byte on it. Each of several holds the same, and each is written with it.
    pub legs: Vec<(PathBuf, u64)>,
    /// Whether they are encrypted there. Each sector has its own place all the same, and changes if it is written.
    pub is_encrypted: bool,
}

/// Why bytes have no place on a disk.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum NoPlace {
    /// They lie in a file, on another filesystem.
    #[error("{} lies in the file {}", node.display(), file.display())]
    InFile {
        /// The loop device.
        node: PathBuf,
        /// The file.
        file: PathBuf,
    },
    /// They are not in one piece, or not where the table leads.
    #[error("{} is device-mapper's {kind}", node.display())]
    Target {
        /// The device.
        node: PathBuf,
        /// The kind of its target.
        kind: String,
    },
    /// They are in several pieces.
    #[error("{} is in several pieces", node.display())]
    Pieces {
        /// The device.
        node: PathBuf,
    },
    /// They are spread over disks, or their places move.
    #[error("{} is a RAID of the kind {level}", node.display())]
    Raid {
        /// The device.
        node: PathBuf,
        /// As md calls it.
        level: String,
    },
    /// They are on several disks.
    #[error("{} lies on several devices ({} and {})", node.display(), first.display(), second.display())]
    Devices {
        /// The device.
        node: PathBuf,
        /// What one piece of it is on.
        first: PathBuf,
        /// What another is on.
        second: PathBuf,
    },
    /// A layer that could be followed is not in a state in which it may be.
    #[error("{} {why}", node.display())]
    State {
        /// The device.
        node: PathBuf,
        /// What is in the way, as a clause.
        why: String,
        /// What to do about it, as a clause.
        remedy: &'static str,
    },
    /// It is not a device of this machine's.
    #[error(transparent)]
    Hardware(#[from] NoHardware),
    /// The kernel does not show it.
    #[error("{}: its place on a disk cannot be found", node.display())]
    Unknown {
        /// The device.
        node: PathBuf,
        /// What the system reported.
        source: io::Error,
    },
}

/// Where `len` bytes from `offset` on lie of the block device with this number, written `major:minor`.
///
/// # Errors
/// [`NoPlace`].
pub fn place(number: &str, offset: u64, len: u64) -> Result<Place, NoPlace> {
    Layers { sysfs: Path::new("/sys"), table: &table }.place(number, offset, len, 0)
}

/// The pieces of the device-mapper device with this number, as the kernel that runs has them.
pub(super) fn table(number: &str) -> io::Result<Vec<Target>> {
    let parts = number.split_once(':').and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
    let (major, minor) = parts.ok_or(io::ErrorKind::InvalidData)?;
    device_mapper::table(major, minor)
}

/// The kernel's tables.
pub(super) struct Layers<'a> {
    pub(super) sysfs: &'a Path,
    /// The pieces of a device-mapper device by its number.
    pub(super) table: &'a dyn Fn(&str) -> io::Result<Vec<Target>>,
}

/// A block device, by how it is put together.
pub(super) struct Device {
    /// Its node.
    pub(super) node: PathBuf,
    /// Its directory in sysfs.
    pub(super) directory: PathBuf,
    pub(super) kind: DeviceKind,
}

pub(super) enum DeviceKind {
    /// A disk or a partition of one.
    Hardware(Hardware),
    /// A partition of something that is put together: that one's number, and the first byte on it.
    Partition(String, u64),
    /// One of device-mapper's.
    Mapper,
    /// One of md's.
    Array,
    /// A loop device over a file, from this byte on.
    Loop(String, u64),
    /// Something else.
    Other(NoHardware),
}

/// A disk of an array of md's.
pub(super) struct Leg {
    /// Its directory in that of the array.
    pub(super) directory: PathBuf,
    /// As md writes it.
    pub(super) state: String,
    /// The byte at which its data begin.
    pub(super) start: u64,
    /// Its number.
    pub(super) number: String,
}

impl Leg {
    /// The disks of the array whose directory in sysfs is `md`, those that it has lost or not yet synchronised too.
    pub(super) fn all(md: &Path) -> io::Result<Vec<Leg>> {
        let mut legs = Vec::new();
        for entry in fs::read_dir(md)?.flatten() {
            let directory = entry.path();
            let is_leg = entry
                .file_name()
                .to_str()
                .and_then(|name| name.strip_prefix("rd"))
                .is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()));
            if is_leg {
                let state = text(&directory.join("state")).unwrap_or_default();
                // One that is gone has neither.
                let read = |name: &str| match text(&directory.join(name)) {
                    Err(_) if state.contains("faulty") => Ok("0".to_owned()),
                    result => result,
                };
                let start = sectors(&read("offset")?, SECTOR).ok_or_else(|| wrong("offset"))?;
                let number = read("block/dev")?;
                legs.push(Leg { directory, state, start, number });
            }
        }
        legs.sort_by(|a, b| a.directory.cmp(&b.directory));
        Ok(legs)
    }

    /// Whether it holds what the array holds.
    pub(super) fn is_in_sync(&self) -> bool {
        !self.state.contains("faulty") && self.state.contains("in_sync")
    }
}

impl Layers<'_> {
    fn place(&self, number: &str, offset: u64, len: u64, depth: usize) -> Result<Place, NoPlace> {
        let device = self.device(number, depth)?;
        match device.kind {
            DeviceKind::Hardware(hardware) => Ok(Place { legs: vec![(hardware.node, offset)], is_encrypted: false }),
            DeviceKind::Partition(disk, start) => self.place(&disk, offset.saturating_add(start), len, depth + 1),
            DeviceKind::Mapper => self.mapped(number, &device.node, offset, len, depth),
            DeviceKind::Array => self.mirrored(&device.directory, &device.node, offset, len, depth),
            DeviceKind::Loop(file, start) => {
                match Path::new(&file).strip_prefix("/dev").ok().and_then(|name| self.number_of(name)) {
                    Some(below) => self.place(&below, offset.saturating_add(start), len, depth + 1),
                    None => Err(NoPlace::InFile { node: device.node, file: file.into() }),
                }
            }
            DeviceKind::Other(refused) => Err(refused.into()),
        }
    }

    /// What the device with this number is, which lies under `depth` others.
    pub(super) fn device(&self, number: &str, depth: usize) -> Result<Device, NoPlace> {
        let link = Path::new("dev/block").join(number);
        let directory = self.sysfs.join(&link);
        let unknown = |source| NoPlace::Unknown { node: directory.clone(), source };
        if depth > DEPTH {
            return Err(unknown(io::Error::other("too many devices lie over one another")));
        }
        let directory = directory.canonicalize().map_err(unknown)?;
        let node = node(directory.file_name().unwrap_or_default());
        let kind = match Hardware::at(self.sysfs, &link) {
            Ok(hardware) => DeviceKind::Hardware(hardware),
            Err(refused) => self
                .put_together(&directory, refused)
                .map_err(|source| NoPlace::Unknown { node: node.clone(), source })?,
        };
        Ok(Device { node, directory, kind })
    }

    fn put_together(&self, directory: &Path, refused: NoHardware) -> io::Result<DeviceKind> {
        let attribute = |place: &str| text(&directory.join(place));
        if directory.join("partition").exists() {
            let start = sectors(&attribute("start")?, SECTOR).ok_or_else(|| wrong("start"))?;
            return Ok(DeviceKind::Partition(attribute("../dev")?, start));
        }
        if directory.join("dm").is_dir() {
            return Ok(DeviceKind::Mapper);
        }
        if directory.join("md").is_dir() {
            return Ok(DeviceKind::Array);
        }
        let Ok(file) = attribute("loop/backing_file") else { return Ok(DeviceKind::Other(refused)) };
        let start = sectors(&attribute("loop/offset")?, 1).ok_or_else(|| wrong("loop/offset"))?;
        Ok(DeviceKind::Loop(file, start))
    }

    /// The number of the device whose node is called so.
    fn number_of(&self, name: &Path) -> Option<String> {
        let name = name.to_str()?.replace('/', "!");
        text(&self.sysfs.join("class/block").join(name).join("dev")).ok()
    }

    /// Of a device-mapper device: the bytes must lie in one of its pieces.
    fn mapped(&self, number: &str, node: &Path, offset: u64, len: u64, depth: usize) -> Result<Place, NoPlace> {
        let table = (self.table)(number).map_err(|source| NoPlace::Unknown { node: node.to_owned(), source })?;
        let end_of = |target: &Target| target.start.saturating_add(target.len).saturating_mul(SECTOR);
        let has_it = |target: &&Target| (target.start.saturating_mul(SECTOR)..end_of(target)).contains(&offset);
        let Some(target) = table.iter().find(has_it) else {
            let source = io::Error::other("its table does not reach so far");
            return Err(NoPlace::Unknown { node: node.to_owned(), source });
        };
        let Some((below, sector)) = &target.lower else {
            return Err(NoPlace::Target { node: node.to_owned(), kind: target.kind.clone() });
        };
        if offset.saturating_add(len) > end_of(target) {
            return Err(NoPlace::Pieces { node: node.to_owned() });
        }
        let within = offset - target.start.saturating_mul(SECTOR);
        let place = self.place(below, sector.saturating_mul(SECTOR).saturating_add(within), len, depth + 1)?;
        Ok(Place { is_encrypted: place.is_encrypted || target.kind == "crypt", ..place })
    }

    /// Of a RAID of md's: each leg of a mirror that is up to date holds the same at the same offset of its data
    /// (drivers/md/md.c, `rdev_offset`, Linux 6.12).
    fn mirrored(&self, directory: &Path, node: &Path, offset: u64, len: u64, depth: usize) -> Result<Place, NoPlace> {
        let unknown = |source| NoPlace::Unknown { node: node.to_owned(), source };
        let md = directory.join("md");
        let level = text(&md.join("level")).map_err(unknown)?;
        if level != "raid1" {
            return Err(NoPlace::Raid { node: node.to_owned(), level });
        }
        let mut whole = Place { legs: Vec::new(), is_encrypted: false };
        for leg in Leg::all(&md).map_err(unknown)?.iter().filter(|leg| leg.is_in_sync()) {
            let place = self.place(&leg.number, offset.saturating_add(leg.start), len, depth + 1)?;
            whole.is_encrypted |= place.is_encrypted;
            whole.legs.extend(place.legs);
        }
        whole.legs.sort();
        match whole.legs.is_empty() {
            true => Err(unknown(io::Error::other("none of its disks is up to date"))),
            false => Ok(whole),
        }
    }
}

pub(super) fn text(path: &Path) -> io::Result<String> {
    fs::read_to_string(path).map(|text| text.trim().to_owned())
}

fn sectors(text: &str, unit: u64) -> Option<u64> {
    text.parse::<u64>().ok()?.checked_mul(unit)
}

fn wrong(attribute: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("its {attribute} in sysfs is not a number"))
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::symlink;

    use super::*;

    pub(in crate::block) const DISK: &str = "devices/pci0000:00/0000:00:04.0/virtio1/block/vda";
    pub(in crate::block) const OTHER: &str = "devices/pci0000:00/0000:00:05.0/virtio2/block/vdb";
    pub(in crate::block) const VIRTUAL: &str = "devices/virtual/block";

    /// A machine with two disks, one with a partition.
    pub(in crate::block) struct Machine(pub(in crate::block) tempfile::TempDir);

    impl Machine {
        pub(in crate::block) fn new() -> Machine {
            let machine = Machine(tempfile::tempdir().unwrap());
            machine.device(DISK, "254:0", &[]);
            machine.device(&format!("{DISK}/vda1"), "254:1", &[("partition", "1"), ("start", "2048")]);
            machine.device(OTHER, "254:16", &[]);
            machine
        }

        pub(in crate::block) fn device(&self, place: &str, number: &str, attributes: &[(&str, &str)]) {
            let directory = self.0.path().join(place);
            for (name, text) in attributes.iter().chain(&[("dev", number)]) {
                let path = directory.join(name);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, format!("{text}\n")).unwrap();
            }
            for (by, name) in [("dev/block", number), ("class/block", place.rsplit('/').next().unwrap())] {
                fs::create_dir_all(self.0.path().join(by)).unwrap();
                symlink(&directory, self.0.path().join(by).join(name)).unwrap();
            }
        }

        pub(in crate::block) fn mapper(&self, number: &str) {
            let name = number.replace("253:", "dm-");
            self.device(&format!("{VIRTUAL}/{name}"), number, &[("dm/name", "x")]);
        }

        fn place(&self, number: &str, offset: u64, len: u64, tables: &[(&str, &[Target])]) -> Result<Place, NoPlace> {
            let table = |number: &str| {
                let found = tables.iter().find(|(other, _)| *other == number);
                found.map(|(_, table)| table.to_vec()).ok_or_else(|| io::ErrorKind::NotFound.into())
            };
            let sysfs = self.0.path().canonicalize().unwrap();
            Layers { sysfs: &sysfs, table: &table }.place(number, offset, len, 0)
        }
    }

    fn target(start: u64, len: u64, kind: &str, lower: Option<(&str, u64)>) -> Target {
        let lower = lower.map(|(device, sector)| (device.to_owned(), sector));
        Target { start, len, kind: kind.to_owned(), lower, is_authenticated: false }
    }

    fn on(node: &str, offset: u64) -> Place {
        Place { legs: vec![(node.into(), offset)], is_encrypted: false }
    }

    #[test]
    fn a_volume_on_an_encrypted_partition_leads_to_the_partition() {
        let machine = Machine::new();
        assert_eq!(machine.place("254:1", 1024, 512, &[]).unwrap(), on("/dev/vda1", 1024));
        machine.mapper("253:0");
        machine.mapper("253:1");
        let crypt = [target(0, 1 << 20, "crypt", Some(("254:1", 32768)))];
        let volume = [target(0, 8192, "linear", Some(("253:0", 2048))), target(8192, 64, "thin", None)];
        let tables: [(&str, &[Target]); 2] = [("253:0", &crypt), ("253:1", &volume)];
        let place = machine.place("253:1", 1024, 4096, &tables).unwrap();
        assert_eq!(place, Place { is_encrypted: true, ..on("/dev/vda1", (32768 + 2048) * 512 + 1024) });
        let pieces = machine.place("253:1", 8192 * 512 - 512, 1024, &tables).unwrap_err().to_string();
        assert!(pieces.contains("/dev/dm-1 is in several pieces"), "{pieces}");
        let thin = machine.place("253:1", 8192 * 512, 1024, &tables).unwrap_err().to_string();
        assert!(thin.contains("/dev/dm-1 is device-mapper's thin"), "{thin}");
        assert!(matches!(machine.place("253:1", 1 << 40, 1, &tables), Err(NoPlace::Unknown { .. })));
        assert!(matches!(machine.place("253:7", 0, 1, &tables), Err(NoPlace::Unknown { .. })));
    }

    #[test]
    fn devices_that_lie_over_themselves_have_no_place() {
        let machine = Machine::new();
        machine.mapper("253:0");
        let table = [target(0, 8, "linear", Some(("253:0", 0)))];
        let error = machine.place("253:0", 0, 1, &[("253:0", &table)]).unwrap_err();
        assert!(matches!(error, NoPlace::Unknown { .. }), "{error}");
    }

    #[test]
    fn each_leg_of_a_mirror_that_is_up_to_date_is_a_place() {
        let machine = Machine::new();
        let array = format!("{VIRTUAL}/md0");
        machine.device(&array, "9:0", &[("md/level", "raid1")]);
        for (leg, number, state) in
            [("rd0", "254:1", "in_sync"), ("rd1", "254:16", "in_sync,write_mostly"), ("rd2", "254:0", "faulty")]
        {
            let leg = machine.0.path().join(&array).join("md").join(leg);
            fs::create_dir_all(leg.join("block")).unwrap();
            fs::write(leg.join("offset"), "2048\n").unwrap();
            fs::write(leg.join("state"), format!("{state}\n")).unwrap();
            fs::write(leg.join("block/dev"), number).unwrap();
        }
        let at = 2048 * 512 + 1024;
        let legs = vec![("/dev/vda1".into(), at), ("/dev/vdb".into(), at)];
        assert_eq!(machine.place("9:0", 1024, 1024, &[]).unwrap(), Place { legs: legs.clone(), is_encrypted: false });
        // A partition of the array.
        machine.device(&format!("{array}/md0p1"), "259:0", &[("partition", "1"), ("start", "1")]);
        assert_eq!(machine.place("259:0", 512, 1024, &[]).unwrap().legs, legs);
        fs::write(machine.0.path().join(&array).join("md/level"), "raid5\n").unwrap();
        let error = machine.place("9:0", 0, 1, &[]).unwrap_err().to_string();
        assert!(error.contains("/dev/md0 is a RAID of the kind raid5"), "{error}");
    }

    #[test]
    fn a_loop_device_leads_to_a_device_or_a_file() {
        let machine = Machine::new();
        let attributes = |file| [("loop/backing_file", file), ("loop/offset", "4096")];
        machine.device(&format!("{VIRTUAL}/loop0"), "7:0", &attributes("/dev/vdb"));
        machine.device(&format!("{VIRTUAL}/loop1"), "7:1", &attributes("/srv/disk.img"));
        machine.device(&format!("{VIRTUAL}/loop2"), "7:2", &[]);
        assert_eq!(machine.place("7:0", 1024, 1024, &[]).unwrap(), on("/dev/vdb", 5120));
        let error = machine.place("7:1", 1024, 1024, &[]).unwrap_err();
        assert!(matches!(&error, NoPlace::InFile { file, .. } if file == Path::new("/srv/disk.img")), "{error}");
        assert!(matches!(machine.place("7:2", 0, 1, &[]), Err(NoPlace::Hardware(_))));
    }
}
