//! A writer of cpio archives in the `newc` form, which the kernel unpacks into its root filesystem.
//!
//! The same entries give the same bytes, whatever order they were added in: sorted names, no times, owner
//! and group 0, inodes counted from 1. The form is described in the kernel's
//! Documentation/driver-api/early-userspace/buffer-format.rst: a 110-byte header of hexadecimal digits, the
//! name with its NUL and the data, each padded to 4 bytes.

use std::borrow::Cow;
use std::collections::BTreeMap;

use thiserror::Error;

const MAGIC: &str = "070701";
const TRAILER: &str = "TRAILER!!!";
/// cpio(1) fills archives up to this, and whatever follows (another archive, or a compressed one) then
/// begins where the kernel looks for it, at a multiple of 4.
const ARCHIVE_BLOCK: usize = 512;
/// Names and link targets with their NUL; the kernel skips an entry with a longer one (`PATH_MAX`, used in
/// init/initramfs.c).
const PATH_MAX: usize = 4096;
const PERMISSIONS: u32 = 0o7777;

const S_IFDIR: u32 = 0o040_000;
const S_IFREG: u32 = 0o100_000;
const S_IFLNK: u32 = 0o120_000;
const S_IFCHR: u32 = 0o020_000;

/// An entry that a cpio archive cannot hold.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CpioError {
    /// Not a name inside the archive.
    #[error("cpio archive: `{path}` is not a usable path: it must not be empty, nor contain NUL, `.` or `..`")]
    Path {
        /// As given.
        path: String,
    },
    /// A name or link target is too long for the kernel.
    #[error("cpio archive: the path or link target of `{path}` has {length} bytes, more than {}", PATH_MAX - 1)]
    TooLong {
        /// The entry.
        path: String,
        /// Bytes.
        length: usize,
    },
    /// Two entries have the same name.
    #[error("cpio archive: `{path}` is in it twice")]
    Twice {
        /// The entry.
        path: String,
    },
    /// An entry lies below something that is not a directory.
    #[error("cpio archive: `{path}` lies below `{parent}`, which is not a directory")]
    Parent {
        /// The entry.
        path: String,
        /// What it lies below.
        parent: String,
    },
    /// More than the 32-bit size field can say.
    #[error("cpio archive: `{path}` has {size} bytes, more than the {} of the newc form", u32::MAX)]
    TooLarge {
        /// The entry.
        path: String,
        /// Bytes.
        size: usize,
    },
    /// More than the 32-bit inode field can count.
    #[error("cpio archive: {count} entries are more than the {} of the newc form", u32::MAX)]
    TooMany {
        /// Entries.
        count: usize,
    },
}

#[derive(Debug)]
struct Entry<'a> {
    /// Type and permissions, as in `st_mode`.
    mode: u32,
    /// Major and minor number of a device node, else 0.
    device: (u32, u32),
    /// A file's bytes or a link's target.
    data: Cow<'a, [u8]>,
}

/// An archive in the making. Paths may begin with `/`. Directories that are not given but needed are added
/// with mode 0755, since the kernel makes none by itself.
///
/// An entry that cannot be held is remembered, and [`Archive::finish`] fails with the first one.
#[derive(Debug, Default)]
pub struct Archive<'a> {
    entries: BTreeMap<String, Entry<'a>>,
    error: Option<CpioError>,
}

impl<'a> Archive<'a> {
    /// An archive without entries.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a directory.
    #[must_use]
    pub fn dir(self, path: &str, mode: u32) -> Self {
        self.entry(path, Entry { mode: S_IFDIR | (mode & PERMISSIONS), device: (0, 0), data: Cow::default() })
    }

    /// Adds a file.
    #[must_use]
    pub fn file(self, path: &str, mode: u32, bytes: impl Into<Cow<'a, [u8]>>) -> Self {
        self.entry(path, Entry { mode: S_IFREG | (mode & PERMISSIONS), device: (0, 0), data: bytes.into() })
    }

    /// Adds a character device node.
    #[must_use]
    pub fn node(self, path: &str, mode: u32, major: u32, minor: u32) -> Self {
        let mode = S_IFCHR | (mode & PERMISSIONS);
        self.entry(path, Entry { mode, device: (major, minor), data: Cow::default() })
    }

