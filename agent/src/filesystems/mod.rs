//! The filesystems that the saved session has mounted, and whether another system has mounted them since.
//!
//! A kernel that is continued goes on with what it has in memory of each filesystem. Where that is not what is on the
//! disk any more, it destroys the filesystem. So A lists what it has mounted, with a digest of the part of each
//! superblock that a mount elsewhere changes; B, when nothing can change any more, adds a digest of all of it, for the
//! devices that it sees; and C compares before anything is mounted.

mod superblock;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dormouse_image::Filesystem;
use dormouse_image::layout::DEVICE_MIN;
use dormouse_linux::block::{self, BlockDevice};
use dormouse_linux::mountinfo::Mount;
use dormouse_linux::wait::wait_for;

pub use superblock::Superblock;

/// The block devices that are large enough for an image, by path: those that a filesystem of the session may be on.
#[must_use]
pub fn devices() -> Vec<PathBuf> {
    BlockDevice::of_at_least(DEVICE_MIN).into_iter().map(|device| device.path).collect()
}

/// A filesystem that is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mounted {
    kind: String,
    mount: String,
    device: PathBuf,
}

/// What A has mounted, each with the digest of its superblock as it is now.
///
/// One of a type that is not known, or whose device cannot be read, is listed without a UUID: a mount elsewhere will
/// not be noticed.
#[must_use]
pub fn of_session(mounts: &[Mount]) -> Vec<Filesystem> {
    let mut found: Vec<Filesystem> = Vec::new();
    for mounted in mounted(mounts, Path::new("/sys/dev/block")) {
        let Mounted { kind, mount, device } = mounted;
        let superblock = read(&device).unwrap_or_else(|error| {
            log::warn!("{mount}: {}: {error}", device.display());
            None
        });
        let (uuid, steady) = superblock.map_or_else(Default::default, |found| (found.uuid, found.steady));
        if uuid.is_empty() {
            log::warn!("{mount}: {kind} on {}: a mount by another system will not be noticed", device.display());
        } else if found.iter().any(|other| other.uuid == uuid) {
            // Mounted at several places, or several of its parts are: it is one all the same.
            continue;
        }
        found.push(Filesystem { kind, uuid, mount, mount_digest: steady, ..Filesystem::default() });
    }
    found
}

/// Adds the digests that can be taken when the session lies still, for those that are on one of `devices`.
pub fn settle(filesystems: &mut [Filesystem], devices: &[PathBuf]) {
    for superblock in readable(devices).map(|(_, superblock)| superblock) {
        let same = |found: &&mut Filesystem| found.uuid == superblock.uuid && found.mount_digest == superblock.steady;
        if let Some(found) = filesystems.iter_mut().find(same) {
            found.quiesced_digest = Some(superblock.still);
        }
    }
}

/// What became of the filesystems of a session.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Comparison {
    /// The first that is not as the session left it, in words.
    pub changed: Option<String>,
    /// Those of which nothing is certain: no device carries them, or they are of a type of which too little was
    /// recorded.
    pub unsure: Vec<String>,
    /// Whether a device that carries one of them may still turn up.
    pub is_incomplete: bool,
}

/// Compares the filesystems of a session with those on `devices`.
///
/// Where several devices carry a filesystem with the same UUID (a mirror, a snapshot, a clone), it is enough that one
/// of them is as it was.
#[must_use]
pub fn compare(filesystems: &[Filesystem], devices: &[PathBuf]) -> Comparison {
    let here: Vec<(PathBuf, Superblock)> = readable(devices).collect();
    let mut comparison = Comparison::default();
    for filesystem in filesystems {
        let mut same_uuid = here.iter().filter(|(_, superblock)| superblock.uuid == filesystem.uuid).peekable();
        let device = same_uuid.peek().map(|(device, _)| device.clone());
        let is_certain = filesystem.quiesced_digest.is_some() || superblock::has_steady_fields(&filesystem.kind);
        comparison.is_incomplete |= device.is_none() && !filesystem.uuid.is_empty();
        let Some(device) = device.filter(|_| is_certain) else {
            comparison.unsure.push(format!("{} ({} {})", filesystem.mount, filesystem.kind, filesystem.uuid));
            continue;
        };
        let is_as_it_was = |(_, here): &(PathBuf, Superblock)| {
            filesystem.quiesced_digest.map_or(here.steady == filesystem.mount_digest, |still| here.still == still)
        };
        if !same_uuid.any(is_as_it_was) {
            comparison.changed.get_or_insert(format!(
                "the {} filesystem on {}, which the session has mounted at {}, was written by another system since",
                filesystem.kind,
                device.display(),
                filesystem.mount
            ));
        }
    }
    comparison
}

/// Compares the filesystems of a session with those on the devices that `devices` lists, until all of them exist or
/// `wait` is over: disks turn up in their own time.
#[must_use]
pub fn compare_within(filesystems: &[Filesystem], wait: Duration, devices: impl Fn() -> Vec<PathBuf>) -> Comparison {
    let mut last = None;
    let decided = wait_for(wait, || {
        let comparison = compare(filesystems, &devices());
        if !comparison.is_incomplete || comparison.changed.is_some() {
            return Some(comparison);
        }
        if last.is_none() && !wait.is_zero() {
            log::info!("waiting for the disks of {}, for {} s at most", comparison.unsure.join(", "), wait.as_secs());
        }
        last = Some(comparison);
        None
    });
    decided.or(last).unwrap_or_default()
}

fn readable(devices: &[PathBuf]) -> impl Iterator<Item = (PathBuf, Superblock)> {
    devices.iter().filter_map(|device| Some((device.clone(), read(device).ok().flatten()?)))
}

/// The superblock on a device, if it is of a kind that is known.
///
/// # Errors
/// The device cannot be read.
pub fn read(device: &Path) -> std::io::Result<Option<Superblock>> {
    superblock::read(&File::open(device)?)
}

/// The mounts that are on block devices, whose device numbers `numbers` (`/sys/dev/block`) knows by name. btrfs shows a
/// number that is no device's, and is found by its source.
fn mounted(mounts: &[Mount], numbers: &Path) -> Vec<Mounted> {
    let on_a_device = |mount: &Mount| {
        let by_number = std::fs::canonicalize(numbers.join(&mount.number)).ok();
        let by_number = by_number.as_deref().and_then(Path::file_name).map(block::node);
        let device = by_number.or_else(|| mount.source.starts_with("/dev").then(|| mount.source.clone()))?;
        // In logs and messages, a line is a line.
        let point = mount.point.to_string_lossy().replace(char::is_control, "?");
        Some(Mounted { kind: mount.kind.clone(), mount: point, device })
    };
    mounts.iter().filter_map(on_a_device).collect()
}

#[cfg(test)]
mod tests;
