//! Writing index blocks.

use std::sync::Arc;

use zerocopy::IntoBytes;
use zerocopy::byteorder::little_endian::{U16, U32};

use super::{CHUNK, Chunk, EXTENT, INDEX, INDEX_MAGIC, RawChunk, RawExtent, RawIndex, check_chunk, check_extent};
use crate::block::{self, PROLOGUE};
use crate::error::{Block, FormatError};
use crate::layout::{CHUNK_PAGES, DATA_OFFSET, INDEX_MAX, INDEX_MAX_CHUNKS};
use crate::seal::Sealer;
use crate::{BLOCK, Extent, Locator, SEALED, Uuid};

/// Collects what an index block describes, until it is full.
#[derive(Debug)]
pub struct IndexBuilder {
    save_id: Uuid,
    /// Of a sealed image.
    sealer: Option<Arc<Sealer>>,
    prev: Locator,
    /// The end of the last chunk or index block.
    end: u64,
    chunks: Vec<RawChunk>,
    extents: Vec<Extent>,
    zero: Vec<Extent>,
}

impl IndexBuilder {
    /// An empty block of the save `save_id`.
    #[must_use]
    pub fn new(save_id: Uuid) -> IndexBuilder {
        IndexBuilder::with(save_id, None)
    }

    /// An empty block of the save `save_id`, whose blocks are sealed where there is a sealer; so are its chunks then.
    #[must_use]
    pub fn with(save_id: Uuid, sealer: Option<Arc<Sealer>>) -> IndexBuilder {
        IndexBuilder {
            save_id,
            sealer,
            prev: Locator::default(),
            end: DATA_OFFSET,
            chunks: Vec::new(),
            extents: Vec::new(),
            zero: Vec::new(),
        }
    }

    /// Whether another chunk or run of zero pages may not fit: then it is time for [`IndexBuilder::finish`].
    #[must_use]
    pub fn is_full(&self) -> bool {
        !self.has_room(1, CHUNK_PAGES as usize, 0)
    }

    /// Whether that many more fit: then each of them is taken.
    #[must_use]
    pub fn has_room(&self, chunks: usize, extents: usize, zero: usize) -> bool {
        let more = chunks * CHUNK + (extents + zero) * EXTENT;
        self.chunks.len() + chunks <= INDEX_MAX_CHUNKS && PROLOGUE + self.body_len() + more <= INDEX_MAX
    }

    /// Whether it is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty() && self.zero.is_empty()
    }

    /// Adds a chunk, whose offset must be after all earlier ones.
    ///
    /// # Errors
    /// [`FormatError::Field`] where the chunk breaks a rule of the format, [`FormatError::TooLarge`] where the block
    /// is full.
    pub fn chunk(&mut self, chunk: &Chunk, extents: &[Extent]) -> Result<(), FormatError> {
        if !self.has_room(1, extents.len(), 0) {
            return Err(self.too_large());
        }
        if self.sealer.is_some() != (chunk.counter != 0) {
            let (field, why) = ("chunk's counter", "0 in an image that is not sealed, and only there");
            return Err(FormatError::Field { block: Block::Index, field, value: chunk.counter, why });
        }
        self.end = check_chunk(chunk, extents, self.end, u64::MAX)?;
        self.chunks.push(RawChunk {
            offset: chunk.offset.into(),
            checksum: chunk.checksum.into(),
            stored_len: chunk.stored_len.into(),
            codec: U16::new(chunk.codec.number()),
            // At most one for each of 64 pages.
            extents: U16::new(u16::try_from(extents.len()).unwrap_or(u16::MAX)),
            counter: chunk.counter.into(),
            tag: chunk.tag,
        });
        self.extents.extend(extents);
        Ok(())
    }

    /// Adds a run of zero pages, joining it to the last one where they touch.
    ///
    /// # Errors
    /// [`FormatError::Field`] where the run is empty or ends above the limit of page frame numbers,
    /// [`FormatError::TooLarge`] where the block is full.
    pub fn zero(&mut self, run: Extent) -> Result<(), FormatError> {
        check_extent(&run)?;
        if let Some(last) = self.zero.last_mut()
            && last.range().end == run.pfn
            && let Some(pages) = last.pages.checked_add(run.pages)
        {
            last.pages = pages;
            return Ok(());
        }
        // A run takes none of the room that chunks have.
        if !self.has_room(0, 0, 1) {
            return Err(self.too_large());
        }
        self.zero.push(run);
        Ok(())
    }

    /// Encodes the block for its place at `at`, seals it where the image is sealed, and starts the next one after it.
    ///
    /// # Errors
    /// [`FormatError::Field`] where `at` is not a block boundary after the chunks, [`FormatError::TooLarge`], which
    /// [`IndexBuilder::has_room`] prevents.
    pub fn finish(&mut self, at: u64) -> Result<(Vec<u8>, Locator), FormatError> {
        let misplaced = FormatError::Field {
            block: Block::Index,
            field: "offset",
            value: at,
            why: "a multiple of 4096 after its chunks",
        };
        if at < self.end || !at.is_multiple_of(BLOCK as u64) {
            return Err(misplaced);
        }
        let count = |len: usize| U32::new(u32::try_from(len).unwrap_or(u32::MAX));
        let raw = RawIndex {
            save_id: self.save_id.0,
            prev_offset: self.prev.offset.into(),
            prev_checksum: self.prev.checksum.into(),
            prev_len: self.prev.len.into(),
            chunks: count(self.chunks.len()),
            extents: count(self.extents.len()),
            zero: count(self.zero.len()),
            prev_tag: self.prev.tag,
            reserved: [0; 8],
        };
        let mut body = Vec::with_capacity(self.body_len());
        body.extend(raw.as_bytes());
        body.extend(self.chunks.as_bytes());
        for extent in self.extents.iter().chain(&self.zero) {
            body.extend(RawExtent { pfn: extent.pfn.into(), pages: extent.pages.into() }.as_bytes());
        }
        let minor = if self.sealer.is_some() { SEALED } else { 0 };
        let mut bytes = block::frame_since(minor, Block::Index, INDEX_MAGIC, &body, INDEX_MAX)?;
        self.prev = match &self.sealer {
            Some(sealer) => sealer.block(Block::Index, at, &mut bytes)?,
            None => Locator::of(Block::Index, at, &bytes)?,
        };
        self.end = self.prev.end(DATA_OFFSET, INDEX_MAX).ok_or(misplaced)?;
        self.chunks.clear();
        self.extents.clear();
        self.zero.clear();
        Ok((bytes, self.prev))
    }

    fn body_len(&self) -> usize {
        INDEX + self.chunks.len() * CHUNK + (self.extents.len() + self.zero.len()) * EXTENT
    }

    fn too_large(&self) -> FormatError {
        FormatError::TooLarge { block: Block::Index, size: PROLOGUE + self.body_len(), max: INDEX_MAX }
    }
}
