//! Where a file lies on its disk, as the filesystem reports it (Documentation/filesystems/fiemap.rst).

#![expect(unsafe_code, reason = "ioctl(2)")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

mod raw {
    //! include/uapi/linux/fiemap.h, and the requests of include/uapi/linux/fs.h.

    /// How many extents are asked for at once.
    pub(super) const BATCH: usize = 256;

    #[repr(C)]
    #[derive(Clone, Copy, Default)]
    pub(super) struct FiemapExtent {
        pub(super) logical: u64,
        pub(super) physical: u64,
        pub(super) length: u64,
        pub(super) reserved64: [u64; 2],
        pub(super) flags: u32,
        pub(super) reserved: [u32; 3],
    }

    /// The head of a request. What the kernel fills follows it.
    #[repr(C)]
    #[derive(Clone, Copy, Default)]
    pub(super) struct Fiemap {
        pub(super) start: u64,
        pub(super) length: u64,
        pub(super) flags: u32,
        pub(super) mapped_extents: u32,
        pub(super) extent_count: u32,
        pub(super) reserved: u32,
    }

    #[repr(C)]
    pub(super) struct Request {
        pub(super) head: Fiemap,
        pub(super) extents: [FiemapExtent; BATCH],
    }

    // The sizes that the header has; the extents follow the head without a gap.
    const _: () = assert!(size_of::<FiemapExtent>() == 56 && size_of::<Fiemap>() == 32);
    const _: () = assert!(std::mem::offset_of!(Request, extents) == 32);

    // _IOWR('f', 11, struct fiemap): the size is that of the head alone.
    nix::ioctl_readwrite_bad!(fs_ioc_fiemap, nix::request_code_readwrite!(b'f', 11, size_of::<Fiemap>()), Request);
    // Declared with long, and an int in fact (fs/ioctl.c, `ioctl_getflags` and `ioctl_setflags`).
    nix::ioctl_read_bad!(fs_ioc_getflags, nix::request_code_read!(b'f', 1, size_of::<libc::c_long>()), libc::c_int);
    nix::ioctl_write_ptr_bad!(
        fs_ioc_setflags,
        nix::request_code_write!(b'f', 2, size_of::<libc::c_long>()),
        libc::c_int
    );
}

/// A piece of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Extent {
    /// Its offset in the file, in bytes.
    pub logical: u64,
    /// Its offset in what the filesystem takes for its disk, in bytes. It has a meaning unless a flag denies it.
    pub physical: u64,
    /// Its length in bytes.
    pub len: u64,
    /// Its properties: the constants of [`flag`].
    pub flags: u32,
}

/// Properties of an extent: `FIEMAP_EXTENT_*`.
pub mod flag {
    /// It is the last of the file.
    pub const LAST: u32 = 0x1;
    /// Where it lies is not known.
    pub const UNKNOWN: u32 = 0x2;
    /// Where it will lie is not decided yet.
    pub const DELALLOC: u32 = 0x4;
    /// It does not lie there as it is read: it is compressed, for example.
    pub const ENCODED: u32 = 0x8;
    /// It is encrypted.
    pub const DATA_ENCRYPTED: u32 = 0x80;
    /// It does not begin or end at a block.
    pub const NOT_ALIGNED: u32 = 0x100;
    /// It lies among the filesystem's own data.
    pub const DATA_INLINE: u32 = 0x200;
    /// It lies in one block with other files.
    pub const DATA_TAIL: u32 = 0x400;
    /// It is allocated and reads as zeroes, whatever is on the disk.
    pub const UNWRITTEN: u32 = 0x800;
    /// The file has no extents but single blocks, which were joined for this answer.
    pub const MERGED: u32 = 0x1000;
    /// Other files have it too.
    pub const SHARED: u32 = 0x2000;
}

