#![allow(clippy::unwrap_used)]
use dormouse_image::Label;
use dormouse_image::layout::{DATA_OFFSET, DEVICE_MIN};
use dormouse_linux::error_chain::in_full;
use proptest::prelude::*;

use super::*;
use crate::store::StoreError;
use crate::target::new_label;

fn extent(offset: u64, len: u64) -> DiskExtent {
    DiskExtent { offset, len }
}

#[test]
fn sizes() {
    assert_eq!("auto".parse(), Ok(Size::Auto));
    assert_eq!("2G".parse(), Ok(Size::Bytes(2 << 30)));
    assert_eq!("5000000".parse(), Ok(Size::Bytes(5 << 20)));
    for text in ["", "all", "1M", "-1G", "+2G", "99999999999999999G", "9223372036854775807", "18446744073709551615"] {
        assert!(text.parse::<Size>().unwrap_err().contains(text), "{text}");
    }
}

#[test]
fn the_largest_image_has_room_for_its_index() {
    // 256 pages, each in an extent of its own, in four chunks, and what the format has beside them.
    let gib = 1 << 30;
    assert!(most(gib) > gib + gib / 1024 + DATA_OFFSET && most(gib) < gib + gib / 40);
    assert!(most(0) >= DEVICE_MIN);
}

#[test]
fn the_ends_of_the_pieces() {
    assert_eq!(ends(&[extent(1 << 20, 12288), extent(1 << 30, 4096)]), [0, 8192, 12288, 12288]);
}

/// A file that stands for a block device, and another for the file on it.
struct Stand {
    device: tempfile::NamedTempFile,
    file: tempfile::NamedTempFile,
}

impl Stand {
    fn new() -> Stand {
        let make = |len| {
            let file = tempfile::NamedTempFile::new().unwrap();
            file.as_file().set_len(len).unwrap();
            file
        };
        Stand { device: make(16 << 20), file: make(4 << 20) }
    }

    /// By the map in the label at `offset` of the device.
    fn open_at(&self, offset: u64, access: Access) -> Result<Disk, StoreError> {
        Disk::open_at(self.device.path(), offset, access)
    }
}

/// Three pieces, not in the order of the device.
fn pieces() -> Vec<DiskExtent> {
    vec![extent(8 << 20, 1 << 20), extent(4096, 1 << 20), extent(12 << 20, 2 << 20)]
}

#[test]
fn an_image_is_found_by_the_map_in_its_label() {
    let stand = Stand::new();
    let label = Label { extents: pieces(), ..new_label(Vec::new()).unwrap() };
    // As A makes it through the file; then the pieces go where the map says.
    let image = Image::create(Disk::open(stand.file.path(), Access::Write).unwrap(), label.clone()).unwrap();
    assert_eq!(image.name().to_string(), format!("UUID={}@{}", label.uuid, 8 << 20));
    let device = Disk::open(stand.device.path(), Access::Write).unwrap();
    let mut at = 0;
    for piece in pieces() {
        let bytes = image.disk().read(at, usize::try_from(piece.len).unwrap()).unwrap();
        device.write(piece.offset, &bytes).unwrap();
        at += piece.len;
    }
    compare(image.disk(), stand.device.path(), &pieces()).unwrap();

    let mapped = Image::open(stand.open_at(8 << 20, Access::Write).unwrap()).unwrap();
    assert_eq!((mapped.label(), mapped.disk().size(), mapped.name()), (&label, 4 << 20, image.name()));
    assert_eq!(mapped.disk().name(), format!("{} (from byte 8388608 on)", stand.device.path().display()));

    // A write over two ends is found where it belongs, and nowhere else.
    let before = device.read(0, 16 << 20).unwrap();
    let bytes: Vec<u8> = (0..3 << 20).map(|n: u32| n.to_le_bytes()[1] | 1).collect();
    mapped.disk().write_copy((1 << 20) - 4096, &bytes).unwrap();
    let after = device.read(0, 16 << 20).unwrap();
    let mut expected = before.to_vec();
    expected[(9 << 20) - 4096..9 << 20].copy_from_slice(&bytes[..4096]);
    expected[4096..4096 + (1 << 20)].copy_from_slice(&bytes[4096..4096 + (1 << 20)]);
    expected[12 << 20..(14 << 20) - 4096].copy_from_slice(&bytes[4096 + (1 << 20)..]);
    assert!(after[..] == expected[..]);
    assert_eq!(mapped.disk().read((1 << 20) - 4096, bytes.len()).unwrap()[..], bytes[..]);
    let error = in_full(&mapped.disk().write_copy((4 << 20) - 4096, &[1; 8192]).unwrap_err());
    assert!(error.contains("writing 8192 bytes") && error.contains("ends before"), "{error}");
}

