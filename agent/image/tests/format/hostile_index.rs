//! Index blocks with a right checksum and wrong content.

use dormouse_image::layout::{DATA_OFFSET, INDEX_MAX_CHUNKS, PFN_LIMIT};
use dormouse_image::{Block, FormatError, INDEX_MAGIC, IndexBlock};

use crate::bytes::framed;

/// Where the blocks of these tests lie.
const AT: u64 = DATA_OFFSET + (4 << 20);

/// An index block as it lies on the device, free of all rules.
#[derive(Clone)]
struct Raw {
    /// Offset and length.
    prev: (u64, u32),
    /// What the counts say, where they do not tell the truth.
    counts: Option<[u32; 3]>,
    /// Offset, stored length, codec, number of extents.
    chunks: Vec<(u64, u32, u16, u16)>,
    extents: Vec<(u64, u32)>,
    zero: Vec<(u64, u32)>,
}

impl Raw {
    /// A good block: two chunks, one zero run.
    fn good() -> Raw {
        Raw {
            prev: (0, 0),
            counts: None,
            chunks: vec![(DATA_OFFSET, 8192, 0, 1), (DATA_OFFSET + 8192, 100, 1, 2)],
            extents: vec![(0x100, 2), (0x200, 1), (0x300, 3)],
            zero: vec![(0x400, 5)],
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut body = vec![0x22; 16];
        body.extend(self.prev.0.to_le_bytes());
        body.extend([0; 8]);
        body.extend(self.prev.1.to_le_bytes());
        let truth = [self.chunks.len(), self.extents.len(), self.zero.len()];
        let truth = truth.map(|count| u32::try_from(count).unwrap());
        for count in self.counts.unwrap_or(truth) {
            body.extend(count.to_le_bytes());
        }
        body.extend([0; 24]);
        for (offset, stored_len, codec, extents) in &self.chunks {
            body.extend(offset.to_le_bytes());
            body.extend([0; 8]);
            body.extend(stored_len.to_le_bytes());
            body.extend(codec.to_le_bytes());
            body.extend(extents.to_le_bytes());
            body.extend([0; 24]);
        }
        for (pfn, pages) in self.extents.iter().chain(&self.zero) {
            body.extend(pfn.to_le_bytes());
            body.extend(pages.to_le_bytes());
        }
        framed(INDEX_MAGIC, &body)
    }

    fn decode(&self) -> Result<IndexBlock, FormatError> {
        IndexBlock::decode(&self.bytes(), AT)
    }

    /// The field for which it is refused.
    fn refused(&self) -> &'static str {
        match self.decode() {
            Err(FormatError::Field { block: Block::Index, field, .. }) => field,
            other => panic!("{other:?}"),
        }
    }
}

/// [`Raw::good`] with a change.
fn changed(change: impl FnOnce(&mut Raw)) -> Raw {
    let mut raw = Raw::good();
    change(&mut raw);
    raw
}

#[test]
fn the_good_block_is_good() {
    let block = Raw::good().decode().unwrap();
    assert_eq!((block.chunks().len(), block.zero.len()), (2, 1));
    assert_eq!(block.chunk(1).raw_len(), 4 * 4096);
}

#[test]
fn counts_at_their_extremes_are_refused() {
    let most = u32::try_from(INDEX_MAX_CHUNKS).unwrap();
    for counts in [[most + 1, 3, 1], [u32::MAX, 3, 1], [u32::MAX, u32::MAX, u32::MAX]] {
        assert_eq!(changed(|raw| raw.counts = Some(counts)).refused(), "chunk count");
    }
    for counts in [[2, u32::MAX, 1], [2, 3, u32::MAX], [most, u32::MAX, u32::MAX], [most, 3, 1]] {
        let found = changed(|raw| raw.counts = Some(counts)).decode();
        assert!(matches!(found, Err(FormatError::Truncated { block: Block::Index, .. })), "{found:?}");
    }
    // Counts that lie, but within the block: the tables do not match them.
    for counts in [[1, 3, 1], [3, 3, 1], [2, 2, 2], [2, 4, 0], [0, 3, 1]] {
        let found = changed(|raw| raw.counts = Some(counts)).decode();
        assert!(found.is_err(), "{counts:?}: {found:?}");
    }
}

#[test]
fn the_most_chunks_are_read() {
    let raw = changed(|raw| {
        raw.chunks = (0..INDEX_MAX_CHUNKS as u64).map(|at| (DATA_OFFSET + at, 1, 1, 1)).collect();
        raw.extents = (0..INDEX_MAX_CHUNKS as u64).map(|at| (at, 1)).collect();
    });
    assert_eq!(raw.decode().unwrap().chunks().len(), INDEX_MAX_CHUNKS);
}

