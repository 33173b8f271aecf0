//! Writing an image: strictly forward, in large aligned pieces, with the commit record last.

use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

use dormouse_image::layout::{DATA_OFFSET, HEADER_OFFSET};
use dormouse_image::{BLOCK, Block, Chunk, Commit, Header, IndexBuilder, Locator, SaveStats, State, Totals};
use dormouse_image::{Extent, FormatError};
use memmap2::MmapMut;

use super::{Image, StoreError};
use crate::stage::{Buffers, ChunkSink, Encoded, StoreFailure};

/// What is written at once, in bytes.
const PIECE: usize = 1 << 20;
/// Pieces that wait for the device, beside the one being filled and the one being written.
const QUEUE: usize = 2;

/// An image in the making. Dropped without [`Writer::finish`], it leaves an image that is "being saved", which no boot
/// resumes.
#[derive(Debug)]
pub struct Writer {
    image: Image,
    index: IndexBuilder,
    last_index: Locator,
    header: Locator,
    totals: Totals,
    stream: Stream,
}

impl Writer {
    /// Invalidates whatever image there was, durably, and begins a new one with `header`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn begin(mut image: Image, header: &Header) -> Result<Writer, StoreError> {
        let block = header.encode().map_err(|source| image.format(source))?;
        let locator = Locator::of(Block::Header, HEADER_OFFSET, &block).map_err(|source| image.format(source))?;
        let saving = Commit {
            seq: image.commit().seq.saturating_add(1),
            state: State::Saving,
            save_id: header.save_id,
            ..Commit::empty(image.label().uuid)
        };
        image.record(saving)?;
        image.disk().write_copy(HEADER_OFFSET, &block)?;
        Ok(Writer {
            index: IndexBuilder::new(header.save_id),
            last_index: Locator::default(),
            header: locator,
            totals: Totals { ram_pages: header.ram_pages(), ..Totals::default() },
            stream: Stream::new(&image)?,
            image,
        })
    }

    /// Makes the image durable and then gives it its final state: `Complete`, or `Snapshot` where the session goes on.
    ///
    /// # Errors
    /// [`StoreError`]. The image is marked as failed then, as far as the device lets it: the commit record may have reached
    /// one of its slots, and nobody must believe it. [`StoreError::TooSmall`] says how large the image would have been.
    pub fn finish(
        mut self,
        state: State,
        omitted_pages: u64,
        stats: impl FnOnce() -> SaveStats,
    ) -> Result<Image, StoreError> {
        match self.commit(state, omitted_pages, stats) {
            Ok(()) => Ok(self.image),
            Err(error) => {
                if let Err(second) = self.image.transition(State::Failed, &error.to_string()) {
                    log::warn!("the image could not be marked as failed: {second}");
                }
                Err(error)
            }
        }
    }

    fn commit(
        &mut self,
        state: State,
        omitted_pages: u64,
        stats: impl FnOnce() -> SaveStats,
    ) -> Result<(), StoreError> {
        self.end_index()?;
        self.stream.finish()?;
        self.totals.omitted_pages = omitted_pages;
        let commit = Commit {
            header: self.header,
            last_index: self.last_index,
            data_end: self.stream.end(),
            totals: self.totals,
            stats: stats(),
            ..self.image.commit().transition(state, "").map_err(|source| self.image.format(source))?
        };
        self.image.disk().flush()?;
        // The commit point: from here on there is an image.
        self.image.record(commit)
    }

    /// Marks the image as failed with `reason`, as far as the device lets it.
    ///
    /// # Errors
    /// [`StoreError`]. The image stays "being saved", which is not resumed either.
    pub fn fail(mut self, reason: &str) -> Result<(), StoreError> {
        // What the stream still wants to write is of no use; its thread must be out of the way.
        let _ = self.stream.stop();
        self.image.transition(State::Failed, reason)
    }

    fn end_index(&mut self) -> Result<(), StoreError> {
        self.stream.align()?;
        let at = self.stream.end();
        let (block, locator) = self.index.finish(at).map_err(|source| self.image.format(source))?;
        self.stream.append(&block)?;
        self.last_index = locator;
        self.totals.index_blocks += 1;
        Ok(())
    }

    fn make_room(&mut self) -> Result<(), StoreError> {
        if self.index.is_full() { self.end_index() } else { Ok(()) }
    }
}

