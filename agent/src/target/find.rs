//! Which block device a name means.

use std::path::PathBuf;
use std::time::Duration;

use dormouse_image::layout::DEVICE_MIN;
use dormouse_image::{BLOCK, ImageDevice, Label, Uuid};
use dormouse_linux::block::{self, BlockDevice, Hardware};
use dormouse_linux::wait::wait_for;

use crate::store::{Access, Disk};
use crate::target::{Mirror, Target, TargetError, stack};

/// The target called `name`, waiting up to `wait` for it to appear. A file is not waited for.
///
/// # Errors
/// [`TargetError::NotFound`], and those of [`resolve`].
pub fn find(name: &ImageDevice, wait: Duration) -> Result<Target, TargetError> {
    let not_found = || Err(TargetError::NotFound { name: name.clone(), seconds: wait.as_secs() });
    let mut half = None;
    let found = wait_for(wait, || match resolve(name) {
        Ok(Some(target)) if target.lacks_a_leg() => {
            half = Some(target);
            None
        }
        result => result.transpose(),
    });
    found.or_else(|| half.map(Ok)).unwrap_or_else(not_found)
}

/// The target called `name` as things are now, or `None` where there is none.
///
/// # Errors
/// [`TargetError::NoFile`]; [`TargetError::Ambiguous`] where several devices have the name: none of them is chosen.
pub fn resolve(name: &ImageDevice) -> Result<Option<Target>, TargetError> {
    let mut found = all(name)?.into_iter();
    match (found.next(), found.next()) {
        (Some(first), Some(second)) => {
            Err(TargetError::Ambiguous { name: name.clone(), first: first.into(), second: second.into() })
        }
        (found, _) => Ok(found),
    }
}

/// All that is called `name` as things are now.
///
/// # Errors
/// [`TargetError::NoFile`].
pub(super) fn all(name: &ImageDevice) -> Result<Vec<Target>, TargetError> {
    let candidates = || BlockDevice::of_at_least(DEVICE_MIN).into_iter();
    let is_meant: Box<dyn Fn(&BlockDevice) -> bool> = match name {
        ImageDevice::Path(path) if !block::exists(path) => return Ok(Vec::new()),
        ImageDevice::File(path) if !path.exists() => return Err(TargetError::NoFile { path: path.clone() }),
        // Which of both it is, the path does not tell: /dev/shm has files, and a link may lead to a device.
        ImageDevice::Path(path) | ImageDevice::File(path) => return Ok(vec![Target::of_path(path)?]),
        ImageDevice::ImageUuid(uuid) => return Ok(by_label(*uuid, 0, candidates())),
        ImageDevice::ImageAt { uuid, offset } => return Ok(by_label(*uuid, *offset, candidates())),
        ImageDevice::Remote(remote) => return Ok(vec![Target::of_remote(remote)]),
        ImageDevice::PartUuid(uuid) => {
            Box::new(|device| device.partition().is_some_and(|partition| partition.uuid.eq_ignore_ascii_case(uuid)))
        }
        ImageDevice::PartLabel(label) => {
            Box::new(|device| device.partition().is_some_and(|partition| partition.name == *label))
        }
    };
    let found = candidates().filter(|candidate| is_meant(candidate));
    Ok(found.map(|device| Target::on_device(device.path, 0)).collect())
}

/// The targets whose image has this UUID and begins at `offset` of a device.
fn by_label(uuid: Uuid, offset: u64, candidates: impl Iterator<Item = BlockDevice>) -> Vec<Target> {
    let found = candidates.filter_map(|device| {
        let label = label_at(&device, offset).filter(|label| label.uuid == uuid)?;
        let leg = label.mirror.and_then(|_| stack::leg_identity(&device.path));
        Some((device.path, label, leg))
    });
    grouped(found.collect(), offset)
}

