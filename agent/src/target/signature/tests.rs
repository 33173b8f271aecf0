//! Every row of the table, the ends of devices, and what must not be taken for something foreign.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::process::Command;

use dormouse_image::{Commit, Label, Uuid};
use proptest::prelude::*;

use super::*;

const DEVICE_LEN: u64 = (64 << 20) + 0x1_3000;

fn head_with(bytes: &[u8], offset: usize) -> Vec<u8> {
    let mut head = vec![0; HEAD_LEN];
    head[offset..offset + bytes.len()].copy_from_slice(bytes);
    head
}

/// The end of a device of [`DEVICE_LEN`] bytes with these ones at a distance from its end.
fn tail_with(bytes: &[u8], distance: usize) -> Vec<u8> {
    let mut tail = vec![0; TAIL_LEN];
    tail[TAIL_LEN - distance..][..bytes.len()].copy_from_slice(bytes);
    tail
}

fn probe_end(bytes: &[u8]) -> Option<Signature> {
    probe(&vec![0; HEAD_LEN], Some(Tail { device_len: DEVICE_LEN, bytes }))
}

/// What `dormouse image init` writes.
fn our_head() -> Vec<u8> {
    let uuid = Uuid([7; 16]);
    let mut head = vec![0; HEAD_LEN];
    let label = Label { uuid, created_unix: 1_800_000_000, extents: Vec::new(), mirror: None, stack: Vec::new() }
        .encode()
        .unwrap();
    head[..label.len()].copy_from_slice(&label);
    let commit = Commit::empty(uuid).encode().unwrap();
    for offset in layout::SLOT_OFFSETS {
        let offset = usize::try_from(offset).unwrap();
        head[offset..offset + commit.len()].copy_from_slice(&commit);
    }
    head
}

#[test]
fn every_row_is_found_at_each_of_its_places() {
    for row in MAGICS {
        for offset in row.offsets {
            let head = head_with(row.bytes, *offset);
            assert_eq!(probe(&head, None), Some(found(row.name, *offset)), "{} at {offset}", row.name);
            // One byte less of the device, and it is not found.
            assert_eq!(probe(&head[..offset + row.bytes.len() - 1], None), None, "{} at {offset}", row.name);
        }
    }
}

#[test]
fn all_places_lie_within_what_is_read() {
    for row in MAGICS {
        assert!(row.offsets.iter().all(|offset| offset + row.bytes.len() <= HEAD_LEN), "{}", row.name);
    }
}

#[test]
fn a_device_of_zeroes_or_of_nothing_is_free() {
    assert_eq!(probe(&vec![0; HEAD_LEN], None), None);
    assert_eq!(probe(&[], Some(Tail { device_len: 0, bytes: &[] })), None);
    assert_eq!(probe_end(&vec![0; TAIL_LEN]), None);
}

#[test]
fn a_zfs_uberblock_is_found_in_either_byte_order() {
    for bytes in [0x00ba_b10c_u64.to_le_bytes(), 0x00ba_b10c_u64.to_be_bytes()] {
        for offset in [128 << 10, 255 << 10] {
            let expected = Some(found("a ZFS pool member", offset));
            assert_eq!(probe(&head_with(&bytes, offset), None), expected);
        }
        assert_eq!(probe(&head_with(&bytes, 127 << 10), None), None);
        assert_eq!(probe(&head_with(&bytes, 256 << 10), None), None);
    }
}

#[test]
fn a_partition_table_is_told_from_other_boot_sectors() {
    let entry = [0x80, 0, 2, 0, 0x83, 0, 0, 0, 0, 8, 0, 0, 0, 0, 1, 0];
    let mut head = head_with(b"\x55\xaa", 510);
    assert_eq!(probe(&head, None), Some(found("a boot sector", 510)));
    head[446 + 16..446 + 32].copy_from_slice(&entry);
    assert_eq!(probe(&head, None), Some(found("an MBR partition table", 510)));
    // A flag that no partition has: code or data where the table would be.
    head[446] = 0x33;
    assert_eq!(probe(&head, None), Some(found("a boot sector", 510)));
    // A FAT boot sector ends in the same mark.
    head[0x52..0x5a].copy_from_slice(b"FAT32   ");
    assert_eq!(probe(&head, None), Some(found("a FAT filesystem", 0x52)));
    // So does the protective table before a GPT.
    let mut gpt = head_with(b"EFI PART", 512);
    gpt[510..512].copy_from_slice(b"\x55\xaa");
    assert_eq!(probe(&gpt, None), Some(found("a GPT partition table", 512)));
}

