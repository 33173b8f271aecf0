//! From what FIEMAP reports of a file to the pieces of the disk that may be written without its filesystem. Pure.

use dormouse_image::layout::LABEL_MAX_EXTENTS;
use dormouse_image::{BLOCK, DiskExtent};
use dormouse_sys::btrfs::Chunk;
use dormouse_sys::fiemap::{Extent, flag};
use thiserror::Error;

/// Why the pieces of a file cannot be written without its filesystem. Each says what may help.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Unsuitable {
    /// An extent that is not plain blocks on the disk.
    #[error("bytes {start} to {end} of the file {why}")]
    Extent {
        /// Its first byte in the file.
        start: u64,
        /// The one after its last.
        end: u64,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A flag that this program does not know.
    #[error(
        "the filesystem reports something of bytes {start} to {end} that is not known here (FIEMAP flags {flags:#x})"
    )]
    Flags {
        /// Its first byte in the file.
        start: u64,
        /// The one after its last.
        end: u64,
        /// All of its flags.
        flags: u32,
    },
    /// A part without room on the disk.
    #[error("the file has a hole at byte {0}: it was not written from beginning to end")]
    Hole(u64),
    /// Extents that are not in the order of the file.
    #[error("the filesystem lists byte {0} of the file twice")]
    Order(u64),
    /// An extent that does not lie on whole blocks of 4 KiB.
    #[error("bytes {start} to {end} of the file lie at byte {offset} of the disk, which is not a multiple of 4 KiB")]
    Unaligned {
        /// Its first byte in the file.
        start: u64,
        /// The one after its last.
        end: u64,
        /// Where it lies, in bytes.
        offset: u64,
    },
    /// An extent in a part of a volume that is kept otherwise than once, in one piece.
    #[error(
        "bytes {start} to {end} of the file lie where the volume keeps data twice or spread (its profile is not \
         `single`)"
    )]
    Profile {
        /// Its first byte in the file.
        start: u64,
        /// The one after its last.
        end: u64,
    },
    /// More pieces than a label has room for.
    #[error(
        "the file lies in more than {LABEL_MAX_EXTENTS} pieces on the disk; make it where there is more free space"
    )]
    TooMany,
}

/// What the addresses that a filesystem gives for its extents are addresses of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Addresses {
    /// The disk that it is on.
    Disk,
    /// A volume, of which these are the parts.
    Volume(Vec<Chunk>),
}

impl Addresses {
    /// Where `len` bytes at `address` are on the disk; `None` where they are nowhere, or not once and in one piece.
    fn on_disk(&self, address: u64, len: u64) -> Option<Vec<DiskExtent>> {
        let Addresses::Volume(chunks) = self else { return Some(vec![DiskExtent { offset: address, len }]) };
        let end = address.checked_add(len)?;
        let mut pieces = Vec::new();
        let mut next = address;
        while next < end {
            let holds = |chunk: &&Chunk| chunk.logical <= next && next - chunk.logical < chunk.len;
            let chunk = chunks.iter().find(holds)?;
            let [stripe] = chunk.stripes[..] else { return None };
            if chunk.kind & Chunk::PROFILES != 0 {
                return None;
            }
            let within = next - chunk.logical;
            let len = (chunk.len - within).min(end - next);
            pieces.push(DiskExtent { offset: stripe.checked_add(within)?, len });
            next += len;
        }
        Some(pieces)
    }
}

/// Flags that an extent must not have, the most telling first.
const REFUSED: [(u32, &str); 8] = [
    (
        flag::UNWRITTEN,
        "are reserved and not written yet, so the filesystem would read zeroes there whatever is on the disk",
    ),
    (flag::SHARED, "are shared with another file or a snapshot, which would be overwritten"),
    (flag::DATA_ENCRYPTED, "are encrypted"),
    (flag::ENCODED, "are compressed, or encoded otherwise"),
    (flag::DATA_INLINE, "lie among the filesystem's own data"),
    (flag::DATA_TAIL, "lie in one block with other files"),
    (flag::DELALLOC, "have no place on the disk yet"),
    (flag::UNKNOWN, "lie at an unknown place"),
];

/// Flags that it may have.
const HARMLESS: u32 = flag::LAST | flag::MERGED;

