//! A sealed image: what the target `image` makes of an input, sealed under a key that is known here, as a holder of the
//! key could have made it. So what comes after the seals is reached too; and what somebody else changes is not.
//!
//! ```text
//!   2 bytes   number of a byte, from the header on, modulo what is used
//!   1 byte    the bits of it that are changed after all is sealed
//!   n bytes   an image, as the target `image` has it
//! ```

use dormouse_image::layout::{DATA_OFFSET, HEADER_OFFSET, INDEX_MAX, SLOT_OFFSETS};
use dormouse_image::seal::{Nonce, SaveKey, Sealer, Sealing, Suite};
use dormouse_image::{BLOCK, Block, Commit, IndexBlock, Locator, checksum, newest};

use crate::fuzz::image::device::Device;
use crate::fuzz::image::whole::restore_with;

/// Offsets in a block, as FORMAT.md has them.
const MINOR: usize = 10;
const CHECKSUM: std::ops::Range<usize> = 16..24;
const PREVIOUS_OFFSET: usize = 40;
const PREVIOUS_CHECKSUM: std::ops::Range<usize> = 48..56;
const PREVIOUS_LENGTH: usize = 56;
const PREVIOUS_TAG: std::ops::Range<usize> = 72..88;
const CHUNKS: usize = 96;
const CHUNK_ENTRY: usize = 48;
const CHUNK_SEAL: usize = 24;

fn sealing() -> Sealing {
    Sealing { key: SaveKey::new(&[0x5e; 32]), nonce: Nonce([1; 16]), suite: Suite::Aes256Gcm, wraps: Vec::new() }
}

/// Reads any bytes as a description of a sealed image and of a change to it.
pub(super) fn run(input: &[u8]) {
    let Some(([low, high, flip], description)) = input.split_first_chunk() else { return };
    let (device, _) = Device::new(description);
    let (plain, key) = (device.file(), sealing().key);
    // What is described has no seal that fits.
    assert_eq!(restore_with(&plain, Some(&key)), None);
    let Some((sealed, end)) = seal(&device) else { return };
    let (expected, file) = (restore_with(&plain, None), sealed.file());
    assert_eq!(restore_with(&file, None), None, "without its key");
    assert_eq!(restore_with(&file, Some(&SaveKey::new(&[0x5f; 32]))), None, "with another key");
    let found = restore_with(&file, Some(&key));
    if expected.is_some() {
        assert_eq!(found, expected);
    }
    let used = end.saturating_sub(HEADER_OFFSET).max(1);
    // Every place can be meant: there are more than a u16 has numbers.
    let at = HEADER_OFFSET + u64::from(u16::from_le_bytes([*low, *high])) * 61 % used;
    let byte = sealed.read(at, 1);
    file.write(at, &[byte[0] ^ flip]);
    // What nothing depends on may have any value.
    let changed = restore_with(&file, Some(&key));
    assert!(changed.is_none() || changed == found, "{at}: {changed:?}, {found:?}");
}

/// The same image sealed, and where it ends, if it holds a session.
fn seal(device: &Device) -> Option<(Device, u64)> {
    let [first, second] = SLOT_OFFSETS.map(|offset| device.read(offset, BLOCK));
    let (commit, _) = newest(&first, &second).ok()?;
    if !commit.state.holds_a_session() {
        return None;
    }
    let sealer = Sealer::new(&sealing(), commit.image, commit.save_id).ok()?;
    let mut device = device.clone();
    let mut header = device.read(HEADER_OFFSET, commit.header.len as usize);
    let header_at = sealer.block(Block::Header, HEADER_OFFSET, &mut header).ok()?;
    device.write(HEADER_OFFSET, &header);

    let (mut last, mut is_first) = (Locator::default(), true);
    for (offset, len) in index_blocks(&device, &commit).into_iter().rev() {
        let mut block = device.read(offset, len);
        seal_chunks(&sealer, &mut device, &mut block, offset);
        if !is_first {
            block[PREVIOUS_CHECKSUM].copy_from_slice(&last.checksum.to_le_bytes());
            block[PREVIOUS_TAG].copy_from_slice(&last.tag);
        }
        block[MINOR] = 1;
        block[CHECKSUM].fill(0);
        let sum = checksum(&block);
        block[CHECKSUM].copy_from_slice(&sum.to_le_bytes());
        last = sealer.block(Block::Index, offset, &mut block).ok()?;
        device.write(offset, &block);
        is_first = false;
    }
    let end = commit.data_end;
    let commit = sealer.commit(Commit { header: header_at, last_index: last, ..commit }).ok()?;
    let slot = commit.encode().ok()?;
    SLOT_OFFSETS.into_iter().for_each(|offset| device.write(offset, &slot));
    Some((device, end))
}

