//! Superblocks of filesystems.

use dormouse::filesystems::{self, Comparison, Names};
use dormouse_image::{DiskPlace, Filesystem, SessionRecord};

use super::scratch::Scratch;

/// Where superblocks lie: FAT's and XFS's, ext4's, btrfs's.
const PLACES: [u64; 3] = [0, 1024, 64 << 10];
/// Large enough for what a superblock points to, and small enough for it to point outside.
const DEVICE: u64 = 1 << 20;

/// Puts any bytes on a device where a superblock is looked for.
pub(super) fn run(input: &[u8]) {
    let Some((place, superblock)) = input.split_first() else { return };
    let device = Scratch::new(DEVICE);
    device.write(PLACES[usize::from(*place) % PLACES.len()], superblock);
    let Ok(Some(found)) = filesystems::read(&device.path()) else { return };
    let recorded = |quiesced| {
        let superblock = Some(DiskPlace { disk: "0".to_owned(), offset: 0 });
        let filesystem = Filesystem {
            kind: "ext4".to_owned(),
            uuid: found.uuid.clone(),
            mount: "/".to_owned(),
            mount_digest: found.steady,
            quiesced_digest: Some(quiesced),
            superblock,
        };
        SessionRecord { filesystems: vec![filesystem], ..SessionRecord::default() }
    };
    let here = Names::of(vec![(device.path(), vec!["0".to_owned()])]);
    // It is what it was; and anything else is not.
    assert_eq!(filesystems::compare(&recorded(found.still), &here), Comparison::default());
    assert!(filesystems::compare(&recorded(found.still.wrapping_add(1)), &here).changed.is_some());
}
