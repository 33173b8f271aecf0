//! The version rule, at its boundaries, in each kind of block.

use dormouse_image::record::{Kind, RecordError, Writer};
use dormouse_image::{
    Block, Commit, FormatError, Header, IndexBlock, IndexBuilder, Label, SESSION_KINDS, SessionRecord, VERSION, Version,
};

use crate::bytes::{with, with_checksum};
use crate::values;

const MAJOR: usize = 8;
const MINOR: usize = 10;
/// In a header: the number of records.
const RECORD_COUNT: usize = 164;
/// The kinds that a header of version 1.0 has: all but the last.
const OF_1_0: &[Kind] = SESSION_KINDS.split_at(SESSION_KINDS.len() - 1).0;

/// With all that this version has.
fn full_header() -> Header {
    let mut header = values::header();
    header.session.cpu.microcode = 0xf4;
    header
}

#[test]
fn a_reader_takes_its_own_major_version_and_every_minor_one() {
    let version = |major, minor| Version { major, minor };
    let ours = version(2, 3);
    for refused in [(0, 0), (1, 0), (1, 3), (1, u16::MAX), (3, 0), (u16::MAX, 3)] {
        assert!(!ours.reads(version(refused.0, refused.1)), "{refused:?}");
    }
    for read in [(2, 0), (2, 2), (2, 3), (2, 4), (2, u16::MAX)] {
        assert!(ours.reads(version(read.0, read.1)), "{read:?}");
    }
}

#[test]
fn every_block_refuses_another_major_version_and_reads_a_newer_minor_one_that_adds_nothing() {
    let index = IndexBuilder::new(values::commit().save_id).finish(1 << 20).unwrap().0;
    type Decode = fn(&[u8]) -> Option<FormatError>;
    let blocks: [(Block, Vec<u8>, Decode); 5] = [
        (Block::Label, values::label().encode().unwrap(), |bytes| Label::decode(bytes).err()),
        (Block::Commit, values::commit().encode().unwrap(), |bytes| Commit::decode(bytes).err()),
        (Block::Session, full_header().session.encode().unwrap(), |bytes| SessionRecord::decode(bytes).err()),
        (Block::Header, full_header().encode().unwrap(), |bytes| Header::decode(bytes).err()),
        (Block::Index, index, |bytes| IndexBlock::decode(bytes, 1 << 20).err()),
    ];
    for (block, bytes, decode) in blocks {
        assert_eq!(decode(&bytes), None, "{block}");
        for minor in [1_u16, u16::MAX] {
            assert_eq!(decode(&with(&bytes, MINOR, &minor.to_le_bytes())), None, "{block}");
        }
        for major in [VERSION.major - 1, VERSION.major + 1, u16::MAX] {
            let found = Version { major, minor: 0 };
            let bytes = with(&bytes, MINOR, &[0, 0]);
            let error = decode(&with(&bytes, MAJOR, &major.to_le_bytes())).unwrap();
            assert_eq!(error, FormatError::Version { block, found });
            let text = error.to_string();
            assert!(text.contains(&found.to_string()) && text.contains("reads 1.x"), "{text}");
        }
    }
}

/// A header of version 1.1 that has one record more.
fn with_news(kind: &Kind) -> Vec<u8> {
    let mut writer = Writer::new();
    writer.push(kind, b"news").unwrap();
    let bytes = values::header().encode().unwrap();
    // Among the padding: records end at a multiple of 8.
    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    let bytes = with(&bytes, end.next_multiple_of(8), &writer.into_bytes());
    let count = u32::try_from(OF_1_0.len() + 1).unwrap();
    with(&with(&bytes, RECORD_COUNT, &count.to_le_bytes()), MINOR, &[1])
}

#[test]
fn a_header_of_a_newer_minor_version_is_read_if_what_it_adds_may_be_skipped() {
    let (mandatory, skippable) = (Kind::mandatory(13, "news", 1), Kind::skippable(13, "news", 1));
    let written = Version { major: 1, minor: 1 };
    let error = RecordError::Unknown { kind: 13, written };
    let found = Header::decode(&with_news(&mandatory)).unwrap_err();
    assert_eq!(found, FormatError::Record { block: Block::Header, error });
    let text = found.to_string();
    assert!(text.contains("record 13") && text.contains("1.1") && text.contains("newer Dormouse"), "{text}");
    assert_eq!(Header::decode(&with_news(&skippable)), Ok(values::header()));
}

#[test]
fn a_newer_minor_version_reads_its_own_headers_and_older_ones() {
    for kind in [Kind::mandatory(13, "news", 1), Kind::skippable(13, "news", 1)] {
        let kinds = [OF_1_0, &[kind]].concat();
        let old = values::header().encode().unwrap();
        assert_eq!(Header::decode_with(&kinds, &old), Ok(values::header()));
        assert_eq!(Header::decode_with(&kinds, &with_news(&kind)), Ok(values::header()));
        // A header of its own version without the record is not whole.
        let lacking = with(&old, MINOR, &[1]);
        let error = RecordError::Missing { kind: 13, name: "news" };
        assert_eq!(Header::decode_with(&kinds, &lacking), Err(FormatError::Record { block: Block::Header, error }));
    }
}

#[test]
fn microcode_is_a_record_that_older_programs_skip() {
    let bytes = full_header().encode().unwrap();
    assert_eq!(&bytes[MINOR..][..2], [2, 0]);
    assert_eq!(Header::decode(&bytes), Ok(full_header()));
    assert_eq!(Header::decode_with(OF_1_0, &bytes), Ok(values::header()));
    // An image without it is of version 1.0, as before.
    assert_eq!(&values::header().encode().unwrap()[MINOR..][..2], [0, 0]);
    let lacking = with(&values::header().encode().unwrap(), MINOR, &[2]);
    let error = RecordError::Missing { kind: 12, name: "microcode" };
    assert_eq!(Header::decode(&lacking), Err(FormatError::Record { block: Block::Header, error }));
}

#[test]
fn rejects_a_revision_of_another_length() {
    let bytes = full_header().encode().unwrap();
    let at = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    let found = Header::decode(&with(&bytes, at - 4, &3_u32.to_le_bytes())).unwrap_err();
    assert!(found.to_string().contains("microcode"), "{found}");
}

#[test]
fn the_version_is_covered_by_the_checksum() {
    let mut bytes = values::header().encode().unwrap();
    bytes[MINOR] = 1;
    assert!(matches!(Header::decode(&bytes), Err(FormatError::Checksum { .. })));
    assert!(Header::decode(&with_checksum(bytes)).is_ok());
}