#[test]
fn a_label_that_belongs_elsewhere_is_refused() {
    let stand = Stand::new();
    let device = Disk::open(stand.device.path(), Access::Write).unwrap();
    let label = Label { extents: pieces(), ..new_label(Vec::new()).unwrap() };
    let whole = new_label(Vec::new()).unwrap();
    for offset in [4096, 4 << 20] {
        for (label, expected) in [(&label, 8 << 20), (&whole, 0)] {
            device.write_copy(offset, &label.encode().unwrap()).unwrap();
            let error = stand.open_at(offset, Access::Read).unwrap_err();
            assert!(matches!(error, StoreError::Misplaced { expected: e, .. } if e == expected), "{error}");
        }
    }
    // A file's image that was copied to a device does not become the device's.
    device.write_copy(0, &label.encode().unwrap()).unwrap();
    assert!(matches!(device.label_at(0), Err(StoreError::Misplaced { offset: 0, .. })));
    let error = in_full(&stand.open_at(1 << 20, Access::Read).unwrap_err());
    assert!(error.contains("no Dormouse label here"), "{error}");
}

/// Its label stays on the disk when a file is removed, until another file needs just that block.
#[test]
fn a_file_whose_blocks_have_become_another_files_is_not_touched() {
    let stand = Stand::new();
    let device = Disk::open(stand.device.path(), Access::Write).unwrap();
    let label = Label { extents: pieces(), ..new_label(Vec::new()).unwrap() };
    let begin = label.offset();
    device.write_copy(begin, &label.encode().unwrap()).unwrap();
    let image = Image::create(stand.open_at(begin, Access::Write).unwrap(), label.clone()).unwrap();
    drop(image);
    let open = || stand.open_at(begin, Access::Write).and_then(Image::open);
    let slot = device.read(begin + SLOT_OFFSETS[0], BLOCK).unwrap();
    let of_another =
        Image::create(Disk::open(stand.file.path(), Access::Write).unwrap(), new_label(Vec::new()).unwrap());
    let of_another = of_another.unwrap().disk().read(SLOT_OFFSETS[0], BLOCK).unwrap();
    for at in SLOT_OFFSETS {
        open().unwrap();
        for other in [&[0; BLOCK][..], &[7; BLOCK], &of_another] {
            device.write_copy(begin + at, other).unwrap();
            assert!(matches!(open(), Err(StoreError::Gone { .. })), "{:?}", open());
        }
        // Not so a write that was interrupted.
        let torn = [&slot[..512], &[9; BLOCK - 512]].concat();
        device.write_copy(begin + at, &torn).unwrap();
        open().unwrap().transition(dormouse_image::State::Saving, "").unwrap();
    }
}

#[test]
fn a_map_that_leaves_the_device_is_refused() {
    let stand = Stand::new();
    let device = Disk::open(stand.device.path(), Access::Write).unwrap();
    let extents = vec![extent(1 << 20, 4 << 20), extent(15 << 20, 2 << 20)];
    device.write_copy(1 << 20, &new_label(extents).unwrap().encode().unwrap()).unwrap();
    let error = stand.open_at(1 << 20, Access::Read).unwrap_err();
    assert!(matches!(error, StoreError::Beyond { end: 17_825_792, .. }), "{error}");
}

