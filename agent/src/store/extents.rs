//! Blocks of a file, reached on the block device under its filesystem, by a map of where they lie.

use std::error::Error;
use std::ops::Range;
use std::sync::Arc;
use std::{fmt, io};

use dormouse_image::DiskExtent;

use crate::store::Blocks;

/// The blocks of a file on the device that carries its filesystem.
#[derive(Debug)]
pub struct Extents {
    device: Arc<dyn Blocks>,
    map: ExtentMap,
    origin: u64,
    name: String,
}

impl Extents {
    /// The blocks of a file that consists of `extents` of `device`: those of a label, which has checked them.
    #[must_use]
    pub fn new(device: Arc<dyn Blocks>, extents: &[DiskExtent]) -> Extents {
        let origin = extents.first().map_or(0, |extent| extent.offset);
        let name = format!("{} (from byte {origin} on)", device.name());
        Extents { device, map: ExtentMap::new(extents), origin, name }
    }

    /// The pieces that `len` bytes at `offset` lie in.
    fn pieces(&self, offset: u64, len: usize) -> io::Result<impl Iterator<Item = (u64, Range<usize>)>> {
        let past_end = || io::Error::new(io::ErrorKind::UnexpectedEof, "the image's file ends before");
        self.map.pieces(offset, len).ok_or_else(past_end)
    }
}

impl Blocks for Extents {
    fn name(&self) -> &str {
        &self.name
    }

    fn size(&self) -> u64 {
        self.map.size()
    }

    fn origin(&self) -> Option<u64> {
        Some(self.origin)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        for (at, part) in self.pieces(offset, buffer.len())? {
            self.device.read_at(at, &mut buffer[part]).map_err(|source| on_device(at, source))?;
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        for (at, part) in self.pieces(offset, bytes.len())? {
            self.device.write_at(at, &bytes[part]).map_err(|source| on_device(at, source))?;
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        self.device.flush()
    }
}

/// What the device failed with, and where: the offset in the file alone does not lead to a bad sector.
#[derive(Debug)]
struct OnDevice {
    offset: u64,
    source: io::Error,
}

fn on_device(offset: u64, source: io::Error) -> io::Error {
    io::Error::new(source.kind(), OnDevice { offset, source })
}

impl fmt::Display for OnDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at byte {} of the device", self.offset)
    }
}

impl Error for OnDevice {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.source)
    }
}

/// A map from offsets in a file to offsets on a block device. Pure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExtentMap {
    /// Each with the offset in the file at which it begins; ascending, without gaps.
    map: Vec<(u64, DiskExtent)>,
    size: u64,
}

impl ExtentMap {
    /// The map of a file that consists of `extents`, one after the other: those of a label, which has checked them.
    #[must_use]
    pub fn new(extents: &[DiskExtent]) -> ExtentMap {
        let mut size: u64 = 0;
        let place = |extent: &DiskExtent| {
            let begin = size;
            size = size.saturating_add(extent.len);
            (begin, *extent)
        };
        let map = extents.iter().map(place).collect();
        ExtentMap { map, size }
    }

    /// The size of the file in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The pieces that `len` bytes at `offset` lie in, in order: each with its offset on the block device, and the part
    /// of the bytes that it holds. `None` where the file ends before.
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
    use dormouse_linux::error_chain::in_full;
    use proptest::prelude::*;

    use super::*;
    use crate::store::Disk;
    use crate::store::faulty::{Fault, Faulty};

    #[test]
    fn an_error_names_the_byte_in_the_file_and_on_the_device() {
        let device = Faulty::new(1 << 20);
        let list = [(65536, 8192), (4096, 8192)].map(|(offset, len)| DiskExtent { offset, len });
        let disk = Disk::new(Extents::new(Arc::new(device.clone()), &list));
        assert_eq!((disk.size(), disk.origin()), (16384, Some(65536)));
        disk.write_copy(4096, &[7; 8192]).unwrap();
        assert!(device.bytes(69632..73728).iter().chain(&device.bytes(4096..8192)).all(|byte| *byte == 7));
        device.fail(Fault::Read(4096));
        disk.read(0, 8192).unwrap();
        let error = in_full(&disk.read(4096, 8192).unwrap_err());
        assert_eq!(
            error,
            "image device /dev/faulty (from byte 65536 on): reading 8192 bytes at offset 4096 failed: at byte 4096 of \
             the \
             device: Input/output error (os error 5)"
        );
        let error = in_full(&disk.read(12288, 8192).unwrap_err());
        assert!(error.ends_with("the image's file ends before"), "{error}");
    }

    fn extents(list: &[(u64, u64)]) -> ExtentMap {
        ExtentMap::new(&list.iter().map(|&(offset, len)| DiskExtent { offset, len }).collect::<Vec<_>>())
    }

    fn pieces(map: &ExtentMap, offset: u64, len: usize) -> Option<Vec<(u64, Range<usize>)>> {
        Some(map.pieces(offset, len)?.collect())
    }

    #[test]
    fn splits_ranges_that_cross_an_end() {
        let map = extents(&[(1000, 10), (50, 20), (500, 5)]);
        assert_eq!(map.size(), 35);
        assert_eq!(pieces(&map, 0, 10), Some(vec![(1000, 0..10)]));
        assert_eq!(pieces(&map, 9, 2), Some(vec![(1009, 0..1), (50, 1..2)]));
        assert_eq!(pieces(&map, 5, 30), Some(vec![(1005, 0..5), (50, 5..25), (500, 25..30)]));
        assert_eq!(pieces(&map, 10, 20), Some(vec![(50, 0..20)]));
        assert_eq!(pieces(&map, 35, 0), Some(vec![]));
    }

    #[test]
    fn nothing_lies_past_the_end() {
        let map = extents(&[(1000, 10)]);
        for (offset, len) in [(0, 11), (10, 1), (11, 0), (u64::MAX, 1), (1, usize::MAX)] {
            assert_eq!(pieces(&map, offset, len), None, "{offset} {len}");
        }
        assert_eq!(pieces(&extents(&[]), 0, 0), Some(vec![]));
    }

    proptest! {
        /// Byte for byte, the map is what it should be: extents one after the other.
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
