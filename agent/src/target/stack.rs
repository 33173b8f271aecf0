//! An image below layers: a file or a volume on what is put together of disks (LVM, LUKS, RAID 1), reached on the disks
//! themselves.
//!
//! ```text
//!   file ──filesystem's map──> pieces of a volume ──linear, crypt, raid1──> extents of one partition, or of two legs
//!                                                                            │
//!                                      the label has extents, legs and layers ╫ compared last of all before the jump
//! ```
//!
//! A alone can follow the layers, and does so again each time that it opens such an image: it never goes through them,
//! since a layer that encrypts would show the file something else, and a filesystem or an array may keep what it has
//! read. B and D put nothing together and go by the label.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use dormouse_image::layout::LABEL_MAX_EXTENTS;
use dormouse_image::{BLOCK, DiskExtent, Label, Layer, LayerKind, Uuid};
use dormouse_linux::block::below::{self, Below, Kind, Range};
use dormouse_linux::block::{BlockDevice, Hardware};

use crate::store::{Access, Device, Disk, StoreError};
use crate::target::new_label;

/// Where something lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lay {
    /// The disk or partition, or the two that hold the same at the same offsets.
    pub(super) legs: Vec<PathBuf>,
    /// The pieces of each of them.
    pub(super) extents: Vec<DiskExtent>,
    /// What lies over them, from the top down; none where there is nothing but a filesystem.
    pub(super) layers: Vec<Layer>,
}

impl Lay {
    /// Where all of a block device lies that is put together. `None` where it is a disk or a partition of one, or no
    /// block device.
    ///
    /// # Errors
    /// It lies in a way that cannot be followed.
    pub(super) fn of_device(path: &Path) -> anyhow::Result<Option<Lay>> {
        let Some(number) = below::number_of_node(path).filter(|number| is_put_together(number)) else {
            return Ok(None);
        };
        let device = BlockDevice::of_node(path).context("sysfs does not list it")?;
        let len = device.size() / BLOCK as u64 * BLOCK as u64;
        Lay::of_pieces(&number, None, &[DiskExtent { offset: 0, len }]).map(Some)
    }

    /// Where these pieces of the device with this number lie, which may carry a filesystem of the type `kind`.
    ///
    /// # Errors
    /// They lie in a way that cannot be followed.
    pub(super) fn of_pieces(number: &str, kind: Option<&str>, pieces: &[DiskExtent]) -> anyhow::Result<Lay> {
        let ranges: Vec<Range> = pieces.iter().map(|piece| (piece.offset, piece.len)).collect();
        let found = below::below(number, &ranges)?;
        Lay::of_found(found, kind)
    }

    fn of_found(found: Below, kind: Option<&str>) -> anyhow::Result<Lay> {
        let extents = joined(&found.ranges);
        let is_whole = |bytes: &u64| bytes.is_multiple_of(BLOCK as u64);
        let unaligned = extents.iter().find(|extent| !is_whole(&extent.offset) || !is_whole(&extent.len));
        if let Some(extent) = unaligned {
            bail!("it lies at byte {} of {}, which is not a multiple of 4 KiB", extent.offset, names(&found.legs));
        }
        ensure!(
            extents.len() <= LABEL_MAX_EXTENTS,
            "it lies in more than {LABEL_MAX_EXTENTS} pieces on {}; make it where there is more free space",
            names(&found.legs)
        );
        let own = found.layers.into_iter().map(|layer| Layer { kind: kind_of(layer.kind), identity: layer.identity });
        let filesystem = kind.map(|kind| Layer { kind: LayerKind::Filesystem, identity: kind.to_owned() }).into_iter();
        Ok(Lay { legs: found.legs, extents, layers: filesystem.chain(own).collect() })
    }

    /// The label of a new image that lies there.
    ///
    /// # Errors
    /// No label can say where that is.
    pub(super) fn label(&self) -> anyhow::Result<Label> {
        let label =
            Label { mirror: mirror(&self.legs)?, stack: self.layers.clone(), ..new_label(self.extents.clone())? };
        label.encode().context("its place on the disk")?;
        Ok(label)
    }

    /// Opens it on the disks, of which something that is put together may hold each: nothing but these layers.
    ///
    /// # Errors
    /// As [`open_leg`].
    pub(super) fn open(&self, access: Access) -> Result<Disk, StoreError> {
        let open = |path: &PathBuf| open_leg(path, &self.extents, &self.layers, access);
        let legs = self.legs.iter().map(open).collect::<Result<Vec<_>, _>>()?;
        Ok(mirrored(&legs))
    }

    /// Whether a layer encrypts what lies over it.
    pub(super) fn bypasses_encryption(&self) -> bool {
        self.layers.iter().any(|layer| layer.kind == LayerKind::Crypt)
    }

