//! Commit records with a right checksum and wrong content.

use dormouse_image::layout::{DATA_OFFSET, HEADER_OFFSET};
use dormouse_image::{Block, Commit, FormatError, Locator, State, Totals};

use crate::bytes::with;
use crate::values;

/// Offsets in the block, as FORMAT.md has them.
const STATE: usize = 32;
const REASON_LEN: usize = 232;
const REASON: usize = 320;

/// The field for which `commit` is refused, which must be so when it is written too.
fn refused(commit: &Commit) -> &'static str {
    match commit.encode() {
        Err(FormatError::Field { block: Block::Commit, field, .. }) => field,
        other => panic!("{other:?} of {commit:?}"),
    }
}

#[test]
fn an_unknown_state_is_refused() {
    let bytes = values::commit().encode().unwrap();
    assert_eq!(&bytes[STATE..STATE + 8], b"COMPLETE");
    for marker in [*b"complete", *b"COMPLET\0", *b"WARM    ", [0; 8], [0xff; 8]] {
        let found = Commit::decode(&with(&bytes, STATE, &marker));
        let value = u64::from_le_bytes(marker);
        assert!(matches!(found, Err(FormatError::Field { field: "state", value: v, .. }) if v == value), "{found:?}");
    }
}

#[test]
fn rejects_a_reason_that_is_too_long_or_not_text() {
    let commit = Commit { reason: "x".repeat(1024), ..values::commit() };
    let bytes = commit.encode().unwrap();
    assert_eq!(Commit::decode(&bytes), Ok(commit));
    for len in [1025_u32, 1792, 3776, 3777, 4096, u32::MAX] {
        let found = Commit::decode(&with(&bytes, REASON_LEN, &len.to_le_bytes()));
        assert!(
            matches!(found, Err(FormatError::Field { field: "reason length", value, .. }) if value == u64::from(len)),
            "{found:?}"
        );
    }
    let found = Commit::decode(&with(&bytes, REASON, &[0xff]));
    let (block, field) = (Block::Commit, "reason");
    assert_eq!(found, Err(FormatError::Text { block, field }));
}

#[test]
fn totals_that_do_not_add_up_are_refused() {
    let with_totals = |ram_pages, stored_pages, zero_pages, omitted_pages| Commit {
        totals: Totals { ram_pages, stored_pages, zero_pages, omitted_pages, ..Totals::default() },
        ..values::commit()
    };
    for commit in [
        with_totals(9, 2, 3, 5),
        with_totals(11, 2, 3, 5),
        with_totals(0, u64::MAX, 1, 0),
        with_totals(0, u64::MAX, 0, 1),
        with_totals(0, 1, u64::MAX, u64::MAX),
    ] {
        assert_eq!(refused(&commit), "pages of memory");
    }
    with_totals(u64::MAX, u64::MAX, 0, 0).encode().unwrap();
}

#[test]
fn a_header_anywhere_else_or_too_long_is_refused() {
    let header =
        |offset, len| Commit { header: Locator { offset, len, checksum: 1, ..Locator::default() }, ..values::commit() };
    for (offset, len) in [
        (0, 4096),
        (HEADER_OFFSET - 4096, 4096),
        (HEADER_OFFSET + 4096, 4096),
        (u64::MAX, 4096),
        (HEADER_OFFSET, 1),
        (HEADER_OFFSET, 4097),
        (HEADER_OFFSET, (960 << 10) + 4096),
        (HEADER_OFFSET, u32::MAX),
    ] {
        assert_eq!(refused(&header(offset, len)), "header's offset", "{offset} {len}");
    }
    header(HEADER_OFFSET, 960 << 10).encode().unwrap();
}

#[test]
fn an_index_block_outside_the_stream_or_too_long_is_refused() {
    let index = |offset: u64, len: u32, data_end| Commit {
        last_index: Locator { offset, len, checksum: 1, ..Locator::default() },
        data_end,
        ..values::commit()
    };
    for (offset, len) in [
        (0, 4096),
        (DATA_OFFSET - 4096, 4096),
        (DATA_OFFSET + 1, 4096),
        (DATA_OFFSET, 4095),
        (DATA_OFFSET, (1 << 20) + 4096),
        (DATA_OFFSET, u32::MAX),
        (u64::MAX - 4095, 4096),
        (u64::MAX, 4096),
    ] {
        let commit = index(offset, len, offset.wrapping_add(u64::from(len)));
        assert_eq!(refused(&commit), "last index block's offset", "{offset} {len}");
    }
    for data_end in [0, DATA_OFFSET, DATA_OFFSET + 4095, DATA_OFFSET + 8192, u64::MAX] {
        assert_eq!(refused(&index(DATA_OFFSET, 4096, data_end)), "last index block's offset");
    }
    index(DATA_OFFSET, 1 << 20, 2 << 20).encode().unwrap();
}

#[test]
fn a_state_that_holds_a_session_needs_its_header_and_index() {
    for state in State::ALL {
        let whole = Commit { state, ..values::commit() };
        let without_header = Commit { header: Locator::default(), ..whole.clone() };
        let without_index = Commit { last_index: Locator::default(), ..whole };
        for commit in [without_header, without_index] {
            match state {
                State::Complete | State::Snapshot | State::Restoring => {
                    assert_eq!(refused(&commit), "header's and last index block's length");
                }
                _ => assert_eq!(Commit::decode(&commit.encode().unwrap()), Ok(commit)),
            }
        }
    }
}

#[test]
fn decoding_keeps_the_same_rules_as_encoding() {
    let bytes = values::commit().encode().unwrap();
    // Offsets of fields, and values of eight bytes that no encoder would write there.
    for (at, value, field) in [
        (72, 0_u64, "header's offset"),
        (96, 0, "last index block's offset"),
        (120, 0, "last index block's offset"),
        (128, 11, "pages of memory"),
    ] {
        let found = Commit::decode(&with(&bytes, at, &value.to_le_bytes()));
        assert!(matches!(found, Err(FormatError::Field { field: f, .. }) if f == field), "{at}: {found:?}");
    }
}

#[test]
fn a_block_found_elsewhere_than_meant_is_refused() {
    let bytes = values::header().encode().unwrap();
    let locator = Locator::of(Block::Header, HEADER_OFFSET, &bytes).unwrap();
    assert_eq!(locator.check(Block::Header, &bytes), Ok(()));
    let mut other = values::header();
    other.session.created_unix += 1;
    let other = other.encode().unwrap();
    let found = locator.check(Block::Header, &other);
    assert!(matches!(found, Err(FormatError::Checksum { block: Block::Header, .. })), "{found:?}");
    for len in [0, 23, 4095] {
        let found = locator.check(Block::Header, &bytes[..len]);
        let (block, needed, got) = (Block::Header, 4096, len);
        assert_eq!(found, Err(FormatError::Truncated { block, needed, got }));
    }
}
