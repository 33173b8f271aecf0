//! The filesystems that the saved session has mounted and the swap areas that it uses, and whether another system has
//! written to them since.
//!
//! A kernel that is continued goes on with what it has in memory of each filesystem. Where that is not what is on the
//! disk any more, it destroys the filesystem; and what it has swapped out it takes back from its swap areas, whatever
//! is there by then. So A lists what it has mounted, with the place of each superblock on a disk, through whatever lies
//! between ([`dormouse_linux::block::layers`]), and a digest of the part that a mount elsewhere changes; B, when
//! nothing can change any more, adds a digest of all of it, for the disks that it sees; and C compares before anything
//! is mounted. Neither B nor C puts anything together or decrypts: they look at the bytes of the disk.

mod compare;
mod session;
mod superblock;
mod swap;

use std::fs::File;
use std::io;
use std::path::Path;

use dormouse_image::checksum;

pub use compare::{Comparison, compare, compare_within, settle};
pub use dormouse_linux::block::Names;
pub use session::{Mounted, of_session};
pub use superblock::Superblock;

/// The type of a swap area.
const SWAP: &str = "swap";

/// The superblock on a device, if it is of a kind that is known.
///
/// # Errors
/// The device cannot be read.
pub fn read(device: &Path) -> io::Result<Option<Superblock>> {
    superblock::read(&File::open(device)?, 0)
}

/// Filesystems that nothing ever writes to.
fn is_never_written(kind: &str) -> bool {
    matches!(kind, "squashfs" | "iso9660" | "erofs" | "cramfs" | "romfs")
}

/// How many bytes from its beginning on hold what every mount of a filesystem of this type writes to, for those that
/// are not taken apart: since they are encrypted, or since their type needs no more.
///
/// XFS writes the number of its last log record to its superblock when it is unmounted (fs/xfs/xfs_mount.c,
/// `xfs_unmountfs`; fs/xfs/libxfs/xfs_sb.c, `xfs_sb_write_verify`, Linux 6.12). The checkpoints of f2fs lie in its
/// second and third 2 MiB, unless it was made with larger sections. bcachefs writes its superblock at 4 KiB when it is
/// mounted and when it is unmounted.
fn head(kind: &str) -> Option<usize> {
    match kind {
        "ext2" | "ext3" | "ext4" | "xfs" => Some(4096),
        "btrfs" | "bcachefs" => Some(128 << 10),
        "f2fs" | "vfat" | "msdos" => Some(8 << 20),
        _ => None,
    }
}

/// The state of a filesystem or a swap area on a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Look {
    /// Its UUID, where it can be read.
    uuid: Option<String>,
    /// As [`Superblock::steady`]; `None` where the kind has none.
    steady: Option<u64>,
    /// As [`Superblock::still`].
    still: u64,
}

/// Looks at what begins at `start` of a device, and was of this kind and had this UUID.
///
/// What is not what it was, or is encrypted there, is bytes.
fn look(device: &Path, start: u64, kind: &str, uuid: &str) -> io::Result<Look> {
    let device = &File::open(device)?;
    if kind == SWAP {
        let area = swap::read(device, start)?;
        return Ok(Look { uuid: area.uuid, steady: None, still: area.still });
    }
    let found = superblock::read(device, start)?;
    let here = found.as_ref().map(|found| found.uuid.clone());
    Ok(match found.filter(|found| found.uuid == uuid) {
        Some(found) => {
            let steady = superblock::has_steady_fields(kind).then_some(found.steady);
            Look { uuid: here, steady, still: found.still }
        }
        None => {
            let bytes = superblock::read_up_to(device, start, head(kind).unwrap_or(4096))?;
            Look { uuid: here, steady: None, still: checksum(&bytes) }
        }
    })
}

#[cfg(test)]
mod tests;
