#![allow(clippy::unwrap_used)]

use std::path::Path;

use device::{BLOCKS, REPEAT};
use dormouse::store::{Access, Disk};
use dormouse_image::{DiskExtent, Uuid};

use super::*;

#[path = "../../../../agent/image/tests/golden/hexdump.rs"]
mod hexdump;

/// All is mended; the state that is tried is `restoring`.
const CHOICES: u8 = 0x9f;

fn golden() -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../agent/image/tests/golden/v1.hex");
    hexdump::read(&std::fs::read_to_string(path).unwrap())
}

/// An input that describes `image`.
fn describe(image: &[u8]) -> Vec<u8> {
    let mut input = vec![CHOICES];
    for (number, block) in image.chunks(BLOCK).enumerate() {
        let Some(last) = block.iter().rposition(|byte| *byte != 0) else { continue };
        let period = (1..64).find(|period| (*period..block.len()).all(|at| block[at] == block[at - period]));
        let (bytes, flag) = match period {
            Some(period) => (&block[..period], REPEAT),
            None => (&block[..=last], 0),
        };
        input.extend(u16::try_from(number).unwrap().to_le_bytes());
        input.extend((u16::try_from(bytes.len()).unwrap() | flag).to_le_bytes());
        input.extend(bytes);
    }
    input
}

/// The golden image is a seed of the corpus. To write it again: `DORMOUSE_BLESS=1 cargo test -p dormouse-tests golden`.
#[test]
fn the_golden_image_is_described_and_restored() {
    let golden = golden();
    let input = describe(&golden);
    if std::env::var_os("DORMOUSE_BLESS").is_some_and(|bless| bless == "1") {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/image/golden");
        std::fs::write(path, &input).unwrap();
    }

    let (mended, _) = Device::new(&input);
    let mut whole = golden.clone();
    whole.resize(BLOCKS * BLOCK, 0);
    assert!(mended.read(0, whole.len()) == whole, "there is nothing to mend in it");
    let (stored, zero, _) = whole::restore(&mended.file()).unwrap();
    assert!(stored > 0 && zero > 0);
}

/// A seed of the corpus: two labels of images in files, one where its map begins and one elsewhere. Written again with
/// the golden one.
#[test]
fn the_golden_image_in_a_file_is_described_and_read() {
    let extents = vec![DiskExtent { offset: 2 << 20, len: 12288 }, DiskExtent { offset: 1 << 20, len: 8192 }];
    let label =
        Label { uuid: Uuid([5; 16]), created_unix: 6, extents, mirror: None, stack: Vec::new() }.encode().unwrap();
    let mut image = vec![0; (2 << 20) + 4 * BLOCK];
    for (at, bytes) in [(0, label.as_slice()), (2 << 20, &label), (1 << 20, &[7; BLOCK])] {
        image[at..at + BLOCK].copy_from_slice(bytes);
    }
    let input = describe(&image);
    if std::env::var_os("DORMOUSE_BLESS").is_some_and(|bless| bless == "1") {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/image/in-a-file");
        std::fs::write(path, &input).unwrap();
    }
    let file = Device::new(&input).0.file();
    let disk = Disk::open_at(&file.path(), 2 << 20, Access::Read).unwrap();
    assert_eq!(disk.size(), 5 * BLOCK as u64);
    assert_eq!(disk.read(12288, BLOCK).unwrap()[..], [7; BLOCK]);
    run(&input);
}

/// Whatever is changed in a block's content, mending leads past the checksums.
#[test]
fn mended_images_are_read() {
    let golden = golden();
    let mut damaged = golden.clone();
    // The header's time, a page in the first chunk, and the checksums of all blocks that are there.
    damaged[65536 + 40 + 80] ^= 1;
    damaged[1 << 20] ^= 1;
    for offset in [0, 4096, 8192, 65536, (1 << 20) + 2 * 4096, (1 << 20) + 5 * 4096] {
        damaged[offset + 16] ^= 1;
    }
    let input = describe(&damaged);
    assert_eq!(whole::restore(&Device::new(&[&[0], &input[1..]].concat()).0.file()), None);
    let (stored, zero, _) = whole::restore(&Device::new(&input).0.file()).unwrap();
    assert!(stored > 0 && zero > 0);
}
