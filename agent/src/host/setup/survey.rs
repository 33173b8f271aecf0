//! What this machine has that setup can use: devices for the image, and a kernel.

use std::path::{Path, PathBuf};

use anyhow::bail;
use dormouse_image::layout::DEVICE_MIN;
use dormouse_linux::{memory_watch, system};

use crate::host::setup::Choice;
use crate::store::{Access, StoreError};
use crate::target::{self, Target, TargetError, device};

/// How a device comes to be thought of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Standing {
    /// It carries the label of an image.
    Prepared,
    /// Its partition is named `dormouse` or `hibernate`, and nothing is recognised on it.
    Named,
    /// Nothing is recognised on it, and it is large enough.
    Empty,
}

/// A device that could hold the image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Candidate {
    /// Its node.
    pub(super) path: PathBuf,
    /// Bytes.
    pub(super) size: u64,
    pub(super) standing: Standing,
}

impl Candidate {
    /// What choosing it means.
    pub(super) fn choice(&self) -> Choice {
        match self.standing {
            Standing::Prepared => Choice::Kept(self.path.clone()),
            Standing::Named | Standing::Empty => Choice::Device(self.path.clone()),
        }
    }
}

/// The devices that could hold the image, the likeliest first.
///
/// # Errors
/// Devices cannot be looked at without being root.
pub(super) fn devices() -> anyhow::Result<Vec<Candidate>> {
    if !system::is_root() {
        bail!("run `dormouse setup` as root: it looks at devices and writes to /etc and /var/lib/dormouse");
    }
    let in_use = in_use();
    let mut candidates: Vec<Candidate> = target::direct_devices()
        .into_iter()
        .filter_map(|device| {
            let name = device.partition().map(|partition| partition.name).unwrap_or_default();
            let (size, path) = (device.size(), device.path);
            let standing = standing(&path, size, &name, in_use)?;
            Some(Candidate { path, size, standing })
        })
        .collect();
    candidates.sort_by_key(|candidate| candidate.standing);
    Ok(candidates)
}

/// Bytes of memory that are in use now, for which an image is surely large enough.
fn in_use() -> u64 {
    let kib = |name| memory_watch::field("/proc/meminfo", name).unwrap_or(0);
    kib("MemTotal:").saturating_sub(kib("MemFree:")).saturating_mul(1024)
}

/// What a device is good for; `None` where it is in use or carries something else.
fn standing(path: &Path, size: u64, name: &str, in_use: u64) -> Option<Standing> {
    // First, because it only reads: udev takes notice of whoever has opened a device for writing.
    if device::foreign(path).ok()?.is_some() {
        return None;
    }
    // As `image init` opens it: that refuses one which is in use.
    match Target::at(path).ok()?.open(Access::Write) {
        Ok(_) => return Some(Standing::Prepared),
        Err(TargetError::Store(StoreError::NotInitialised { .. })) => {}
        Err(_) => return None,
    }
    let is_named = ["dormouse", "hibernate"].iter().any(|ours| name.eq_ignore_ascii_case(ours));
    match is_named {
        true if size >= DEVICE_MIN => Some(Standing::Named),
        false if size >= in_use.max(DEVICE_MIN) => Some(Standing::Empty),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Files stand for devices.
    fn device(mib: u64) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(mib << 20).unwrap();
        file
    }

    #[test]
    fn rejects_devices_that_carry_something_else_or_are_too_small() {
        let judge = |file: &tempfile::NamedTempFile, name: &str, in_use: u64| {
            standing(file.path(), file.as_file().metadata().unwrap().len(), name, in_use << 20)
        };
        let empty = device(64);
        assert_eq!(judge(&empty, "", 32), Some(Standing::Empty));
        assert_eq!(judge(&empty, "data", 128), None);
        assert_eq!(judge(&empty, "Hibernate", 128), Some(Standing::Named));
        let swap = device(64);
        std::os::unix::fs::FileExt::write_all_at(swap.as_file(), b"SWAPSPACE2", 0xff6).unwrap();
        assert_eq!(judge(&swap, "dormouse", 32), None);
        let prepared = device(64);
        device::init(prepared.path(), false).unwrap();
        assert_eq!(judge(&prepared, "", 128), Some(Standing::Prepared));
        assert_eq!(standing(Path::new("/nonexistent"), 1 << 30, "dormouse", 0), None);
    }
}
