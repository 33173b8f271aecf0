//! The tables of `FORMAT.md`, compared with encoded bytes. Also a module of the agent's own tests.

use std::path::Path;

use dormouse_image::record::Kind;
use dormouse_image::{VERSION, Version};

/// The rows of the tables of one section, without their heads: the cells' text.
pub(crate) fn rows(section: &str) -> Vec<Vec<String>> {
    // Of the crate that is tested, or of the directory above it.
    let directories = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors();
    let path = directories.map(|directory| directory.join("docs/FORMAT.md")).find(|path| path.exists()).unwrap();
    let text = std::fs::read_to_string(path).unwrap();
    let mut lines = text.lines().skip_while(|line| line.trim_start_matches('#') != format!(" {section}"));
    assert!(lines.next().is_some(), "no section {section}");
    let mut rows: Vec<Vec<String>> = Vec::new();
    let mut in_picture = false;
    for line in lines.take_while(|line| !line.starts_with('#')) {
        in_picture ^= line.starts_with("```");
        let Some(cells) = line.strip_prefix('|').and_then(|line| line.strip_suffix('|')) else {
            continue;
        };
        if in_picture {
            continue;
        }
        if cells.starts_with(" ---") {
            rows.pop();
        } else {
            rows.push(cells.split('|').map(|cell| cell.trim().to_string()).collect());
        }
    }
    rows
}

/// Whether a cell has the size of a field, and not the version of a record.
fn is_size(cell: &str) -> bool {
    cell == "n" || cell.parse::<usize>().is_ok()
}

/// Asserts that the table of `section` lists these kinds of records, in this order.
pub(crate) fn compare_kinds(section: &str, kinds: &[Kind]) {
    let rows = rows(section);
    let listed: Vec<_> =
        rows.iter().filter(|row| row.len() == 4 && row[1].contains('.')).map(|row| &row[..3]).collect();
    let of = |kind: &Kind| {
        let is_called_so = |row: &Vec<String>| row[0] == kind.number.to_string() && row[3].ends_with("; skippable");
        assert_eq!(kind.skippable, rows.iter().any(|row| row.len() == 4 && is_called_so(row)), "{section}: {kind:?}");
        let since = Version { major: VERSION.major, minor: kind.since };
        [kind.number.to_string(), since.to_string(), kind.name.to_string()]
    };
    assert_eq!(listed, kinds.iter().map(of).collect::<Vec<_>>(), "{section}");
}

/// Asserts that the first table of `section` has these fields without gaps, and that they hold these values in `bytes`.
pub(crate) fn compare(section: &str, bytes: &[u8], expected: &[(&str, &[u8])]) {
    let rows = rows(section);
    let fields: Vec<&Vec<String>> =
        rows.iter().filter(|row| row.len() == 4 && row[0].parse::<usize>().is_ok() && is_size(&row[1])).collect();
    let names: Vec<&str> = fields.iter().map(|row| row[2].as_str()).collect();
    let expected_names: Vec<&str> = expected.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, expected_names, "{section}");
    let mut next = 0;
    for (row, (name, value)) in fields.iter().zip(expected) {
        let offset: usize = row[0].parse().unwrap();
        assert_eq!(offset, next, "{section}: {name} does not begin where the field before ends");
        // A size of `n` is that of the value, or more.
        let size = row[1].parse().unwrap_or(value.len());
        assert!(size == value.len(), "{section}: {name} has {} bytes", value.len());
        next = offset + size;
        assert_eq!(&bytes[offset..next], *value, "{section}: {name}");
    }
}

/// The contents of records of these kinds, each of which is as the document says.
pub(crate) fn records<'a, const N: usize>(kinds: &[Kind], mut bytes: &'a [u8]) -> [&'a [u8]; N] {
    assert_eq!(kinds.len(), N);
    let mut kinds = kinds.iter();
    let contents = [(); N].map(|()| {
        let kind = kinds.next().unwrap();
        let len = u32::from_le_bytes(bytes[4..8].try_into().unwrap());
        let content = &bytes[8..8 + len as usize];
        let record: &[(&str, &[u8])] = &[
            ("kind", &kind.number.to_le_bytes()),
            ("flags", &u16::from(kind.skippable).to_le_bytes()),
            ("length", &len.to_le_bytes()),
            ("content", content),
        ];
        compare("Record", bytes, record);
        bytes = &bytes[(8 + len as usize).next_multiple_of(8)..];
        content
    });
    assert!(bytes.iter().all(|byte| *byte == 0));
    contents
}
