//! Whatever else lives on a block device: `image init` refuses a device on which one of these is found.
//!
//! Pure over bytes. Unless a row says otherwise, its offsets and bytes are those of util-linux, libblkid/src
//! (superblocks/ or partitions/, the file that is named). A row that matches by chance costs the user a
//! `wipefs`; one that is missing can cost data.

use std::fmt;

use dormouse_image::{LABEL_MAGIC, layout};
use serde::Serialize;

/// How much of the beginning of a device [`probe`] wants to see: past the last place of a LUKS2 header.
pub const HEAD_LEN: usize = (4 << 20) + 4096;
/// How much of the end of a device [`probe`] wants to see: md 0.90 lies up to 128 KiB before it.
pub const TAIL_LEN: usize = 128 << 10;

/// What was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Signature {
    /// What it is, such as `an ext2, ext3 or ext4 filesystem`.
    pub name: &'static str,
    /// Where its magic is, in bytes from the beginning of the device.
    pub offset: u64,
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (its mark is at byte {})", self.name, self.offset)
    }
}

/// The end of a device.
#[derive(Debug, Clone, Copy)]
pub struct Tail<'a> {
    /// Bytes that the whole device has.
    pub device_len: u64,
    /// Its last bytes: [`TAIL_LEN`] of them, or all if it has less.
    pub bytes: &'a [u8],
}

/// Something that is recognised by fixed bytes at one of several places.
struct Magic {
    name: &'static str,
    bytes: &'static [u8],
    /// From the beginning of the device.
    offsets: &'static [usize],
}

const fn magic(name: &'static str, bytes: &'static [u8], offsets: &'static [usize]) -> Magic {
    Magic { name, bytes, offsets }
}

const EXT: &str = "an ext2, ext3 or ext4 filesystem";
const FAT: &str = "a FAT filesystem";
const GPT: &str = "a GPT partition table";
const HFS: &str = "an HFS or HFS+ filesystem";
const LUKS: &str = "a LUKS encrypted volume";
const LVM: &str = "an LVM2 physical volume";
const MD: &str = "a Linux software RAID member";
const SQUASHFS: &str = "a squashfs filesystem";
/// The name of swap space that the kernel's own hibernation has saved a session to.
pub const SUSPENDED: &str = "Linux swap space with a hibernated system in it";
const SWAP: &str = "Linux swap space";

/// The last ten bytes of the first page, for pages of 4 to 64 KiB.
const SWAP_ENDS: &[usize] = &[0xff6, 0x1ff6, 0x3ff6, 0x7ff6, 0xfff6];
/// Where cryptsetup looks for a second header if the first is damaged (`LUKS2_HDR2_OFFSETS` in its
/// lib/luks2/luks2.h).
const LUKS2_SECOND: &[usize] =
    &[0x4000, 0x8000, 0x1_0000, 0x2_0000, 0x4_0000, 0x8_0000, 0x10_0000, 0x20_0000, 0x40_0000];

