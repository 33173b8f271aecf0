//! What the superblocks of ext2 to ext4, XFS, btrfs, f2fs, FAT and exFAT record about their last writer.
//!
//! Offsets are in bytes from the beginning of the filesystem; their sources are named with each.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use dormouse_image::checksum;

/// What tells one state of a filesystem from another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Superblock {
    /// Its identity, as `blkid` shows it.
    pub uuid: String,
    /// A digest of what a mount elsewhere changes and a session that has it mounted does not.
    ///
    /// ext4 has such fields: time and count of mounts, of the last check, and whether the journal must be replayed.
    /// The others have none, so there it is a digest of the identity alone.
    pub steady: u64,
    /// A digest of all that a mount elsewhere changes, which may change while the session works.
    pub still: u64,
    /// How much of the filesystem was looked at, from its beginning.
    pub reach: u64,
}

/// A filesystem's bytes: those of a device from some place on.
struct Bytes<'a> {
    device: &'a File,
    start: u64,
}

impl Bytes<'_> {
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        self.device.read_at(buffer, self.start.saturating_add(at))
    }

    fn read_exact_at(&self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        self.device.read_exact_at(buffer, self.start.saturating_add(at))
    }
}

/// Whether a mount elsewhere shows in [`Superblock::steady`] of this type of filesystem.
pub(super) fn has_steady_fields(kind: &str) -> bool {
    matches!(kind, "ext2" | "ext3" | "ext4")
}

/// The longest file allocation table of which all is looked at.
const FAT_MAX: u64 = 16 << 20;
/// How much of a device a filesystem's superblock is looked for in: btrfs has it at 64 KiB.
const HEAD: usize = 68 << 10;

/// Reads the superblock of the filesystem that begins at `start` of a device, if it is of a known kind.
///
/// # Errors
/// The device cannot be read.
pub(super) fn read(device: &File, start: u64) -> io::Result<Option<Superblock>> {
    let device = &Bytes { device, start };
    let head = read_up_to(device.device, start, HEAD)?;
    if let Some(found) = ext(&head).or_else(|| btrfs(&head)) {
        return Ok(Some(found));
    }
    if let Some(xfs) = Xfs::find(&head) {
        return xfs.superblock(device).map(Some);
    }
    if let Some(f2fs) = F2fs::find(&head) {
        return f2fs.superblock(device).map(Some);
    }
    if let Some(exfat) = ExFat::find(&head) {
        return exfat.superblock(device).map(Some);
    }
    match Fat::find(&head) {
        Some(fat) => fat.superblock(device).map(Some),
        None => Ok(None),
    }
}