/// The pieces of the disk that a file of `size` bytes, whole blocks, consists of, from extents whose addresses are
/// those of `addresses`. What touches is joined.
///
/// # Errors
/// [`Unsuitable`].
pub(super) fn disk_extents(
    extents: &[Extent],
    addresses: &Addresses,
    size: u64,
) -> Result<Vec<DiskExtent>, Unsuitable> {
    let mut pieces: Vec<DiskExtent> = Vec::new();
    let mut next = 0;
    // What is reserved past the end of the file is not its content, and an extent without length is not one.
    for extent in extents.iter().filter(|extent| extent.logical < size && extent.len > 0) {
        let (start, end) = (extent.logical, extent.logical.saturating_add(extent.len).min(size));
        if start < next {
            return Err(Unsuitable::Order(start));
        }
        if start > next {
            return Err(Unsuitable::Hole(next));
        }
        if let Some((_, why)) = REFUSED.iter().find(|(flag, _)| extent.flags & flag != 0) {
            return Err(Unsuitable::Extent { start, end, why });
        }
        let block = BLOCK as u64;
        let offset = extent.physical;
        if extent.flags & flag::NOT_ALIGNED != 0 || [start, end, offset].iter().any(|at| !at.is_multiple_of(block)) {
            return Err(Unsuitable::Unaligned { start, end, offset });
        }
        if extent.flags & !HARMLESS != 0 {
            return Err(Unsuitable::Flags { start, end, flags: extent.flags });
        }
        next = end;
        let on_disk = addresses.on_disk(offset, end - start).ok_or(Unsuitable::Profile { start, end })?;
        for piece in on_disk {
            match pieces.last_mut() {
                Some(last) if last.end() == piece.offset => last.len += piece.len,
                _ => pieces.push(piece),
            }
        }
    }
    if next < size {
        return Err(Unsuitable::Hole(next));
    }
    if pieces.len() > LABEL_MAX_EXTENTS {
        return Err(Unsuitable::TooMany);
    }
    Ok(pieces)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    /// On a filesystem whose addresses are those of its disk.
    fn disk_extents(extents: &[Extent], size: u64) -> Result<Vec<DiskExtent>, Unsuitable> {
        super::disk_extents(extents, &Addresses::Disk, size)
    }

    fn extent(logical: u64, physical: u64, len: u64, flags: u32) -> Extent {
        Extent { logical, physical, len, flags }
    }

    fn piece(offset: u64, len: u64) -> DiskExtent {
        DiskExtent { offset, len }
    }

    /// As ext4 answers for a file of 300 MiB: an extent has at most 128 MiB, and the third begins elsewhere.
    #[test]
    fn joins_extents_that_touch() {
        let extents = [
            extent(0, 512 * MIB, 128 * MIB, 0),
            extent(128 * MIB, 640 * MIB, 128 * MIB, 0),
            extent(256 * MIB, 64 * MIB, 44 * MIB, flag::LAST),
        ];
        let expected = vec![piece(512 * MIB, 256 * MIB), piece(64 * MIB, 44 * MIB)];
        assert_eq!(disk_extents(&extents, 300 * MIB), Ok(expected));
    }

    #[test]
    fn leaves_out_what_is_reserved_past_the_end() {
        let extents = [extent(0, 8 * MIB, 3 * MIB, 0), extent(3 * MIB, 11 * MIB, MIB, flag::UNWRITTEN | flag::LAST)];
        assert_eq!(disk_extents(&extents, 2 * MIB), Ok(vec![piece(8 * MIB, 2 * MIB)]));
        assert_eq!(disk_extents(&extents, 3 * MIB), Ok(vec![piece(8 * MIB, 3 * MIB)]));
        assert!(matches!(disk_extents(&extents, 4 * MIB), Err(Unsuitable::Extent { .. })));
    }

    #[test]
    fn holes_are_refused_wherever_they_are() {
        let whole =
            [extent(0, 8 * MIB, MIB, 0), extent(MIB, 20 * MIB, MIB, 0), extent(2 * MIB, 2 * MIB, MIB, flag::LAST)];
        for missing in 0..3 {
            let mut extents = whole.to_vec();
            extents.remove(missing);
            assert_eq!(disk_extents(&extents, 3 * MIB), Err(Unsuitable::Hole(missing as u64 * MIB)));
        }
        assert_eq!(disk_extents(&[], MIB), Err(Unsuitable::Hole(0)));
        assert_eq!(disk_extents(&[whole[0], whole[0]], 2 * MIB), Err(Unsuitable::Order(0)));
    }

    /// As filesystems answer: combinations of flags that fs/ of Linux 6.12 sets.
    #[test]
    fn each_flag_has_its_reason() {
        let cases = [
            // ext4 and XFS after fallocate(2).
            (flag::UNWRITTEN, "not written yet"),
            // XFS and btrfs after cp --reflink.
            (flag::SHARED, "shared with another file"),
            (flag::UNWRITTEN | flag::SHARED, "not written yet"),
            // btrfs with compression.
            (flag::ENCODED, "are compressed"),
            // ext4 with fscrypt.
            (flag::DATA_ENCRYPTED | flag::ENCODED, "are encrypted"),
            // A small file on btrfs or ext4 with inline_data.
            (flag::DATA_INLINE | flag::NOT_ALIGNED, "the filesystem's own data"),
            (flag::DATA_TAIL | flag::NOT_ALIGNED, "with other files"),
            (flag::DELALLOC | flag::UNKNOWN, "no place on the disk yet"),
            (flag::UNKNOWN, "unknown place"),
            (flag::NOT_ALIGNED, "not a multiple of 4 KiB"),
            (1 << 20, "not known here (FIEMAP flags 0x100001)"),
        ];
        for (flags, expected) in cases {
            let extents = [extent(0, MIB, MIB, 0), extent(MIB, 4 * MIB, MIB, flags | flag::LAST)];
            let error = disk_extents(&extents, 2 * MIB).unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains("1048576 to 2097152"), "{flags:#x}: {error}");
        }
        let merged = [extent(0, MIB, MIB, flag::MERGED | flag::LAST)];
        assert_eq!(disk_extents(&merged, MIB), Ok(vec![piece(MIB, MIB)]));
    }

    /// As a btrfs with two chunks for data has it, and one that keeps its own data twice.
    #[test]
    fn addresses_of_a_volume_are_looked_up() {
        let chunk = |logical, len, kind, stripes: &[u64]| Chunk { logical, len, kind, stripes: stripes.to_vec() };
        let volume = Addresses::Volume(vec![
            chunk(100 * MIB, 8 * MIB, 1, &[13 * MIB]),
            chunk(108 * MIB, 8 * MIB, 1, &[40 * MIB]),
            chunk(116 * MIB, 8 * MIB, 0x24, &[60 * MIB, 70 * MIB]),
            chunk(124 * MIB, 8 * MIB, 1, &[60 * MIB, 70 * MIB]),
        ]);
        let map = |address, len| super::disk_extents(&[extent(0, address, len, flag::LAST)], &volume, len);
        assert_eq!(map(101 * MIB, 7 * MIB), Ok(vec![piece(14 * MIB, 7 * MIB)]));
        // Over the end of one.
        assert_eq!(map(107 * MIB, 3 * MIB), Ok(vec![piece(20 * MIB, MIB), piece(40 * MIB, 2 * MIB)]));
        for (address, len) in
            [(99 * MIB, MIB), (115 * MIB, 2 * MIB), (124 * MIB, MIB), (131 * MIB, 2 * MIB), (140 * MIB, MIB)]
        {
            assert_eq!(map(address, len), Err(Unsuitable::Profile { start: 0, end: len }), "{address}");
        }
    }

    #[test]
    fn rejects_extents_that_are_not_whole_blocks() {
        // A filesystem with blocks of 1 KiB.
        for (physical, len) in [(MIB + 1024, MIB), (MIB, MIB - 1024)] {
            let extents = [extent(0, physical, len, 0), extent(len, 9 * MIB, MIB, flag::LAST)];
            assert!(matches!(disk_extents(&extents, 2 * MIB), Err(Unsuitable::Unaligned { .. })), "{physical} {len}");
        }
    }

    #[test]
    fn more_pieces_than_a_label_holds_are_refused() {
        let scattered =
            |count: u64| -> Vec<Extent> { (0..count).map(|n| extent(n * MIB, (3 * n + 1) * MIB, MIB, 0)).collect() };
        assert_eq!(disk_extents(&scattered(192), 192 * MIB).unwrap().len(), 192);
        assert_eq!(disk_extents(&scattered(193), 193 * MIB), Err(Unsuitable::TooMany));
    }

    fn flags() -> impl Strategy<Value = u32> {
        prop::sample::select(vec![0, 0, 0, 1, 0x800, 0x1000])
    }

    proptest! {
        /// Whatever a filesystem answers, what passes is as long as the file and can be written to a label.
        #[test]
        fn accepted_answers_are_maps_of_the_whole_file(
            answers in prop::collection::vec((0_u64..64, 0_u64..64, 0_u64..9, flags()), 0..9),
            size in 1_u64..40,
            in_order in any::<bool>(),
        ) {
            let mut next = 0;
            let extents: Vec<Extent> = answers.iter().map(|&(logical, physical, len, flags)| {
                let logical = if in_order { next } else { logical };
                next = logical + len;
                extent(logical * 4096, physical * 4096, len * 4096, flags)
            }).collect();
            if let Ok(pieces) = disk_extents(&extents, size * 4096) {
                prop_assert_eq!(pieces.iter().map(|piece| piece.len).sum::<u64>(), size * 4096);
                prop_assert!(pieces.iter().all(|piece| piece.len > 0));
            }
        }
    }
}