#[test]
fn a_previous_block_that_cannot_be_is_refused() {
    for prev in [
        (0, 4096),
        (DATA_OFFSET - 4096, 4096),
        (DATA_OFFSET + 1, 4096),
        (DATA_OFFSET, 1),
        (DATA_OFFSET, 4097),
        (DATA_OFFSET, (1 << 20) + 4096),
        (DATA_OFFSET, u32::MAX),
        // This block itself, one that reaches into it, and one after it: a walk back must come to an end.
        (AT, 4096),
        (AT - 4096, 8192),
        (AT + 4096, 4096),
        (u64::MAX - 4095, 4096),
        (u64::MAX, 4096),
    ] {
        assert_eq!(changed(|raw| raw.prev = prev).refused(), "previous block", "{prev:?}");
    }
    let later = changed(|raw| {
        raw.prev = (DATA_OFFSET, 1 << 20);
        raw.chunks[0].0 += 1 << 20;
        raw.chunks[1].0 += 1 << 20;
    });
    assert!(later.decode().unwrap().prev.is_some());
}

#[test]
fn a_chunk_that_does_not_lie_between_its_neighbours_is_refused() {
    for offset in [0, DATA_OFFSET - 1, AT - 8191, AT, u64::MAX - 8191, u64::MAX] {
        assert_eq!(changed(|raw| raw.chunks[0].0 = offset).refused(), "chunk's offset", "{offset:#x}");
    }
    for offset in [DATA_OFFSET, DATA_OFFSET + 8191] {
        assert_eq!(changed(|raw| raw.chunks[1].0 = offset).refused(), "chunk's offset", "{offset:#x}");
    }
    // Inside the previous block.
    assert_eq!(changed(|raw| raw.prev = (DATA_OFFSET, 4096)).refused(), "chunk's offset");
    // With a gap, and up to the index block itself.
    changed(|raw| raw.chunks[1].0 = AT - 100).decode().unwrap();
}

#[test]
fn a_chunk_of_a_wrong_length_or_codec_is_refused() {
    for stored_len in [0, 1, 8191, 8193, u32::MAX] {
        assert_eq!(changed(|raw| raw.chunks[0].1 = stored_len).refused(), "chunk's length");
    }
    for compressed in [0, 4 * 4096, 4 * 4096 + 1, u32::MAX] {
        assert_eq!(changed(|raw| raw.chunks[1].1 = compressed).refused(), "chunk's length");
    }
    changed(|raw| raw.chunks[1].1 = 4 * 4096 - 1).decode().unwrap();
    for codec in [2, 0x0100, u16::MAX] {
        assert_eq!(changed(|raw| raw.chunks[0].2 = codec).refused(), "codec");
    }
}

#[test]
fn a_chunk_of_no_pages_or_too_many_is_refused() {
    assert_eq!(changed(|raw| raw.chunks[0].3 = 0).refused(), "chunk's pages");
    assert_eq!(changed(|raw| raw.extents[0].1 = 65).refused(), "chunk's pages");
    // Sums that would wrap around.
    assert_eq!(changed(|raw| raw.extents[2].1 = u32::MAX).refused(), "chunk's pages");
    changed(|raw| {
        raw.chunks[0].1 = 64 * 4096;
        raw.chunks[1].0 += 64 * 4096;
        raw.extents[0].1 = 64;
    })
    .decode()
    .unwrap();
}

#[test]
fn extents_that_are_not_the_chunks_own_are_refused() {
    assert_eq!(changed(|raw| raw.chunks[1].3 = 3).refused(), "chunk's extents");
    assert_eq!(changed(|raw| raw.chunks[1].3 = u16::MAX).refused(), "chunk's extents");
    assert_eq!(changed(|raw| raw.extents.push((0x500, 1))).refused(), "extent count");
}

#[test]
fn extents_that_overlap_or_descend_in_a_chunk_are_refused() {
    for pfn in [0, 0x1ff, 0x200] {
        assert_eq!(changed(|raw| raw.extents[2].0 = pfn).refused(), "chunk's extents", "{pfn:#x}");
    }
    // Touching is allowed, and so is another order between chunks: chunks are written as they come.
    changed(|raw| raw.extents[2].0 = 0x201).decode().unwrap();
    changed(|raw| raw.extents[0].0 = 0x5000).decode().unwrap();
}

#[test]
fn page_frames_beyond_the_limit_and_empty_runs_are_refused() {
    let wrong = [(PFN_LIMIT, 1), (PFN_LIMIT - 1, 2), (u64::MAX, 1), (u64::MAX, u32::MAX), (7, 0)];
    for extent in wrong {
        assert_eq!(changed(|raw| raw.extents[2] = extent).refused(), "extent", "{extent:?}");
        assert_eq!(changed(|raw| raw.zero[0] = extent).refused(), "extent", "{extent:?}");
    }
    changed(|raw| raw.extents[2] = (PFN_LIMIT - 1, 1)).decode().unwrap();
    changed(|raw| raw.zero[0] = (PFN_LIMIT - u64::from(u32::MAX), u32::MAX)).decode().unwrap();
}
