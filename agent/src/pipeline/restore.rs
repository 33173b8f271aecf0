//! Chunks to memory.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};

use dormouse_image::layout::CHUNK_MAX;
use dormouse_image::{BLOCK, ChunkView, Codec, Extent, PfnRange, checksum};

use super::{Counts, FirstFailure, IN_FLIGHT, PipelineError, thread_pool};
use crate::stage::{Buffers, ChunkSource, PageSink, Work};
use crate::window;

/// What is read at once, in bytes, at most; chunks are at most a quarter of it.
const READ_SIZE: usize = 1 << 20;

/// Writes everything that `source` has to `sink`, with `threads` threads, checking each chunk.
///
/// A chunk's checksum can only be compared when its pages have been decoded, and they are decoded in place: after an
/// error, `sink` holds a mixture and must not be used.
///
/// # Errors
/// [`PipelineError`]: the first failure of any thread.
pub fn restore<S: PageSink>(
    source: &mut impl ChunkSource,
    sink: &S,
    threads: usize,
    mut progress: impl FnMut(u64),
) -> Result<Counts, PipelineError> {
    let pool = thread_pool(threads)?;
    let failure = FirstFailure::default();
    let buffers = Buffers::new(READ_SIZE);
    let (sender, receiver) = sync_channel(threads * IN_FLIGHT);

    let (counts, read) = std::thread::scope(|scope| {
        let (failure, buffers) = (&failure, &buffers);
        scope.spawn(move || {
            // Owned here: when all workers are gone, so is the receiver, and the reader below does not wait for them.
            let receiver = Mutex::new(receiver);
            pool.broadcast(|_| {
                let worker = Worker::new(sink, buffers);
                if let Err(error) = worker.and_then(|mut worker| worker.run(&receiver)) {
                    failure.set(error);
                }
            });
        });
        let result = feed(source, &sender, failure, buffers, &mut progress);
        // The end of the work ends the workers.
        drop(sender);
        result
    });
    failure.into_result()?;
    read?;
    Ok(counts)
}

/// Reads until the end, or until a worker has failed. What is counted is handed out, and done soon after.
fn feed(
    source: &mut impl ChunkSource,
    sender: &SyncSender<Work>,
    failure: &FirstFailure,
    buffers: &Buffers,
    progress: &mut impl FnMut(u64),
) -> (Counts, Result<(), PipelineError>) {
    let mut counts = Counts::default();
    while !failure.is_set() {
        let work = match source.next(buffers) {
            Ok(Some(work)) => work,
            Ok(None) => break,
            Err(error) => return (counts, Err(PipelineError::Store(error))),
        };
        match &work {
            Work::Zero(run) => counts.zero += u64::from(run.pages),
            Work::Chunks(batch) => {
                counts.stored += batch.chunks().map(|(view, _)| (view.raw_len() / BLOCK) as u64).sum::<u64>();
            }
        }
        if sender.send(work).is_err() {
            break;
        }
        progress(counts.stored + counts.zero);
    }
    (counts, Ok(()))
}

struct Worker<'a, S> {
    sink: &'a S,
    zstd: zstd::bulk::Decompressor<'static>,
    /// Chunks whose pages do not lie together are decoded here.
    scratch: Vec<u8>,
    buffers: &'a Buffers,
}

