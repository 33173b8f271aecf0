//! Memory to chunks.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};

use dormouse_image::layout::{CHUNK_MAX, CHUNK_PAGES};
use dormouse_image::{BLOCK, Codec, Extent, PfnRange, checksum};

use super::{FirstFailure, IN_FLIGHT, PipelineError, thread_pool};
use crate::policy::Compression;
use crate::stage::{ChunkSink, Encoded, Fate, PageFilter, PageSource};

/// Pages that a worker takes at once: 1 MiB, from which it makes up to four chunks. Spans begin at multiples of it, so
/// none crosses a window's boundary.
const SPAN_PAGES: u64 = 256;

/// What was saved, in pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Stored in chunks.
    pub stored: u64,
    /// To be restored as zeroes: all zero, or of no use.
    pub zero: u64,
    /// Neither read nor restored.
    pub left: u64,
}

/// What workers send to the thread that writes.
enum Output {
    Chunk(Encoded),
    Zero(Extent),
    Left(u64),
}

/// Saves those page frames of `memory` that matter to `filter` from `source` to `sink`, with `threads` threads. `memory`
/// must ascend and not overlap.
///
/// `sink` is called on the calling thread; `progress` is told after each piece how many pages are done.
///
/// # Errors
/// [`PipelineError`]: the first failure of any thread.
pub fn save<S: PageSource>(
    source: &S,
    memory: &[PfnRange],
    filter: &impl PageFilter,
    compression: Compression,
    threads: usize,
    sink: &mut impl ChunkSink,
    mut progress: impl FnMut(u64),
) -> Result<Counts, PipelineError> {
    let pool = thread_pool(threads)?;
    let spans = Spans { memory, next: AtomicUsize::new(0) };
    let failure = FirstFailure::default();
    let buffers = Mutex::new(Vec::new());
    let (sender, receiver) = sync_channel(threads * IN_FLIGHT);

    let mut counts = Counts::default();
    let written = std::thread::scope(|scope| {
        let (spans, failure, buffers) = (&spans, &failure, &buffers);
        scope.spawn(move || {
            pool.broadcast(|_| {
                let worker = Worker::new(source, filter, compression, &sender, buffers);
                if let Err(error) = worker.and_then(|mut worker| worker.run(spans, failure)) {
                    failure.set(error);
                }
            });
            // The last sender goes with this closure, which ends the loop below.
            drop(sender);
        });
        // By value: when this returns early, the receiver is gone, and the workers notice that nobody listens.
        for output in receiver {
            match output {
                Output::Chunk(chunk) => {
                    sink.chunk(&chunk)?;
                    counts.stored += chunk.extents.iter().map(|extent| u64::from(extent.pages)).sum::<u64>();
                    buffers.lock().unwrap_or_else(PoisonError::into_inner).push(chunk.bytes);
                }
                Output::Zero(run) => {
                    sink.zero(run)?;
                    counts.zero += u64::from(run.pages);
                }
                Output::Left(pages) => counts.left += pages,
            }
            progress(counts.stored + counts.zero + counts.left);
        }
        Ok(())
    });
    failure.into_result()?;
    written.map_err(PipelineError::Store)?;
    Ok(counts)
}

/// The memory, cut into spans that the workers take in order.
struct Spans<'a> {
    memory: &'a [PfnRange],
    next: AtomicUsize,
}

impl Spans<'_> {
    fn take(&self) -> Option<PfnRange> {
        let mut at = self.next.fetch_add(1, Ordering::Relaxed) as u64;
        for range in self.memory {
            let first = range.start / SPAN_PAGES;
            let count = range.end.div_ceil(SPAN_PAGES) - first;
            if at < count {
                let span = first + at;
                return Some(PfnRange {
                    start: range.start.max(span * SPAN_PAGES),
                    end: range.end.min((span + 1) * SPAN_PAGES),
                });
            }
            at -= count;
        }
        None
    }
}

struct Worker<'a, S, F> {
    source: &'a S,
    filter: &'a F,
    encoder: Encoder<'a>,
    sender: &'a SyncSender<Output>,
}

impl<'a, S: PageSource, F: PageFilter> Worker<'a, S, F> {
    fn new(
        source: &'a S,
        filter: &'a F,
        compression: Compression,
        sender: &'a SyncSender<Output>,
        buffers: &'a Mutex<Vec<Vec<u8>>>,
    ) -> Result<Worker<'a, S, F>, PipelineError> {
        Ok(Worker { source, filter, encoder: Encoder::new(compression, buffers)?, sender })
    }

    fn run(&mut self, spans: &Spans<'_>, failure: &FirstFailure) -> Result<(), PipelineError> {
        while let Some(span) = spans.take() {
            if failure.is_set() {
                break;
            }
            let (encoder, filter, sender) = (&mut self.encoder, self.filter, self.sender);
            let delivered = self
                .source
                .read(span, |bytes| encoder.span(span, bytes, filter, |output| sender.send(output).is_ok()))
                .map_err(|source| PipelineError::Memory { pfn: span.start, source })?;
            if !delivered {
                // The writer has stopped listening, and knows why.
                break;
            }
        }
        Ok(())
    }
}

