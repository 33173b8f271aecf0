//! An image device as an input describes it.
//!
//! Offsets within blocks are those of FORMAT.md.

use std::collections::BTreeMap;

use dormouse_image::layout::{CHUNK_MAX, DATA_OFFSET, HEADER_OFFSET, INDEX_MAX, LABEL_OFFSET, SLOT_OFFSETS};
use dormouse_image::{BLOCK, Codec, Header, INDEX_MAGIC, IndexBlock, LABEL_MAGIC, Locator, State, checksum};

use crate::fuzz::scratch::Scratch;

/// Blocks of the device.
pub(in crate::fuzz) const BLOCKS: usize = 1024;
/// In a part's length: its bytes are repeated.
pub(in crate::fuzz) const REPEAT: u16 = 1 << 15;

/// The prologue: the block's length and its checksum.
const LENGTH: u64 = 12;
const CHECKSUM: u64 = 16;
/// Where identities lie.
const LABEL_UUID: u64 = 24;
const HEADER_UUID: u64 = 40;
const HEADER_SAVE: u64 = 56;
const COMMIT_UUID: u64 = 40;
const COMMIT_SAVE: u64 = 56;
const INDEX_SAVE: u64 = 24;
/// Where checksums of other blocks lie, each eight bytes after the block's offset.
const COMMIT_HEADER: u64 = 80;
const COMMIT_INDEX: u64 = 104;
const INDEX_PREVIOUS: u64 = 48;
/// The sums of a commit record: pages of memory, stored, zero, omitted; chunks, index blocks, stored bytes.
const COMMIT_TOTALS: u64 = 128;
/// The chunk entries of an index block.
const INDEX_CHUNKS: u64 = 96;
const CHUNK_ENTRY: u64 = 48;
const CHUNK_CHECKSUM: u64 = 8;

/// What is made to fit, a bit each.
#[derive(Debug, Clone, Copy)]
struct Mend(u8);

impl Mend {
    const BLOCKS: u8 = 1;
    const POINTERS: u8 = 1 << 1;
    const CHUNKS: u8 = 1 << 2;
    const TOTALS: u8 = 1 << 3;
    const IDENTITIES: u8 = 1 << 4;

    fn has(self, bit: u8) -> bool {
        self.0 & bit != 0
    }
}

/// The blocks that are not all zero, by their offsets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::fuzz) struct Device(BTreeMap<u64, Vec<u8>>);

impl Device {
    /// The device that `input` describes, and the state that it asks for.
    pub(in crate::fuzz) fn new(input: &[u8]) -> (Device, State) {
        let (choices, parts) = input.split_first().unwrap_or((&0, &[]));
        let mut device = Device::laid_out(parts);
        device.mend(Mend(*choices));
        (device, State::ALL[usize::from(choices >> 5) % State::ALL.len()])
    }

    /// The device with its parts, unmended.
    pub(in crate::fuzz) fn laid_out(mut parts: &[u8]) -> Device {
        let mut device = Device(BTreeMap::new());
        while let Some(([a, b, c, d], rest)) = parts.split_first_chunk() {
            let offset = (usize::from(u16::from_le_bytes([*a, *b])) % BLOCKS * BLOCK) as u64;
            let length = u16::from_le_bytes([*c, *d]);
            let (bytes, rest) = rest.split_at(usize::from(length & !REPEAT).min(rest.len()));
            if length & REPEAT != 0 && !bytes.is_empty() {
                let block: Vec<u8> = bytes.iter().copied().cycle().take(BLOCK).collect();
                device.write(offset, &block);
            } else {
                device.write(offset, bytes);
            }
            parts = rest;
        }
        device
    }

    /// The offsets of the blocks that are not all zero, ascending.
    pub(in crate::fuzz) fn blocks(&self) -> impl Iterator<Item = u64> {
        self.0.keys().copied()
    }

