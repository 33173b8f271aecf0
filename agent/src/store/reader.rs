//! Reading an image: everything is verified before the first chunk is handed out.

use std::collections::VecDeque;
use std::sync::Arc;

use dormouse_image::layout::{DATA_OFFSET, INDEX_MAX};
use dormouse_image::seal::Opener;
use dormouse_image::{BLOCK, Block, Coverage, Extent, FormatError, Header, IndexBlock, Locator, Uuid};

use crate::pipeline::seams::{BUFFER_LEN, Batch, BlockRead, ChunkSource, StoreFailure, Work};
use crate::store::{Disk, Image, StoreError};

/// Zero runs are handed out in pieces of at most this many pages (16 MiB), so that all workers get some.
const ZERO_PAGES: u32 = 1 << 12;

/// What is left in the last index block is handed out in batches of at most this part of it, ever smaller ones, so that
/// all workers end at about the same time: a batch of well compressed chunks may be many MiB of memory.
const LAST_BATCHES: usize = 16;

/// The verified index of a complete image, and its chunks in the order in which they lie on the device.
#[derive(Debug)]
pub struct Reader {
    disk: Disk,
    save_id: Uuid,
    /// Of a sealed image.
    opener: Option<Arc<Opener>>,
    /// The index blocks, first to last; what is left of them.
    blocks: VecDeque<Locator>,
    /// The block whose chunks are being handed out, and the next of them.
    current: Option<(Arc<IndexBlock>, usize)>,
    /// The block's zero runs that are left.
    zero: VecDeque<Extent>,
    /// How many there were.
    zero_runs: usize,
}

impl Reader {
    /// Walks the index from its last block to its first and checks all of it: checksums, order, that each page belongs
    /// to the memory that `header` describes and occurs once, and the totals.
    ///
    /// # Errors
    /// [`StoreError`] says what is wrong.
    pub fn open(image: &Image, header: &Header) -> Result<Reader, StoreError> {
        let commit = image.commit();
        let opener = image.opener()?;
        let format = |source| image.format(source);
        let mut coverage = Coverage::new(&header.session.ram);
        let mut blocks = VecDeque::new();
        let (mut chunks, mut stored_bytes) = (0, 0);
        let mut ceiling = commit.data_end;
        let mut locator = commit.last_index;
        while locator.is_some() {
            let end = locator.offset.checked_add(locator.len.into());
            if end.is_none_or(|end| end > ceiling || locator.offset < DATA_OFFSET || end > image.disk().size())
                || !locator.offset.is_multiple_of(BLOCK as u64)
            {
                let why = "whole blocks in the stream, before the block that follows";
                let field = "index block's place";
                return Err(format(FormatError::Field { block: Block::Index, field, value: locator.offset, why }));
            }
            let index = read_index(image.disk(), opener.as_deref(), commit.save_id, locator)?;
            for view in index.chunks() {
                chunks += 1;
                stored_bytes += u64::from(view.chunk.stored_len);
                view.extents.iter().try_for_each(|extent| coverage.add(*extent)).map_err(format)?;
            }
            index.zero.iter().try_for_each(|run| coverage.add(*run)).map_err(format)?;
            blocks.push_front(locator);
            ceiling = locator.offset;
            locator = index.prev;
        }
        coverage.finish(&commit.totals).map_err(format)?;
        let totals = &commit.totals;
        let counts = [
            ("index blocks", totals.index_blocks, blocks.len() as u64),
            ("chunks", totals.chunks, chunks),
            ("bytes of chunks", totals.stored_bytes, stored_bytes),
        ];
        for (what, expected, found) in counts {
            if expected != found {
                return Err(format(FormatError::Count { what, expected, found }));
            }
        }
        let (disk, save_id) = (image.disk().clone(), commit.save_id);
        Ok(Reader { disk, save_id, opener, blocks, current: None, zero: VecDeque::new(), zero_runs: 0 })
    }

