//! Where a btrfs volume's addresses are on its disks. FIEMAP answers with addresses of the volume, which its chunk tree
//! maps.

#![expect(unsafe_code, reason = "ioctl(2)")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

mod raw {
    //! include/uapi/linux/btrfs.h.

    /// `struct btrfs_ioctl_search_args`: what is looked for, and room for what is found.
    #[repr(C)]
    pub(super) struct Search {
        pub(super) tree: u64,
        pub(super) min_object: u64,
        pub(super) max_object: u64,
        pub(super) min_offset: u64,
        pub(super) max_offset: u64,
        pub(super) min_transaction: u64,
        pub(super) max_transaction: u64,
        pub(super) min_kind: u32,
        pub(super) max_kind: u32,
        pub(super) items: u32,
        pub(super) unused: u32,
        pub(super) later: [u64; 4],
        pub(super) found: [u8; 4096 - 104],
    }

    /// `struct btrfs_ioctl_fs_info_args`.
    #[repr(C)]
    pub(super) struct FsInfo {
        pub(super) max_id: u64,
        pub(super) devices: u64,
        pub(super) rest: [u8; 1024 - 16],
    }

    const _: () = assert!(size_of::<Search>() == 4096 && size_of::<FsInfo>() == 1024);

    nix::ioctl_readwrite!(btrfs_ioc_tree_search, 0x94, 17, Search);
    nix::ioctl_read!(btrfs_ioc_fs_info, 0x94, 31, FsInfo);
}

/// The tree of chunks, the object that they all belong to, and their kind of item (include/uapi/linux/btrfs_tree.h).
const CHUNK_TREE: u64 = 3;
const FIRST_CHUNK: u64 = 256;
const CHUNK_ITEM: u32 = 228;

/// A piece of the volume's address space, and where it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// Its first address in the volume, in bytes.
    pub logical: u64,
    /// Its length in bytes.
    pub len: u64,
    /// What it is for, and how it is spread or copied: `BTRFS_BLOCK_GROUP_*`.
    pub kind: u64,
    /// Where each of its stripes or copies begins on its device, in bytes.
    pub stripes: Vec<u64>,
}

impl Chunk {
    /// All bits of [`Chunk::kind`] of a chunk that is spread over devices or kept twice
    /// (`BTRFS_BLOCK_GROUP_PROFILE_MASK`).
    pub const PROFILES: u64 = 0x7f8;
}

/// How many devices the volume of `file` has.
///
/// # Errors
/// `ENOTTY` where it is not on btrfs.
pub fn devices(file: &File) -> io::Result<u64> {
    let mut info = Box::new(raw::FsInfo { max_id: 0, devices: 0, rest: [0; 1008] });
    // SAFETY: the descriptor is open for the whole call, and the kernel reads and writes the 1024 bytes of `info`.
    unsafe { raw::btrfs_ioc_fs_info(file.as_raw_fd(), &raw mut *info) }?;
    Ok(info.devices)
}

/// The chunks of the volume of `file`, by address.
///
/// # Errors
/// `EPERM` for anybody but root; `ENOTTY` where it is not on btrfs.
pub fn chunks(file: &File) -> io::Result<Vec<Chunk>> {
    let mut chunks: Vec<Chunk> = Vec::new();
    let mut next = Some(0);
    while let Some(min_offset) = next {
        let mut search = Box::new(raw::Search {
            tree: CHUNK_TREE,
            min_object: FIRST_CHUNK,
            max_object: FIRST_CHUNK,
            min_offset,
            max_offset: u64::MAX,
            min_transaction: 0,
            max_transaction: u64::MAX,
            min_kind: CHUNK_ITEM,
            max_kind: CHUNK_ITEM,
            items: 4096,
            unused: 0,
            later: [0; 4],
            found: [0; 4096 - 104],
        });
        // SAFETY: the descriptor is open for the whole call, and the kernel reads and writes the 4096 bytes of
        // `search`.
        unsafe { raw::btrfs_ioc_tree_search(file.as_raw_fd(), &raw mut *search) }?;
        let found =
            parse(&search.found, search.items).ok_or_else(|| io::Error::other("a chunk that cannot be read"))?;
        next = found.last().and_then(|last| last.logical.checked_add(1));
        chunks.extend(found);
    }
    Ok(chunks)
}

/// Reads `items` items that a search has found, those that are chunks: a `struct btrfs_ioctl_search_header` before
/// each, and `struct btrfs_chunk`.
fn parse(mut bytes: &[u8], items: u32) -> Option<Vec<Chunk>> {
    let number = |bytes: &[u8], at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
    let mut chunks = Vec::new();
    for _ in 0..items {
        let (header, rest) = bytes.split_at_checked(32)?;
        let len = u32::from_le_bytes(header.get(28..32)?.try_into().ok()?);
        let (item, rest) = rest.split_at_checked(usize::try_from(len).ok()?)?;
        bytes = rest;
        let kind = u32::from_le_bytes(header.get(24..28)?.try_into().ok()?);
        if kind != CHUNK_ITEM {
            continue;
        }
        let count = u16::from_le_bytes(item.get(44..46)?.try_into().ok()?);
        let stripe = |n: u16| number(item, 48 + usize::from(n) * 32 + 8);
        chunks.push(Chunk {
            logical: number(header, 16)?,
            len: number(item, 0)?,
            kind: number(item, 24)?,
            stripes: (0..count).map(stripe).collect::<Option<_>>()?,
        });
    }
    Some(chunks)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// An item as the kernel writes it.
    fn item(kind: u32, logical: u64, chunk: &Chunk) -> Vec<u8> {
        let mut item = Vec::new();
        for number in [chunk.len, 2, 65536, chunk.kind] {
            item.extend(number.to_le_bytes());
        }
        item.extend([0; 12]);
        item.extend(u16::try_from(chunk.stripes.len()).unwrap().to_le_bytes());
        item.extend([0; 2]);
        for offset in &chunk.stripes {
            item.extend(1_u64.to_le_bytes());
            item.extend(offset.to_le_bytes());
            item.extend([9; 16]);
        }
        let mut bytes = [7_u64, 256, logical].map(u64::to_le_bytes).concat();
        bytes.extend(kind.to_le_bytes());
        bytes.extend(u32::try_from(item.len()).unwrap().to_le_bytes());
        bytes.extend(item);
        bytes
    }

    #[test]
    fn chunks_are_read() {
        let single = Chunk { logical: 1 << 30, len: 8 << 20, kind: 1, stripes: vec![13 << 20] };
        let twice = Chunk { logical: 2 << 30, len: 1 << 28, kind: 0x24, stripes: vec![21 << 20, 277 << 20] };
        let mut bytes = item(CHUNK_ITEM, single.logical, &single);
        bytes.extend(item(216, 1, &single));
        bytes.extend(item(CHUNK_ITEM, twice.logical, &twice));
        let len = bytes.len();
        bytes.resize(3992, 0);
        assert_eq!(parse(&bytes, 3), Some(vec![single.clone(), twice.clone()]));
        assert_eq!(parse(&bytes, 0), Some(vec![]));
        for cut in [len - 1, 100, 31] {
            assert_eq!(parse(&bytes[..cut], 3), None, "{cut}");
        }
        assert_ne!(single.kind & Chunk::PROFILES, twice.kind & Chunk::PROFILES);
    }

    #[test]
    fn other_filesystems_have_no_chunks() {
        let file = tempfile::tempfile().unwrap();
        // The tests may run on btrfs too.
        if devices(&file).is_err() {
            assert!(chunks(&file).is_err());
        }
    }
}
