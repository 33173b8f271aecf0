//! Where the bytes of a file are on the block device under its filesystem. Pure.

use std::ops::Range;
use std::sync::Arc;

use dormouse_image::DiskExtent;

/// A map from offsets in a file to offsets on a block device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extents {
    /// Each with the offset in the file at which it begins; ascending, without gaps.
    map: Arc<[(u64, DiskExtent)]>,
    size: u64,
}

impl Extents {
    /// The map of a file that consists of `extents`, one behind the other: those of a label, which has checked them.
    #[must_use]
    pub fn new(extents: &[DiskExtent]) -> Extents {
        let mut size: u64 = 0;
        let place = |extent: &DiskExtent| {
            let begin = size;
            size = size.saturating_add(extent.len);
            (begin, *extent)
        };
        let map = extents.iter().map(place).collect();
        Extents { map, size }
    }

    /// The size of the file in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The pieces that `len` bytes at `offset` lie in, in order: each with its offset on the block device, and the part of the bytes
    /// that it holds. `None` where the file ends before.
    pub fn pieces(&self, offset: u64, len: usize) -> Option<impl Iterator<Item = (u64, Range<usize>)>> {
        let end = offset.checked_add(u64::try_from(len).ok()?).filter(|end| *end <= self.size)?;
        let first = self.map.partition_point(|(begin, extent)| begin + extent.len <= offset);
        let within = self.map[first..].iter().take_while(move |(begin, _)| offset < end && *begin < end);
        Some(within.map(move |(begin, extent)| {
            let (from, to) = (offset.max(*begin), end.min(begin + extent.len));
            // Both differences are at most `len`.
            let part = |at: u64| usize::try_from(at - offset).unwrap_or(len);
            (extent.offset + (from - begin), part(from)..part(to))
        }))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn extents(list: &[(u64, u64)]) -> Extents {
        Extents::new(&list.iter().map(|&(offset, len)| DiskExtent { offset, len }).collect::<Vec<_>>())
    }

    fn pieces(map: &Extents, offset: u64, len: usize) -> Option<Vec<(u64, Range<usize>)>> {
        Some(map.pieces(offset, len)?.collect())
    }

    #[test]
    fn what_crosses_an_end_is_split() {
        let map = extents(&[(1000, 10), (50, 20), (500, 5)]);
        assert_eq!(map.size(), 35);
        assert_eq!(pieces(&map, 0, 10), Some(vec![(1000, 0..10)]));
        assert_eq!(pieces(&map, 9, 2), Some(vec![(1009, 0..1), (50, 1..2)]));
        assert_eq!(pieces(&map, 5, 30), Some(vec![(1005, 0..5), (50, 5..25), (500, 25..30)]));
        assert_eq!(pieces(&map, 10, 20), Some(vec![(50, 0..20)]));
        assert_eq!(pieces(&map, 35, 0), Some(vec![]));
    }

    #[test]
    fn behind_the_end_is_nothing() {
        let map = extents(&[(1000, 10)]);
        for (offset, len) in [(0, 11), (10, 1), (11, 0), (u64::MAX, 1), (1, usize::MAX)] {
            assert_eq!(pieces(&map, offset, len), None, "{offset} {len}");
        }
        assert_eq!(pieces(&extents(&[]), 0, 0), Some(vec![]));
    }

    proptest! {
        /// Byte for byte, the map is what is said of it: extents one behind the other.
        #[test]
        fn every_byte_is_found_once_where_it_belongs(
            lens in prop::collection::vec(1_u64..40, 1..12),
            gaps in prop::collection::vec(0_u64..9, 12),
            reversed in any::<bool>(),
            from in any::<prop::sample::Index>(),
            to in any::<prop::sample::Index>(),
        ) {
            let mut next = 1;
            let mut list: Vec<(u64, u64)> = lens.iter().zip(&gaps).map(|(len, gap)| {
                next += gap + len;
                (next - len, *len)
            }).collect();
            if reversed {
                list.reverse();
            }
            let map = extents(&list);
            let bytes: Vec<u64> = list.iter().flat_map(|&(offset, len)| offset..offset + len).collect();
            prop_assert_eq!(map.size(), bytes.len() as u64);
            let (from, to) = (from.index(bytes.len() + 1), to.index(bytes.len() + 1));
            let (from, to) = (from.min(to), from.max(to));
            let pieces = pieces(&map, from as u64, to - from).unwrap();
            let mut found = Vec::new();
            for (offset, part) in pieces {
                prop_assert!(part.start == found.len() && !part.is_empty());
                found.extend(offset..offset + part.len() as u64);
            }
            prop_assert_eq!(&found, &bytes[from..to]);
        }
    }
}
