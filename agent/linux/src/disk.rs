//! A disk's identity, as a value: the same in every kernel and at every port. Pure; [`crate::block`] finds it out.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// The words that name a bus.
const BUSES: [&str; 6] = ["usb", "nvme", "scsi", "virtio", "mmc", "other"];

const SERIAL: &str = "serial=";
const PARTITION: &str = "partition=";
const REMOVABLE: &str = "removable";
const AND: &str = " + ";

/// A disk, and the partition of it. Written as words: `usb serial=0781:5583:4C53:0 partition=1234abcd-01 removable`.
/// Two that hold the same are written with a plus sign between them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskIdentity {
    bus: &'static str,
    /// What tells it from others of its kind, where it has that.
    serial: Option<String>,
    /// The partition's UUID, or none for the whole disk.
    partition: Option<String>,
    is_removable: bool,
    /// Another one that holds the same.
    mirror: Option<Box<DiskIdentity>>,
}

/// Whether a disk is the one that is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Likeness {
    /// It is.
    Same,
    /// Nothing speaks against it, and it has nothing that would tell it from a copy.
    Possible,
    /// It is not.
    Other,
}

/// A text that is no disk's identity.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("`{0}` is no disk: write its bus ({buses}), then serial=..., partition=... and removable where they apply",
        buses = BUSES.join(", "))]
pub struct NoIdentity(String);

impl DiskIdentity {
    /// A disk; what it reports of itself becomes words.
    #[must_use]
    pub fn new(bus: &str, serial: Option<&str>, partition: Option<&str>, is_removable: bool) -> DiskIdentity {
        let bus = BUSES.into_iter().find(|known| *known == bus).unwrap_or("other");
        DiskIdentity { bus, serial: serial.map(word), partition: partition.map(word), is_removable, mirror: None }
    }

    /// This one and another that holds the same.
    #[must_use]
    pub fn with_mirror(self, other: DiskIdentity) -> DiskIdentity {
        DiskIdentity { mirror: Some(Box::new(other)), ..self }
    }

    /// One or two disks.
    fn legs(&self) -> impl Iterator<Item = &DiskIdentity> {
        std::iter::successors(Some(self), |disk| disk.mirror.as_deref())
    }

    /// Whether what was found is this one. Of two that hold the same, one may be missing.
    #[must_use]
    pub fn likeness(&self, found: &DiskIdentity) -> Likeness {
        let of_leg = |found: &DiskIdentity| self.legs().map(|own| own.likeness_of_one(found)).min();
        found.legs().filter_map(of_leg).max().unwrap_or(Likeness::Other)
    }

    fn likeness_of_one(&self, found: &DiskIdentity) -> Likeness {
        let place = |disk: &DiskIdentity| (disk.bus, disk.is_removable, disk.partition.clone());
        if place(self) != place(found) {
            return Likeness::Other;
        }
        match (&self.serial, &found.serial) {
            (Some(own), Some(other)) if own == other => Likeness::Same,
            (Some(_), _) => Likeness::Other,
            (None, _) => Likeness::Possible,
        }
    }

    /// Whether it is hardware of a kind that is known here, which every kernel finds alike.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.legs().all(|disk| disk.bus != "other")
    }

    /// Whether it can be told from a copy.
    #[must_use]
    pub fn is_unique(&self) -> bool {
        self.legs().all(|disk| disk.serial.is_some())
    }
}

impl fmt::Display for DiskIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.bus)?;
        for (name, value) in [(SERIAL, &self.serial), (PARTITION, &self.partition)] {
            value.as_ref().map_or(Ok(()), |value| write!(f, " {name}{value}"))?;
        }
        if self.is_removable {
            write!(f, " {REMOVABLE}")?;
        }
        self.mirror.as_ref().map_or(Ok(()), |mirror| write!(f, "{AND}{mirror}"))
    }
}

impl FromStr for DiskIdentity {
    type Err = NoIdentity;

