//! The golden image of format version 1: what was written once is always read, and is still written the same.
//!
//! `v1.hex` is the whole device as `hexdump -C` shows it, `v1-sealed.hex` the same image sealed. A change of them is a
//! change of the format. To write them again:
//! `DORMOUSE_BLESS=1 cargo test -p dormouse-image --test golden`.

#![allow(clippy::unwrap_used, clippy::panic)]

mod hexdump;
mod image;
mod sealed;

use std::path::Path;
use std::sync::OnceLock;

use dormouse_image::layout::{HEADER_OFFSET, LABEL_OFFSET};
use dormouse_image::record::Kind;
use dormouse_image::{
    BLOCK, Block, Codec, Commit, Coverage, Extent, Header, IndexBlock, Label, Locator, SESSION_KINDS, Slot, checksum,
    newest,
};

/// The bytes of a golden image; written from the values first, where that was asked for.
fn read(name: &str, encode: fn() -> Vec<u8>) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("DORMOUSE_BLESS").is_some_and(|bless| bless == "1") {
        std::fs::write(&path, hexdump::write(&encode())).unwrap();
    }
    hexdump::read(&std::fs::read_to_string(&path).unwrap())
}

/// The golden image's bytes.
fn golden() -> &'static [u8] {
    static GOLDEN: OnceLock<Vec<u8>> = OnceLock::new();
    GOLDEN.get_or_init(|| read("v1.hex", || image::encode(None)))
}

/// `len` bytes at `offset`.
fn at(image: &[u8], offset: u64, len: usize) -> &[u8] {
    &image[usize::try_from(offset).unwrap()..][..len]
}

/// The block that a locator points to.
fn located<'a>(image: &'a [u8], block: Block, locator: &Locator) -> &'a [u8] {
    let bytes = at(image, locator.offset, locator.len as usize);
    locator.check(block, bytes).unwrap();
    bytes
}

#[test]
fn the_values_encode_to_the_golden_bytes() {
    let (golden, encoded) = (golden(), image::encode(None));
    let difference = golden.iter().zip(&encoded).position(|(golden, encoded)| golden != encoded);
    assert_eq!(difference, None, "the first byte that differs");
    assert_eq!(golden.len(), encoded.len());
}

#[test]
fn the_golden_bytes_decode_to_the_values() {
    let image = golden();
    assert_eq!(Label::decode(at(image, LABEL_OFFSET, BLOCK)), Ok(image::label()));

    let slots = [Slot::First, Slot::Second].map(|slot| at(image, slot.offset(), BLOCK));
    let (commit, slot) = newest(slots[0], slots[1]).unwrap();
    let [older, newer] = image::commits(commit.header, commit.last_index);
    assert_eq!((&commit, slot), (&newer, Slot::Second));
    assert_eq!(Commit::decode(slots[0]), Ok(older));

    assert_eq!(commit.header.offset, HEADER_OFFSET);
    let header = Header::decode(located(image, Block::Header, &commit.header)).unwrap();
    assert_eq!(header, image::header());

    let mut coverage = Coverage::new(&header.session.ram);
    let mut locator = commit.last_index;
    let mut expected = image::chunks().into_iter().rev();
    for (index_offset, zero) in image::INDEX_OFFSETS.into_iter().zip(image::zero_runs()).rev() {
        assert_eq!(locator.offset, index_offset);
        let block = located(image, Block::Index, &locator);
        let index = IndexBlock::decode(block, locator.offset).unwrap();
        assert_eq!((index.save_id, &index.zero), (header.session.save_id, &zero));
        for number in (0..index.chunks().len()).rev() {
            let view = index.chunk(number);
            let stored = expected.next().unwrap();
            assert_eq!((view.chunk, view.extents), (&stored.chunk, &stored.extents[..]));
            let bytes = at(image, view.chunk.offset, view.chunk.stored_len as usize);
            assert_eq!(bytes, stored.bytes);
            if view.chunk.codec == Codec::Store {
                assert_eq!(checksum(bytes), view.chunk.checksum);
            }
            add(&mut coverage, view.extents);
        }
        add(&mut coverage, &zero);
        locator = index.prev;
    }
    assert!(!locator.is_some() && expected.next().is_none());
    coverage.finish(&commit.totals).unwrap();
}

#[test]
fn a_newer_minor_version_reads_the_golden_header() {
    let (commit, _) = newest(at(golden(), 4096, BLOCK), at(golden(), 8192, BLOCK)).unwrap();
    let bytes = located(golden(), Block::Header, &commit.header);
    // A version 1.1 with one record more, which its readers must know.
    let kinds = [SESSION_KINDS, &[Kind::mandatory(12, "news", 1)]].concat();
    assert_eq!(Header::decode_with(&kinds, bytes), Ok(image::header()));
}

fn add(coverage: &mut Coverage, extents: &[Extent]) {
    extents.iter().for_each(|extent| coverage.add(*extent).unwrap());
}
