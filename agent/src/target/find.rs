//! Which block device a name means.

use std::time::Duration;

use dormouse_image::layout::DEVICE_MIN;
use dormouse_image::{BLOCK, ImageDevice, Uuid};
use dormouse_linux::block::{self, BlockDevice, Hardware};
use dormouse_linux::wait::wait_for;

use crate::store::{Access, Disk};
use crate::target::{Target, TargetError};

/// The target called `name`, waiting up to `wait` for it to appear. A file is not waited for.
///
/// # Errors
/// [`TargetError::NotFound`], and those of [`resolve`].
pub fn find(name: &ImageDevice, wait: Duration) -> Result<Target, TargetError> {
    let not_found = || Err(TargetError::NotFound { name: name.clone(), seconds: wait.as_secs() });
    wait_for(wait, || resolve(name).transpose()).unwrap_or_else(not_found)
}

/// The target called `name` as things are now, or `None` where there is none.
///
/// # Errors
/// [`TargetError::NoFile`]; [`TargetError::Ambiguous`] where several devices have the name: none of them is chosen.
pub fn resolve(name: &ImageDevice) -> Result<Option<Target>, TargetError> {
    let mut found = all(name)?.into_iter();
    match (found.next(), found.next()) {
        (Some(first), Some(second)) => Err(TargetError::Ambiguous { name: name.clone(), first, second }),
        (found, _) => Ok(found),
    }
}

/// All that is called `name` as things are now.
///
/// # Errors
/// [`TargetError::NoFile`].
pub(super) fn all(name: &ImageDevice) -> Result<Vec<Target>, TargetError> {
    let mut offset = 0;
    let is_meant: Box<dyn Fn(&BlockDevice) -> bool> = match name {
        ImageDevice::Path(path) if !block::exists(path) => return Ok(Vec::new()),
        ImageDevice::File(path) if !path.exists() => return Err(TargetError::NoFile { path: path.clone() }),
        // Which of both it is, the path does not tell: /dev/shm has files, and a link may lead to a device.
        ImageDevice::Path(path) | ImageDevice::File(path) => return Ok(vec![Target::at(path)?]),
        ImageDevice::ImageUuid(uuid) => {
            let uuid = *uuid;
            Box::new(move |device| image_uuid(device, 0) == Some(uuid))
        }
        ImageDevice::ImageAt { uuid, offset: at } => {
            let uuid = *uuid;
            offset = *at;
            Box::new(move |device| image_uuid(device, offset) == Some(uuid))
        }
        ImageDevice::PartUuid(uuid) => {
            Box::new(|device| device.partition().is_some_and(|partition| partition.uuid.eq_ignore_ascii_case(uuid)))
        }
        ImageDevice::PartLabel(label) => {
            Box::new(|device| device.partition().is_some_and(|partition| partition.name == *label))
        }
    };
    let candidates = BlockDevice::of_at_least(DEVICE_MIN).into_iter().filter(|candidate| is_meant(candidate));
    Ok(candidates.map(|device| Target::on_device(device.path, offset)).collect())
}

/// The block devices that B and D have too, and that an image could be put on, by path: see [`Hardware`].
#[must_use]
pub fn direct_devices() -> Vec<BlockDevice> {
    let mut devices = BlockDevice::of_at_least(DEVICE_MIN);
    devices.retain(|device| Hardware::of_node(&device.path).is_ok());
    devices
}

/// The UUID of the image that begins at `offset` of a device.
fn image_uuid(device: &BlockDevice, offset: u64) -> Option<Uuid> {
    if device.size() < offset.checked_add(BLOCK as u64)? {
        return None;
    }
    let disk = Disk::open(&device.path, Access::Read).ok()?;
    disk.label_at(offset).ok().map(|label| label.uuid)
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
    fn a_missing_path_is_waited_for_and_then_named() {
        let device = ImageDevice::Path("/dev/no-such-device".into());
        let error = find(&device, Duration::from_millis(10)).unwrap_err().to_string();
        assert!(error.contains("/dev/no-such-device") && error.contains("not found"), "{error}");
    }
}
