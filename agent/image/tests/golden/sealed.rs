//! The golden image sealed, and what becomes of it in the hands of somebody who can write the disk.

use std::sync::OnceLock;

use dormouse_image::layout::{DATA_OFFSET, HEADER_OFFSET};
use dormouse_image::seal::{Nonce, Opener, Save, SaveKey, Sealing, unwrap};
use dormouse_image::{
    BLOCK, Block, Commit, Coverage, FormatError, Header, Label, Locator, Slot, State, checksum, newest,
};

use super::{at, image};

fn golden() -> &'static [u8] {
    static GOLDEN: OnceLock<Vec<u8>> = OnceLock::new();
    GOLDEN.get_or_init(|| super::read("v1-sealed.hex", || image::encode(Some(&image::sealing()))))
}

/// All that a reader does before it writes memory, and then the chunks' stored bytes.
fn open(image: &[u8], key: &SaveKey) -> Result<(Commit, Header, Vec<Vec<u8>>), FormatError> {
    let label = Label::decode(at(image, 0, BLOCK))?;
    let (commit, _) = newest(at(image, Slot::First.offset(), BLOCK), at(image, Slot::Second.offset(), BLOCK))?;
    assert_eq!(commit.image, label.uuid);
    let opener = Opener::new(&commit, key)?;
    let mut bytes = at(image, HEADER_OFFSET, commit.header.len as usize).to_vec();
    let header = opener.header(&commit.header, &mut bytes)?;
    let mut coverage = Coverage::new(&header.session.ram);
    let mut blocks = Vec::new();
    let mut locator = commit.last_index;
    while locator.is_some() {
        let mut bytes = at(image, locator.offset, locator.len as usize).to_vec();
        let index = opener.index(&locator, &mut bytes)?;
        index.chunks().try_for_each(|view| view.extents.iter().try_for_each(|extent| coverage.add(*extent)))?;
        index.zero.iter().try_for_each(|run| coverage.add(*run))?;
        locator = index.prev;
        blocks.push(index);
    }
    coverage.finish(&commit.totals)?;
    let mut chunks = Vec::new();
    for view in blocks.iter().rev().flat_map(|index| index.chunks()) {
        let mut bytes = at(image, view.chunk.offset, view.chunk.stored_len as usize).to_vec();
        let opened = opener.chunk(view.chunk, view.raw_len() / BLOCK, &mut bytes);
        opened.map_err(|_| FormatError::Forged(Block::Index))?;
        chunks.push(bytes);
    }
    Ok((commit, header, chunks))
}

/// The same bytes with a slot changed: both are, with a right checksum.
fn with_commit(image: &[u8], change: impl Fn(&mut Commit)) -> Vec<u8> {
    let mut image = image.to_vec();
    let mut commit = Commit::decode(at(&image, 8192, BLOCK)).unwrap();
    change(&mut commit);
    let bytes = commit.encode().unwrap();
    for slot in [Slot::First, Slot::Second] {
        let start = usize::try_from(slot.offset()).unwrap();
        image[start..start + BLOCK].copy_from_slice(&bytes);
    }
    image
}

#[test]
fn the_values_seal_to_the_golden_bytes_and_open_again() {
    let sealed = image::encode(Some(&image::sealing()));
    let difference = golden().iter().zip(&sealed).position(|(golden, sealed)| golden != sealed);
    assert_eq!((difference, golden().len()), (None, sealed.len()), "the first byte that differs");
    let sealing = image::sealing();
    let (commit, header, chunks) = open(golden(), &sealing.key).unwrap();
    assert_eq!(header, image::header());
    assert_eq!(chunks, image::chunks().map(|stored| stored.bytes));
    // The key is to be had from either slot's key.
    let seal = commit.seal.unwrap();
    let save = Save { image: commit.image, save_id: commit.save_id, nonce: seal.nonce };
    for (wrap, kek) in seal.wraps.iter().zip([[1; 32], [2; 32]]) {
        assert_eq!(unwrap(&kek, &save, wrap), Some(sealing.key.clone()));
    }
}

