//! Which block device a name means.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use dormouse_image::layout::DEVICE_MIN;
use dormouse_image::{BLOCK, ImageDevice, Uuid};
use dormouse_linux::block::{self, BlockDevice, Hardware};

use crate::store::{Access, Disk, Place, StoreError};

/// How long to wait between two looks for a device that is not there yet.
const PAUSE: Duration = Duration::from_millis(50);

/// The place of `device`, waiting up to `wait` for it to appear. A file is not waited for.
///
/// # Errors
/// [`StoreError::NotFound`], [`StoreError::NoFile`], [`StoreError::Ambiguous`].
pub fn find(device: &ImageDevice, wait: Duration) -> Result<Place, StoreError> {
    let began = Instant::now();
    loop {
        if let Some(place) = resolve(device)? {
            return Ok(place);
        }
        if began.elapsed() >= wait {
            return Err(StoreError::NotFound { device: device.clone(), seconds: wait.as_secs() });
        }
        std::thread::sleep(PAUSE);
    }
}

/// The place of `device` as things are now, or `None` where there is none.
///
/// # Errors
/// [`StoreError::NoFile`]; [`StoreError::Ambiguous`] where several devices have the name: none of them is chosen.
pub fn resolve(device: &ImageDevice) -> Result<Option<Place>, StoreError> {
    let mut offset = 0;
    let is_meant: Box<dyn Fn(&BlockDevice) -> bool> = match device {
        ImageDevice::Path(path) => return Ok(block::exists(path).then(|| path.as_path().into())),
        ImageDevice::File(path) if !path.exists() => return Err(StoreError::NoFile { path: path.clone() }),
        ImageDevice::File(path) => return Ok(Some(path.as_path().into())),
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
    let mut found: Option<Place> = None;
    for candidate in BlockDevice::of_at_least(DEVICE_MIN) {
        if is_meant(&candidate) {
            let place = Place { path: candidate.path, offset };
            if let Some(first) = found {
                return Err(StoreError::Ambiguous { device: device.clone(), first, second: place });
            }
            found = Some(place);
        }
    }
    Ok(found)
}

/// A block device that an image could be put on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectDevice {
    /// Its node.
    pub path: PathBuf,
    /// Bytes.
    pub size: u64,
    /// Its name in the partition table, if it is a partition and has one.
    pub name: String,
}

/// The block devices that the kernels that save and restore have too, by path: see [`Hardware`].
#[must_use]
pub fn direct_devices() -> Vec<DirectDevice> {
    let devices =
        BlockDevice::of_at_least(DEVICE_MIN).into_iter().filter(|device| Hardware::of_node(&device.path).is_ok());
    let describe = |device: BlockDevice| DirectDevice {
        size: device.size(),
        name: device.partition().map(|partition| partition.name).unwrap_or_default(),
        path: device.path,
    };
    devices.map(describe).collect()
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
    fn a_node_without_a_device_behind_it_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        // Opening a socket's node fails as that of a disk that is not ready does: with ENXIO.
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let error = find(&ImageDevice::Path(path), Duration::from_millis(10)).unwrap_err();
        assert!(matches!(error, StoreError::NotFound { .. }), "{error}");
    }

    #[test]
    fn a_path_that_is_not_there_is_waited_for_and_then_named() {
        let device = ImageDevice::Path("/dev/no-such-device".into());
        let error = find(&device, Duration::from_millis(10)).unwrap_err().to_string();
        assert!(error.contains("/dev/no-such-device") && error.contains("not found"), "{error}");
    }
}