#[test]
fn finds_marks_at_the_end() {
    let md = b"\xfc\x4e\x2b\xa9\x01\0\0\0";
    // The device ends 0x3000 bytes after a multiple of 64 KiB, and at a multiple of 4 KiB.
    let table: [(&[u8], usize, &str); 7] = [
        (b"EFI PART", 512, GPT),
        (b"EFI PART", 4096, GPT),
        (md, 8192, MD),
        (&md[..4], 0x1_3000, MD),
        (b"\xa9\x2b\x4e\xfc", 0x1_3000, MD),
        (b"Intel Raid ISM Cfg Sig. 1.1.00", 1024, "a firmware RAID member"),
        (b"\xde\x11\xde\x11", 512, "a firmware RAID member"),
    ];
    for (bytes, distance, name) in table {
        let offset = DEVICE_LEN - u64::try_from(distance).unwrap();
        assert_eq!(probe_end(&tail_with(bytes, distance)), Some(Signature { name, offset }), "{name}");
    }
    assert_eq!(probe_end(&tail_with(md, 8192 + 4096)), None);
}

#[test]
fn md_1_0_is_at_a_multiple_of_4_kib() {
    let device_len = DEVICE_LEN + 0xa00;
    let mut bytes = vec![0; TAIL_LEN];
    bytes[TAIL_LEN - 8192 - 0xa00..][..8].copy_from_slice(b"\xfc\x4e\x2b\xa9\x01\0\0\0");
    let found = probe(&[], Some(Tail { device_len, bytes: &bytes }));
    assert_eq!(found, Some(Signature { name: MD, offset: DEVICE_LEN - 8192 }));
}

#[test]
fn our_own_label_is_not_foreign() {
    assert_eq!(probe(&our_head(), None), None);
}

/// mkfs.btrfs, for one, leaves the first 64 KiB as they are, and pages of saved memory prove nothing.
#[test]
fn on_our_device_only_what_lies_before_the_data_counts() {
    let mut head = our_head();
    let data = usize::try_from(layout::DATA_OFFSET).unwrap();
    head[data..data + 6].copy_from_slice(b"SKUL\xba\xbe");
    let end = tail_with(b"EFI PART", 512);
    let tail = Tail { device_len: DEVICE_LEN, bytes: &end };
    assert_eq!(probe(&head, Some(tail)), None);
    head[0x1_0040..0x1_0048].copy_from_slice(b"_BHRfS_M");
    assert_eq!(probe(&head, Some(tail)).unwrap().name, "a btrfs filesystem");
}

/// What the system's own mkswap writes, for every page size that it knows.
#[test]
fn real_swap_space_is_recognised() {
    let directory = tempfile::tempdir().unwrap();
    for page_size in ["4096", "8192", "16384", "65536"] {
        let file = directory.path().join(page_size);
        std::fs::write(&file, vec![0; HEAD_LEN]).unwrap();
        let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
        let made = Command::new("mkswap").args(["--pagesize", page_size]).arg(&file).env("PATH", path).output();
        assert!(made.unwrap().status.success());
        let found = probe(&std::fs::read(&file).unwrap(), None).unwrap();
        assert_eq!(found.name, SWAP);
        assert_eq!(found.offset, page_size.parse::<u64>().unwrap() - 10);
    }
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(
        head in prop::collection::vec(any::<u8>(), 0..9000),
        tail in prop::collection::vec(any::<u8>(), 0..9000),
        device_len in any::<u64>(),
    ) {
        let _ = probe(&head, Some(Tail { device_len, bytes: &tail }));
    }
}
