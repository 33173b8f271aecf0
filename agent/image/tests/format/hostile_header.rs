//! Headers with a right checksum and wrong content.

use dormouse_image::layout::{HEADER_MAX, PFN_LIMIT};
use dormouse_image::record::{Kind, RecordError};
use dormouse_image::{
    Block, DiskPlace, FirmwareKind, FirmwareRange, FormatError, HEADER_MAGIC, Header, Mailbox, PfnRange, PhysRange,
    SESSION_KINDS, SessionRecord,
};

use crate::bytes::{PROLOGUE, framed, with};
use crate::values;

/// Offsets in the block, as FORMAT.md has them.
const MACHINE: usize = 152;
const PAGE_SIZE: usize = 156;
const RECORD_COUNT: usize = 164;
const RECORDS: usize = 200;
/// How many kinds of records version 1.0 has.
const KINDS: usize = SESSION_KINDS.len() - 1;

type Record = (u16, u16, Vec<u8>);

/// The records of [`values::header`]: kind, flags, content.
fn records() -> Vec<Record> {
    let bytes = values::header().encode().unwrap();
    let mut rest = &bytes[RECORDS..];
    let mut records = Vec::new();
    for _ in 0..KINDS {
        let kind = u16::from_le_bytes([rest[0], rest[1]]);
        let flags = u16::from_le_bytes([rest[2], rest[3]]);
        let len = u32::from_le_bytes(rest[4..8].try_into().unwrap()) as usize;
        records.push((kind, flags, rest[8..8 + len].to_vec()));
        rest = &rest[8 + len.next_multiple_of(8)..];
    }
    records
}

/// [`values::header`] with these records instead.
fn header_of(records: &[Record]) -> Vec<u8> {
    let mut body = values::header().encode().unwrap()[PROLOGUE..RECORDS].to_vec();
    let count = u32::try_from(records.len()).unwrap();
    body[RECORD_COUNT - PROLOGUE..][..4].copy_from_slice(&count.to_le_bytes());
    for (kind, flags, content) in records {
        body.extend(kind.to_le_bytes());
        body.extend(flags.to_le_bytes());
        body.extend(u32::try_from(content.len()).unwrap().to_le_bytes());
        body.extend(content);
        body.resize(body.len().next_multiple_of(8), 0);
    }
    framed(HEADER_MAGIC, &body)
}

fn record_error(records: &[Record]) -> RecordError {
    match Header::decode(&header_of(records)) {
        Err(FormatError::Record { block: Block::Header, error }) => error,
        other => panic!("{other:?}"),
    }
}

fn content_error(records: &[Record]) -> (u16, &'static str) {
    match record_error(records) {
        RecordError::Content { kind, why, .. } => (kind, why),
        other => panic!("{other:?}"),
    }
}

/// The header with a changed session.
fn changed(change: impl FnOnce(&mut SessionRecord)) -> Header {
    let mut header = values::header();
    change(&mut header.session);
    header
}

/// What has a meaning only for a newer version, in the header with these records.
fn newer(records: &[Record]) -> &'static str {
    match Header::decode(&header_of(records)) {
        Err(FormatError::Newer { block: Block::Header, what, written: values::WRITTEN }) => what,
        other => panic!("{other:?}"),
    }
}

