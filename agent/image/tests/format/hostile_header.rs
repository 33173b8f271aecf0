//! Headers with a right checksum and wrong content.

use dormouse_image::layout::{HEADER_MAX, PFN_LIMIT};
use dormouse_image::{
    Block, FirmwareKind, FirmwareRange, FormatError, HEADER_MAGIC, Header, Mailbox, PfnRange, PhysRange,
};

use crate::bytes::{PROLOGUE, sealed, with};
use crate::values;

/// Offsets in the block, as FORMAT.md has them.
const PAGING_LEVELS: usize = 160;
const RECORD_COUNT: usize = 164;
const RECORDS: usize = 168;
/// How many kinds of records there are.
const KINDS: usize = 11;

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
    body[RECORD_COUNT - PROLOGUE..].copy_from_slice(&count.to_le_bytes());
    for (kind, flags, content) in records {
        body.extend(kind.to_le_bytes());
        body.extend(flags.to_le_bytes());
        body.extend(u32::try_from(content.len()).unwrap().to_le_bytes());
        body.extend(content);
        body.resize(body.len().next_multiple_of(8), 0);
    }
    sealed(HEADER_MAGIC, &body)
}

fn record_error(records: &[Record]) -> (u16, &'static str) {
    match Header::decode(&header_of(records)) {
        Err(FormatError::Record { kind, why }) => (kind, why),
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
fn an_unknown_record_is_refused_unless_it_may_be_ignored() {
    for kind in [0, 12, 13, 0x7fff, u16::MAX] {
        for at in [0, 4, KINDS] {
            let mut records = records();
            records.insert(at, (kind, 0, b"news".to_vec()));
            assert_eq!(record_error(&records), (kind, "is unknown to this version"));
            // Another flag does not help.
            records[at].1 = 2;
            assert_eq!(record_error(&records), (kind, "is unknown to this version"));
            for flags in [1, 3, u16::MAX] {
                records[at].1 = flags;
                assert_eq!(Header::decode(&header_of(&records)), Ok(values::header()));
                // It may come more than once: whoever does not know it cannot tell.
                let mut twice = records.clone();
                twice.push(records[at].clone());
                assert_eq!(Header::decode(&header_of(&twice)), Ok(values::header()));
            }
        }
    }
}

#[test]
fn a_record_that_is_missing_or_there_twice_is_refused() {
    for at in 0..KINDS {
        let mut records = records();
        let removed = records.remove(at);
        assert_eq!(record_error(&records), (removed.0, "is missing"));
        records.push(removed.clone());
        // The order does not matter.
        assert_eq!(Header::decode(&header_of(&records)), Ok(values::header()));
        records.push(removed.clone());
        assert_eq!(record_error(&records), (removed.0, "is there twice"));
        records[KINDS].1 = 1;
        assert_eq!(record_error(&records), (removed.0, "is there twice"));
    }
}

#[test]
fn a_table_that_is_no_whole_number_of_entries_is_refused() {
    for (at, kind, size) in [(0, 1, 16), (1, 2, 24), (9, 10, 24)] {
        for len in [1, size - 1, size + 1, 2 * size - 8] {
            let mut records = records();
            records[at].2 = vec![0; len];
            assert_eq!(record_error(&records), (kind, "is no whole number of entries"));
        }
    }
}

#[test]
fn text_that_is_not_utf8_is_refused() {
    for at in (2..9).chain([10]) {
        let mut records = records();
        records[at].2 = vec![b'a', 0xff];
        let found = Header::decode(&header_of(&records));
        assert!(matches!(found, Err(FormatError::Text { block: Block::Header, .. })), "{found:?}");
    }
}

#[test]
fn a_line_that_describes_no_filesystem_is_refused() {
    let digest = "0123456789abcdef";
    let bad = [
        "\n".to_string(),
        "ext4\n".to_string(),
        format!("ext4\t1-2\t{digest}\t-\n"),
        format!("ext4\t1-2\t{digest}\t-\t/\tmore\n"),
        format!("ext4\t1-2\t{}\t-\t/\n", &digest[1..]),
        format!("ext4\t1-2\t+{}\t-\t/\n", &digest[1..]),
        format!("ext4\t1-2\t{}\t-\t/\n", digest.to_uppercase()),
        format!("ext4\t1-2\t-\t{digest}\t/\n"),
    ];
    for line in bad {
        let mut records = records();
        records[10].2 = line.clone().into_bytes();
        assert_eq!(record_error(&records), (11, "has a line that describes no filesystem"), "{line:?}");
    }
    let mut header = values::header();
    header.filesystems[0].mount = "/a\tb".to_string();
    assert_eq!(refused(&header), "filesystem's text");
    header.filesystems.clear();
    header.efi[0].end = header.efi[0].start;
    assert_eq!(refused(&header), "EFI range");
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
    assert!(matches!(found, Err(FormatError::Record { kind: 1, .. })), "{found:?}");
    // The first record longer than the block.
    for len in [4096 - 168 - 7, 4096, u32::MAX - 7, u32::MAX] {
        let found = Header::decode(&with(&bytes, RECORDS + 4, &len.to_le_bytes()));
        assert!(found.is_err(), "{len}: {found:?}");
    }
    for levels in [0_u32, 3, 6, u32::MAX] {
        let found = Header::decode(&with(&bytes, PAGING_LEVELS, &levels.to_le_bytes()));
        assert!(
            matches!(found, Err(FormatError::Field { field: "paging levels", value, .. }) if value == u64::from(levels)),
            "{found:?}"
        );
    }
}

#[test]
fn a_header_that_is_too_large_is_not_written() {
    let fitting = |cmdline: usize| Header { cmdline: "x".repeat(cmdline), ..values::header() };
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
    let with_ram = |ranges: &[(u64, u64)]| Header {
        ram: ranges.iter().map(|(start, end)| PfnRange { start: *start, end: *end }).collect(),
        ..values::header()
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
        &[(1, 2), (0x100, 0x300)],
    ] {
        assert_eq!(refused(&with_ram(ranges)), "memory", "{ranges:x?}");
    }
    // Ranges that touch one another and the region, and the last page of all.
    with_ram(&[(0, 1), (0x9f, 0x200), (0x200, 0x1000), (0x9000, PFN_LIMIT)]).encode().unwrap();
}

#[test]
fn a_region_that_is_no_whole_pages_or_elsewhere_is_refused() {
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
        let region = Header { region: wrong, ..values::header() };
        assert_eq!(refused(&region), "region");
        let low = Header { low: wrong, ..values::header() };
        assert_eq!(refused(&low), "low memory");
    }
    let both = Header { low: range(0x8ff_f000, 0x900_0000), ..values::header() };
    assert_eq!(refused(&both), "low memory");
}

#[test]
fn an_entry_or_mailbox_outside_the_saved_memory_is_refused() {
    for pfn in [0, 0xff, 0x1000, 0x8fff, 0x3_0000, PFN_LIMIT, u64::MAX / 4096] {
        let entry = Header { entry: pfn * 4096 + 8, ..values::header() };
        assert_eq!(refused(&entry), "jump-back entry", "{pfn:#x}");
        let mailbox = Header { mailbox: Some(Mailbox { pfn, nonce: [1; 16] }), ..values::header() };
        assert_eq!(refused(&mailbox), "mailbox page", "{pfn:#x}");
    }
    // 0 stands for an entry that is not known yet.
    let unknown = Header { entry: 0, ..values::header() };
    assert_eq!(Header::decode(&unknown.encode().unwrap()), Ok(unknown));
    for pfn in [0x100, 0xfff, 0x9000, 0x2_ffff] {
        let header =
            Header { entry: pfn * 4096 + 4095, mailbox: Some(Mailbox { pfn, nonce: [1; 16] }), ..values::header() };
        assert_eq!(Header::decode(&header.encode().unwrap()), Ok(header));
    }
    // Page 0 means that there is no mailbox, even where it is RAM.
    let mut header = values::header();
    header.ram.insert(0, PfnRange { start: 0, end: 1 });
    header.mailbox = Some(Mailbox { pfn: 0, nonce: [1; 16] });
    assert_eq!(refused(&header), "mailbox page");
}

#[test]
fn firmware_ranges_that_are_empty_or_not_ascending_are_refused() {
    let with_ranges = |ranges: &[(u64, u64)]| Header {
        firmware: ranges
            .iter()
            .map(|(start, end)| FirmwareRange { start: *start, end: *end, kind: FirmwareKind::Unusable })
            .collect(),
        ..values::header()
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
    let kinds = |kind| Header { firmware: vec![FirmwareRange { start: 0, end: 1, kind }], ..values::header() };
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