    /// As many chunks from `first` on as fit into one buffer.
    fn batch(&self, index: &Arc<IndexBlock>, first: usize, most: usize) -> Result<Batch, StoreError> {
        let block = BLOCK as u64;
        let offset = index.chunk(first).chunk.offset / block * block;
        let mut last = first;
        let mut len = 0;
        for at in (first..index.chunks().len()).take(most) {
            let view = index.chunk(at);
            let end = (view.chunk.offset + u64::from(view.chunk.stored_len)).next_multiple_of(block);
            match usize::try_from(end - offset) {
                Ok(fits) if fits <= BUFFER_LEN => (last, len) = (at + 1, fits),
                _ => break,
            }
        }
        if last == first {
            let (field, why) = ("chunk's length", "at most what is read at once");
            let source = FormatError::Field { block: Block::Index, field, value: offset, why };
            return Err(StoreError::Format { name: self.disk.name().to_owned(), source });
        }
        Ok(Batch { offset, len, index: Arc::clone(index), chunks: first..last })
    }

    /// A piece of the next zero run of this block, if it is its turn: runs and chunks are handed out in proportion, so
    /// that memory is filled while the device reads, and both go through the same windows at the same time.
    fn next_zero(&mut self) -> Option<Extent> {
        let (chunks_left, chunks) = match &self.current {
            Some((index, next)) => (index.chunks().len() - next, index.chunks().len()),
            None => (0, 0),
        };
        if self.zero.len() * chunks < chunks_left * self.zero_runs {
            return None;
        }
        let run = self.zero.pop_front()?;
        let piece = Extent { pages: run.pages.min(ZERO_PAGES), ..run };
        if piece.pages < run.pages {
            self.zero.push_front(Extent { pfn: piece.range().end, pages: run.pages - piece.pages });
        }
        Some(piece)
    }
}

impl ChunkSource for Reader {
    type Device = Disk;

    fn device(&self) -> Disk {
        self.disk.clone()
    }

    fn opener(&self) -> Option<Arc<Opener>> {
        self.opener.clone()
    }

    fn next(&mut self) -> Result<Option<Work>, StoreFailure> {
        loop {
            if let Some(run) = self.next_zero() {
                return Ok(Some(Work::Zero(run)));
            }
            if let Some((index, first)) = &self.current
                && *first < index.chunks().len()
            {
                let left = index.chunks().len() - first;
                let most = if self.blocks.is_empty() { (left / LAST_BATCHES).max(1) } else { left };
                let batch = self.batch(index, *first, most)?;
                self.current = Some((Arc::clone(index), batch.chunks.end));
                return Ok(Some(Work::Chunks(batch)));
            }
            let Some(locator) = self.blocks.pop_front() else {
                return Ok(None);
            };
            // Verified before, and checked again: it is read again.
            let index = read_index(&self.disk, self.opener.as_deref(), self.save_id, locator)?;
            self.zero = index.zero.iter().copied().collect();
            self.zero_runs = self.zero.len();
            self.current = Some((Arc::new(index), 0));
        }
    }
}

impl BlockRead for Disk {
    fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<(), StoreFailure> {
        Ok(self.read_into(offset, bytes)?)
    }
}

fn read_index(disk: &Disk, opener: Option<&Opener>, save_id: Uuid, locator: Locator) -> Result<IndexBlock, StoreError> {
    let format = |source| StoreError::Format { name: disk.name().to_owned(), source };
    let len = locator.len as usize;
    if len > INDEX_MAX || !len.is_multiple_of(BLOCK) {
        return Err(format(FormatError::TooLarge { block: Block::Index, size: len, max: INDEX_MAX }));
    }
    let mut bytes = disk.read(locator.offset, len)?;
    let index = match opener {
        Some(opener) => opener.index(&locator, &mut bytes),
        None => locator.check(Block::Index, &bytes).and_then(|()| IndexBlock::decode(&bytes, locator.offset)),
    };
    let index = index.map_err(format)?;
    if index.save_id != save_id {
        let (expected, found) = (save_id, index.save_id);
        return Err(format(FormatError::Foreign { block: Block::Index, expected, found }));
    }
    Ok(index)
}