#[test]
fn nothing_of_the_session_is_on_the_device_in_clear() {
    let texts = ["6.12.117", "höhle", "console=ttyS0", "ext4", "/boot/efi", "GenuineDormouse", "is a page"];
    let has = |image: &[u8], text: &str| image.windows(text.len()).any(|bytes| bytes == text.as_bytes());
    let plain = image::encode(None);
    for text in texts {
        assert!(has(&plain, text) && !has(golden(), text), "{text}");
    }
    assert!(!has(golden(), "DMHEADER") && !has(golden(), "DMINDEX"));
    // Nor is a digest of it, by which a guess could be confirmed.
    let plain = [at(&plain, HEADER_OFFSET + 16, 8), at(&plain, DATA_OFFSET + 5 * 4096 + 16, 8)];
    for sum in plain {
        assert!(!golden().windows(8).any(|bytes| bytes == sum));
    }
}

#[test]
fn another_key_or_none_opens_nothing() {
    let error = open(golden(), &SaveKey::new(&[3; 32])).unwrap_err();
    assert_eq!(error, FormatError::Forged(Block::Commit));
    let error = open(&image::encode(None), &image::sealing().key).unwrap_err();
    assert_eq!(error, FormatError::NotSealed);
}

/// Every byte of header and index, with the checksum that stands in the authenticated record, and with a right one.
#[test]
fn rejects_every_byte_of_header_index_and_chunks_that_differs() {
    let key = image::sealing().key;
    let (commit, first) = previous(golden());
    let opener = Opener::new(&commit, &key).unwrap();
    let read = |block: Block, locator: &Locator, bytes: &mut [u8]| match block {
        Block::Header => opener.header(locator, bytes).err(),
        _ => opener.index(locator, bytes).err(),
    };
    let blocks = [(Block::Header, commit.header), (Block::Index, first), (Block::Index, commit.last_index)];
    for (block, locator) in blocks {
        let good = at(golden(), locator.offset, 4096);
        assert_eq!(read(block, &locator, &mut good.to_vec()), None);
        for place in 0..4096 {
            let mut bytes = good.to_vec();
            bytes[place] ^= 0x10;
            let corrected = Locator { checksum: checksum(&bytes), ..locator };
            let error = read(block, &locator, &mut bytes).unwrap();
            assert!(matches!(error, FormatError::Checksum { .. }), "{block} {place}: {error}");
            if place % 13 == 0 {
                assert_eq!(read(block, &corrected, &mut bytes), Some(FormatError::Forged(block)), "{place}");
            }
        }
        let elsewhere = Locator { offset: locator.offset + 4096, ..locator };
        assert_eq!(read(block, &elsewhere, &mut good.to_vec()), Some(FormatError::Forged(block)));
    }
    for (number, stored) in image::chunks().iter().enumerate() {
        let len = u64::from(stored.chunk.stored_len);
        for place in (0..len).step_by(if len < 100 { 1 } else { 61 }) {
            let mut bytes = golden().to_vec();
            bytes[usize::try_from(stored.chunk.offset + place).unwrap()] ^= 0x10;
            assert_eq!(open(&bytes, &key).unwrap_err(), FormatError::Forged(Block::Index), "{number} {place}");
        }
    }
}

/// Every byte of a slot, whose checksum anybody can correct.
#[test]
fn rejects_every_byte_of_a_slot_but_those_of_its_state() {
    let key = image::sealing().key;
    for place in 0..BLOCK {
        let mut bytes = at(golden(), 8192, BLOCK).to_vec();
        bytes[place] ^= 0x10;
        bytes[16..24].fill(0);
        let sum = checksum(&bytes);
        bytes[16..24].copy_from_slice(&sum.to_le_bytes());
        let found = Commit::decode(&bytes).and_then(|commit| Opener::new(&commit, &key));
        let is_free = match place {
            // The minor version and the checksum.
            10..12 | 16..24 => true,
            // Sequence number, changed, attempts and kept: C changes them, which need not have a key.
            24..32 | 216..224 | 228..232 => true,
            // The reason's length, within its room, and text.
            232 | 320..330 => true,
            _ => false,
        };
        assert_eq!(found.is_ok(), is_free, "{place}");
    }
}

