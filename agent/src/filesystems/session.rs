//! What A has mounted and swaps to.

use std::collections::HashSet;
use std::fs::{self, File};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use dormouse_image::{DiskPlace, Filesystem, SwapArea};
use dormouse_linux::block::layers::{self, NoPlace, Place};
use dormouse_linux::block::{Names, node};
use dormouse_linux::error_chain::in_full;
use dormouse_linux::mountinfo::{self, Mount};
use dormouse_linux::swaps;
use nix::sys::statfs;
use thiserror::Error;

use super::{head, is_never_written, superblock, swap};

/// What A has mounted and swaps to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mounted {
    /// Its filesystems. One on several disks that are alike is listed with each.
    pub filesystems: Vec<Filesystem>,
    /// Its swap areas; likewise.
    pub swap_areas: Vec<SwapArea>,
    /// Those of which no boot can tell whether another system has written to them, each with the reason.
    pub unsure: Vec<String>,
}

/// Looks at what is mounted in any mount namespace, and at the swap areas in use. What is still to be written could be
/// a superblock: it should be synced.
///
/// # Errors
/// The kernel's lists cannot be read.
pub fn of_session() -> anyhow::Result<Mounted> {
    let (names, place) = (Names::read(), |number: &str, len| layers::place(number, 0, len));
    let finder = &Finder { names: &names, place: &place };
    let mut found = Mounted::default();
    for mounted in mounted(&mountinfo::read_all()?, Path::new("/sys/dev/block")) {
        found.add_filesystem(mounted, finder);
    }
    for device in swaps::devices()? {
        found.add_swap(&device, finder);
    }
    Ok(found)
}

/// Why it cannot be found out whether another system has written to something.
#[derive(Debug, Error)]
enum Unsure {
    #[error("{0}")]
    NoPlace(#[from] NoPlace),
    #[error("its device is not there")]
    NoDevice,
    #[error("it cannot be read")]
    Unreadable(#[source] std::io::Error),
    #[error("what a mount of this type changes is not known")]
    Kind,
    #[error("{} has no name of its own that is the same in every kernel", .0.display())]
    NoName(PathBuf),
    #[error("{} shows something else at its place", .0.display())]
    Astray(PathBuf),
    #[error("{} lies on a network, or where another program keeps it", .0.display())]
    FileElsewhere(PathBuf),
}

/// A filesystem that is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct OnDevice {
    pub(super) kind: String,
    pub(super) mount: String,
    /// The number of its block device.
    pub(super) number: Option<String>,
    pub(super) device: PathBuf,
}

/// What was found of something, and where it lies.
struct Placed {
    uuid: String,
    digest: u64,
    places: Vec<DiskPlace>,
}

impl Mounted {
    pub(super) fn add_filesystem(&mut self, mounted: OnDevice, finder: &Finder<'_>) {
        let OnDevice { kind, mount, number, device } = mounted;
        let found = number.ok_or(Unsure::NoDevice).and_then(|number| finder.filesystem(&kind, &number, &device));
        let entry = |uuid: &str, mount_digest, superblock| Filesystem {
            kind: kind.clone(),
            uuid: uuid.to_owned(),
            mount: mount.clone(),
            mount_digest,
            quiesced_digest: None,
            superblock,
        };
        match found {
            Ok(Some(Placed { uuid, digest, places })) => {
                self.filesystems.extend(places.into_iter().map(|place| entry(&uuid, digest, Some(place))));
            }
            Ok(None) => log::debug!("{mount}: {} lies in a file, whose filesystem is compared", device.display()),
            Err(error) => {
                self.filesystems.push(entry("", 0, None));
                self.unsure.push(format!("{mount} ({kind} on {}: {})", device.display(), in_full(&error)));
            }
        }
    }

    fn add_swap(&mut self, device: &Path, finder: &Finder<'_>) {
        let entry = |uuid: &str, mount_digest, superblock| SwapArea {
            uuid: uuid.to_owned(),
            mount_digest,
            quiesced_digest: None,
            superblock,
        };
        match finder.swap_area(device) {
            Ok(Some(Placed { uuid, digest, places })) => {
                self.swap_areas.extend(places.into_iter().map(|place| entry(&uuid, digest, Some(place))));
            }
            Ok(None) => log::debug!("{} lies in a file, whose filesystem is compared", device.display()),
            Err(error) => {
                self.swap_areas.push(entry("", 0, None));
                self.unsure.push(format!("swap on {} ({})", device.display(), in_full(&error)));
            }
        }
    }
}

/// What is needed to find out where something lies.
pub(super) struct Finder<'a> {
    pub(super) names: &'a Names,
    /// Where so many bytes from the beginning of the device with a number lie.
    pub(super) place: &'a dyn Fn(&str, u64) -> Result<Place, NoPlace>,
}