/// Properties of a file: `FS_*_FL` of include/uapi/linux/fs.h.
pub mod attribute {
    /// It is compressed.
    pub const COMPRESSED: u32 = 0x4;
    /// It is encrypted.
    pub const ENCRYPTED: u32 = 0x800;
    /// Its data go through the journal.
    pub const JOURNAL_DATA: u32 = 0x4000;
    /// It is overwritten in place.
    pub const NO_COW: u32 = 0x0080_0000;
}

/// Writes `file` back and returns its extents in the order of the file, at most `limit` and some hundreds more.
///
/// # Errors
/// Those of the filesystem: `EOPNOTSUPP` where it has no such thing as extents.
pub fn extents(file: &File, limit: usize) -> io::Result<Vec<Extent>> {
    // FIEMAP_FLAG_SYNC: what has no place on the disk yet gets one.
    const SYNC: u32 = 1;
    let mut found: Vec<Extent> = Vec::new();
    let mut start = 0;
    while found.len() <= limit {
        let head = raw::Fiemap {
            start,
            length: u64::MAX - start,
            flags: SYNC,
            extent_count: u32::try_from(raw::BATCH).map_err(io::Error::other)?,
            ..raw::Fiemap::default()
        };
        let mut request = Box::new(raw::Request { head, extents: [raw::FiemapExtent::default(); raw::BATCH] });
        // SAFETY: the descriptor is open for the whole call, and the kernel writes to the head and to at most
        // `extent_count` extents after it, for which the request has room.
        unsafe { raw::fs_ioc_fiemap(file.as_raw_fd(), &raw mut *request) }?;
        let count = usize::try_from(request.head.mapped_extents).map_err(io::Error::other)?;
        let batch = request.extents.iter().take(count);
        let batch = batch.map(|extent| Extent {
            logical: extent.logical,
            physical: extent.physical,
            len: extent.length,
            flags: extent.flags,
        });
        found.extend(batch);
        match found.last() {
            Some(last) if count > 0 && last.flags & flag::LAST == 0 => {
                let next = last.logical.saturating_add(last.len);
                if next <= start {
                    return Err(io::Error::other("FIEMAP does not advance"));
                }
                start = next;
            }
            _ => break,
        }
    }
    Ok(found)
}

/// The attributes of a file, those that `lsattr` shows.
///
/// # Errors
/// Those of the filesystem: `ENOTTY` where it has none.
pub fn attributes(file: &File) -> io::Result<u32> {
    let mut attributes: libc::c_int = 0;
    // SAFETY: the descriptor is open for the whole call, and the kernel writes one int.
    unsafe { raw::fs_ioc_getflags(file.as_raw_fd(), &raw mut attributes) }?;
    Ok(attributes.cast_unsigned())
}

/// Gives a file attributes in place of those that it has.
///
/// # Errors
/// Those of the filesystem.
pub fn set_attributes(file: &File, attributes: u32) -> io::Result<()> {
    let attributes: libc::c_int = attributes.cast_signed();
    // SAFETY: the descriptor is open for the whole call, and the kernel reads one int.
    unsafe { raw::fs_ioc_setflags(file.as_raw_fd(), &raw const attributes) }?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Write;

    use super::*;

    /// On whatever filesystem the tests run: some have extents and some do not.
    #[test]
    fn the_extents_of_a_file_cover_it_or_there_are_none() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![7; 1 << 20]).unwrap();
        match extents(&file, 1000) {
            Ok(found) => {
                assert!(found.last().is_some_and(|last| last.flags & flag::LAST != 0), "{found:?}");
                assert_eq!(found.first().map(|first| first.logical), Some(0));
                let end = found.last().map_or(0, |last| last.logical + last.len);
                assert!(end >= 1 << 20, "{found:?}");
            }
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EOPNOTSUPP), "{error}"),
        }
        match attributes(&file) {
            Ok(attributes) => assert_eq!(attributes & attribute::ENCRYPTED, 0),
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::ENOTTY), "{error}"),
        }
    }
}