#[test]
fn rejects_a_block_with_a_right_checksum_and_a_wrong_content() {
    let key = image::sealing().key;
    let mut bytes = golden().to_vec();
    let start = usize::try_from(HEADER_OFFSET).unwrap();
    bytes[start + 100] ^= 1;
    let sum = checksum(&bytes[start..start + 4096]);
    // The commit record's checksum of the header is authenticated too: it fails first.
    let corrected = with_commit(&bytes, |commit| commit.header.checksum = sum);
    assert_eq!(open(&corrected, &key).unwrap_err(), FormatError::Forged(Block::Commit));
}

#[test]
fn rejects_what_was_exchanged_or_is_older() {
    let key = image::sealing().key;
    // Two chunks of the same length, each where the other was, and each block where the other was.
    let mut chunks = golden().to_vec();
    let first = usize::try_from(DATA_OFFSET).unwrap();
    let (a, b) = (first, first + 3 * 4096);
    let copy = golden()[b..b + 4096].to_vec();
    chunks.copy_within(a..a + 4096, b);
    chunks[a..a + 4096].copy_from_slice(&copy);
    assert!(open(&chunks, &key).is_err());
    let mut blocks = golden().to_vec();
    let [one, two] = image::INDEX_OFFSETS.map(|offset| usize::try_from(offset).unwrap());
    blocks.copy_within(one..one + 4096, two);
    assert!(open(&blocks, &key).is_err());
    // An older end of the index, and an index of another save with the same key but another nonce.
    let shorter = with_commit(golden(), |commit| {
        let (_, locator) = previous(golden());
        (commit.last_index, commit.data_end) = (locator, locator.offset + 4096);
    });
    assert_eq!(open(&shorter, &key).unwrap_err(), FormatError::Forged(Block::Commit));
    let other = Sealing { nonce: Nonce([9; 16]), ..image::sealing() };
    let other = image::encode(Some(&other));
    assert!(open(&other, &key).is_ok());
    let mut mixed = golden().to_vec();
    mixed[two..two + 4096].copy_from_slice(&other[two..two + 4096]);
    assert!(open(&mixed, &key).is_err());
    let mut mixed = golden().to_vec();
    mixed[4096..12288].copy_from_slice(&other[4096..12288]);
    assert!(open(&mixed, &key).is_err());
}

/// The first index block's locator.
fn previous(image: &[u8]) -> (Commit, Locator) {
    let commit = Commit::decode(at(image, 8192, BLOCK)).unwrap();
    let opener = Opener::new(&commit, &self::image::sealing().key).unwrap();
    let mut bytes = at(image, commit.last_index.offset, 4096).to_vec();
    let locator = opener.index(&commit.last_index, &mut bytes).unwrap().prev;
    (commit, locator)
}

#[test]
fn a_consumed_record_turned_complete_by_hand_opens_nothing() {
    let key = image::sealing().key;
    let consumed = with_commit(golden(), |commit| {
        let restoring = commit.transition(State::Restoring, "").unwrap();
        *commit = restoring.transition(State::Consumed, "").unwrap();
    });
    assert_eq!(open(&consumed, &key).unwrap_err(), FormatError::KeyWiped(State::Consumed));
    let forged = with_commit(&consumed, |commit| commit.state = State::Complete);
    assert_eq!(open(&forged, &key).unwrap_err(), FormatError::KeyWiped(State::Complete));
    let guessed = with_commit(&forged, |commit| {
        let seal = commit.seal.as_mut().unwrap();
        (seal.nonce, seal.mac) = (Nonce([1; 16]), [2; 32]);
    });
    assert_eq!(open(&guessed, &key).unwrap_err(), FormatError::Forged(Block::Commit));
    // Taken for one that is not sealed it is no better: its header is noise.
    let unsealed = with_commit(&forged, |commit| commit.seal = None);
    let commit = Commit::decode(at(&unsealed, 8192, BLOCK)).unwrap();
    assert!(commit.header.check(Block::Header, at(&unsealed, HEADER_OFFSET, 4096)).is_err());
}
