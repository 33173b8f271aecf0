//! What the last initramfs that was built knew of the image device: one that is not there while a kernel update builds
//! the next is no reason to build that one without Dormouse.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use dormouse_linux::atomic_file::replace;
use serde::{Deserialize, Serialize};

use crate::cycle::boots;
use crate::policy::Policy;
use crate::target::{self, Driver, TargetError};

/// Where it is kept.
pub(super) const FILE: &str = "/var/lib/dormouse/target.json";

/// What was known of the image that the policy calls `device`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Remembered {
    /// Its name in the policy.
    device: String,
    /// Its name where nothing is mounted.
    boot_name: String,
    /// The disk that it is on.
    disk: Option<String>,
    /// The link by which its server is reached.
    #[serde(default)]
    link: Option<String>,
    /// What drives the disk that it is on.
    drivers: Vec<Driver>,
}

impl Remembered {
    /// What is known of the image of this policy.
    fn of(file: &Path, policy: &Policy) -> Option<Remembered> {
        let found: Remembered = serde_json::from_slice(&fs::read(file).ok()?).ok()?;
        (found.device == policy.image.device.to_string()).then_some(found)
    }
}

/// Remembers what was found out for an initramfs. A place that cannot be written costs only this.
pub(super) fn remember(file: &Path, policy: &Policy, carried: &Policy, drivers: &[Driver]) {
    let device = policy.image.device.to_string();
    let now = Remembered {
        device,
        boot_name: carried.image.device.to_string(),
        disk: carried.image.disk.as_ref().map(ToString::to_string),
        link: carried.image.link.as_ref().map(ToString::to_string),
        drivers: drivers.to_vec(),
    };
    if Remembered::of(file, policy).as_ref() != Some(&now)
        && let Ok(bytes) = serde_json::to_vec(&now)
        && let Err(error) = replace(file, &bytes, 0o600)
    {
        log::warn!("{}: {error}", file.display());
    }
}

/// The policy as [`boots::carried_policy`] makes it, or as it was the last time where the image device is not there.
///
/// # Errors
/// As [`boots::carried_policy`], where nothing is remembered.
pub(super) fn carried_policy(file: &Path, policy: &Policy) -> Result<Policy, TargetError> {
    let is_absent = match target::resolve(&policy.image.device) {
        Ok(found) => found.is_none(),
        Err(error) => matches!(error, TargetError::NoFile { .. }),
    } || matches!(target::link_to(&policy.image.device), Err(TargetError::NoWay(_)));
    let known = Remembered::of(file, policy).filter(|_| is_absent);
    match known.and_then(|known| Some((known.boot_name.parse().ok()?, known.disk, known.link))) {
        Some((device, disk, link)) => {
            let mut policy = policy.clone();
            policy.image.disk = policy.image.disk.or_else(|| disk?.parse().ok());
            policy.image.link = policy.image.link.or_else(|| link?.parse().ok());
            warn(&policy, &format!("it is looked for as {device}, as it was when an initramfs was built last"));
            policy.image.device = device;
            Ok(policy)
        }
        None => boots::carried_policy(policy),
    }
}

/// What drove the image's disk the last time, for where it is not there.
pub(super) fn drivers(file: &Path, policy: &Policy) -> Option<Vec<Driver>> {
    Remembered::of(file, policy).map(|known| known.drivers)
}

/// A line for whoever runs the tool that runs the hook.
pub(super) fn warn(policy: &Policy, what: &str) {
    let _ = writeln!(io::stderr(), "dormouse: warning: image device {}: not there; {what}", policy.image.device);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::target::device;

    fn policy(device: &Path) -> Policy {
        Policy::parse("a policy", &format!("[image]\ndevice = \"{}\"\n", device.display())).unwrap()
    }

    #[test]
    fn an_absent_device_keeps_its_name_and_its_modules() {
        let directory = tempfile::tempdir().unwrap();
        let (image, file) = (directory.path().join("image"), directory.path().join("a/target.json"));
        let policy_of_image = policy(&image);
        // Nothing is known yet.
        assert!(carried_policy(&file, &policy_of_image).is_err());
        assert_eq!(drivers(&file, &policy_of_image), None);
        let boot_name = "UUID=01234567-89ab-cdef-0123-456789abcdef@4096";
        let mut carried = policy_of_image.clone();
        carried.image.device = boot_name.parse().unwrap();
        let found = [Driver::Module("virtio_pci".into()), Driver::BuiltIn("virtio:d2v1".into())];
        remember(&file, &policy_of_image, &carried, &found[..1]);
        remember(&file, &policy_of_image, &carried, &found);
        assert_eq!(carried_policy(&file, &policy_of_image).unwrap(), carried);
        assert_eq!(drivers(&file, &policy_of_image).unwrap(), found);
        // One that is known by its UUID keeps its disk, which is part of what a boot looks for.
        let mut by_uuid = policy_of_image.clone();
        by_uuid.image.device = "UUID=01234567-89ab-cdef-0123-456789abcdef".parse().unwrap();
        let mut bound = by_uuid.clone();
        bound.image.disk = Some("virtio".parse().unwrap());
        let other = directory.path().join("b/target.json");
        remember(&other, &by_uuid, &bound, &found);
        assert_eq!(carried_policy(&other, &by_uuid).unwrap(), bound);
        // Of another one, nothing.
        assert!(carried_policy(&file, &policy(&directory.path().join("other"))).is_err());
        // When it is there, what it is counts.
        fs::File::create(&image).unwrap().set_len(64 << 20).unwrap();
        device::init(&image, false).unwrap();
        assert!(carried_policy(&file, &policy_of_image).is_err(), "an image that no boot finds");
    }
}
