//! Records by themselves, between versions.

use dormouse_image::Version;
use dormouse_image::record::{Kind, RecordError, Records, SKIPPABLE, Writer};
use proptest::collection::vec;
use proptest::prelude::*;

const OLD: Kind = Kind::mandatory(1, "old", 0);
const NEEDED: Kind = Kind::mandatory(2, "needed", 1);
const EXTRA: Kind = Kind::skippable(3, "extra", 2);
const KINDS: &[Kind] = &[OLD, NEEDED, EXTRA];

const fn version(minor: u16) -> Version {
    Version { major: 1, minor }
}

/// What the version 1.`minor` writes.
fn written(minor: u16) -> (u32, Vec<u8>) {
    let mut writer = Writer::new();
    for kind in KINDS.iter().filter(|kind| kind.since <= minor) {
        writer.push(kind, kind.name.as_bytes()).unwrap();
    }
    (writer.count(), writer.into_bytes())
}

#[test]
fn a_reader_of_each_version_reads_what_it_can_of_every_other() {
    for writer in 0..3 {
        let (count, bytes) = written(writer);
        for reader in 0..3 {
            let kinds: Vec<Kind> = KINDS.iter().filter(|kind| kind.since <= reader).copied().collect();
            let found = Records::read(&kinds, version(writer), count, &bytes);
            if reader == 0 && writer > 0 {
                let unknown = RecordError::Unknown { kind: 2, written: version(writer) };
                assert_eq!(found.unwrap_err(), unknown);
                continue;
            }
            let records = found.unwrap();
            for kind in KINDS {
                let expected = (kind.since <= writer.min(reader)).then_some(kind.name.as_bytes());
                assert_eq!(records.get(kind), expected, "{writer} {reader} {kind:?}");
                assert_eq!(records.content(kind), expected.unwrap_or_default());
            }
        }
    }
}

#[test]
fn a_record_that_its_version_should_have_is_missed_even_if_it_may_be_skipped() {
    let (count, bytes) = written(1);
    let missing = RecordError::Missing { kind: 3, name: "extra" };
    assert_eq!(Records::read(KINDS, version(2), count, &bytes).unwrap_err(), missing);
    // And one that its version did not have is unknown to it.
    let unknown = RecordError::Unknown { kind: 2, written: version(0) };
    assert_eq!(Records::read(KINDS, version(0), count, &bytes).unwrap_err(), unknown);
}

#[test]
fn records_lie_as_the_format_says() {
    let mut writer = Writer::new();
    writer.push(&Kind::skippable(0x102, "", 0), b"123").unwrap();
    writer.push(&Kind::mandatory(7, "", 0), b"").unwrap();
    assert_eq!(writer.count(), 2);
    assert_eq!(writer.into_bytes(), [2, 1, 1, 0, 3, 0, 0, 0, b'1', b'2', b'3', 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn rest_after_the_records_is_left_to_the_caller() {
    let (count, mut bytes) = written(2);
    bytes.extend(b"rest");
    assert_eq!(Records::read(KINDS, version(2), count, &bytes).unwrap().rest, b"rest");
    let cut = Records::read(KINDS, version(2), count + 1, &bytes).unwrap_err();
    assert_eq!(cut, RecordError::Truncated { needed: 8, got: 4 });
}

#[test]
fn padding_that_is_not_zero_is_refused_in_skipped_records_too() {
    let (count, bytes) = written(2);
    for at in [11, 15, 30, 31, 45, 47] {
        let mut bytes = bytes.clone();
        bytes[at] = 1;
        let kind = 1 + u16::try_from(at / 16).unwrap();
        for kinds in [KINDS, &KINDS[..2]] {
            let found = Records::read(kinds, version(2), count, &bytes).unwrap_err();
            assert_eq!(found, RecordError::Padding { kind }, "{at}");
        }
    }
}

proptest! {
    #[test]
    fn noise_never_panics(
        bytes in vec(prop_oneof![3 => Just(0_u8), 1 => 0_u8..4, 1 => any::<u8>()], 0..200),
        count in prop_oneof![0_u32..8, any::<u32>()],
        minor in 0_u16..4,
    ) {
        if let Ok(records) = Records::read(KINDS, version(minor), count, &bytes) {
            prop_assert!(records.rest.len() <= bytes.len());
            prop_assert!(KINDS.iter().all(|kind| (kind.since <= minor) == records.get(kind).is_some()));
        }
    }

    #[test]
    fn skipped_records_change_nothing(extra in vec((4_u16..9, vec(any::<u8>(), 0..30)), 0..6)) {
        let (count, mut bytes) = written(2);
        for (number, content) in &extra {
            let mut writer = Writer::new();
            writer.push(&Kind::skippable(*number, "", 3), content).unwrap();
            bytes.extend(writer.into_bytes());
        }
        let count = count + u32::try_from(extra.len()).unwrap();
        let records = Records::read(KINDS, version(3), count, &bytes).unwrap();
        prop_assert!(records.rest.is_empty() && KINDS.iter().all(|kind| records.content(kind) == kind.name.as_bytes()));
    }
}

#[test]
fn the_flag_is_that_of_the_kind() {
    assert_eq!(SKIPPABLE, 1);
    let (count, bytes) = written(2);
    for (at, kind, flags) in [(2, 1, 1), (18, 2, 1), (34, 3, 0), (34, 3, 3)] {
        let mut bytes = bytes.clone();
        bytes[at] = flags;
        let found = Records::read(KINDS, version(2), count, &bytes).unwrap_err();
        assert_eq!(found, RecordError::Flags { kind, flags: flags.into() });
    }
}
