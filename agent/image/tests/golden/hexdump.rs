//! Bytes as text, exactly as `hexdump -C` prints them: runs of equal lines are a `*`, the last line is the length.

use std::fmt::Write;

const LINE: usize = 16;

pub(crate) fn write(bytes: &[u8]) -> String {
    let mut text = String::new();
    let mut before: &[u8] = &[];
    let mut skipping = false;
    for (number, line) in bytes.chunks(LINE).enumerate() {
        if line == before {
            if !skipping {
                text.push_str("*\n");
            }
            skipping = true;
            continue;
        }
        (before, skipping) = (line, false);
        write!(text, "{:08x}", number * LINE).unwrap();
        for at in 0..LINE {
            if at.is_multiple_of(8) {
                text.push(' ');
            }
            match line.get(at) {
                Some(byte) => write!(text, " {byte:02x}").unwrap(),
                None => text.push_str("   "),
            }
        }
        let printable = |byte: &u8| match byte {
            0x20..0x7f => char::from(*byte),
            _ => '.',
        };
        writeln!(text, "  |{}|", line.iter().map(printable).collect::<String>()).unwrap();
    }
    writeln!(text, "{:08x}", bytes.len()).unwrap();
    text
}

pub(crate) fn read(text: &str) -> Vec<u8> {
    let mut bytes: Vec<u8> = Vec::new();
    let mut last = Vec::new();
    for line in text.lines().filter(|line| *line != "*") {
        let (numbers, _) = line.split_once('|').unwrap_or((line, ""));
        let mut numbers = numbers.split_ascii_whitespace();
        let offset = usize::from_str_radix(numbers.next().unwrap(), 16).unwrap();
        while bytes.len() < offset {
            bytes.extend(&last);
        }
        assert_eq!(bytes.len(), offset, "the line does not begin where the one before ends: {line}");
        last = numbers.map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
        bytes.extend(&last);
    }
    bytes
}

#[test]
fn a_dump_reads_back() {
    let mut bytes = vec![0; 100];
    bytes.extend(b"Dormouse, and a text that ends in the middle of a line");
    bytes.extend([0xff; 64]);
    assert_eq!(read(&write(&bytes)), bytes);
    assert_eq!(
        write(&[0; 33]),
        "00000000  00 00 00 00 00 00 00 00  00 00 00 00 00 00 00 00  |................|\n\
         *\n\
         00000020  00                                                |.|\n\
         00000021\n"
    );
}