/// The field for which `header` is refused.
fn refused(header: &Header) -> &'static str {
    match header.encode() {
        Err(FormatError::Field { block: Block::Header, field, .. }) => field,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_tests_know_how_records_lie() {
    assert_eq!(header_of(&records()), values::header().encode().unwrap());
}

#[test]
fn an_unknown_record_is_refused_unless_it_may_be_skipped() {
    for kind in [0, 12, 13, 0x7fff, u16::MAX] {
        for at in [0, 4, KINDS] {
            let mut records = records();
            records.insert(at, (kind, 0, b"news".to_vec()));
            assert_eq!(record_error(&records), RecordError::Unknown { kind, written: values::WRITTEN });
            records[at].1 = 1;
            assert_eq!(Header::decode(&header_of(&records)), Ok(values::header()));
            // It may come more than once: whoever does not know it cannot tell.
            let mut twice = records.clone();
            twice.push(records[at].clone());
            assert_eq!(Header::decode(&header_of(&twice)), Ok(values::header()));
            for flags in [2, 3, 0x8000, u16::MAX] {
                records[at].1 = flags;
                assert_eq!(record_error(&records), RecordError::Flags { kind, flags });
            }
        }
    }
}

#[test]
fn a_record_that_is_missing_or_occurs_twice_is_refused() {
    for (at, Kind { number: kind, name, .. }) in SESSION_KINDS[..KINDS].iter().copied().enumerate() {
        let mut records = records();
        let removed = records.remove(at);
        assert_eq!(record_error(&records), RecordError::Missing { kind, name });
        records.push(removed.clone());
        // The order does not matter.
        assert_eq!(Header::decode(&header_of(&records)), Ok(values::header()));
        records.push(removed.clone());
        assert_eq!(record_error(&records), RecordError::Twice { kind, name });
        records.pop();
        for flags in [1, 2, u16::MAX] {
            records[KINDS - 1].1 = flags;
            assert_eq!(record_error(&records), RecordError::Flags { kind, flags });
        }
    }
}

#[test]
fn a_table_that_is_not_a_whole_number_of_entries_is_refused() {
    for (at, kind, size) in [(0, 1, 16), (1, 2, 16), (2, 3, 24), (3, 4, 24)] {
        for len in [1, size - 1, size + 1, 2 * size - 8] {
            let mut records = records();
            records[at].2 = vec![0; len];
            assert_eq!(content_error(&records), (kind, "its length is not a whole number of entries"));
        }
    }
}

#[test]
fn text_that_is_not_utf8_is_refused() {
    let refused = |records: &[Record]| {
        let found = Header::decode(&header_of(records));
        assert!(matches!(found, Err(FormatError::Text { block: Block::Header, .. })), "{found:?}");
    };
    for at in 7..11 {
        let mut records = records();
        records[at].2 = vec![b'a', 0xff];
        refused(&records);
    }
    // In an entry: the last text.
    for (at, offset) in [(4, 56), (5, 56), (6, 32)] {
        let mut records = records();
        records[at].2[offset] = 0xff;
        refused(&records);
    }
}

#[test]
fn an_entry_of_a_wrong_length_is_refused() {
    let wrong = "an entry is longer than the record or shorter than its parts";
    for (at, kind) in [(4, 5), (5, 6)] {
        let entry = records()[at].2.clone();
        let len = u32::try_from(entry.len()).unwrap();
        for claimed in [0, 1, 8, 48, len - 8, len - 1, len + 1, len + 8, u32::MAX - 7, u32::MAX] {
            let mut records = records();
            records[at].2[..4].copy_from_slice(&claimed.to_le_bytes());
            assert_eq!(content_error(&records), (kind, wrong), "{claimed}");
        }
        // The lengths of the texts.
        for offset in [4, 6, 8, 10] {
            let mut records = records();
            records[at].2[offset..offset + 2].fill(0xff);
            assert_eq!(content_error(&records), (kind, wrong), "{offset}");
        }
        let mut records = records();
        records[at].2.extend([1; 7]);
        assert_eq!(content_error(&records), (kind, wrong));
        // A longer entry is one with more facts: none, or those of a newer version.
        let mut longer = [entry.clone(), vec![0; 8]].concat();
        longer[..4].copy_from_slice(&(len + 8).to_le_bytes());
        records[at].2 = longer.clone();
        assert_eq!(Header::decode(&header_of(&records)), Ok(values::header()));
        *longer.last_mut().unwrap() = 1;
        records[at].2 = longer;
        assert_eq!(newer(&records), "more facts of a filesystem");
    }
}

#[test]
fn a_swap_area_of_another_type_or_with_a_mount_point_is_refused() {
    let why = "an entry is not of type swap, or has a mount point";
    let mut records = records();
    records[5].2[56..60].copy_from_slice(b"ext4");
    assert_eq!(content_error(&records), (6, why));
    let filesystem = records[4].2.clone();
    records[5].2 = filesystem;
    assert_eq!(content_error(&records), (6, why));
}

#[test]
fn flags_and_digests_of_a_filesystem_are_consistent() {
    for (at, quiesced) in [(4, true), (5, false)] {
        for flags in [2_u32, 3, 1 << 31] {
            let mut records = records();
            records[at].2[12..16].copy_from_slice(&flags.to_le_bytes());
            assert_eq!(newer(&records), "an unknown flag of a filesystem");
        }
        let mut records = records();
        assert_eq!(records[at].2[12] == 1, quiesced);
        records[at].2[12] = 0;
        records[at].2[24] = 1;
        assert_eq!(newer(&records), "a digest without its flag");
    }
}

#[test]
fn control_characters_and_places_without_a_disk_are_refused() {
    type Change = fn(&mut SessionRecord, String);
    let texts: [Change; 6] = [
        |session, text| session.filesystems[0].kind = text,
        |session, text| session.filesystems[0].uuid = text,
        |session, text| session.filesystems[0].mount = text,
        |session, text| session.filesystems[0].superblock = Some(DiskPlace { disk: text, offset: 0 }),
        |session, text| session.swap_areas[0].uuid = text,
        |session, text| session.swap_areas[0].superblock = Some(DiskPlace { disk: text, offset: 0 }),
    ];
    for change in texts {
        for text in ["a\tb", "\n", "\u{7f}", "\u{85}"] {
            assert_eq!(refused(&changed(|session| change(session, text.to_string()))), "filesystem's text");
        }
    }
    let nowhere = || Some(DiskPlace { disk: String::new(), offset: 7 });
    assert_eq!(refused(&changed(|session| session.filesystems[0].superblock = nowhere())), "superblock's offset");
    assert_eq!(refused(&changed(|session| session.swap_areas[0].superblock = nowhere())), "superblock's offset");
    assert_eq!(refused(&changed(|session| session.efi[0].end = session.efi[0].start)), "EFI range");
    let long = changed(|session| session.filesystems[0].mount = "x".repeat(65536));
    assert!(matches!(long.encode(), Err(FormatError::Record { .. })));
}

#[test]
fn facts_of_a_cpu_that_cannot_be_are_refused() {
    for levels in [0_u32, 3, 6, u32::MAX] {
        let mut records = records();
        records[6].2[12..16].copy_from_slice(&levels.to_le_bytes());
        let found = Header::decode(&header_of(&records));
        let is_levels = |value: &u64| *value == u64::from(levels);
        assert!(
            matches!(&found, Err(FormatError::Field { field: "paging levels", value, .. }) if is_levels(value)),
            "{found:?}"
        );
    }
    for offset in [16, 20, 24] {
        let mut records = records();
        records[6].2[offset..offset + 4].fill(0xff);
        assert_eq!(content_error(&records), (7, "it is too short"));
    }
    for len in [0, 31, 40] {
        let mut records = records();
        records[6].2.truncate(len);
        assert_eq!(content_error(&records), (7, "it is too short"));
    }
    let mut records = records();
    records[6].2.extend([0; 5]);
    assert_eq!(Header::decode(&header_of(&records)), Ok(values::header()));
    records[6].2.push(1);
    assert_eq!(newer(&records), "more facts of its CPU");
}

#[test]
fn another_architecture_or_page_size_is_refused() {
    let bytes = values::header().encode().unwrap();
    for machine in [0, 3, 183, 243, u16::MAX] {
        let found = Header::decode(&with(&bytes, MACHINE, &machine.to_le_bytes()));
        assert_eq!(found, Err(FormatError::Architecture { block: Block::Header, machine }));
    }
    for size in [0_u32, 512, 16384, 65536, u32::MAX] {
        let found = Header::decode(&with(&bytes, PAGE_SIZE, &size.to_le_bytes()));
        assert!(matches!(found, Err(FormatError::Field { field: "page size", .. })), "{found:?}");
    }
}

#[test]
fn counts_and_lengths_at_their_extremes_are_refused() {
    let bytes = values::header().encode().unwrap();
    // More records than bytes.
    for count in [1000, u32::MAX] {
        let found = Header::decode(&with(&bytes, RECORD_COUNT, &count.to_le_bytes()));
        assert!(found.is_err(), "{found:?}");
    }
    let found = Header::decode(&with(&bytes, RECORD_COUNT, &[0; 4]));
    let error = RecordError::Missing { kind: 1, name: "saved memory" };
    assert_eq!(found, Err(FormatError::Record { block: Block::Header, error }));
    // The first record longer than the block.
    for len in [4096 - 200 - 7, 4096, u32::MAX - 7, u32::MAX] {
        let found = Header::decode(&with(&bytes, RECORDS + 4, &len.to_le_bytes()));
        assert!(
            matches!(found, Err(FormatError::Record { error: RecordError::Truncated { .. }, .. })),
            "{len}: {found:?}"
        );
    }
}

#[test]
fn a_header_that_is_too_large_is_not_written() {
    let fitting = |cmdline: usize| changed(|session| session.cmdline = "x".repeat(cmdline));
    let overhead = fitting(0).encode().unwrap();
    let used = overhead.iter().rposition(|byte| *byte != 0).unwrap().next_multiple_of(8);
    let most = HEADER_MAX - used - 8;
    let largest = fitting(most);
    let bytes = largest.encode().unwrap();
    assert_eq!((bytes.len(), Header::decode(&bytes)), (HEADER_MAX, Ok(largest)));
    let found = fitting(most + 64).encode();
    assert!(matches!(found, Err(FormatError::TooLarge { block: Block::Header, max: HEADER_MAX, .. })), "{found:?}");
}

#[test]
fn memory_that_is_not_ascending_or_beyond_the_limit_is_refused() {
    let with_ram = |ranges: &[(u64, u64)]| {
        let ranges = ranges.iter().map(|(start, end)| PfnRange { start: *start, end: *end });
        changed(|session| session.ram = ranges.collect())
    };
    for ranges in [
        &[][..],
        &[(0x100, 0x100)],
        &[(0x101, 0x100)],
        &[(0x100, 0x300), (0x2ff, 0x400)],
        &[(0x300, 0x400), (0x100, 0x300)],
        &[(0x100, 0x300), (0x100, 0x300)],
        &[(0x100, 0x300), (PFN_LIMIT, PFN_LIMIT + 1)],
        &[(0x100, 0x300), (0x9000, PFN_LIMIT + 1)],
        &[(0x100, 0x300), (u64::MAX - 1, u64::MAX)],
        // Into the region, and into low memory.
        &[(0x100, 0x1001)],
        &[(0x100, 0x300), (0x8fff, 0x9001)],
        &[(0, u64::MAX)],
        &[(0x9e, 0x300)],
        &[(7, 9), (0x100, 0x300)],
        &[(1, 2), (0x100, 0x300)],
    ] {
        assert_eq!(refused(&with_ram(ranges)), "memory", "{ranges:x?}");
    }
    // Ranges that touch one another and the region, and the last page of all.
    with_ram(&[(0, 1), (8, 9), (0x9f, 0x200), (0x200, 0x1000), (0x9000, PFN_LIMIT)]).encode().unwrap();
}

#[test]
fn a_region_or_low_memory_that_cannot_be_is_refused() {
    let range = |start, end| PhysRange { start, end };
    let end = PFN_LIMIT * 4096;
    for wrong in [
        range(0x100_0000, 0x100_0000),
        range(0x200_0000, 0x100_0000),
        range(0x100_0001, 0x200_0000),
        range(0x100_0000, 0x200_0800),
        range(end - 4096, end + 4096),
        range(0, u64::MAX),
    ] {
        assert_eq!(refused(&changed(|session| session.region = wrong)), "region");
        assert_eq!(refused(&changed(|session| session.low = vec![wrong])), "low memory");
        assert_eq!(refused(&changed(|session| session.low.push(wrong))), "low memory");
    }
    let (first, second) = (range(0x1000, 0x3000), range(0x5000, 0x6000));
    for wrong in [
        vec![],
        vec![range(0x8ff_f000, 0x900_0000)],
        vec![first, range(0x8ff_f000, 0x900_0000)],
        vec![second, first],
        vec![first, first],
        vec![first, range(0x2000, 0x4000)],
    ] {
        assert_eq!(refused(&changed(|session| session.low = wrong)), "low memory");
    }
    changed(|session| session.low = vec![first, range(0x3000, 0x4000), second]).encode().unwrap();
}

#[test]
fn an_entry_or_mailbox_outside_the_saved_memory_is_refused() {
    for pfn in [0, 0xff, 0x1000, 0x8fff, 0x3_0000, PFN_LIMIT, u64::MAX / 4096] {
        let entry = Header { entry: pfn * 4096 + 8, ..values::header() };
        assert_eq!(refused(&entry), "jump-back entry", "{pfn:#x}");
        let mailbox = changed(|session| session.mailbox = Some(Mailbox { pfn, nonce: [1; 16] }));
        assert_eq!(refused(&mailbox), "mailbox page", "{pfn:#x}");
    }
    for pfn in [0x100, 0xfff, 0x9000, 0x2_ffff] {
        let session = SessionRecord { mailbox: Some(Mailbox { pfn, nonce: [1; 16] }), ..values::session() };
        let header = Header { session, entry: pfn * 4096 + 4095 };
        assert_eq!(Header::decode(&header.encode().unwrap()), Ok(header));
    }
    // Page 0 means that there is no mailbox, even where it is RAM.
    let mut header = values::header();
    header.session.ram.insert(0, PfnRange { start: 0, end: 1 });
    assert_eq!(refused(&Header { entry: 0, ..header.clone() }), "jump-back entry");
    header.session.mailbox = Some(Mailbox { pfn: 0, nonce: [1; 16] });
    assert_eq!(refused(&header), "mailbox page");
}

#[test]
fn firmware_ranges_that_are_empty_or_not_ascending_are_refused() {
    let with_ranges = |ranges: &[(u64, u64)]| {
        let kind = FirmwareKind::Unusable;
        let ranges = ranges.iter().map(|(start, end)| FirmwareRange { start: *start, end: *end, kind });
        changed(|session| session.firmware = ranges.collect())
    };
    for ranges in [&[(5, 5)][..], &[(6, 5)], &[(u64::MAX, u64::MAX)], &[(9, 10), (8, 9)]] {
        assert_eq!(refused(&with_ranges(ranges)), "firmware range");
    }
    // None, and ranges that overlap: firmware does that.
    for ranges in [&[][..], &[(0, u64::MAX)], &[(5, 100), (5, 50), (20, 30)]] {
        let header = with_ranges(ranges);
        assert_eq!(Header::decode(&header.encode().unwrap()), Ok(header));
    }
}

#[test]
fn a_kind_of_firmware_range_with_a_name_gets_that_name() {
    let kinds = |kind| changed(|session| session.firmware = vec![FirmwareRange { start: 0, end: 1, kind }]);
    for (number, kind) in [
        (2, FirmwareKind::Reserved),
        (3, FirmwareKind::AcpiTables),
        (4, FirmwareKind::AcpiNvs),
        (5, FirmwareKind::Unusable),
        (7, FirmwareKind::Persistent),
        (6, FirmwareKind::Other(6)),
        (u32::MAX, FirmwareKind::Other(u32::MAX)),
    ] {
        let bytes = kinds(FirmwareKind::Other(number)).encode().unwrap();
        assert_eq!(Header::decode(&bytes), Ok(kinds(kind)));
    }
}
