//! The narrow seams at which the stages meet: pages in, chunks out, and the other way round.
//!
//! `vmcore` is a [`PageSource`] and `physmem` a [`PageSink`]; `store` takes and gives chunks; `pipeline` stands between
//! them and knows none of them.

use std::error::Error;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use dormouse_image::{ChunkView, Codec, Extent, IndexBlock, PfnRange};
use memmap2::MmapMut;

/// What a store can fail with; its message names device and offset.
pub type StoreFailure = Box<dyn Error + Send + Sync>;

/// Memory that can be read by page frames, from several threads at once.
pub trait PageSource: Sync {
    /// Calls `read` with the bytes of `run`, which must not cross a boundary of [`crate::window`].
    ///
    /// # Errors
    /// The memory cannot be mapped, or `run` is not part of it.
    fn read<T>(&self, run: PfnRange, read: impl FnOnce(&[u8]) -> T) -> io::Result<T>;
}

/// Memory that can be written by page frames, from several threads at once.
pub trait PageSink: Sync {
    /// Calls `write` with the bytes of `run`, which must not cross a boundary of [`crate::window`].
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
}

/// All pages matter.
#[derive(Debug, Clone, Copy)]
pub struct Everything;

impl PageFilter for Everything {
    fn fate(&self, _: u64) -> Fate {
        Fate::Store
    }
}

/// A chunk, compressed, on its way to the store.
#[derive(Debug)]
pub struct Encoded {
    /// Where its pages come from, ascending.
    pub extents: Vec<Extent>,
    /// How `bytes` are stored.
    pub codec: Codec,
    /// The checksum of the uncompressed pages.
    pub checksum: u64,
    /// What is stored.
    pub bytes: Vec<u8>,
}

/// Where chunks go.
pub trait ChunkSink {
    /// Stores a chunk.
    ///
    /// # Errors
    /// What the store says.
    fn chunk(&mut self, chunk: &Encoded) -> Result<(), StoreFailure>;

    /// Records a run of zero pages.
    ///
    /// # Errors
    /// What the store says.
    fn zero(&mut self, run: Extent) -> Result<(), StoreFailure>;
}

/// Something to restore.
#[derive(Debug)]
pub enum Work {
    /// Chunks that lie together on the device.
    Chunks(Batch),
    /// A run of zero pages.
    Zero(Extent),
}

/// Consecutive chunks, read but not decoded.
#[derive(Debug)]
pub struct Batch {
    /// What was read.
    pub bytes: MmapMut,
    /// The offset on the device of the first byte of `bytes`.
    pub offset: u64,
    /// The index block that describes the chunks.
    pub index: Arc<IndexBlock>,
    /// Which of its chunks are in `bytes`.
    pub chunks: std::ops::Range<usize>,
}

impl Batch {
    /// The chunks, each with its stored bytes, or `None` where they are not in this batch.
    pub fn chunks(&self) -> impl Iterator<Item = (ChunkView<'_>, Option<&[u8]>)> {
        self.chunks.clone().map(|at| {
            let view = self.index.chunk(at);
            let start = view.chunk.offset.checked_sub(self.offset).and_then(|start| usize::try_from(start).ok());
            let bytes = start.and_then(|start| {
                self.bytes.get(start..start.checked_add(usize::try_from(view.chunk.stored_len).ok()?)?)
            });
            (view, bytes)
        })
    }
}

/// Where chunks come from.
pub trait ChunkSource {
    /// The next piece of work, or `None` at the end.
    ///
    /// # Errors
    /// What the store says.
    fn next(&mut self, buffers: &Buffers) -> Result<Option<Work>, StoreFailure>;
}

/// Page-aligned buffers of one size, for direct I/O, that are used again and again.
#[derive(Debug)]
pub struct Buffers {
    size: usize,
    free: Mutex<Vec<MmapMut>>,
}

impl Buffers {
    /// Buffers of `size` bytes.
    #[must_use]
    pub fn new(size: usize) -> Buffers {
        Buffers { size, free: Mutex::new(Vec::new()) }
    }

    /// The size of each in bytes.
    #[must_use]
    pub fn size(&self) -> usize {
        self.size
    }

    /// A buffer, with whatever is in it.
    ///
    /// # Errors
    /// Out of memory.
    pub fn take(&self) -> io::Result<MmapMut> {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        free.map_or_else(|| MmapMut::map_anon(self.size), Ok)
    }

    /// Takes a buffer back.
    pub fn give(&self, buffer: MmapMut) {
        if buffer.len() == self.size {
            self.free.lock().unwrap_or_else(PoisonError::into_inner).push(buffer);
        }
    }
}