/// Devices that carry the same label are one target where they are the legs that it names. Others that have such a
/// label are copies.
fn grouped(found: Vec<(PathBuf, Label, Option<Uuid>)>, offset: u64) -> Vec<Target> {
    let mut targets: Vec<(Target, Option<(Label, Uuid)>)> = Vec::new();
    for (path, label, leg) in found {
        let Some(legs) = label.mirror else {
            targets.push((Target::on_device(path, offset), None));
            continue;
        };
        let Some(leg) = leg.filter(|leg| legs.contains(leg)) else {
            log::debug!("{}: a copy of a leg of the mirror, which is left alone", path.display());
            continue;
        };
        let is_other = |other: &&mut (Target, Option<(Label, Uuid)>)| {
            let (target, of) = other;
            target.lacks_a_leg() && of.as_ref().is_some_and(|(other, first)| *other == label && *first != leg)
        };
        match targets.iter_mut().find(is_other) {
            Some((target, _)) => target.mirror = Mirror::At(path),
            None => {
                let target = Target { mirror: Mirror::Missing, ..Target::on_device(path, offset) };
                targets.push((target, Some((label, leg))));
            }
        }
    }
    targets.into_iter().map(|(target, _)| target).collect()
}

/// The block devices that B and D have too, and that an image could be put on, by path: see [`Hardware`].
#[must_use]
pub fn direct_devices() -> Vec<BlockDevice> {
    let mut devices = BlockDevice::of_at_least(DEVICE_MIN);
    devices.retain(|device| Hardware::of_node(&device.path).is_ok());
    devices
}

/// The label of the image that begins at `offset` of a device.
fn label_at(device: &BlockDevice, offset: u64) -> Option<Label> {
    if device.size() < offset.checked_add(BLOCK as u64)? {
        return None;
    }
    let disk = Disk::open(&device.path, Access::Read).ok()?;
    disk.label_at(offset).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_node_without_a_device_is_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        // Opening a socket's node fails as that of a disk that is not ready does: with ENXIO.
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let error = find(&ImageDevice::Path(path), Duration::from_millis(10)).unwrap_err();
        assert!(matches!(error, TargetError::NotFound { .. }), "{error}");
    }

    #[test]
    fn the_legs_of_a_mirror_are_one_target() {
        let legs = [Uuid([1; 16]), Uuid([2; 16])];
        let label = Label {
            uuid: Uuid([7; 16]),
            created_unix: 1,
            extents: vec![dormouse_image::DiskExtent { offset: 4096, len: 4096 }],
            mirror: Some(legs),
            stack: Vec::new(),
        };
        let texts = |found: &[(&str, &Label, Option<Uuid>)]| -> Vec<String> {
            let found = found.iter().map(|(path, label, leg)| ((*path).into(), (*label).clone(), *leg)).collect();
            grouped(found, 4096).iter().map(|target| format!("{target} {}", target.lacks_a_leg())).collect()
        };
        let [first, second] = legs.map(Some);
        let both = ["/dev/b and /dev/a (from byte 4096 on) false"];
        assert_eq!(texts(&[("/dev/b", &label, second), ("/dev/a", &label, first)]), both);
        assert_eq!(texts(&[("/dev/b", &label, second)]), ["/dev/b (from byte 4096 on) true"]);
        // A copy of a leg on another partition, and one that has even its partition's UUID.
        let copy = Some(Uuid([3; 16]));
        assert_eq!(
            texts(&[
                ("/dev/b", &label, second),
                ("/dev/c", &label, copy),
                ("/dev/d", &label, None),
                ("/dev/a", &label, first)
            ]),
            both
        );
        assert_eq!(
            texts(&[("/dev/a", &label, first), ("/dev/b", &label, second), ("/dev/c", &label, second)]).len(),
            2
        );
        let other = Label { created_unix: 2, ..label.clone() };
        assert_eq!(texts(&[("/dev/a", &label, first), ("/dev/b", &other, second)]).len(), 2);
        let alone = Label { mirror: None, ..label.clone() };
        assert_eq!(texts(&[("/dev/a", &alone, None), ("/dev/b", &alone, None)]).len(), 2);
    }

    #[test]
    fn a_missing_path_is_waited_for_and_then_named() {
        let device = ImageDevice::Path("/dev/no-such-device".into());
        let error = find(&device, Duration::from_millis(10)).unwrap_err().to_string();
        assert!(error.contains("/dev/no-such-device") && error.contains("not found"), "{error}");
    }
}