/// As much as a device has of `len` bytes from `at` on.
pub(super) fn read_up_to(device: &File, at: u64, len: usize) -> io::Result<Vec<u8>> {
    let device = Bytes { device, start: at };
    let mut bytes = vec![0; len];
    let mut filled = 0;
    while filled < len {
        match device.read_at(&mut bytes[filled..], filled as u64)? {
            0 => break,
            more => filled += more,
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

fn bytes<const N: usize>(from: &[u8], at: usize) -> Option<[u8; N]> {
    from.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn le16(from: &[u8], at: usize) -> Option<u16> {
    bytes(from, at).map(u16::from_le_bytes)
}

fn le32(from: &[u8], at: usize) -> Option<u32> {
    bytes(from, at).map(u32::from_le_bytes)
}

fn be16(from: &[u8], at: usize) -> Option<u16> {
    bytes(from, at).map(u16::from_be_bytes)
}

fn be32(from: &[u8], at: usize) -> Option<u32> {
    bytes(from, at).map(u32::from_be_bytes)
}

fn uuid(bytes: [u8; 16]) -> String {
    dormouse_image::Uuid(bytes).to_string()
}

/// fs/ext4/ext4.h, `struct ext4_super_block`, at 1 KiB.
fn ext(head: &[u8]) -> Option<Superblock> {
    let block = head.get(1024..2048)?;
    if bytes(block, 0x38)? != [0x53, 0xef] {
        return None;
    }
    let id: [u8; 16] = bytes(block, 0x68)?;
    // s_mtime, s_mnt_count, s_lastcheck, s_feature_incompat (whose bit 2 says that the journal must be replayed), the
    // upper parts of the first and the third, and s_mkfs_time.
    let fields = [(0x2c, 4), (0x34, 2), (0x40, 4), (0x60, 4), (0x275, 1), (0x277, 1), (0x108, 4)];
    let mut steady = id.to_vec();
    for (at, len) in fields {
        steady.extend(block.get(at..at + len)?);
    }
    Some(Superblock { uuid: uuid(id), steady: checksum(&steady), still: checksum(block), reach: 2048 })
}

/// fs/btrfs/fs.h and include/uapi/linux/btrfs_tree.h, `struct btrfs_super_block`, at 64 KiB. Its generation grows with
/// every transaction. Each device of a filesystem has it with a description of the device, which is left out, as is
/// the checksum over it.
fn btrfs(head: &[u8]) -> Option<Superblock> {
    let block = head.get(64 << 10..)?.get(..4096)?;
    if &bytes::<8>(block, 0x40)? != b"_BHRfS_M" {
        return None;
    }
    let id: [u8; 16] = bytes(block, 0x20)?;
    let (before, after) = (block.get(0x20..0xc9)?, block.get(0xc9 + 98..)?);
    let still = checksum(&[before, after].concat());
    Some(Superblock { uuid: uuid(id), steady: checksum(&id), still, reach: (64 << 10) + 4096 })
}

/// fs/xfs/libxfs/xfs_format.h, `struct xfs_dsb`, at 0; numbers are big-endian.
///
/// XFS writes its superblock rarely. What every mount writes to is the log, a ring of blocks of 512 bytes.
struct Xfs {
    id: [u8; 16],
    sector: Vec<u8>,
    /// The log's place in bytes, and its length in blocks of 512 bytes. `None` where it is on another device.
    log: Option<(u64, u64)>,
}

impl Xfs {
    fn find(head: &[u8]) -> Option<Xfs> {
        if !head.starts_with(b"XFSB") {
            return None;
        }
        let id = bytes(head, 32)?;
        let sector = head.get(..usize::from(be16(head, 102)?).clamp(512, 4096))?.to_vec();
        let block_size = u64::from(be32(head, 4)?);
        let (start, blocks) = (u64::from_be_bytes(bytes(head, 48)?), u64::from(be32(head, 96)?));
        let (group_blocks, group_bits) = (u64::from(be32(head, 84)?), u32::from(*head.get(124)?));
        // A block's address is the number of its allocation group and that of the block in it.
        let group = start.checked_shr(group_bits)?;
        let within = start - group.checked_shl(group_bits)?;
        let place = group.checked_mul(group_blocks)?.checked_add(within)?.checked_mul(block_size)?;
        let log = (start != 0).then_some((place, blocks.checked_mul(block_size)? / 512));
        Some(Xfs { id, sector, log })
    }

    fn superblock(&self, device: &Bytes<'_>) -> io::Result<Superblock> {
        let mut still = self.sector.clone();
        if let Some((place, blocks)) = self.log.filter(|(_, blocks)| *blocks > 0) {
            let (cycle, head) = log_head(blocks, |block| cycle(device, place.saturating_add(block * 512)))?;
            still.extend(cycle.to_be_bytes());
            still.extend(head.to_be_bytes());
        }
        let reach = self.log.map_or(4096, |(place, blocks)| place.saturating_add(blocks.saturating_mul(512)));
        Ok(Superblock { uuid: uuid(self.id), steady: checksum(&self.id), still: checksum(&still), reach })
    }
}

/// The number of the cycle in which a block of the log was written: the first word of each, or the second where the
/// first is a record's magic (fs/xfs/libxfs/xfs_log_format.h, `xlog_get_cycle`).
fn cycle(device: &Bytes<'_>, at: u64) -> io::Result<u32> {
    const RECORD: u32 = 0xfeed_babe;
    // A whole sector, for a device that gives no less.
    let mut block = [0; 512];
    device.read_exact_at(&mut block, at)?;
    let number = |at| be32(&block, at).unwrap_or(0);
    Ok(if number(0) == RECORD { number(4) } else { number(0) })
}

/// The head of a log: the cycle of its first block, and the first block of an older one, which is where the next record
/// goes. Blocks before it are of the one cycle, blocks after it of the one before, so halving finds it.
fn log_head(blocks: u64, cycle: impl Fn(u64) -> io::Result<u32>) -> io::Result<(u32, u64)> {
    let first = cycle(0)?;
    let (mut newer, mut older) = (0, blocks);
    while older - newer > 1 {
        let middle = newer + (older - newer) / 2;
        if cycle(middle)? == first { newer = middle } else { older = middle }
    }
    Ok((first, older))
}

/// include/linux/f2fs_fs.h, `struct f2fs_super_block`, at 1 KiB. What is written is made valid by a checkpoint with a
/// higher number, at the beginning of one of two segments (fs/f2fs/checkpoint.c, `f2fs_get_valid_checkpoint`).
struct F2fs {
    id: [u8; 16],
    block: Vec<u8>,
    /// Where the two begin, in bytes.
    checkpoints: [u64; 2],
}

impl F2fs {
    fn find(head: &[u8]) -> Option<F2fs> {
        let block = head.get(1024..2048)?;
        if bytes(block, 0)? != 0xf2f5_2010_u32.to_le_bytes() {
            return None;
        }
        let block_size = 1_u64.checked_shl(le32(block, 16)?).filter(|size| (512..=65536).contains(size))?;
        let segment = block_size.checked_mul(1_u64.checked_shl(le32(block, 20)?).filter(|blocks| *blocks <= 4096)?)?;
        let first = u64::from(le32(block, 76)?) * block_size;
        Some(F2fs { id: bytes(block, 108)?, block: block.to_vec(), checkpoints: [first, first + segment] })
    }

    fn superblock(&self, device: &Bytes<'_>) -> io::Result<Superblock> {
        let mut still = self.block.clone();
        let mut checkpoint = [0; 4096];
        for at in self.checkpoints {
            device.read_exact_at(&mut checkpoint, at)?;
            still.extend(checkpoint);
        }
        let (steady, still, reach) = (checksum(&self.id), checksum(&still), self.checkpoints[1] + 4096);
        Ok(Superblock { uuid: uuid(self.id), steady, still, reach })
    }
}

/// fs/exfat/exfat_raw.h, `struct boot_sector` and `struct exfat_dentry`. As with FAT, the table, the map of what is in
/// use and the root directory are looked at.
struct ExFat {
    id: [u8; 4],
    boot: Vec<u8>,
    table: (u64, u64),
    /// Where the first cluster begins, and how long each is.
    heap: u64,
    cluster: u64,
    root: u32,
}

impl ExFat {
    fn find(head: &[u8]) -> Option<ExFat> {
        let boot = head.get(..512)?;
        if &bytes::<8>(boot, 3)? != b"EXFAT   " {
            return None;
        }
        let sector = 1_u64.checked_shl(u32::from(*boot.get(108)?)).filter(|size| (512..=4096).contains(size))?;
        let per_cluster = 1_u64.checked_shl(u32::from(*boot.get(109)?)).filter(|sectors| *sectors <= 1 << 16)?;
        let sectors = |at| Some(u64::from(le32(boot, at)?) * sector);
        Some(ExFat {
            id: bytes(boot, 100)?,
            boot: boot.to_vec(),
            table: (sectors(80)?, sectors(84)?),
            heap: sectors(88)?,
            cluster: sector * per_cluster,
            root: le32(boot, 96)?,
        })
    }

    fn superblock(&self, device: &Bytes<'_>) -> io::Result<Superblock> {
        let mut still = self.boot.clone();
        let mut reach = 4096;
        let mut add = |at: u64, len: u64| {
            let mut part = vec![0; usize::try_from(len.min(FAT_MAX)).map_err(io::Error::other)?];
            reach = reach.max(at.saturating_add(len.min(FAT_MAX)));
            device.read_exact_at(&mut part, at)?;
            still.extend(&part);
            Ok::<_, io::Error>(part)
        };
        add(self.table.0, self.table.1)?;
        // Clusters are counted from 2.
        let place = |cluster: u32| u64::from(cluster.saturating_sub(2)) * self.cluster + self.heap;
        let root = add(place(self.root), self.cluster)?;
        let map = root.chunks_exact(32).find(|entry| entry[0] == 0x81);
        if let Some((first, len)) =
            map.and_then(|entry| Some((le32(entry, 20)?, u64::from_le_bytes(bytes(entry, 24)?))))
        {
            add(place(first), len)?;
        }
        let number = u32::from_le_bytes(self.id);
        let uuid = format!("{:04X}-{:04X}", number >> 16, number & 0xffff);
        Ok(Superblock { uuid, steady: checksum(&self.id), still: checksum(&still), reach })
    }
}

/// fs/fat/inode.c, `fat_read_bpb`, and include/uapi/linux/msdos_fs.h, `struct fat_boot_sector`. Nearly every change of
/// a file writes to the file allocation table, and those in the root directory to that directory; what is written in
/// place elsewhere, and takes no more room, is not noticed.
struct Fat {
    id: [u8; 4],
    boot: Vec<u8>,
    /// Where the table begins, and how long it is, in bytes.
    table: (u64, u64),
    /// The same of the root directory, or of its first part.
    root: (u64, u64),
    /// The sector with the number of free clusters, in bytes; FAT32 alone has it.
    info: Option<u64>,
}

impl Fat {
    fn find(head: &[u8]) -> Option<Fat> {
        let boot = head.get(..512)?;
        if bytes(boot, 510)? != [0x55, 0xaa] {
            return None;
        }
        let is_32 = &bytes::<5>(boot, 0x52)? == b"FAT32";
        let is_16 = &bytes::<4>(boot, 0x36)? == b"FAT1";
        let sector = u64::from(le16(boot, 11)?);
        if !(is_32 || is_16) || !matches!(sector, 512 | 1024 | 2048 | 4096) {
            return None;
        }
        let (id, sectors) = match is_32 {
            true => (bytes(boot, 0x43)?, u64::from(u32::from_le_bytes(bytes(boot, 36)?))),
            false => (bytes(boot, 0x27)?, u64::from(le16(boot, 22)?)),
        };
        let table = (u64::from(le16(boot, 14)?) * sector, sectors * sector);
        let behind_tables = table.0 + u64::from(*boot.get(16)?) * table.1;
        let cluster = u64::from(*boot.get(13)?) * sector;
        let root = match is_32 {
            // Clusters are counted from 2.
            true => {
                let first = u64::from(u32::from_le_bytes(bytes(boot, 44)?)).checked_sub(2)?;
                (behind_tables + first * cluster, cluster)
            }
            false => (behind_tables, u64::from(le16(boot, 17)?) * 32),
        };
        let info = u64::from(le16(boot, 48)?) * sector;
        Some(Fat { id, boot: boot.to_vec(), table, root, info: (is_32 && info > 0).then_some(info) })
    }

    fn superblock(&self, device: &Bytes<'_>) -> io::Result<Superblock> {
        let mut still = self.boot.clone();
        let mut reach = 4096;
        let mut add = |at: u64, len: u64| {
            let from = still.len();
            reach = reach.max(at.saturating_add(len));
            // At most FAT_MAX.
            still.resize(from + usize::try_from(len).map_err(io::Error::other)?, 0);
            device.read_exact_at(&mut still[from..], at)
        };
        if let Some(info) = self.info {
            add(info, 512)?;
        }
        add(self.table.0, self.table.1.min(FAT_MAX))?;
        add(self.root.0, self.root.1)?;
        let number = u32::from_le_bytes(self.id);
        Ok(Superblock {
            uuid: format!("{:04X}-{:04X}", number >> 16, number & 0xffff),
            steady: checksum(&self.id),
            still: checksum(&still),
            reach,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_head_of_a_log_is_where_the_cycle_changes() {
        for (blocks, head) in [(1, 1), (2, 1), (1000, 1), (1000, 7), (1000, 999), (1000, 1000)] {
            let found = log_head(blocks, |block| Ok(if block < head { 5 } else { 4 })).unwrap();
            assert_eq!(found, (5, head));
        }
    }
}
