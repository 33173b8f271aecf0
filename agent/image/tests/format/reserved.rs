//! Room for later versions: written as zero, and refused where it is not, as something of a newer version.

use std::ops::Range;

use dormouse_image::layout::DATA_OFFSET;
use dormouse_image::{Block, Commit, FormatError, Header, IndexBlock, IndexBuilder, Label, SessionRecord, Version};

use crate::bytes::with;
use crate::values::{self, extent, stored};

const MINOR: usize = 10;

/// Asserts that `bytes` are zero in `ranges`, and that `decode` refuses them where a byte of these is not, by an error
/// that names the block and the version that wrote it.
fn checked<T: std::fmt::Debug>(
    block: Block,
    bytes: &[u8],
    ranges: impl IntoIterator<Item = Range<usize>>,
    decode: impl Fn(&[u8]) -> Result<T, FormatError>,
) {
    decode(bytes).unwrap();
    for at in ranges.into_iter().flatten() {
        assert_eq!(bytes[at], 0, "{block} {at}");
        for minor in [0_u16, 1] {
            let other = with(&with(bytes, at, &[0x80]), MINOR, &minor.to_le_bytes());
            let found = decode(&other).unwrap_err();
            let is_newer = matches!(
                found,
                FormatError::Newer { block: b, written, .. } if b == block && written == Version { major: 1, minor }
            );
            assert!(is_newer, "{block} {at}: {found:?}");
            let text = found.to_string();
            assert!(text.contains("use a newer Dormouse") && text.contains(&format!("1.{minor}")), "{text}");
        }
    }
}

#[test]
fn of_the_label() {
    let bytes = values::label().encode().unwrap();
    // Reserved bytes, the identity of the only leg, and padding.
    checked(Block::Label, &bytes, [52..72, 120..136, 144..160, 4090..4096], Label::decode);
}

#[test]
fn of_the_commit_record() {
    let bytes = values::commit().encode().unwrap();
    // Of the locators; all that concerns encryption; after the reason; around the wraps' ends; padding.
    checked(Block::Commit, &bytes, [92..96, 116..120, 236..320, 329..1400, 2100..2200, 4090..4096], Commit::decode);
}

#[test]
fn of_the_session_record() {
    let bytes = values::session().encode().unwrap();
    checked(Block::Session, &bytes, [24 + 114..24 + 116, 24 + 128..24 + 160], SessionRecord::decode);
    let without = SessionRecord { mailbox: None, ..values::session() }.encode().unwrap();
    checked(Block::Session, &without, std::iter::once(24 + 64..24 + 80), SessionRecord::decode);
}

#[test]
fn of_the_header() {
    let bytes = values::header().encode().unwrap();
    let find = |wanted: u16| {
        let mut at = 200;
        while bytes[at..at + 2] != wanted.to_le_bytes() {
            let len = u32::from_le_bytes(bytes[at + 4..at + 8].try_into().unwrap()) as usize;
            at += 8 + len.next_multiple_of(8);
        }
        at + 8
    };
    let [firmware, filesystem, swap, cpu] = [3, 5, 6, 7].map(find);
    let ranges = [
        32..40,
        40 + 114..40 + 116,
        40 + 128..200,
        firmware + 20..firmware + 24,
        filesystem + 40..filesystem + 56,
        // No quiesced digest, none of the reserved bytes.
        swap + 24..swap + 32,
        swap + 40..swap + 56,
        cpu + 28..cpu + 32,
        4090..4096,
    ];
    checked(Block::Header, &bytes, ranges, Header::decode);
}

#[test]
fn of_the_index_block() {
    let at = DATA_OFFSET + (1 << 20);
    let mut builder = IndexBuilder::new(values::commit().save_id);
    builder.chunk(&stored(DATA_OFFSET, 1), &[extent(0x100, 1)]).unwrap();
    builder.chunk(&stored(DATA_OFFSET + 4096, 1), &[extent(0x200, 1)]).unwrap();
    let bytes = builder.finish(at).unwrap().0;
    // The tag of the block before, counter and tag of each chunk, padding.
    let ranges = [72..96, 96 + 24..96 + 48, 144 + 24..144 + 48, 192 + 24..192 + 30, 4090..4096];
    checked(Block::Index, &bytes, ranges, |bytes| IndexBlock::decode(bytes, at));
}
