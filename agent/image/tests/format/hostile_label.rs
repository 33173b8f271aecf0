//! Labels with a right checksum and a map that no file has.

use dormouse_image::layout::LABEL_MAX_EXTENTS;
use dormouse_image::record::{Kind, RecordError, Writer};
use dormouse_image::{Block, DiskExtent, FormatError, LABEL_MAGIC, Label, LayerKind, VERSION, Version};

use crate::bytes::{PROLOGUE, framed_by};
use crate::values;

/// Offsets in the block, as FORMAT.md has them.
const RECORD_COUNT: usize = 48;
const RECORDS: usize = 72;
/// The newest version that adds something to labels.
const WRITTEN: Version = Version { minor: 1, ..VERSION };

/// A label of this minor version with these records: kind and content.
fn label_by(minor: u8, records: &[(u16, Vec<u8>)]) -> Vec<u8> {
    let mut body = values::label().encode().unwrap()[PROLOGUE..RECORDS].to_vec();
    body[RECORD_COUNT - PROLOGUE..][..4].copy_from_slice(&u32::try_from(records.len()).unwrap().to_le_bytes());
    let mut writer = Writer::new();
    for (number, content) in records {
        writer.push(&Kind::mandatory(*number, "", 0), content).unwrap();
    }
    body.extend(writer.into_bytes());
    framed_by(minor, LABEL_MAGIC, &body)
}

/// The newest label with these records.
fn label_of(records: &[(u16, Vec<u8>)]) -> Vec<u8> {
    label_by(1, records)
}

/// A label with these extents, of one leg without an identity, and no stack.
fn mapped(extents: &[DiskExtent]) -> Vec<u8> {
    let table = extents.iter().flat_map(|extent| [extent.offset, extent.len]).flat_map(u64::to_le_bytes).collect();
    label_by(0, &[(1, table), (2, vec![0; 16]), (3, vec![])])
}

/// The field for which a label with this map is refused, which must be so when it is read too.
fn refused(extents: &[(u64, u64)]) -> &'static str {
    let extents: Vec<DiskExtent> = extents.iter().map(|&(offset, len)| DiskExtent { offset, len }).collect();
    let field = |result: Result<(), FormatError>| match result {
        Err(FormatError::Field { block: Block::Label, field, .. }) => field,
        other => panic!("{other:?} of {extents:?}"),
    };
    let read = field(Label::decode(&mapped(&extents)).map(drop));
    assert_eq!(field(Label { extents: extents.clone(), ..values::label() }.encode().map(drop)), read);
    read
}

#[test]
fn the_tests_know_how_records_lie() {
    assert_eq!(mapped(&values::label().extents), values::label().encode().unwrap());
}

