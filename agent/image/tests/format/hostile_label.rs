//! Labels with a right checksum and a map that no file has.

use dormouse_image::layout::LABEL_MAX_EXTENTS;
use dormouse_image::{Block, DiskExtent, FormatError, Label};

use crate::bytes::with;
use crate::values;

/// Offsets in the block, as FORMAT.md has them.
const EXTENTS: usize = 48;
const FIRST: usize = 56;

/// The field for which a label with this map is refused, which must be so when it is read too.
fn refused(extents: &[(u64, u64)]) -> &'static str {
    let extents: Vec<DiskExtent> = extents.iter().map(|&(offset, len)| DiskExtent { offset, len }).collect();
    let mut bytes = Label { extents: Vec::new(), ..values::label() }.encode().unwrap();
    bytes = with(&bytes, EXTENTS, &u32::try_from(extents.len()).unwrap().to_le_bytes());
    for (at, extent) in (FIRST..).step_by(16).zip(&extents) {
        bytes = with(&bytes, at, &[extent.offset.to_le_bytes(), extent.len.to_le_bytes()].concat());
    }
    let field = |result: Result<(), FormatError>| match result {
        Err(FormatError::Field { block: Block::Label, field, .. }) => field,
        other => panic!("{other:?} of {extents:?}"),
    };
    let read = field(Label::decode(&bytes).map(drop));
    assert_eq!(field(Label { extents: extents.clone(), ..values::label() }.encode().map(drop)), read);
    read
}

#[test]
fn extents_that_are_not_whole_blocks_are_refused() {
    for offset in [0, 1, 4095, 4097, u64::MAX] {
        assert_eq!(refused(&[(offset, 4096)]), "extent's offset", "{offset}");
        assert_eq!(refused(&[(1 << 30, 4096), (offset, 4096)]), "extent's offset", "{offset}");
    }
    for len in [0, 1, 4095, 4097, u64::MAX] {
        assert_eq!(refused(&[(4096, len)]), "extent's length", "{len}");
    }
}

#[test]
fn extents_that_end_nowhere_are_refused() {
    let last = (1 << 63) - 4096;
    for (offset, len) in [(last, 4096), (4096, last), (u64::MAX - 4095, 4096), (1 << 63, 1 << 63), (4096, 1 << 63)] {
        assert_eq!(refused(&[(offset, len)]), "extent's length", "{offset} {len}");
    }
    let extents = vec![DiskExtent { offset: last - 4096, len: 4096 }];
    assert!(Label { extents, ..values::label() }.encode().is_ok());
}

#[test]
fn extents_that_overlap_are_refused() {
    for (a, b) in [
        ((4096, 8192), (8192, 4096)),
        ((8192, 4096), (4096, 8192)),
        ((4096, 4096), (4096, 4096)),
        ((4096, 1 << 40), (1 << 20, 4096)),
    ] {
        assert_eq!(refused(&[a, b]), "extent's offset", "{a:?} {b:?}");
        assert_eq!(refused(&[a, (1 << 50, 4096), b]), "extent's offset", "{a:?} {b:?}");
    }
}

#[test]
fn a_table_is_as_long_as_the_block_at_most() {
    let extents: Vec<DiskExtent> = (1..).map(|n| DiskExtent { offset: n * 8192, len: 4096 }).take(253).collect();
    let label = |extents: &[DiskExtent]| Label { extents: extents.to_vec(), ..values::label() };
    let most = label(&extents[..LABEL_MAX_EXTENTS]);
    let bytes = most.encode().unwrap();
    assert_eq!(Label::decode(&bytes), Ok(most));
    let is_count = |error| matches!(error, FormatError::Field { field: "number of extents", .. });
    assert!(is_count(label(&extents).encode().unwrap_err()));
    for count in [253, 254, 1 << 16, u32::MAX] {
        assert!(is_count(Label::decode(&with(&bytes, EXTENTS, &count.to_le_bytes())).unwrap_err()), "{count}");
    }
}

#[test]
fn an_image_begins_where_its_first_extent_does() {
    assert_eq!(values::label().offset(), 0x8000);
    assert_eq!(Label { extents: Vec::new(), ..values::label() }.offset(), 0);
}