    fn from_str(text: &str) -> Result<DiskIdentity, NoIdentity> {
        let wrong = || NoIdentity(text.to_owned());
        if let Some((first, second)) = text.split_once(AND) {
            let legs = (first.parse::<DiskIdentity>(), second.parse::<DiskIdentity>());
            return match legs {
                (Ok(first), Ok(second)) if second.mirror.is_none() => Ok(first.with_mirror(second)),
                _ => Err(wrong()),
            };
        }
        let mut words = text.split(' ');
        let first = words.next().unwrap_or_default();
        let bus = BUSES.into_iter().find(|bus| *bus == first).ok_or_else(wrong)?;
        let mut identity = DiskIdentity { bus, serial: None, partition: None, is_removable: false, mirror: None };
        for found in words {
            let place = match (found.strip_prefix(SERIAL), found.strip_prefix(PARTITION)) {
                (Some(value), _) => (value, &mut identity.serial),
                (None, Some(value)) => (value, &mut identity.partition),
                (None, None) if found == REMOVABLE && !identity.is_removable => {
                    identity.is_removable = true;
                    continue;
                }
                (None, None) => return Err(wrong()),
            };
            match place {
                (value, slot @ None) if !value.is_empty() && word(value) == value => *slot = Some(value.to_owned()),
                _ => return Err(wrong()),
            }
        }
        Ok(identity)
    }
}

/// The text as one word: what disks report has blanks in it, and worse.
fn word(text: &str) -> String {
    text.chars().map(|char| if char.is_ascii_graphic() && !"\"\\".contains(char) { char } else { '_' }).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_disk_is_known_by_its_mark() {
        let like = |own: &str, found: &str| {
            own.parse::<DiskIdentity>().unwrap().likeness(&found.parse::<DiskIdentity>().unwrap())
        };
        for (own, found, expected) in [
            ("usb serial=1 removable", "usb serial=1 removable", Likeness::Same),
            ("nvme serial=1 partition=a", "nvme serial=1 partition=a", Likeness::Same),
            ("usb serial=1", "usb serial=2", Likeness::Other),
            // A clone has everything that lies on the disk.
            ("nvme serial=1 partition=a", "usb serial=1 partition=a", Likeness::Other),
            ("nvme serial=1 partition=a", "nvme serial=1 partition=b", Likeness::Other),
            ("nvme serial=1 partition=a", "nvme serial=1", Likeness::Other),
            ("usb serial=1", "usb serial=1 removable", Likeness::Other),
            // What hides its mark is not taken for the one that has it.
            ("virtio serial=1", "virtio", Likeness::Other),
            ("virtio", "virtio", Likeness::Possible),
            ("virtio", "virtio serial=1", Likeness::Possible),
            ("virtio", "scsi", Likeness::Other),
            // Two that hold the same, of which one may be missing.
            ("scsi serial=1 + scsi serial=2", "scsi serial=2", Likeness::Same),
            ("scsi serial=1 + scsi serial=2", "scsi serial=2 + scsi serial=1", Likeness::Same),
            ("scsi serial=1 + scsi serial=2", "scsi serial=1 + scsi serial=3", Likeness::Other),
            ("scsi serial=1 + scsi", "scsi serial=1 + scsi", Likeness::Possible),
            ("scsi serial=1", "scsi serial=1 + scsi serial=2", Likeness::Other),
        ] {
            assert_eq!(like(own, found), expected, "{own} and {found}");
        }
    }

    #[test]
    fn rejects_texts_that_name_no_disk() {
        let long = "scsi serial=naa.5 partition=a-b removable";
        assert_eq!(long.parse::<DiskIdentity>().unwrap().to_string(), long);
        let two = "scsi serial=1 partition=a + nvme serial=2 partition=b removable";
        assert_eq!(two.parse::<DiskIdentity>().unwrap().to_string(), two);
        for text in [
            "",
            "scsi + ",
            "scsi + scsi + scsi",
            "scsi +scsi",
            "usb ",
            "floppy",
            "usb serial=",
            "usb  removable",
            "usb serial=a serial=b",
            "usb removable removable",
            "usb serial=a\tb",
            "usb wwid=1",
            "serial=1",
            "usb serial=\"",
        ] {
            assert!(text.parse::<DiskIdentity>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn what_a_disk_reports_becomes_words() {
        let disk = DiskIdentity::new("floppy", Some("a b\"c"), Some("1-2"), false);
        assert_eq!(disk.to_string(), "other serial=a_b_c partition=1-2");
        assert_eq!(disk.to_string().parse(), Ok(disk));
    }
}
