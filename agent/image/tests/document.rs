//! `FORMAT.md` says what the code does: its tables are read and compared with encoded blocks.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::Path;

use dormouse_image::layout::{self, DATA_OFFSET, HEADER_OFFSET};
use dormouse_image::{
    BLOCK, Block, COMMIT_MAGIC, Chunk, Codec, Commit, Cpu, Extent, FirmwareKind, FirmwareRange, HEADER_MAGIC, Header,
    INDEX_MAGIC, IndexBuilder, LABEL_MAGIC, Label, Locator, Mailbox, PfnRange, PhysRange, SaveStats, State, Totals,
    Uuid, VERSION, checksum,
};

/// The rows of the tables of one section, without their heads: the cells' text.
fn rows(section: &str) -> Vec<Vec<String>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../FORMAT.md");
    let text = std::fs::read_to_string(path).unwrap();
    let mut lines = text
        .lines()
        .skip_while(|line| line.trim_start_matches('#') != format!(" {section}"));
    assert!(lines.next().is_some(), "no section {section}");
    let mut rows: Vec<Vec<String>> = Vec::new();
    for line in lines.take_while(|line| !line.starts_with('#')) {
        let Some(cells) = line.strip_prefix('|').and_then(|line| line.strip_suffix('|')) else {
            continue;
        };
        if cells.starts_with(" ---") {
            rows.pop();
        } else {
            rows.push(cells.split('|').map(|cell| cell.trim().to_string()).collect());
        }
    }
    rows
}

/// The first table of `section`, as a layout of `bytes`: offset, size and bytes of each field, without gaps.
fn fields<'a>(section: &str, bytes: &'a [u8]) -> Vec<(String, &'a [u8])> {
    let mut next = 0;
    let mut fields = Vec::new();
    for row in rows(section)
        .iter()
        .filter(|row| row.len() == 4 && row[0].parse::<usize>().is_ok())
    {
        let offset: usize = row[0].parse().unwrap();
        assert_eq!(
            offset, next,
            "{section}: {} does not begin where the field before ends",
            row[2]
        );
        // Where the size is variable, what follows is up to the test.
        let Ok(size) = row[1].parse::<usize>() else {
            fields.push((row[2].clone(), &bytes[offset..]));
            break;
        };
        next = offset + size;
        fields.push((row[2].clone(), &bytes[offset..next]));
    }
    fields
}

/// Asserts that the fields of `section` are these, and that `bytes` holds their values.
fn compare(section: &str, bytes: &[u8], expected: &[(&str, &[u8])]) {
    let found = fields(section, bytes);
    let names = |fields: Vec<&str>| fields.join(", ");
    assert_eq!(
        names(found.iter().map(|(name, _)| name.as_str()).collect()),
        names(expected.iter().map(|(name, _)| *name).collect()),
        "{section}"
    );
    for ((name, bytes), (_, value)) in found.iter().zip(expected) {
        let bytes = bytes.get(..value.len()).unwrap_or(bytes);
        assert_eq!(bytes, *value, "{section}: {name}");
    }
}

const ZERO: &[u8] = &[0; 4];

fn u16s(value: u16) -> [u8; 2] {
    value.to_le_bytes()
}

fn u32s(value: u32) -> [u8; 4] {
    value.to_le_bytes()
}

fn u64s(value: u64) -> [u8; 8] {
    value.to_le_bytes()
}

#[test]
fn constants() {
    let [first, second] = layout::SLOT_OFFSETS;
    let expected: [(&str, u64); 13] = [
        ("BLOCK", BLOCK as u64),
        ("LABEL_OFFSET", layout::LABEL_OFFSET),
        ("SLOT_1_OFFSET", first),
        ("SLOT_2_OFFSET", second),
        ("HEADER_OFFSET", layout::HEADER_OFFSET),
        ("HEADER_MAX", layout::HEADER_MAX as u64),
        ("DATA_OFFSET", layout::DATA_OFFSET),
        ("INDEX_MAX", layout::INDEX_MAX as u64),
        ("INDEX_MAX_CHUNKS", layout::INDEX_MAX_CHUNKS as u64),
        ("CHUNK_PAGES", layout::CHUNK_PAGES.into()),
        ("CHUNK_MAX", layout::CHUNK_MAX as u64),
        ("PFN_LIMIT", layout::PFN_LIMIT),
        ("DEVICE_MIN", layout::DEVICE_MIN),
    ];
    let found: Vec<(String, u64)> = rows("Constants")
        .iter()
        .map(|row| (row[0].clone(), row[1].parse().unwrap()))
        .collect();
    let expected: Vec<(String, u64)> = expected
        .iter()
        .map(|(name, value)| ((*name).to_string(), *value))
        .collect();
    assert_eq!(found, expected);
    // The parts of the device do not overlap.
    assert!(HEADER_OFFSET + layout::HEADER_MAX as u64 <= DATA_OFFSET && second + BLOCK as u64 <= HEADER_OFFSET);
    assert_eq!(checksum(&[]), 0x2d06_8005_38d3_94c2);
}

#[test]
fn prologue_and_magics() {
    let label = Label::default_for_test().encode().unwrap();
    let mut unsealed = label.clone();
    unsealed[16..24].fill(0);
    compare(
        "Prologue",
        &label,
        &[
            ("magic", &LABEL_MAGIC),
            ("major version", &u16s(VERSION.major)),
            ("minor version", &u16s(VERSION.minor)),
            ("length", &u32s(4096)),
            ("checksum", &u64s(checksum(&unsealed))),
        ],
    );
    let magics: Vec<Vec<u8>> = rows("Prologue")
        .iter()
        .filter(|row| row[1].starts_with('`'))
        .map(|row| {
            row[2]
                .split(' ')
                .map(|byte| u8::from_str_radix(byte, 16).unwrap())
                .collect()
        })
        .collect();
    assert_eq!(magics, [LABEL_MAGIC, COMMIT_MAGIC, HEADER_MAGIC, INDEX_MAGIC]);
}

/// A label of distinct values.
trait DefaultForTest {
    fn default_for_test() -> Self;
}

impl DefaultForTest for Label {
    fn default_for_test() -> Label {
        Label {
            uuid: Uuid([1; 16]),
            created_unix: 2,
        }
    }
}