    /// How it differs from what a label says, as a clause; `None` where it does not.
    pub(super) fn difference(&self, label: &Label) -> Option<String> {
        let text = |layers: &[Layer]| match layers {
            [] => "nothing".to_owned(),
            layers => layers.iter().map(Layer::to_string).collect::<Vec<_>>().join(", "),
        };
        if self.layers != label.stack {
            let (now, then) = (text(&self.layers), text(&label.stack));
            return Some(format!("it lies below {now} now, and was made below {then}"));
        }
        let legs = mirror(&self.legs).ok();
        if legs != Some(label.mirror) {
            return Some(format!("it lies on other disks of the mirror now: {}", names(&self.legs)));
        }
        if self.extents != label.extents {
            let layers = if self.layers.is_empty() { String::new() } else { format!(" below {}", text(&self.layers)) };
            return Some(format!("the file's blocks have been moved{layers}, and no boot would find it"));
        }
        None
    }
}

/// Whether the block device with this number is put together of others.
pub(super) fn is_put_together(number: &str) -> bool {
    Hardware::of_number(number).is_err()
}

/// Extents that touch are one.
fn joined(ranges: &[Range]) -> Vec<DiskExtent> {
    let mut extents: Vec<DiskExtent> = Vec::new();
    for (offset, len) in ranges {
        match extents.last_mut() {
            Some(last) if last.end() == *offset => last.len += len,
            _ => extents.push(DiskExtent { offset: *offset, len: *len }),
        }
    }
    extents
}

fn kind_of(kind: Kind) -> LayerKind {
    match kind {
        Kind::Linear => LayerKind::Linear,
        Kind::Crypt => LayerKind::Crypt,
        Kind::Raid1 => LayerKind::Raid1,
        Kind::Partition => LayerKind::Partition,
    }
}

/// The device that is on top of a stack without a filesystem, if it is there.
pub(super) fn device_of(layer: &Layer) -> Option<PathBuf> {
    let kind = match layer.kind {
        LayerKind::Linear => Kind::Linear,
        LayerKind::Crypt => Kind::Crypt,
        LayerKind::Raid1 => Kind::Raid1,
        LayerKind::Filesystem | LayerKind::Partition => return None,
    };
    below::with_identity(kind, &layer.identity)
}

fn names(legs: &[PathBuf]) -> String {
    legs.iter().map(|leg| leg.display().to_string()).collect::<Vec<_>>().join(" and ")
}

/// The identities of two legs, as a label has them; none of one.
fn mirror(legs: &[PathBuf]) -> anyhow::Result<Option<[Uuid; 2]>> {
    let [first, second] = legs else { return Ok(None) };
    let of = |leg: &PathBuf| {
        leg_identity(leg).with_context(|| {
            format!(
                "{} has no UUID of its own (PARTUUID), by which another kernel would tell it from a copy: build the \
                 mirror of partitions in a GPT",
                leg.display()
            )
        })
    };
    let both = [of(first)?, of(second)?];
    ensure!(both[0] != both[1], "{} have the same PARTUUID", names(legs));
    Ok(Some(both))
}

/// What a label calls a leg: the partition's UUID. In an MBR, the disk's signature and the partition's number.
pub(super) fn leg_identity(path: &Path) -> Option<Uuid> {
    identity_of_text(&BlockDevice::of_node(path)?.partition()?.uuid)
}

fn identity_of_text(text: &str) -> Option<Uuid> {
    if let Ok(uuid) = text.parse::<Uuid>() {
        return Some(uuid).filter(|uuid| *uuid != Uuid::default());
    }
    let (signature, number) = text.split_once('-')?;
    let (signature, number) = (u32::from_str_radix(signature, 16).ok()?, u8::from_str_radix(number, 16).ok()?);
    let mut uuid = Uuid::default();
    uuid.0[..4].copy_from_slice(&signature.to_be_bytes());
    uuid.0[4] = number;
    // A disk without a signature gives all of its partitions this one.
    (signature != 0).then_some(uuid)
}

/// The same blocks on each of these.
pub(super) fn mirrored(legs: &[Disk]) -> Disk {
    Disk::mirror(legs, &(0..legs.len()).collect::<Vec<_>>())
}

/// Opens the pieces of a disk or partition that an image consists of. For writing, nobody else may have it but what is
/// put together of it and known to be over the image.
///
/// # Errors
/// Something else has it, or it cannot be opened.
pub(super) fn open_leg(
    path: &Path,
    extents: &[DiskExtent],
    layers: &[Layer],
    access: Access,
) -> Result<Disk, StoreError> {
    let device = match Device::open(path, access) {
        Err(StoreError::Busy { name }) => {
            refuse_strangers(&name, path, extents, layers)?;
            Device::open_held(path, access)?
        }
        device => device?,
    };
    Disk::new(device).extents(extents)
}

