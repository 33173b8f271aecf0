//! A boot looks for the image once or twice. The first look is as early as can be: the image's state, `noresume` and
//! every refusal need no key. Where the key of a sealed image lies in an encrypted filesystem, only a second look can
//! resume it: when the boot has unlocked its volumes, and before it has checked or mounted anything on them.
//!
//! ```text
//!   initramfs    before-unlock                  the boot unlocks    after-unlock             the boot mounts
//!   key outside  resumes                                            finds nothing to do
//!   key inside   refuses, or leaves it waiting                      resumes, or refuses
//! ```

use dormouse_image::{KeySlot, KeySource};
use dormouse_linux::mountinfo::{self, Mount};
use serde::{Deserialize, Serialize};

use crate::cycle::last::Last;
use crate::key;
use crate::policy::Policy;
use crate::store::Image;

/// Which look at the image this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// The only one of this boot. Whatever holds the key is unlocked.
    Only,
    /// The first of two.
    BeforeUnlock,
    /// The second of two.
    AfterUnlock,
}

/// The identifier under which a first look leaves an image to the second one.
pub(super) const AWAITS_UNLOCK: &str = "awaits-unlock";

/// Whether only a boot that has unlocked its volumes can resume this image: its key is in a file on one of them.
#[must_use]
pub fn needs_unlock(policy: &Policy, image: &Image) -> bool {
    key::is_in_a_volume(policy, image)
}

/// The places of the key files that the image's slots name, in one word each, by which a boot and the running system
/// are compared.
pub(super) fn key_places(image: &Image) -> Vec<String> {
    let slots = key::read_keys(image).ok().flatten().map_or_else(Vec::new, |keys| keys.slots);
    let of_file = |slot: KeySlot| match slot.source {
        KeySource::File(place) => Some(format!("{}@{},{}", place.device, place.secret, place.expected)),
        KeySource::Passphrase(_) | KeySource::Tpm2(_) => None,
    };
    slots.into_iter().filter_map(of_file).collect()
}

/// What is left for the second look of a boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Left {
    /// All of it: the first look has left the image to this one.
    All,
    /// The same, and the first look has not found the image's device.
    Device,
    /// Only to see whether this boot could have resumed an image.
    Evidence,
}

/// What the first look has left to the second one, by its record.
pub(super) fn left(first: &Last) -> Left {
    match &first.found {
        _ if first.id == AWAITS_UNLOCK => Left::All,
        Some(found) if found.is_found => Left::Evidence,
        Some(_) => Left::Device,
        None => Left::All,
    }
}

/// What the look found that was made when the volumes were unlocked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unlocked {
    /// Where filesystems of disks were mounted by then.
    pub mounted: Vec<String>,
    /// What was seen of the key.
    pub key: KeySeen,
}

/// What a boot saw of the key that is in an encrypted volume.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeySeen {
    /// None is needed.
    #[default]
    NotNeeded,
    /// It was read at these places.
    Read(Vec<String>),
    /// It could not be read, in words.
    Missing(String),
}

impl Unlocked {
    /// Looks.
    pub(super) fn read(policy: &Policy, image: Option<&Image>) -> Unlocked {
        let mounted = mounted_disks(&mountinfo::read().unwrap_or_default());
        Unlocked { mounted, key: image.map_or(KeySeen::NotNeeded, |image| key_seen(policy, image)) }
    }
}

/// What is to be seen now of the key of an image.
fn key_seen(policy: &Policy, image: &Image) -> KeySeen {
    if !needs_unlock(policy, image) {
        return KeySeen::NotNeeded;
    }
    match (key_places(image), key::missing_secret(image, policy.image.wait)) {
        (places, _) if places.is_empty() => KeySeen::Missing("the image has no key in a file".to_owned()),
        (places, None) => KeySeen::Read(places),
        (_, Some(why)) => KeySeen::Missing(why),
    }
}

/// Where filesystems of block devices are mounted. What lies in memory has numbers of major 0, and so has btrfs, which
/// has a device as its source.
fn mounted_disks(mounts: &[Mount]) -> Vec<String> {
    let is_of_disk = |mount: &&Mount| !mount.number.starts_with("0:") || mount.source.starts_with("/dev/");
    mounts.iter().filter(is_of_disk).map(|mount| mount.point.display().to_string()).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::cycle::evidence::Found;
    use crate::cycle::last::Event;

    fn first(id: &str, is_found: bool) -> Last {
        let policy = Policy::parse("a policy", "[image]\ndevice = \"/dev/vda\"\n").unwrap();
        let found = Found { is_found, ..Found::nothing_yet(&policy) };
        Last::new(Event::Resume, id, "", None, Some(found))
    }

    #[test]
    fn looks_again_where_nothing_was_decided() {
        assert_eq!(left(&first(AWAITS_UNLOCK, true)), Left::All);
        // A device that is slow, or in a volume itself.
        assert_eq!(left(&first("device-missing", false)), Left::Device);
        assert_eq!(left(&first("no-image", true)), Left::Evidence);
        assert_eq!(left(&first("boot-argument", true)), Left::Evidence);
        assert_eq!(left(&Last { found: None, ..first("no-image", true) }), Left::All);
    }

    #[test]
    fn names_what_is_mounted_from_disks() {
        let text = "22 1 0:2 / / rw - rootfs rootfs rw\n23 22 0:5 / /dev rw - devtmpfs udev rw\n\
                    24 22 8:1 / /keys rw - ext4 /dev/sda1 rw\n25 22 0:40 / /root ro - btrfs /dev/mapper/root ro\n";
        assert_eq!(mounted_disks(&mountinfo::parse(text.as_bytes())), ["/keys", "/root"]);
    }
}
