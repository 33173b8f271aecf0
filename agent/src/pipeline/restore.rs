//! Chunks to memory.

use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Mutex, PoisonError};

use dormouse_image::layout::CHUNK_MAX;
use dormouse_image::seal::{Opener, scrub_stack};
use dormouse_image::{BLOCK, ChunkView, Codec, Extent, PfnRange, checksum};

use crate::pipeline::buffers::{Buffer, Buffers};
use crate::pipeline::codec::Decoder;
use crate::pipeline::lock::lock;
use crate::pipeline::seams::{Batch, BlockRead, ChunkSource, PageSink, Work};
use crate::pipeline::times::{Activity, Stopwatch, Times};
use crate::pipeline::{Counts, FirstFailure, Limits, PipelineError, Step, thread_pool, window};

/// Reads in flight.
const READERS: usize = 4;

/// Work that has been read.
enum Ready {
    Chunks(Batch, Buffer),
    Zero(Extent),
}

/// Writes everything that `source` has to `sink`, checking each chunk. `progress` gets what is done.
///
/// A chunk's checksum can only be compared when its pages have been decoded, and they are decoded in place: after an
/// error, `sink` holds a mixture and must not be used.
///
/// # Errors
/// [`PipelineError`]: the first failure of any thread.
pub fn restore<S: PageSink>(
    source: &mut impl ChunkSource,
    sink: &S,
    limits: Limits,
    mut progress: impl FnMut(Step),
) -> Result<Counts, PipelineError> {
    let (threads, buffers) = limits.resolve();
    let pool = thread_pool(threads)?;
    let (failure, times) = (FirstFailure::default(), Times::start());
    let (device, opener) = (source.device(), source.opener());
    let source = Mutex::new(source);
    // Batches are limited by their buffers, and with them what waits here: at most as many zero runs.
    let (sender, receiver) = sync_channel(buffers.limit());
    let (done, steps) = channel();

    let mut counts = Counts::default();
    let mut bytes = 0;
    std::thread::scope(|scope| {
        let (failure, times, buffers, source, device) = (&failure, &times, &buffers, &source, &device);
        let opener = opener.as_deref();
        scope.spawn(move || {
            // Owned here: when all workers are gone, so is the receiver, and no reader waits for them.
            let receiver = Mutex::new(receiver);
            pool.broadcast(|_| {
                let worker = Worker::new(sink, opener, done.clone());
                let run = |mut worker: Worker<'_, S>| {
                    let result = worker.run(&receiver);
                    times.add(&worker.watch);
                    result
                };
                if let Err(error) = worker.and_then(run) {
                    failure.set(error);
                }
                if opener.is_some() {
                    scrub_stack();
                }
            });
            // The last sender goes with this closure, which ends the loop below.
            drop(done);
        });
        for _ in 0..READERS {
            let sender = sender.clone();
            scope.spawn(move || {
                let mut watch = Stopwatch::start();
                if let Err(error) = read(source, device, buffers, &sender, failure, &mut watch) {
                    failure.set(error);
                }
                times.add(&watch);
            });
        }
        // The end of the readers ends the workers.
        drop(sender);
        for step in steps {
            counts.stored += step.stored;
            counts.zero += step.done - step.stored;
            bytes += step.bytes;
            progress(Step { done: counts.stored + counts.zero, stored: counts.stored, bytes });
        }
    });
    failure.into_result()?;
    Ok(Counts { spent: times.spent(), ..counts })
}

/// Reads until the end, or until something has failed.
fn read<C: ChunkSource>(
    source: &Mutex<&mut C>,
    device: &C::Device,
    buffers: &Buffers,
    sender: &SyncSender<Ready>,
    failure: &FirstFailure,
    watch: &mut Stopwatch,
) -> Result<(), PipelineError> {
    while !failure.is_set() {
        // The buffer first, so that work is read in the order in which it is handed out.
        let mut buffer = buffers.take().map_err(PipelineError::Buffers)?;
        watch.lap(Activity::Buffers);
        let work = lock(source).next().map_err(PipelineError::Store)?;
        let ready = match work {
            None => break,
            Some(Work::Zero(run)) => Ready::Zero(run),
            Some(Work::Chunks(batch)) => {
                let part = buffer.get_mut(..batch.len).ok_or(PipelineError::Batch(batch.len))?;
                device.read(batch.offset, part).map_err(PipelineError::Store)?;
                Ready::Chunks(batch, buffer)
            }
        };
        watch.lap(Activity::Device);
        if sender.send(ready).is_err() {
            break;
        }
    }
    Ok(())
}

struct Worker<'a, S> {
    sink: &'a S,
    /// Where the chunks are sealed.
    opener: Option<&'a Opener>,
    decoder: Decoder,
    /// Chunks whose pages do not lie together are decoded here.
    scratch: Vec<u8>,
    done: Sender<Step>,
    watch: Stopwatch,
}