/// Refuses a disk that something holds which is not among `layers` and may lead to `extents`.
fn refuse_strangers(name: &str, path: &Path, extents: &[DiskExtent], layers: &[Layer]) -> Result<(), StoreError> {
    let busy = || StoreError::Busy { name: name.to_owned() };
    let ranges: Vec<Range> = extents.iter().map(|extent| (extent.offset, extent.len)).collect();
    let everything = [(0, u64::MAX)];
    // What is mounted or swapped to has no holder in sysfs.
    if below::holders(path, &everything).map_err(|_| busy())?.is_empty() {
        return Err(busy());
    }
    let holders = below::holders(path, &ranges).map_err(|_| busy())?;
    let is_known = |holder: &below::Layer| {
        layers.iter().any(|layer| layer.kind == kind_of(holder.kind) && layer.identity == holder.identity)
    };
    match holders.iter().find(|holder| !is_known(holder)) {
        Some(stranger) => Err(StoreError::Held { name: name.to_owned(), by: stranger.node.display().to_string() }),
        None => Ok(()),
    }
}

/// Opens the image that begins at byte `offset` of a disk or partition, by the map in its label.
///
/// # Errors
/// As [`Disk::open_at`]; something holds it that the label does not know.
pub(super) fn open_at(path: &Path, offset: u64, access: Access) -> Result<Disk, StoreError> {
    match Disk::open_at(path, offset, access) {
        Err(StoreError::Busy { name }) => {
            let label = Disk::open(path, Access::Read)?.label_at(offset)?;
            if label.stack.is_empty() {
                return Err(StoreError::Busy { name });
            }
            open_leg(path, &label.extents, &label.stack, access)
        }
        result => result,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn found(ranges: &[Range]) -> Below {
        let layer = |kind, identity: &str| below::Layer { kind, identity: identity.to_owned(), node: "/dev/x".into() };
        Below {
            legs: vec!["/dev/vda2".into()],
            ranges: ranges.to_vec(),
            layers: vec![layer(Kind::Linear, "LVM-a"), layer(Kind::Crypt, "CRYPT-LUKS2-b")],
        }
    }

    #[test]
    fn the_label_has_the_layers_from_the_filesystem_down() {
        let lay = Lay::of_found(found(&[(8192, 4096), (12288, 8192), (1 << 20, 4096)]), Some("ext4")).unwrap();
        let label = lay.label().unwrap();
        assert_eq!(label.extents, [(8192, 12288), (1 << 20, 4096)].map(|(offset, len)| DiskExtent { offset, len }));
        let layers: Vec<String> = label.stack.iter().map(Layer::to_string).collect();
        assert_eq!(layers, ["filesystem ext4", "linear LVM-a", "crypt CRYPT-LUKS2-b"]);
        assert!(label.bypasses_encryption() && label.mirror.is_none());
        assert_eq!(lay.difference(&label), None);
    }

    #[test]
    fn each_change_is_named() {
        let lay = Lay::of_found(found(&[(8192, 8192)]), Some("ext4")).unwrap();
        let label = lay.label().unwrap();
        let mut other = lay.clone();
        other.extents[0].offset += 4096;
        let text = other.difference(&label).unwrap();
        assert!(text.contains("have been moved below filesystem ext4, linear LVM-a"), "{text}");
        other.layers[1].identity = "LVM-c".to_owned();
        let text = other.difference(&label).unwrap();
        assert!(text.contains("below filesystem ext4, linear LVM-c") && text.contains("linear LVM-a"), "{text}");
        let bare = Lay { layers: Vec::new(), ..lay };
        assert!(bare.difference(&label).unwrap().contains("it lies below nothing now"));
    }

    #[test]
    fn rejects_places_that_no_label_can_say() {
        let error = |ranges: &[Range]| Lay::of_found(found(ranges), None).unwrap_err().to_string();
        assert!(error(&[(8192 + 512, 4096)]).contains("not a multiple of 4 KiB"));
        assert!(error(&[(8192, 512)]).contains("not a multiple of 4 KiB"));
        let scattered: Vec<Range> = (1..=193).map(|n| (n * 8192, 4096)).collect();
        assert!(error(&scattered).contains("more than 192 pieces"));
        // A volume that begins where its disk does.
        assert!(Lay::of_found(found(&[(0, 8192)]), None).unwrap().label().is_err());
    }

    #[test]
    fn legs_are_known_by_their_partitions() {
        let uuid = "01234567-89ab-cdef-0123-456789abcdef";
        assert_eq!(identity_of_text(uuid).unwrap().to_string(), uuid);
        assert_eq!(identity_of_text("1234abcd-02").unwrap().to_string(), "1234abcd-0200-0000-0000-000000000000");
        for text in ["00000000-01", "", "x-1", "00000000-0000-0000-0000-000000000000"] {
            assert_eq!(identity_of_text(text), None, "{text}");
        }
        assert!(mirror(&["/dev/null".into(), "/dev/zero".into()]).is_err());
        assert_eq!(mirror(&["/dev/null".into()]).unwrap(), None);
    }
}