/// Where the index blocks lie, from the last one back, as far as that can be followed.
fn index_blocks(device: &Device, commit: &Commit) -> Vec<(u64, usize)> {
    let mut blocks = Vec::new();
    let (mut offset, mut len, mut ceiling) = (commit.last_index.offset, commit.last_index.len as usize, u64::MAX);
    while offset >= DATA_OFFSET
        && (BLOCK..=INDEX_MAX).contains(&len)
        && len.is_multiple_of(BLOCK)
        && offset.checked_add(len as u64).is_some_and(|end| end <= ceiling)
    {
        blocks.push((offset, len));
        ceiling = offset;
        let bytes = device.read(offset, BLOCK);
        let word = |at: usize| bytes[at..at + 8].try_into().map_or(0, u64::from_le_bytes);
        let length = bytes[PREVIOUS_LENGTH..PREVIOUS_LENGTH + 4].try_into().map_or(0, u32::from_le_bytes);
        (offset, len) = (word(PREVIOUS_OFFSET), length as usize);
    }
    blocks
}

/// Seals the chunks that an index block describes, if it can be read.
fn seal_chunks(sealer: &Sealer, device: &mut Device, block: &mut [u8], offset: u64) {
    let Ok(index) = IndexBlock::decode(block, offset) else { return };
    for (number, view) in index.chunks().enumerate() {
        let mut chunk = *view.chunk;
        let mut bytes = device.read(chunk.offset, chunk.stored_len as usize);
        sealer.chunk(&mut chunk, view.raw_len() / BLOCK, &mut bytes).expect("a chunk is not too long");
        device.write(chunk.offset, &bytes);
        let seal = CHUNKS + number * CHUNK_ENTRY + CHUNK_SEAL;
        block[seal..seal + 8].copy_from_slice(&chunk.counter.to_le_bytes());
        block[seal + 8..seal + 24].copy_from_slice(&chunk.tag);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::path::Path;

    use super::*;

    /// The golden image is a seed here too. To write it again: `DORMOUSE_BLESS=1 cargo test -p dormouse-tests golden`.
    #[test]
    fn the_golden_image_is_sealed_and_restored() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
        let image = std::fs::read(corpus.join("image/golden")).unwrap();
        let seed = [&[7, 1, 0x20][..], &image].concat();
        if std::env::var_os("DORMOUSE_BLESS").is_some_and(|bless| bless == "1") {
            std::fs::write(corpus.join("sealed/golden"), &seed).unwrap();
        }
        assert_eq!(std::fs::read(corpus.join("sealed/golden")).unwrap(), seed);
        let (device, end) = seal(&Device::new(&image).0).unwrap();
        let (stored, ..) = restore_with(&device.file(), Some(&sealing().key)).unwrap();
        assert!(stored == 5 && end > DATA_OFFSET);
        for number in 0..60_u16 {
            let [low, high] = (number * 1013).to_le_bytes();
            run(&[&[low, high, 1][..], &image].concat());
        }
    }
}