#[test]
fn a_disk_that_is_not_under_the_file_is_noticed() {
    let stand = Stand::new();
    let file = Disk::open(stand.file.path(), Access::Write).unwrap();
    let error = mark_and_compare(&file, stand.device.path(), &pieces()).unwrap_err().to_string();
    assert!(error.contains("byte 0 of the file is not at byte 8388608 of"), "{error}");
    // The last block of the last piece alone.
    compare(&file, stand.device.path(), &[extent(1 << 20, 4 << 20)]).unwrap_err();
    file.write_copy(0, &vec![0; 4 << 20]).unwrap();
    compare(&file, stand.device.path(), &pieces()).unwrap();
    file.write_copy((4 << 20) - 4096, &[1; 4096]).unwrap();
    let error = compare(&file, stand.device.path(), &pieces()).unwrap_err().to_string();
    assert!(error.contains("byte 4190208 of the file is not at byte 14675968 of"), "{error}");
}

#[test]
fn a_file_that_was_made_as_a_device_is_refused_with_the_remedy() {
    let stand = Stand::new();
    let disk = Disk::open(stand.file.path(), Access::Write).unwrap();
    let image = Image::create(disk, new_label(Vec::new()).unwrap()).unwrap();
    let error = check(stand.file.path(), &image).unwrap_err().to_string();
    assert!(error.contains("dormouse image init") && error.contains("dormouse image create --size 4M"), "{error}");
}

#[test]
fn a_failed_create_leaves_no_file() {
    let directory = tempfile::tempdir().unwrap();
    // More than any filesystem has.
    let path = directory.path().join("image");
    let error = format!("{:#}", create(&path, Size::Bytes(1 << 60)).unwrap_err());
    assert!(error.contains(&path.display().to_string()), "{error}");
    assert!(!path.exists());
    std::fs::write(&path, "mine").unwrap();
    let error = format!("{:#}", create(&path, Size::Bytes(2 << 20)).unwrap_err());
    assert!(error.contains("already"), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), b"mine");
    let error = format!("{:#}", create(Path::new("/proc/image"), Size::Bytes(2 << 20)).unwrap_err());
    assert!(error.contains("/proc/image"), "{error}");
}

proptest! {
    /// Over any map, bytes that are written are read back, and nothing else of the device is changed.
    #[test]
    fn any_map_keeps_what_is_written(
        lens in prop::collection::vec((0_u64..3, 1_u64..6), 1..8),
        swap in any::<bool>(),
        from in 0_u64..40,
        blocks in 1_usize..40,
    ) {
        let mut next = 1;
        let mut extents: Vec<DiskExtent> = lens.iter().map(|(gap, len)| {
            next += gap + len;
            extent((next - len) * 4096, len * 4096)
        }).collect();
        if swap {
            extents.reverse();
        }
        let size: u64 = extents.iter().map(|extent| extent.len).sum();
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(next * 4096).unwrap();
        let device = Disk::open(file.path(), Access::Write).unwrap();
        let label = new_label(extents.clone()).unwrap();
        device.write_copy(label.offset(), &label.encode().unwrap()).unwrap();
        let mapped = Disk::open_at(file.path(), label.offset(), Access::Write).unwrap();
        prop_assert_eq!(mapped.size(), size);
        let result = mapped.write_copy(from * 4096, &vec![0xab; blocks * 4096]);
        let fits = from * 4096 + (blocks * 4096) as u64 <= size;
        prop_assert_eq!(result.is_ok(), fits);
        let changed = device.read(0, usize::try_from(next * 4096).unwrap()).unwrap();
        let changed = changed.chunks(4096).filter(|block| block.iter().all(|byte| *byte == 0xab)).count();
        prop_assert_eq!(changed, if fits { blocks } else { 0 });
        if fits {
            prop_assert!(mapped.read(from * 4096, blocks * 4096).unwrap().iter().all(|byte| *byte == 0xab));
        }
    }
}