    /// What is at `offset`; zeroes where nothing is.
    pub(in crate::fuzz) fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let end = offset.saturating_add(len as u64);
        let first = offset / BLOCK as u64 * BLOCK as u64;
        for (at, block) in self.0.range(first..end.max(first)) {
            // Where the block begins in `bytes`, or how much of it lies before them.
            let (to, from) = match at.checked_sub(offset) {
                Some(to) => (index(to), 0),
                None => (0, index(offset - at)),
            };
            let count = (BLOCK - from).min(len - to);
            bytes[to..to + count].copy_from_slice(&block[from..from + count]);
        }
        bytes
    }

    /// The whole block at `offset`, whose length is the one that it records.
    pub(in crate::fuzz) fn block(&self, offset: u64) -> Vec<u8> {
        let len = self.read(offset.saturating_add(LENGTH), 4).try_into().map_or(0, u32::from_le_bytes);
        self.read(offset, (len as usize).clamp(BLOCK, INDEX_MAX))
    }

    /// Writes what lies on the device; the rest is lost.
    pub(in crate::fuzz) fn write(&mut self, mut offset: u64, mut bytes: &[u8]) {
        while !bytes.is_empty() && offset < (BLOCKS * BLOCK) as u64 {
            let from = index(offset % BLOCK as u64);
            let (now, later) = bytes.split_at(bytes.len().min(BLOCK - from));
            let block = self.0.entry(offset - from as u64).or_insert_with(|| vec![0; BLOCK]);
            block[from..from + now.len()].copy_from_slice(now);
            offset += now.len() as u64;
            bytes = later;
        }
    }

    /// The device as a file.
    pub(in crate::fuzz) fn file(&self) -> Scratch {
        let file = Scratch::new((BLOCKS * BLOCK) as u64);
        for (offset, block) in &self.0 {
            file.write(*offset, block);
        }
        file
    }

    /// Makes it fit, from what is pointed to to what points to it.
    fn mend(&mut self, mend: Mend) {
        let image = self.read(LABEL_OFFSET + LABEL_UUID, 16);
        if mend.has(Mend::IDENTITIES) {
            self.write(HEADER_OFFSET + HEADER_UUID, &image);
        }
        let save = self.read(HEADER_OFFSET + HEADER_SAVE, 16);
        self.seal(mend, LABEL_OFFSET);
        self.seal(mend, HEADER_OFFSET);
        let is_label = |offset: &u64| self.read(*offset, LABEL_MAGIC.len()) == LABEL_MAGIC;
        let labels: Vec<u64> = self.blocks().filter(|offset| *offset != LABEL_OFFSET && is_label(offset)).collect();
        labels.into_iter().for_each(|offset| self.seal(mend, offset));

        let data: Vec<u64> = self.blocks().filter(|offset| *offset >= DATA_OFFSET).collect();
        for offset in data {
            if !self.read(offset, INDEX_MAGIC.len()).starts_with(&INDEX_MAGIC) {
                continue;
            }
            if mend.has(Mend::IDENTITIES) {
                self.write(offset + INDEX_SAVE, &save);
            }
            self.point(mend, offset + INDEX_PREVIOUS);
            self.seal(mend, offset);
            if mend.has(Mend::CHUNKS) {
                self.mend_chunks(offset);
                self.seal(mend, offset);
            }
        }

        for offset in SLOT_OFFSETS {
            if mend.has(Mend::IDENTITIES) {
                self.write(offset + COMMIT_UUID, &image);
                self.write(offset + COMMIT_SAVE, &save);
            }
            self.point(mend, offset + COMMIT_HEADER);
            self.point(mend, offset + COMMIT_INDEX);
            if mend.has(Mend::TOTALS) {
                self.mend_totals(offset);
            }
            self.seal(mend, offset);
        }
    }

    /// Gives a block the checksum of its content.
    fn seal(&mut self, mend: Mend, offset: u64) {
        if mend.has(Mend::BLOCKS) {
            self.write(offset + CHECKSUM, &[0; 8]);
            let sum = checksum(&self.block(offset));
            self.write(offset + CHECKSUM, &sum.to_le_bytes());
        }
    }

    /// Copies the checksum of the block whose offset stands before `at` to `at`.
    fn point(&mut self, mend: Mend, at: u64) {
        let to = self.word(at - 8);
        if mend.has(Mend::POINTERS) && to != 0 && to < (BLOCKS * BLOCK) as u64 {
            let sum = self.read(to + CHECKSUM, 8);
            self.write(at, &sum);
        }
    }

    fn word(&self, at: u64) -> u64 {
        self.read(at, 8).try_into().map_or(0, u64::from_le_bytes)
    }

    /// Gives each chunk of the index block at `offset` the checksum of what it decodes to.
    fn mend_chunks(&mut self, offset: u64) {
        let Ok(index) = IndexBlock::decode(&self.block(offset), offset) else { return };
        let mut at = offset + INDEX_CHUNKS + CHUNK_CHECKSUM;
        for view in index.chunks() {
            // A decoded block's chunks are no longer than this.
            let stored = self.read(view.chunk.offset, CHUNK_MAX.min(view.chunk.stored_len as usize));
            let pages = match view.chunk.codec {
                Codec::Store => Some(stored),
                Codec::Zstd => zstd::bulk::decompress(&stored, CHUNK_MAX).ok(),
            };
            if let Some(pages) = pages {
                self.write(at, &checksum(&pages).to_le_bytes());
            }
            at += CHUNK_ENTRY;
        }
    }

    /// Gives the commit record at `offset` the sums of what it points to.
    fn mend_totals(&mut self, offset: u64) {
        if self.read(offset + COMMIT_INDEX + 8, 4) == [0; 4] {
            return;
        }
        let Ok(header) = Header::decode(&self.block(HEADER_OFFSET)) else { return };
        let [mut stored, mut zero, mut chunks, mut blocks, mut bytes] = [0_u64; 5];
        let mut next = Locator { offset: self.word(offset + COMMIT_INDEX - 8), len: 1, ..Locator::default() };
        while next.is_some() && blocks < BLOCKS as u64 {
            let Ok(index) = IndexBlock::decode(&self.block(next.offset), next.offset) else { break };
            for view in index.chunks() {
                chunks += 1;
                bytes += u64::from(view.chunk.stored_len);
                stored += (view.raw_len() / BLOCK) as u64;
            }
            zero += index.zero.iter().map(|run| u64::from(run.pages)).sum::<u64>();
            blocks += 1;
            next = index.prev;
        }
        let ram = header.session.ram_pages();
        let omitted = ram.saturating_sub(stored).saturating_sub(zero);
        for (at, sum) in (offset + COMMIT_TOTALS..).step_by(8).zip([ram, stored, zero, omitted, chunks, blocks, bytes])
        {
            self.write(at, &sum.to_le_bytes());
        }
    }
}

/// An offset on the device, as what memory is indexed with.
fn index(offset: u64) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX)
}