/// In the order in which they are looked for.
const MAGICS: &[Magic] = &[
    // gpt.c; the header is in the second sector, of 512 or 4096 bytes.
    magic(GPT, b"EFI PART", &[512, 4096]),
    // luks.c
    magic(LUKS, b"LUKS\xba\xbe", &[0]),
    magic(LUKS, b"SKUL\xba\xbe", LUKS2_SECOND),
    // bitlocker.c: where a boot sector has its OEM name.
    magic("a BitLocker encrypted volume", b"-FVE-FS-", &[3]),
    // lvm.c: "LABELONE" begins one of the first four sectors, with the type 24 bytes after it.
    magic(LVM, b"LVM2 001", &[0x18, 0x218, 0x418, 0x618]),
    // linux_raid.c: superblocks 1.1 at the beginning and 1.2 at 4 KiB. (1.0 and 0.90 are at the end.)
    magic(MD, b"\xfc\x4e\x2b\xa9\x01\0\0\0", &[0, 4096]),
    // bcache.c; bcachefs has its superblock at the same place.
    magic("a bcache device", b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81", &[0x1018]),
    magic("a bcachefs filesystem", b"\xc6\x85\x73\xf6\x66\xce\x90\xa9\xd9\x6a\x60\xcf\x80\x3d\xf7\xef", &[0x1018]),
    // swap.c; a hibernated kernel writes its own mark over that of the swap space (kernel/power/swap.c).
    magic(SUSPENDED, b"S1SUSPEND", SWAP_ENDS),
    magic(SUSPENDED, b"S2SUSPEND", SWAP_ENDS),
    magic(SUSPENDED, b"ULSUSPEND", SWAP_ENDS),
    magic(SUSPENDED, b"LINHIB0001", SWAP_ENDS),
    magic(SWAP, b"SWAPSPACE2", SWAP_ENDS),
    magic(SWAP, b"SWAP-SPACE", SWAP_ENDS),
    // ext.c: s_magic, 0x38 into the superblock at 1 KiB.
    magic(EXT, b"\x53\xef", &[0x438]),
    // xfs.c
    magic("an XFS filesystem", b"XFSB", &[0]),
    // btrfs.c: 0x40 into the superblock at 64 KiB.
    magic("a btrfs filesystem", b"_BHRfS_M", &[0x1_0040]),
    // f2fs.c; the second copy is one block of 4 KiB on.
    magic("an F2FS filesystem", b"\x10\x20\xf5\xf2", &[0x400, 0x1400]),
    // erofs.c
    magic("an EROFS filesystem", b"\xe2\xe1\xf5\xe0", &[0x400]),
    // squashfs.c, in either byte order.
    magic(SQUASHFS, b"hsqs", &[0]),
    magic(SQUASHFS, b"sqsh", &[0]),
    // iso9660.c and udf.c: descriptors from sector 16 of 2 KiB.
    magic("an ISO 9660 filesystem", b"CD001", &[0x8001]),
    magic("a UDF filesystem", b"BEA01", &[0x8001]),
    // exfat.c and ntfs.c: the OEM name of the boot sector.
    magic("an exFAT filesystem", b"EXFAT   ", &[3]),
    magic("an NTFS filesystem", b"NTFS    ", &[3]),
    // vfat.c: the type in the boot sector, where FAT12 and FAT16 and where FAT32 have it.
    magic(FAT, b"FAT12   ", &[0x36]),
    magic(FAT, b"FAT16   ", &[0x36]),
    magic(FAT, b"FAT32   ", &[0x52]),
    magic(FAT, b"FAT     ", &[0x36]),
    magic(FAT, b"MSDOS", &[0x36]),
    magic(FAT, b"MSWIN", &[0x52]),
    // jfs.c, reiserfs.c (3.5 at 8 KiB, later ones at 64 KiB), hfs.c and apfs.c.
    magic("a JFS filesystem", b"JFS1", &[0x8000]),
    magic("a ReiserFS filesystem", b"ReIsEr", &[0x2034, 0x1_0034]),
    magic(HFS, b"H+", &[0x400]),
    magic(HFS, b"HX", &[0x400]),
    magic(HFS, b"BD", &[0x400]),
    magic("an APFS container", b"NXSB", &[32]),
];

/// Names what a device carries, from its first [`HEAD_LEN`] bytes (or all it has) and its end. `None` where
/// nothing is recognised.
///
/// A label of Dormouse itself is not foreign. Where there is one, only what lies before the data area is
/// looked at: after it comes saved memory, in which anything may be found. A filesystem that was made over
/// the image is still recognised, since some of them leave the first block as it is.
pub fn probe(head: &[u8], tail: Option<Tail<'_>>) -> Option<Signature> {
    if head.starts_with(&LABEL_MAGIC) {
        let before_data = usize::try_from(layout::DATA_OFFSET).map_or(head.len(), |end| end.min(head.len()));
        return probe_head(&head[..before_data]);
    }
    probe_head(head).or_else(|| tail.and_then(probe_tail))
}

fn probe_head(head: &[u8]) -> Option<Signature> {
    let fixed = MAGICS.iter().find_map(|row| {
        let offset = row.offsets.iter().find(|offset| bytes_at(head, **offset, row.bytes.len()) == Some(row.bytes))?;
        Some(found(row.name, *offset))
    });
    // The boot sector comes last: filesystems have its 0x55aa too.
    fixed.or_else(|| zfs(head)).or_else(|| boot_sector(head))
}

fn found(name: &'static str, offset: usize) -> Signature {
    Signature { name, offset: u64::try_from(offset).unwrap_or(u64::MAX) }
}

fn bytes_at(bytes: &[u8], offset: usize, length: usize) -> Option<&[u8]> {
    bytes.get(offset..offset.checked_add(length)?)
}

/// zfs.c: the first label's ring of uberblocks, from 128 to 256 KiB, each at a multiple of 1 KiB or more
/// and beginning with 0x00bab10c in its pool's byte order.
fn zfs(head: &[u8]) -> Option<Signature> {
    const MAGIC: u64 = 0x00ba_b10c;
    let is_uberblock = |offset: &usize| {
        let start = bytes_at(head, *offset, 8);
        start == Some(&MAGIC.to_le_bytes()) || start == Some(&MAGIC.to_be_bytes())
    };
    let offset = (128 << 10..256 << 10).step_by(1 << 10).find(is_uberblock)?;
    Some(found("a ZFS pool member", offset))
}

/// dos.c: 0x55aa ends the first sector, before it four entries of 16 bytes: a flag that is 0 or 0x80, a type
/// at 4, the first sector at 8 and the number of sectors at 12.
fn boot_sector(head: &[u8]) -> Option<Signature> {
    const MARK: usize = 510;
    const TABLE: usize = 446;
    if bytes_at(head, MARK, 2)? != b"\x55\xaa" {
        return None;
    }
    let entries = bytes_at(head, TABLE, MARK - TABLE)?;
    let is_used = |entry: &[u8]| entry[4] != 0 && entry[8..12] != [0; 4] && entry[12..16] != [0; 4];
    let flags_fit = entries.chunks_exact(16).all(|entry| matches!(entry[0], 0 | 0x80));
    let name =
        if flags_fit && entries.chunks_exact(16).any(is_used) { "an MBR partition table" } else { "a boot sector" };
    Some(found(name, MARK))
}

fn probe_tail(tail: Tail<'_>) -> Option<Signature> {
    let at = |offset: u64, bytes: &[u8]| {
        let first = tail.device_len.checked_sub(u64::try_from(tail.bytes.len()).ok()?)?;
        let within = usize::try_from(offset.checked_sub(first)?).ok()?;
        (bytes_at(tail.bytes, within, bytes.len())? == bytes).then_some(offset)
    };
    let from_end = |distance: u64| tail.device_len.checked_sub(distance);
    // gpt.c: the backup header is the last sector, of 512 or 4096 bytes.
    let gpt = |sector| Some(Signature { name: GPT, offset: at(from_end(sector)?, b"EFI PART")? });
    // linux_raid.c: 1.0 is 8 KiB before the end, at a multiple of 4 KiB; 0.90 is in the last whole 64 KiB
    // that another 64 KiB follow or could, in the byte order of the machine that made it.
    let md_1_0 = || at(from_end(8192)? & !4095, b"\xfc\x4e\x2b\xa9\x01\0\0\0");
    let md_0_90 = || {
        let place = (tail.device_len & !0xffff).checked_sub(0x1_0000)?;
        at(place, b"\xfc\x4e\x2b\xa9").or_else(|| at(place, b"\xa9\x2b\x4e\xfc"))
    };
    // isw_raid.c and ddf_raid.c: firmware RAID in the last two sectors.
    let isw = || at(from_end(1024)?, b"Intel Raid ISM Cfg Sig. ");
    let ddf = || at(from_end(512)?, b"\xde\x11\xde\x11");
    let firmware = |offset| Signature { name: "a firmware RAID member", offset };
    gpt(512)
        .or_else(|| gpt(4096))
        .or_else(|| md_1_0().or_else(md_0_90).map(|offset| Signature { name: MD, offset }))
        .or_else(|| isw().or_else(ddf).map(firmware))
}

#[cfg(test)]
mod tests;