impl Finder<'_> {
    /// Where a filesystem lies; `None` where that is a file.
    fn filesystem(&self, kind: &str, number: &str, device: &Path) -> Result<Option<Placed>, Unsure> {
        let read = |device: &Path, start| File::open(device).and_then(|device| superblock::read(&device, start));
        let least = head(kind).map_or(4096, |len| len as u64);
        let found = read(device, 0).map_err(Unsure::Unreadable)?;
        let Some(first) = self.place(number, least)? else { return Ok(None) };
        let is_bytes = first.is_encrypted || found.is_none();
        if is_bytes && head(kind).is_none() {
            return Err(Unsure::Kind);
        }
        let place = match &found {
            Some(found) if !is_bytes && found.reach > least => (self.place)(number, found.reach)?,
            _ => first,
        };
        let (uuid, steady) = found.map_or_else(Default::default, |found| (found.uuid, found.steady));
        if !is_bytes {
            for (leg, start) in &place.legs {
                let here = read(leg, *start).map_err(Unsure::Unreadable)?;
                if here.is_none_or(|here| here.uuid != uuid) {
                    return Err(Unsure::Astray(leg.clone()));
                }
            }
        }
        Ok(Some(Placed { uuid, digest: if is_bytes { 0 } else { steady }, places: self.named(place)? }))
    }

    /// Where a swap area lies; `None` where that is a file.
    fn swap_area(&self, device: &Path) -> Result<Option<Placed>, Unsure> {
        let metadata = fs::metadata(device).map_err(Unsure::Unreadable)?;
        let file = File::open(device).map_err(Unsure::Unreadable)?;
        let area = swap::read(&file, 0).map_err(Unsure::Unreadable)?;
        let size = dormouse_sys::blockdev::size(&file).map_err(Unsure::Unreadable)?;
        let Some(place) = self.place(&number_of(&metadata), size.min(swap::REACH))? else { return Ok(None) };
        let digest = if place.is_encrypted { 0 } else { area.header };
        Ok(Some(Placed { uuid: area.uuid.unwrap_or_default(), digest, places: self.named(place)? }))
    }

    /// Where the first bytes of a device lie; `None` where that is a file on a filesystem that is mounted here too, and
    /// shows whether anything there was written to.
    fn place(&self, number: &str, len: u64) -> Result<Option<Place>, Unsure> {
        match (self.place)(number, len) {
            Ok(place) => Ok(Some(place)),
            Err(NoPlace::InFile { file, .. }) if is_local(&file) => Ok(None),
            Err(NoPlace::InFile { file, .. }) => Err(Unsure::FileElsewhere(file)),
            Err(error) => Err(error.into()),
        }
    }

    fn named(&self, place: Place) -> Result<Vec<DiskPlace>, Unsure> {
        let name = |(leg, offset): (PathBuf, u64)| match self.names.unique(&leg) {
            Some(name) => Ok(DiskPlace { disk: name.to_owned(), offset }),
            None => Err(Unsure::NoName(leg)),
        };
        place.legs.into_iter().map(name).collect()
    }
}

/// Whether a file is on a filesystem that no other system writes to at the same time.
fn is_local(file: &Path) -> bool {
    // linux/magic.h and the sources of each: what nix does not name.
    const OTHERS: [u32; 4] = [0xff53_4d42, 0xfe53_4d42, 0x0102_1997, 0x00c3_6400];
    statfs::statfs(file).is_ok_and(|found| {
        let kind = found.filesystem_type();
        let is_named = [statfs::NFS_SUPER_MAGIC, statfs::SMB_SUPER_MAGIC, statfs::FUSE_SUPER_MAGIC].contains(&kind);
        // A magic number has 32 bits, whatever its type is here.
        !is_named && !OTHERS.iter().any(|other| kind.0.cast_unsigned() & 0xffff_ffff == u64::from(*other))
    })
}

fn number_of(metadata: &fs::Metadata) -> String {
    format!("{}:{}", nix::sys::stat::major(metadata.rdev()), nix::sys::stat::minor(metadata.rdev()))
}

/// The mounts that are on block devices, each device once, whose numbers `numbers` (`/sys/dev/block`) knows by name.
/// btrfs and bcachefs show a number that is of no device, and are found by their source.
pub(super) fn mounted(mounts: &[Mount], numbers: &Path) -> Vec<OnDevice> {
    let mut seen = HashSet::new();
    let mut found = Vec::new();
    for mount in mounts.iter().filter(|mount| !is_never_written(&mount.kind)) {
        // In logs and messages, a line is a line.
        let point = mount.point.to_string_lossy().replace(char::is_control, "?");
        let entry = |number, device| OnDevice { kind: mount.kind.clone(), mount: point.clone(), number, device };
        let by_number = fs::canonicalize(numbers.join(&mount.number)).ok();
        if let Some(device) = by_number.as_deref().and_then(Path::file_name).map(node) {
            found.push(entry(Some(mount.number.clone()), device));
            continue;
        }
        // What has the number of a device that is gone is not going to be written to.
        if !mount.source.starts_with("/dev") || !mount.number.starts_with("0:") {
            continue;
        }
        // bcachefs names all of its devices, with colons between them.
        let source = mount.source.to_string_lossy();
        let parts: Vec<&str> = if mount.kind == "bcachefs" { source.split(':').collect() } else { vec![&source] };
        let entries = parts.into_iter().map(|part| {
            let metadata = fs::metadata(part).ok().filter(|metadata| metadata.file_type().is_block_device());
            entry(metadata.as_ref().map(number_of), part.into())
        });
        // Others call whatever they like their source, such as /dev/fuse.
        let has_devices = matches!(mount.kind.as_str(), "btrfs" | "bcachefs");
        found.extend(entries.filter(|entry| has_devices || entry.number.is_some()));
    }
    found.retain(|entry| seen.insert(entry.number.clone().unwrap_or_else(|| entry.device.display().to_string())));
    found
}
