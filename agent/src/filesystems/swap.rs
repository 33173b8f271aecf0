//! The swap areas of the session. What lies in them is memory of the session that is in no image.
//!
//! The kernel writes nothing into an area when it takes it into use, so that its header does not change. What it swaps
//! out goes to clusters of at most 2 MiB: the first is one of the first 64 MiB's (mm/swapfile.c, `setup_clusters` and
//! `SWAP_CLUSTER_COLS`, Linux 6.12), taken at random, and is used from its beginning. Without clusters, the area is
//! used from its beginning.

use std::fs::File;
use std::io;

use dormouse_image::checksum;
use dormouse_sys::{PAGE_LEN, PAGE_SIZE};

use super::superblock::read_up_to;

/// How much of an area is looked at, from its beginning.
pub(super) const REACH: u64 = 128 << 20;
/// Of this, the first bytes are looked at without a gap.
const START: usize = 1 << 20;
/// And one page of each so many bytes: the smallest cluster has 256 pages.
const STEP: u64 = 1 << 20;

/// What tells one state of a swap area from another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Area {
    /// As `blkid` shows it; `None` where the header is not one that is known.
    pub(super) uuid: Option<String>,
    /// A digest of the header alone.
    pub(super) header: u64,
    /// A digest of what any other use of the area changes.
    pub(super) still: u64,
}

/// Looks at the swap area that begins at `start` of a device. One that is encrypted there is looked at all the same.
///
/// # Errors
/// The device cannot be read.
pub(super) fn read(device: &File, start: u64) -> io::Result<Area> {
    let mut bytes = read_up_to(device, start, START)?;
    let header = bytes.get(..PAGE_LEN).unwrap_or(&bytes);
    let (known, header) = (Header::find(header), checksum(header));
    let end = known.as_ref().map_or(REACH, |known| known.len.min(REACH));
    for at in (STEP..end).step_by(START) {
        bytes.extend(read_up_to(device, start.saturating_add(at), PAGE_LEN)?);
    }
    Ok(Area { uuid: known.map(|known| known.uuid), header, still: checksum(&bytes) })
}

/// include/linux/swap.h, `union swap_header`.
struct Header {
    uuid: String,
    /// Of the whole area, in bytes.
    len: u64,
}

impl Header {
    fn find(page: &[u8]) -> Option<Header> {
        if page.get(PAGE_LEN - 10..PAGE_LEN)? != b"SWAPSPACE2" {
            return None;
        }
        let last_page = u32::from_le_bytes(page.get(1028..1032)?.try_into().ok()?);
        let uuid: [u8; 16] = page.get(1036..1052)?.try_into().ok()?;
        let len = (u64::from(last_page) + 1).saturating_mul(PAGE_SIZE);
        Some(Header { uuid: dormouse_image::Uuid(uuid).to_string(), len })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::FileExt;

    use super::*;

    /// A file with an area of so many pages from `start` on.
    fn made(start: u64, pages: u32) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(start + 256 * STEP).unwrap();
        let mut page = vec![0; PAGE_LEN];
        page[1024] = 1;
        page[1028..1032].copy_from_slice(&(pages - 1).to_le_bytes());
        page[1036..1052].copy_from_slice(&[7; 16]);
        page[PAGE_LEN - 10..].copy_from_slice(b"SWAPSPACE2");
        file.write_all_at(&page, start).unwrap();
        file
    }

    #[test]
    fn notices_whatever_is_swapped_out_first() {
        let start = 8192;
        let file = made(start, 65536);
        let before = read(&file, start).unwrap();
        assert_eq!(before.uuid.as_deref(), Some("07070707-0707-0707-0707-070707070707"));
        // The first page after the header, and the first of any cluster of the first 64 MiB.
        for at in [PAGE_SIZE, 2 << 20, 42 << 20, 62 << 20, 127 << 20] {
            file.write_all_at(&[1], start + at).unwrap();
            let after = read(&file, start).unwrap();
            assert_ne!(after.still, before.still, "{at}");
            assert_eq!(after.header, before.header);
            file.write_all_at(&[0], start + at).unwrap();
        }
        assert_eq!(read(&file, start).unwrap(), before);
        file.write_all_at(&[8], start + 1036).unwrap();
        assert_ne!(read(&file, start).unwrap().header, before.header);
    }

    #[test]
    fn what_lies_after_the_area_does_not_count() {
        let file = made(0, 1024);
        let before = read(&file, 0).unwrap();
        file.write_all_at(&[1], 4 << 20).unwrap();
        assert_eq!(read(&file, 0).unwrap(), before);
        file.write_all_at(&[1], 3 << 20).unwrap();
        assert_ne!(read(&file, 0).unwrap().still, before.still);
    }

    #[test]
    fn an_encrypted_area_is_bytes() {
        let file = made(0, 1024);
        file.write_all_at(&[0x5a; 100], PAGE_SIZE - 100).unwrap();
        let before = read(&file, 0).unwrap();
        assert_eq!(before.uuid, None);
        file.write_all_at(&[1], 64 << 20).unwrap();
        assert_ne!(read(&file, 0).unwrap().still, before.still);
        // Nor is anything wrong with one that is cut short.
        file.set_len(100).unwrap();
        assert_eq!(read(&file, 0).unwrap().uuid, None);
    }
}