/// A record of layers: kind and identity of each.
fn layers(list: &[(u16, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (kind, identity) in list {
        let len = (8 + identity.len()).next_multiple_of(8);
        bytes.extend(u32::try_from(len).unwrap().to_le_bytes());
        bytes.extend(kind.to_le_bytes());
        bytes.extend(u16::try_from(identity.len()).unwrap().to_le_bytes());
        bytes.extend(*identity);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
    }
    bytes
}

fn map() -> Vec<u8> {
    [4096_u64, 8192].map(u64::to_le_bytes).concat()
}

#[test]
fn two_legs_and_layers_are_read() {
    let stack = layers(&[(1, b"ext4"), (2, b"LVM-x"), (3, b"CRYPT-LUKS2-y"), (4, b"0d8b"), (5, b"1")]);
    let label = Label::decode(&label_of(&[(1, map()), (2, (1..=32).collect()), (3, stack)])).unwrap();
    let kinds: Vec<LayerKind> = label.stack.iter().map(|layer| layer.kind).collect();
    assert_eq!(kinds, LayerKind::ALL);
    assert!(label.bypasses_encryption() && label.mirror.unwrap()[1].0[0] == 17);
    assert_eq!(label.stack[1].to_string(), "linear LVM-x");
    assert_eq!(Label::decode(&label.encode().unwrap()), Ok(label));
}

#[test]
fn legs_and_layers_in_a_label_of_version_1_0_are_refused() {
    let of = |legs: Vec<u8>, stack: Vec<u8>| Label::decode(&label_by(0, &[(1, map()), (2, legs), (3, stack)]));
    assert!(of(vec![0; 16], vec![]).is_ok());
    for (legs, stack, what) in [
        ((0..32).collect::<Vec<u8>>(), vec![], "two legs"),
        (vec![0; 16], layers(&[(3, b"crypt-laptop")]), "a stack of layers"),
    ] {
        assert_eq!(of(legs, stack), Err(FormatError::Newer { block: Block::Label, what, written: values::WRITTEN }));
    }
}

#[test]
fn legs_that_cannot_be_are_refused() {
    let of = |extents: Vec<u8>, legs: Vec<u8>| Label::decode(&label_of(&[(1, extents), (2, legs), (3, vec![])]));
    assert!(of(vec![], vec![0; 16]).is_ok());
    let one = [&[0; 15][..], &[1]].concat();
    let newer = FormatError::Newer { block: Block::Label, what: "the identity of its device", written: WRITTEN };
    assert_eq!(of(vec![], one), Err(newer));
    // Without a map, without identities, with one identity twice.
    for (extents, legs) in [(vec![], (0..32).collect()), (map(), vec![0; 32]), (map(), vec![7; 32])] {
        let found = of(extents, legs);
        assert!(matches!(found, Err(FormatError::Field { field: "identity of a leg", .. })), "{found:?}");
    }
    for legs in [0, 48, 160] {
        let found = of(vec![], vec![0; legs]);
        assert!(matches!(found, Err(FormatError::Field { field: "number of legs", .. })), "{found:?}");
    }
    for (extents, legs) in [(vec![0; 15], vec![0; 16]), (vec![], vec![0; 17])] {
        let found = of(extents, legs);
        let is_content = |error: &RecordError| matches!(error, RecordError::Content { .. });
        assert!(matches!(&found, Err(FormatError::Record { error, .. }) if is_content(error)), "{found:?}");
    }
}

#[test]
fn layers_that_cannot_be_are_refused() {
    let of = |stack: Vec<u8>| Label::decode(&label_of(&[(1, map()), (2, vec![0; 16]), (3, stack)]));
    assert!(of(layers(&[(1, b"ext4")])).is_ok());
    for number in [0, 6, 0xffff] {
        let newer = FormatError::Newer { block: Block::Label, what: "a kind of layer", written: WRITTEN };
        assert_eq!(of(layers(&[(number, b"x")])), Err(newer));
    }
    let layer = layers(&[(2, b"LVM-abcdefg")]);
    for (at, value) in [(0, 0), (0, 4), (0, 12), (0, 32), (0, 255), (6, 17)] {
        let mut broken = layer.clone();
        broken[at] = value;
        let found = of(broken);
        assert!(matches!(found, Err(FormatError::Record { .. })), "{at} {value}: {found:?}");
    }
    for len in 1..layer.len() {
        assert!(of(layer[..len].to_vec()).is_err(), "{len}");
    }
    let mut more = layer;
    more[23] = 1;
    assert!(matches!(of(more), Err(FormatError::Newer { what: "more about a layer", .. })));
    let fields = |identity: &[u8]| of(layers(&[(2, identity)]));
    for identity in [&b""[..], b"a\nb", b"\0"] {
        assert!(matches!(fields(identity), Err(FormatError::Field { field: "layer's identity", .. })));
    }
    assert!(matches!(fields(b"\xff"), Err(FormatError::Text { .. })));
    assert!(fields(&[b'x'; 760]).is_ok());
    assert!(matches!(fields(&[b'x'; 768]), Err(FormatError::Field { field: "length of the layers", .. })));
    // Of an image that has all of a device.
    let found = Label::decode(&label_of(&[(1, vec![]), (2, vec![0; 16]), (3, layers(&[(2, b"x")]))]));
    assert!(matches!(found, Err(FormatError::Field { field: "number of layers", .. })), "{found:?}");
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
    let extents: Vec<DiskExtent> = (1..).map(|n| DiskExtent { offset: n * 8192, len: 4096 }).take(193).collect();
    let label = |extents: &[DiskExtent]| Label { extents: extents.to_vec(), ..values::label() };
    let most = label(&extents[..LABEL_MAX_EXTENTS]);
    let bytes = most.encode().unwrap();
    assert_eq!(Label::decode(&bytes), Ok(most));
    let is_count = |error| matches!(error, FormatError::Field { field: "number of extents", .. });
    assert!(is_count(label(&extents).encode().unwrap_err()));
    assert!(is_count(Label::decode(&mapped(&extents)).unwrap_err()));
}

#[test]
fn an_image_begins_where_its_first_extent_does() {
    assert_eq!(values::label().offset(), 0x8000);
    assert_eq!(Label { extents: Vec::new(), ..values::label() }.offset(), 0);
}