impl<'a, S: PageSink> Worker<'a, S> {
    fn new(sink: &'a S, opener: Option<&'a Opener>, done: Sender<Step>) -> Result<Worker<'a, S>, PipelineError> {
        let decoder = Decoder::new().map_err(PipelineError::Codec)?;
        Ok(Worker { sink, opener, decoder, scratch: vec![0; CHUNK_MAX], done, watch: Stopwatch::start() })
    }

    /// Works until there is no more, or until it fails.
    fn run(&mut self, receiver: &Mutex<Receiver<Ready>>) -> Result<(), PipelineError> {
        loop {
            // Waits under the lock: the others have nothing to take either.
            let ready = receiver.lock().unwrap_or_else(PoisonError::into_inner).recv();
            self.watch.lap(Activity::Waiting);
            let Ok(ready) = ready else { return Ok(()) };
            let step = match ready {
                Ready::Zero(run) => self.zero(run)?,
                Ready::Chunks(batch, mut buffer) => self.chunks(&batch, &mut buffer)?,
            };
            // The receiver listens to the end.
            let _ = self.done.send(step);
        }
    }

    fn zero(&mut self, run: Extent) -> Result<Step, PipelineError> {
        for piece in window::pieces(run.range()) {
            self.write(piece, |bytes| bytes.fill(0))?;
            self.watch.lap(Activity::Zeroing);
        }
        Ok(Step { done: run.pages.into(), ..Step::default() })
    }

    /// Opens the chunks where they lie, and writes their pages.
    fn chunks(&mut self, batch: &Batch, bytes: &mut [u8]) -> Result<Step, PipelineError> {
        let mut step = Step::default();
        for (view, place) in batch.chunks() {
            let stored = place.and_then(|place| bytes.get_mut(place));
            let stored = stored.ok_or_else(|| damaged(&view, "it lies outside what was read"))?;
            if let Some(opener) = self.opener {
                let opened = opener.chunk(view.chunk, view.raw_len() / BLOCK, stored);
                opened.map_err(|forged| damaged(&view, &forged.to_string()))?;
                self.watch.lap(Activity::Sealing);
            }
            self.chunk(&view, stored)?;
            step.stored += (view.raw_len() / BLOCK) as u64;
            step.bytes += stored.len() as u64;
        }
        Ok(Step { done: step.stored, ..step })
    }

    fn chunk(&mut self, view: &ChunkView<'_>, stored: &[u8]) -> Result<(), PipelineError> {
        if let [run] = view.extents
            && window::pieces(run.range()).nth(1).is_none()
        {
            // In place, without a second copy.
            let Worker { sink, decoder, watch, .. } = self;
            watch.lap(Activity::Pages);
            let decoded = sink.write(run.range(), |pages| {
                watch.lap(Activity::Mapping);
                decode(decoder, watch, view, stored, pages)
            });
            return decoded.map_err(|source| PipelineError::Memory { pfn: run.pfn, source })?;
        }
        if view.chunk.codec == Codec::Store && stored.len() == view.raw_len() {
            check(&mut self.watch, view, stored)?;
            return self.scatter(view, stored);
        }
        let mut scratch = std::mem::take(&mut self.scratch);
        let result = self.decode_and_scatter(view, stored, &mut scratch);
        self.scratch = scratch;
        result
    }

    fn decode_and_scatter(
        &mut self,
        view: &ChunkView<'_>,
        stored: &[u8],
        scratch: &mut [u8],
    ) -> Result<(), PipelineError> {
        let raw = scratch.get_mut(..view.raw_len()).ok_or_else(|| damaged(view, "it is too long"))?;
        decode(&mut self.decoder, &mut self.watch, view, stored, raw)?;
        self.scatter(view, raw)
    }

    /// Writes the pages of a chunk to where they belong.
    fn scatter(&mut self, view: &ChunkView<'_>, raw: &[u8]) -> Result<(), PipelineError> {
        let mut rest = raw;
        for piece in view.extents.iter().flat_map(|extent: &Extent| window::pieces(extent.range())) {
            let len = usize::try_from(piece.pages()).unwrap_or(usize::MAX).saturating_mul(BLOCK);
            let (pages, after) = rest.split_at_checked(len).ok_or_else(|| damaged(view, "it is too short"))?;
            self.write(piece, |bytes| bytes.copy_from_slice(pages))?;
            self.watch.lap(Activity::Pages);
            rest = after;
        }
        Ok(())
    }

    /// Writes a run; what has passed until its memory is there was spent on mapping.
    fn write(&mut self, run: PfnRange, write: impl FnOnce(&mut [u8])) -> Result<(), PipelineError> {
        let watch = &mut self.watch;
        let written = self.sink.write(run, |bytes| {
            watch.lap(Activity::Mapping);
            write(bytes);
        });
        written.map_err(|source| PipelineError::Memory { pfn: run.start, source })
    }
}

/// Decodes a chunk into exactly the memory that it must fill, and checks what came out.
fn decode(
    decoder: &mut Decoder,
    watch: &mut Stopwatch,
    view: &ChunkView<'_>,
    stored: &[u8],
    pages: &mut [u8],
) -> Result<(), PipelineError> {
    decoder.decode(view.chunk.codec, stored, pages).map_err(|why| damaged(view, &why))?;
    watch.lap(Activity::Coding);
    check(watch, view, pages)
}

fn check(watch: &mut Stopwatch, view: &ChunkView<'_>, pages: &[u8]) -> Result<(), PipelineError> {
    let found = checksum(pages);
    watch.lap(Activity::Checking);
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
    limits: Limits,
    progress: impl FnMut(Step),
) -> Result<Counts, PipelineError> {
    restore(source, &Nowhere, limits, progress)
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