impl ChunkSink for Writer {
    fn chunk(&mut self, chunk: &Encoded) -> Result<(), StoreFailure> {
        self.make_room()?;
        let record = Chunk {
            offset: self.stream.end(),
            stored_len: u32::try_from(chunk.bytes.len())?,
            codec: chunk.codec,
            checksum: chunk.checksum,
        };
        self.index.chunk(&record, &chunk.extents).map_err(|source| self.image.format(source))?;
        self.stream.append(&chunk.bytes)?;
        self.totals.chunks += 1;
        self.totals.stored_bytes += u64::from(record.stored_len);
        self.totals.stored_pages += chunk.extents.iter().map(|extent| u64::from(extent.pages)).sum::<u64>();
        Ok(())
    }

    fn zero(&mut self, run: Extent) -> Result<(), StoreFailure> {
        self.make_room()?;
        self.index.zero(run).map_err(|source: FormatError| self.image.format(source))?;
        self.totals.zero_pages += u64::from(run.pages);
        Ok(())
    }
}

/// Bytes one behind the other, written by a thread of their own.
///
/// Behind the device's end nothing is written but everything is counted, so that the error can say what was needed.
#[derive(Debug)]
struct Stream {
    path: std::path::PathBuf,
    size: u64,
    buffers: Arc<Buffers>,
    piece: MmapMut,
    filled: usize,
    /// Offset on the device of the piece's first byte.
    offset: u64,
    thread: Option<WriteThread>,
}

/// The thread, and the way to hand it work.
type WriteThread = (SyncSender<Piece>, JoinHandle<Result<(), StoreError>>);

struct Piece {
    bytes: MmapMut,
    len: usize,
    offset: u64,
}

impl Stream {
    fn new(image: &Image) -> Result<Stream, StoreError> {
        let path = image.disk().path().to_path_buf();
        let open = |source| StoreError::Open { path: path.clone(), source };
        let buffers = Arc::new(Buffers::new(PIECE));
        let (sender, receiver) = sync_channel::<Piece>(QUEUE);
        let (disk, give_back) = (image.disk().clone(), Arc::clone(&buffers));
        let thread = std::thread::Builder::new()
            .name("write".into())
            .spawn(move || {
                for piece in receiver {
                    disk.write(piece.offset, &piece.bytes[..piece.len])?;
                    give_back.give(piece.bytes);
                }
                Ok(())
            })
            .map_err(open)?;
        Ok(Stream {
            size: image.disk().size(),
            piece: buffers.take().map_err(open)?,
            buffers,
            filled: 0,
            offset: DATA_OFFSET,
            thread: Some((sender, thread)),
            path,
        })
    }

    /// Offset on the device of the next byte.
    fn end(&self) -> u64 {
        self.offset + self.filled as u64
    }

    fn append(&mut self, mut bytes: &[u8]) -> Result<(), StoreError> {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(PIECE - self.filled));
            self.piece[self.filled..self.filled + now.len()].copy_from_slice(now);
            self.filled += now.len();
            bytes = later;
            if self.filled == PIECE {
                self.send()?;
            }
        }
        Ok(())
    }

    /// Fills up with zeroes to the next block.
    fn align(&mut self) -> Result<(), StoreError> {
        let gap = self.filled.next_multiple_of(BLOCK) - self.filled;
        self.append(&[0; BLOCK][..gap])
    }

    /// Hands the piece, which is whole blocks, to the thread and begins another.
    fn send(&mut self) -> Result<(), StoreError> {
        let end = self.end();
        if end <= self.size
            && let Some((sender, _)) = &self.thread
        {
            let next = self.buffers.take().map_err(|source| StoreError::Open { path: self.path.clone(), source })?;
            let bytes = std::mem::replace(&mut self.piece, next);
            let piece = Piece { bytes, len: self.filled, offset: self.offset };
            if sender.send(piece).is_err() {
                self.stop()?;
                return Err(StoreError::WriterGone { path: self.path.clone() });
            }
        }
        self.offset = end;
        self.filled = 0;
        Ok(())
    }

    /// Waits until everything is written. The last append must have been whole blocks.
    fn finish(&mut self) -> Result<(), StoreError> {
        if self.filled > 0 {
            self.send()?;
        }
        self.stop()?;
        if self.offset > self.size {
            return Err(StoreError::TooSmall { path: self.path.clone(), size: self.size, needed: self.offset });
        }
        Ok(())
    }

    fn stop(&mut self) -> Result<(), StoreError> {
        let Some((sender, thread)) = self.thread.take() else {
            return Ok(());
        };
        drop(sender);
        thread.join().map_err(|_| StoreError::WriterGone { path: self.path.clone() })?
    }
}