    /// Adds a symbolic link.
    #[must_use]
    pub fn symlink(self, path: &str, target: &str) -> Self {
        let data = Cow::Owned(target.as_bytes().to_vec());
        self.entry(path, Entry { mode: S_IFLNK | 0o777, device: (0, 0), data })
    }

    fn entry(mut self, path: &str, entry: Entry<'a>) -> Self {
        if let Err(error) = self.insert(path, entry) {
            self.error.get_or_insert(error);
        }
        self
    }

    fn insert(&mut self, path: &str, entry: Entry<'a>) -> Result<(), CpioError> {
        let name = path.strip_prefix('/').unwrap_or(path);
        let unusable = |part: &str| part.is_empty() || part == "." || part == ".." || part.contains('\0');
        if name.split('/').any(unusable) || name == TRAILER {
            return Err(CpioError::Path { path: path.to_owned() });
        }
        let is_link = entry.mode & !PERMISSIONS == S_IFLNK;
        let longest = name.len().max(if is_link { entry.data.len() } else { 0 });
        if longest >= PATH_MAX {
            return Err(CpioError::TooLong { path: path.to_owned(), length: longest });
        }
        if self.entries.contains_key(name) {
            return Err(CpioError::Twice { path: path.to_owned() });
        }
        self.entries.insert(name.to_owned(), entry);
        Ok(())
    }

    /// The archive's bytes, a multiple of 512 of them.
    ///
    /// # Errors
    /// An entry could not be held; the first one is named.
    pub fn finish(mut self) -> Result<Vec<u8>, CpioError> {
        if let Some(error) = self.error.take() {
            return Err(error);
        }
        self.add_parents()?;
        let count = self.entries.len();
        // Enough for all, so that no second allocation leaves a copy of what may be secret.
        let size: usize = self.entries.iter().map(|(name, entry)| 128 + name.len() + entry.data.len()).sum();
        let mut bytes = Vec::with_capacity(size + 128 + ARCHIVE_BLOCK);
        // In the order of their names, a directory comes before what is in it.
        for (index, (name, entry)) in self.entries.iter().enumerate() {
            let inode = u32::try_from(index + 1).map_err(|_| CpioError::TooMany { count })?;
            write_entry(&mut bytes, inode, name, entry)?;
        }
        write_entry(&mut bytes, 0, TRAILER, &Entry { mode: 0, device: (0, 0), data: Cow::default() })?;
        pad(&mut bytes, ARCHIVE_BLOCK);
        Ok(bytes)
    }

    fn add_parents(&mut self) -> Result<(), CpioError> {
        let names: Vec<String> = self.entries.keys().cloned().collect();
        for name in names {
            for (end, _) in name.match_indices('/') {
                let parent = &name[..end];
                let directory = Entry { mode: S_IFDIR | 0o755, device: (0, 0), data: Cow::default() };
                let entry = self.entries.entry(parent.to_owned()).or_insert(directory);
                if entry.mode & !PERMISSIONS != S_IFDIR {
                    return Err(CpioError::Parent { path: name.clone(), parent: parent.to_owned() });
                }
            }
        }
        Ok(())
    }
}

fn write_entry(bytes: &mut Vec<u8>, inode: u32, name: &str, entry: &Entry<'_>) -> Result<(), CpioError> {
    let too_large = || CpioError::TooLarge { path: name.to_owned(), size: entry.data.len() };
    let data_size = u32::try_from(entry.data.len()).map_err(|_| too_large())?;
    let name_size = u32::try_from(name.len() + 1).map_err(|_| too_large())?;
    // More than one link on a file would make the kernel look for hard links; a directory has two.
    let links = if entry.mode & !PERMISSIONS == S_IFDIR { 2 } else { 1 };
    let (major, minor) = entry.device;
    bytes.extend_from_slice(MAGIC.as_bytes());
    // ino, mode, uid, gid, nlink, mtime, filesize, maj, min, rmaj, rmin, namesize, chksum
    for field in [inode, entry.mode, 0, 0, links, 0, data_size, 0, 0, major, minor, name_size, 0] {
        bytes.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    bytes.extend_from_slice(name.as_bytes());
    bytes.push(0);
    pad(bytes, 4);
    bytes.extend_from_slice(&entry.data);
    pad(bytes, 4);
    Ok(())
}

/// Fills up with zeroes to a multiple of `block`.
fn pad(bytes: &mut Vec<u8>, block: usize) {
    bytes.resize(bytes.len().next_multiple_of(block), 0);
}

#[cfg(test)]
mod tests;
