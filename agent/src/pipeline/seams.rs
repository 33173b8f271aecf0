//! The narrow seams at which the stages meet: pages in, pieces of an image out, and the other way round.
//!
//! `vmcore` is a [`PageSource`] and `physmem` a [`PageSink`]; `store` takes and gives chunks; `pipeline` stands between
//! them and knows none of them.

use std::error::Error;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use dormouse_image::seal::{Opener, Sealer};
use dormouse_image::{Chunk, ChunkView, Extent, IndexBlock, PfnRange};

pub use crate::pipeline::buffers::BUFFER_LEN;
use crate::pipeline::buffers::Buffer;

/// What a store can fail with; its message names device and offset.
pub type StoreFailure = Box<dyn Error + Send + Sync>;

/// Memory that can be read by page frames, from several threads at once.
pub trait PageSource: Sync {
    /// Calls `read` with the bytes of `run`, which must not cross a boundary of [`crate::pipeline::window`].
    ///
    /// # Errors
    /// The memory cannot be mapped, or `run` is not part of it.
    fn read<T>(&self, run: PfnRange, read: impl FnOnce(&[u8]) -> T) -> io::Result<T>;
}

/// Memory that can be written by page frames, from several threads at once.
pub trait PageSink: Sync {
    /// Calls `write` with the bytes of `run`, which must not cross a boundary of [`crate::pipeline::window`].
    ///
    /// # Errors
    /// The memory cannot be mapped, or `run` is not part of what may be written.
    fn write<T>(&self, run: PfnRange, write: impl FnOnce(&mut [u8]) -> T) -> io::Result<T>;
}

/// What becomes of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It is stored, unless it is all zero.
    Store,
    /// It is restored as zeroes, whatever is in it; it need not be read.
    Zero,
    /// It is neither read nor restored.
    Leave,
}

/// Says which pages matter.
pub trait PageFilter: Sync {
    /// What becomes of the page at this page frame.
    fn fate(&self, pfn: u64) -> Fate;

    /// What becomes of the first page of `frames`, which has one, and how many from it on certainly share that: at
    /// least itself, at most `frames`.
    fn run(&self, frames: PfnRange) -> (Fate, u64) {
        let fate = self.fate(frames.start);
        let others = (frames.start + 1..frames.end).take_while(|pfn| self.fate(*pfn) == fate).count();
        (fate, 1 + others as u64)
    }
}

/// All pages matter.
#[derive(Debug, Clone, Copy)]
pub struct Everything;

impl PageFilter for Everything {
    fn fate(&self, _: u64) -> Fate {
        Fate::Store
    }

    fn run(&self, frames: PfnRange) -> (Fate, u64) {
        (Fate::Store, frames.pages())
    }
}

/// What one worker has made of its share of memory: consecutive chunks, and runs of zero pages.
#[derive(Debug, Default)]
pub struct Piece {
    /// The bytes of the chunks, where there are any: the first `len` of the buffer.
    pub buffer: Option<Buffer>,
    /// Bytes in use.
    pub len: usize,
    /// The chunks in the order of their bytes; their offsets count from the beginning of the piece.
    pub chunks: Vec<Chunk>,
    /// Where the pages of the chunks come from, the chunks' consecutive.
    pub extents: Vec<Extent>,
    /// For each chunk, how many of the extents are its.
    pub extent_counts: Vec<usize>,
    /// Runs of pages that are restored as zeroes.
    pub zero: Vec<Extent>,
    /// How many pages were left out.
    pub left: u64,
}

impl Piece {
    /// The chunks, each with its extents.
    pub fn chunks(&self) -> impl Iterator<Item = (&Chunk, &[Extent])> {
        let mut rest = self.extents.as_slice();
        self.chunks.iter().zip(&self.extent_counts).map(move |(chunk, count)| {
            let (extents, after) = rest.split_at(*count);
            rest = after;
            (chunk, extents)
        })
    }

    /// Pages in chunks.
    #[must_use]
    pub fn stored(&self) -> u64 {
        self.extents.iter().map(|extent| u64::from(extent.pages)).sum()
    }

    /// Whether there is nothing in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty() && self.zero.is_empty() && self.left == 0
    }
}

/// Where pieces go.
pub trait PieceSink {
    /// Stores a piece after all earlier ones. It may still be on its way when this returns.
    ///
    /// # Errors
    /// What the store reports, also of earlier pieces.
    fn piece(&mut self, piece: Piece) -> Result<(), StoreFailure>;

    /// How many bytes of pieces there is still room for.
    fn room(&self) -> u64;

    /// What seals the chunks before they come here, where they must be sealed.
    fn sealer(&self) -> Option<Arc<Sealer>> {
        None
    }
}

/// Something to restore.
#[derive(Debug)]
pub enum Work {
    /// Chunks that lie together on the device.
    Chunks(Batch),
    /// A run of zero pages.
    Zero(Extent),
}

/// Consecutive chunks that are read at once.
#[derive(Debug)]
pub struct Batch {
    /// The offset on the device of the first byte to be read, in whole blocks.
    pub offset: u64,
    /// How many bytes are to be read, in whole blocks: at most [`BUFFER_LEN`].
    pub len: usize,
    /// The index block that describes the chunks.
    pub index: Arc<IndexBlock>,
    /// Which of its chunks they are.
    pub chunks: Range<usize>,
}

impl Batch {
    /// The chunks, each with the place of its stored bytes among those that are read for this batch, or `None` where
    /// they are not among them.
    pub fn chunks(&self) -> impl Iterator<Item = (ChunkView<'_>, Option<Range<usize>>)> {
        self.chunks.clone().map(move |at| {
            let view = self.index.chunk(at);
            let start = view.chunk.offset.checked_sub(self.offset).and_then(|start| usize::try_from(start).ok());
            let place = start.and_then(|start| Some(start..start.checked_add(view.chunk.stored_len.try_into().ok()?)?));
            (view, place.filter(|place| place.end <= self.len))
        })
    }
}

/// Where chunks come from.
pub trait ChunkSource: Send {
    /// How they are read, from several threads at once.
    type Device: BlockRead;

    /// The device that the batches are on.
    fn device(&self) -> Self::Device;

    /// What opens the chunks, where they are sealed.
    fn opener(&self) -> Option<Arc<Opener>> {
        None
    }

    /// The next piece of work, or `None` at the end.
    ///
    /// # Errors
    /// What the store reports.
    fn next(&mut self) -> Result<Option<Work>, StoreFailure>;
}

/// A device that is read in whole blocks.
pub trait BlockRead: Sync {
    /// Fills `bytes`, which are aligned to pages, from `offset`.
    ///
    /// # Errors
    /// What the store reports.
    fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<(), StoreFailure>;
}