impl<'a, S: PageSink> Worker<'a, S> {
    fn new(sink: &'a S, buffers: &'a Buffers) -> Result<Worker<'a, S>, PipelineError> {
        let zstd = zstd::bulk::Decompressor::new().map_err(PipelineError::Codec)?;
        Ok(Worker { sink, zstd, scratch: vec![0; CHUNK_MAX], buffers })
    }

    /// Works until there is no more, or until it fails.
    fn run(&mut self, receiver: &Mutex<Receiver<Work>>) -> Result<(), PipelineError> {
        loop {
            // Waits under the lock: the others have nothing to take meanwhile either.
            let work = receiver.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok(work) = work else { return Ok(()) };
            self.work(&work)?;
            if let Work::Chunks(batch) = work {
                self.buffers.give(batch.bytes);
            }
        }
    }

    fn work(&mut self, work: &Work) -> Result<(), PipelineError> {
        match work {
            Work::Zero(run) => {
                for piece in window::pieces(run.range()) {
                    self.write(piece, |bytes| bytes.fill(0))?;
                }
            }
            Work::Chunks(batch) => {
                for (view, bytes) in batch.chunks() {
                    let bytes = bytes.ok_or_else(|| damaged(&view, "it lies outside what was read"))?;
                    self.chunk(&view, bytes)?;
                }
            }
        }
        Ok(())
    }

    fn chunk(&mut self, view: &ChunkView<'_>, stored: &[u8]) -> Result<(), PipelineError> {
        if let [run] = view.extents
            && window::pieces(run.range()).nth(1).is_none()
        {
            // In place, without a second copy.
            let zstd = &mut self.zstd;
            return self
                .sink
                .write(run.range(), |pages| decode(zstd, view, stored, pages))
                .map_err(|source| PipelineError::Memory { pfn: run.pfn, source })?;
        }
        let mut scratch = std::mem::take(&mut self.scratch);
        let result = self.scatter(view, stored, &mut scratch);
        self.scratch = scratch;
        result
    }

    fn scatter(&mut self, view: &ChunkView<'_>, stored: &[u8], scratch: &mut [u8]) -> Result<(), PipelineError> {
        let len = view.raw_len();
        let raw = scratch.get_mut(..len).ok_or_else(|| damaged(view, "it is too long"))?;
        decode(&mut self.zstd, view, stored, raw)?;
        let mut rest = &*raw;
        for piece in view.extents.iter().flat_map(|extent: &Extent| window::pieces(extent.range())) {
            let len = usize::try_from(piece.pages()).unwrap_or(usize::MAX).saturating_mul(BLOCK);
            let (pages, after) = rest.split_at_checked(len).ok_or_else(|| damaged(view, "it is too short"))?;
            self.write(piece, |bytes| bytes.copy_from_slice(pages))?;
            rest = after;
        }
        Ok(())
    }

    fn write(&self, run: PfnRange, write: impl FnOnce(&mut [u8])) -> Result<(), PipelineError> {
        self.sink.write(run, write).map_err(|source| PipelineError::Memory { pfn: run.start, source })
    }
}

/// Decodes a chunk into exactly the memory that it must fill, and checks what came out.
fn decode(
    zstd: &mut zstd::bulk::Decompressor<'_>,
    view: &ChunkView<'_>,
    stored: &[u8],
    pages: &mut [u8],
) -> Result<(), PipelineError> {
    match view.chunk.codec {
        Codec::Store if stored.len() == pages.len() => pages.copy_from_slice(stored),
        Codec::Store => return Err(damaged(view, "its length is not that of its pages")),
        Codec::Zstd => {
            let len = zstd
                .decompress_to_buffer(stored, pages)
                .map_err(|error| damaged(view, &format!("zstd says: {error}")))?;
            if len != pages.len() {
                return Err(damaged(view, &format!("it has {len} bytes of {}", pages.len())));
            }
        }
    }
    let found = checksum(pages);
    if found != view.chunk.checksum {
        let expected = view.chunk.checksum;
        return Err(damaged(view, &format!("its checksum is {found:016x}, the index says {expected:016x}")));
    }
    Ok(())
}

fn damaged(view: &ChunkView<'_>, why: &str) -> PipelineError {
    PipelineError::Chunk { offset: view.chunk.offset, why: why.to_string() }
}

/// Decodes and checks everything that `source` has and keeps none of it.
///
/// # Errors
/// As [`restore`].
pub fn discard(
    source: &mut impl ChunkSource,
    threads: usize,
    progress: impl FnMut(u64),
) -> Result<Counts, PipelineError> {
    restore(source, &Nowhere, threads, progress)
}

/// A sink that gives each piece fresh memory and forgets it.
struct Nowhere;

impl PageSink for Nowhere {
    fn write<T>(&self, run: PfnRange, write: impl FnOnce(&mut [u8]) -> T) -> std::io::Result<T> {
        // Zero runs are as long as a window: there is nothing to check in more than a chunk of them.
        let len = usize::try_from(run.pages()).unwrap_or(usize::MAX).saturating_mul(BLOCK);
        Ok(write(&mut vec![0; len.min(CHUNK_MAX)]))
    }
}