/// Turns the pages of a span into chunks and zero runs.
struct Encoder<'a> {
    zstd: Option<zstd::bulk::Compressor<'static>>,
    /// Pages that do not lie together are gathered here.
    scratch: Vec<u8>,
    buffers: &'a Mutex<Vec<Vec<u8>>>,
}

impl<'a> Encoder<'a> {
    fn new(compression: Compression, buffers: &'a Mutex<Vec<Vec<u8>>>) -> Result<Encoder<'a>, PipelineError> {
        let zstd = match compression {
            Compression::Store => None,
            Compression::Zstd { level } => Some(zstd::bulk::Compressor::new(level).map_err(PipelineError::Codec)?),
        };
        Ok(Encoder { zstd, scratch: Vec::with_capacity(CHUNK_MAX), buffers })
    }

    /// Hands all of `span`, whose pages are `bytes`, to `deliver`, until that says no. Returns whether it never did.
    fn span(
        &mut self,
        span: PfnRange,
        bytes: &[u8],
        filter: &impl PageFilter,
        mut deliver: impl FnMut(Output) -> bool,
    ) -> bool {
        let mut extents: Vec<Extent> = Vec::new();
        let mut pages = 0;
        let mut zero: Option<Extent> = None;
        let mut left = 0;
        for (pfn, page) in (span.start..span.end).zip(bytes.chunks_exact(BLOCK)) {
            let fate = filter.fate(pfn);
            if fate == Fate::Leave {
                left += 1;
                continue;
            }
            if fate == Fate::Zero || is_zero(page) {
                match &mut zero {
                    Some(run) if run.range().end == pfn => run.pages += 1,
                    _ => {
                        if let Some(run) = zero.replace(Extent { pfn, pages: 1 })
                            && !deliver(Output::Zero(run))
                        {
                            return false;
                        }
                    }
                }
                continue;
            }
            match extents.last_mut() {
                Some(last) if last.range().end == pfn => last.pages += 1,
                _ => extents.push(Extent { pfn, pages: 1 }),
            }
            pages += 1;
            if pages == CHUNK_PAGES {
                pages = 0;
                let chunk = self.chunk(span.start, bytes, std::mem::take(&mut extents));
                if !deliver(Output::Chunk(chunk)) {
                    return false;
                }
            }
        }
        if pages > 0 {
            let chunk = self.chunk(span.start, bytes, extents);
            if !deliver(Output::Chunk(chunk)) {
                return false;
            }
        }
        (left == 0 || deliver(Output::Left(left))) && zero.is_none_or(|run| deliver(Output::Zero(run)))
    }

    /// Compresses the pages of `extents`, which are part of the span that begins at page frame `first`.
    fn chunk(&mut self, first: u64, span: &[u8], extents: Vec<Extent>) -> Encoded {
        let bytes_of = |extent: &Extent| {
            // Inside the span, which is mapped: small numbers.
            let start = usize::try_from(extent.pfn - first).unwrap_or(usize::MAX) * BLOCK;
            &span[start..start + extent.pages as usize * BLOCK]
        };
        let raw = match extents.as_slice() {
            [run] => bytes_of(run),
            runs => {
                self.scratch.clear();
                for run in runs {
                    self.scratch.extend_from_slice(bytes_of(run));
                }
                &self.scratch
            }
        };
        let mut bytes = self.buffers.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default();
        bytes.clear();
        let checksum = checksum(raw);
        let compressed = self.zstd.as_mut().is_some_and(|zstd| {
            // One byte less than the pages: what does not get smaller is stored as it is.
            bytes.resize(raw.len() - 1, 0);
            let len = zstd.compress_to_buffer(raw, bytes.as_mut_slice());
            len.map(|len| bytes.truncate(len)).is_ok()
        });
        let codec = if compressed {
            Codec::Zstd
        } else {
            bytes.clear();
            bytes.extend_from_slice(raw);
            Codec::Store
        };
        Encoded { extents, codec, checksum, bytes }
    }
}

/// Whether a page is all zero. Leaves at the first line that is not, which is nearly always the first.
fn is_zero(page: &[u8]) -> bool {
    page.chunks_exact(64).all(|line| line.iter().fold(0, |all, byte| all | byte) == 0)
}
