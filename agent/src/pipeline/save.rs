//! Memory to pieces of an image.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};

use dormouse_image::layout::{CHUNK_MAX, CHUNK_PAGES};
use dormouse_image::seal::{Sealer, scrub_stack};
use dormouse_image::{BLOCK, Chunk, Extent, PfnRange, checksum};

use crate::pipeline::buffers::{BUFFER_LEN, Buffers};
use crate::pipeline::chooser::Chooser;
use crate::pipeline::codec::{Encoder, room_for};
use crate::pipeline::seams::{Fate, PageFilter, PageSource, Piece, PieceSink};
use crate::pipeline::times::{Activity, Stopwatch, Times};
use crate::pipeline::{Counts, FirstFailure, Limits, PipelineError, Step, thread_pool};
use crate::policy::Compression;

/// Pages that a worker takes at once: 1 MiB. Spans begin at multiples of it, so none crosses a window's boundary.
const SPAN_PAGES: u64 = 256;

/// A piece is handed over when it has that many chunks or zero runs, even if there is room for more bytes: then what it
/// says of them always fits into one index block.
const PIECE_CHUNKS: usize = 256;
const PIECE_RUNS: usize = 4096;

/// What is to be saved.
#[derive(Debug)]
pub struct Task<'a, F> {
    /// The memory; it must ascend and not overlap.
    pub memory: &'a [PfnRange],
    /// Which of its pages matter.
    pub filter: &'a F,
    /// The largest number of pages that may turn out to be stored.
    pub most: u64,
}

impl<F> Task<'_, F> {
    /// Whether what is still to come might not fit if it were stored as it is.
    fn is_tight(&self, sink: &impl PieceSink, stored: u64) -> bool {
        sink.room() < self.most.saturating_sub(stored).saturating_mul(BLOCK as u64)
    }
}

/// Saves what `task` says from `source` to `sink`.
///
/// `sink` is called on the calling thread; `progress` gets what is done after each piece.
///
/// # Errors
/// [`PipelineError`]: the first failure of any thread.
pub fn save<S: PageSource>(
    source: &S,
    task: &Task<'_, impl PageFilter>,
    compression: Compression,
    limits: Limits,
    sink: &mut impl PieceSink,
    mut progress: impl FnMut(Step),
) -> Result<Counts, PipelineError> {
    let (threads, buffers) = limits.resolve();
    let pool = thread_pool(threads)?;
    let spans = Spans { memory: task.memory, next: AtomicUsize::new(0) };
    let (failure, times) = (FirstFailure::default(), Times::start());
    let chooser = Chooser::new(compression, threads, &buffers);
    chooser.set_tight(task.is_tight(sink, 0));
    let (sender, receiver) = channel();
    let sealer = sink.sealer();

    let mut counts = Counts::default();
    let mut bytes = 0;
    let written = std::thread::scope(|scope| {
        let (spans, failure, times, chooser, buffers) = (&spans, &failure, &times, &chooser, &buffers);
        let sealer = sealer.as_deref();
        scope.spawn(move || {
            pool.broadcast(|_| {
                let worker = Encoder::new().map_err(PipelineError::Codec).map(|encoder| Worker {
                    source,
                    filter: task.filter,
                    chooser,
                    buffers,
                    sender: sender.clone(),
                    sealer,
                    encoder,
                    piece: Piece::default(),
                    chunk: PartChunk::default(),
                    watch: Stopwatch::start(),
                });
                let run = |mut worker: Worker<'_, S, _>| {
                    let result = worker.run(spans, failure);
                    times.add(&worker.watch);
                    result
                };
                if let Err(error) = worker.and_then(run) {
                    failure.set(error);
                }
                if sealer.is_some() {
                    scrub_stack();
                }
            });
            // The last sender goes with this closure, which ends the loop below.
            drop(sender);
        });
        // By value: when this returns early, the receiver is gone, and the workers notice that nothing receives.
        for piece in receiver {
            counts.stored += piece.stored();
            counts.zero += piece.zero.iter().map(|run| u64::from(run.pages)).sum::<u64>();
            counts.left += piece.left;
            bytes += piece.len as u64;
            sink.piece(piece)?;
            chooser.set_tight(task.is_tight(sink, counts.stored));
            progress(Step { done: counts.stored + counts.zero, stored: counts.stored, bytes });
        }
        Ok(())
    });
    failure.into_result()?;
    written.map_err(PipelineError::Store)?;
    Ok(Counts { spent: times.spent(), ..counts })
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
    chooser: &'a Chooser,
    buffers: &'a Buffers,
    sender: Sender<Piece>,
    /// Where the chunks must be sealed.
    sealer: Option<&'a Sealer>,
    encoder: Encoder,
    piece: Piece,
    chunk: PartChunk,
    watch: Stopwatch,
}

/// A chunk in the making: pages of this span and of earlier ones.
#[derive(Default)]
struct PartChunk {
    extents: Vec<Extent>,
    pages: u32,
    /// The pages, but for the last run where that lies in the span at hand: chunks that are one run are never copied.
    gathered: Vec<u8>,
}

/// What stops a worker that has not failed itself: nothing takes its pieces, because the sink has failed.
enum Stop {
    NobodyListens,
    Failed(PipelineError),
}

impl From<PipelineError> for Stop {
    fn from(error: PipelineError) -> Stop {
        Stop::Failed(error)
    }
}

impl<S: PageSource, F: PageFilter> Worker<'_, S, F> {
    fn run(&mut self, spans: &Spans<'_>, failure: &FirstFailure) -> Result<(), PipelineError> {
        let result = self.spans(spans, failure);
        match result {
            Ok(()) | Err(Stop::NobodyListens) => Ok(()),
            Err(Stop::Failed(error)) => Err(error),
        }
    }

    fn spans(&mut self, spans: &Spans<'_>, failure: &FirstFailure) -> Result<(), Stop> {
        while let Some(span) = spans.take() {
            if failure.is_set() {
                return Ok(());
            }
            let (fate, pages) = self.filter.run(span);
            if fate == Fate::Store || pages < span.pages() {
                let source = self.source;
                self.watch.lap(Activity::Pages);
                source
                    .read(span, |bytes| {
                        self.watch.lap(Activity::Mapping);
                        self.pages(span, bytes)
                    })
                    .map_err(|source| PipelineError::Memory { pfn: span.start, source })??;
            } else {
                // Not even mapped.
                self.pass(span, fate)?;
            }
        }
        if self.chunk.pages > 0 {
            self.end_chunk(None)?;
        }
        self.hand_over()
    }

    /// Goes through a span, whose bytes these are.
    fn pages(&mut self, span: PfnRange, bytes: &[u8]) -> Result<(), Stop> {
        let mut at = span.start;
        while at < span.end {
            let (fate, pages) = self.filter.run(PfnRange { start: at, end: span.end });
            // At least one, or this would never end.
            let run = PfnRange { start: at, end: span.end.min(at + pages.max(1)) };
            match fate {
                Fate::Store => self.store(span, bytes, run)?,
                Fate::Zero | Fate::Leave => self.pass(run, fate)?,
            }
            at = run.end;
        }
        self.watch.lap(Activity::Pages);
        Ok(())
    }

    /// Stores the pages of `run`, a part of `span`, but for those of zeroes.
    fn store(&mut self, span: PfnRange, bytes: &[u8], run: PfnRange) -> Result<(), Stop> {
        // The first of the pages that are being followed, which will be an extent.
        let mut first: Option<u64> = None;
        for pfn in run.start..run.end {
            // A source that gives less than it was asked for must not pass for zeroes.
            let at = usize::try_from(pfn - span.start).unwrap_or(usize::MAX).saturating_mul(BLOCK);
            let page = bytes.get(at..at.saturating_add(BLOCK)).ok_or_else(|| missing(pfn))?;
            if is_zero(page) {
                if let Some(start) = first.take() {
                    self.chunk.gather(run_of(span, bytes, start, pfn - start));
                }
                self.zero(PfnRange { start: pfn, end: pfn + 1 })?;
                continue;
            }
            first.get_or_insert(pfn);
            self.chunk.pages += 1;
            if self.chunk.pages == CHUNK_PAGES {
                let last = first.take().and_then(|start| run_of(span, bytes, start, pfn + 1 - start));
                self.end_chunk(last)?;
            }
        }
        if let Some(start) = first {
            // The mapping ends with the span.
            self.chunk.gather(run_of(span, bytes, start, run.end - start));
        }
        Ok(())
    }

    /// Accounts for pages that are not stored.
    fn pass(&mut self, run: PfnRange, fate: Fate) -> Result<(), Stop> {
        if fate == Fate::Leave {
            self.piece.left += run.pages();
            return Ok(());
        }
        self.zero(run)
    }

    /// These pages are restored as zeroes.
    fn zero(&mut self, run: PfnRange) -> Result<(), Stop> {
        // Of one span: few.
        let pages = u32::try_from(run.pages()).unwrap_or(u32::MAX);
        if let Some(last) = self.piece.zero.last_mut()
            && last.range().end == run.start
            && let Some(sum) = last.pages.checked_add(pages)
        {
            last.pages = sum;
            return Ok(());
        }
        if self.piece.zero.len() >= PIECE_RUNS {
            self.hand_over()?;
        }
        self.piece.zero.push(Extent { pfn: run.start, pages });
        Ok(())
    }

    /// Compresses the chunk, whose last run, if it was not gathered, is `last`.
    fn end_chunk(&mut self, last: Option<(Extent, &[u8])>) -> Result<(), Stop> {
        let mut chunk = std::mem::take(&mut self.chunk);
        let in_place = match last {
            Some((extent, bytes)) if chunk.extents.is_empty() => {
                chunk.extents.push(extent);
                Some(bytes)
            }
            last => {
                chunk.gather(last);
                None
            }
        };
        let raw = in_place.unwrap_or(&chunk.gathered);
        if raw.len() != chunk.pages as usize * BLOCK {
            return Err(missing(chunk.extents.first().map_or(0, |extent| extent.pfn)).into());
        }
        if BUFFER_LEN - self.piece.len < room_for(CHUNK_MAX) || self.piece.chunks.len() >= PIECE_CHUNKS {
            self.hand_over()?;
        }
        self.watch.lap(Activity::Pages);
        let buffer = match &mut self.piece.buffer {
            Some(buffer) => buffer,
            none => none.insert(self.buffers.take().map_err(PipelineError::Buffers)?),
        };
        self.watch.lap(Activity::Waiting);
        let method = self.chooser.method();
        let encoded = self.encoder.encode(method, raw, &mut buffer[self.piece.len..]);
        let (codec, len) = encoded.map_err(PipelineError::Codec)?;
        self.watch.lap(Activity::Coding);
        let mut stored = Chunk {
            offset: self.piece.len as u64,
            // At most as long as a chunk.
            stored_len: u32::try_from(len).unwrap_or(u32::MAX),
            codec,
            checksum: checksum(raw),
            ..Chunk::default()
        };
        self.watch.lap(Activity::Checking);
        if let Some(sealer) = self.sealer {
            // In place, where it goes to the device from.
            let sealed = sealer.chunk(&mut stored, chunk.pages as usize, &mut buffer[self.piece.len..][..len]);
            sealed.map_err(PipelineError::Seal)?;
            self.watch.lap(Activity::Sealing);
        }
        self.piece.chunks.push(stored);
        self.piece.len += len;
        self.piece.extent_counts.push(chunk.extents.len());
        self.piece.extents.append(&mut chunk.extents);
        // Its memory is used again.
        chunk.gathered.clear();
        chunk.pages = 0;
        self.chunk = chunk;
        Ok(())
    }

    fn hand_over(&mut self) -> Result<(), Stop> {
        let mut piece = std::mem::take(&mut self.piece);
        if piece.is_empty() {
            return Ok(());
        }
        if let Some(buffer) = &mut piece.buffer {
            self.chooser.learn(buffer.is_late());
            buffer.hand_over();
        }
        self.sender.send(piece).map_err(|_| Stop::NobodyListens)
    }
}

impl PartChunk {
    fn gather(&mut self, run: Option<(Extent, &[u8])>) {
        let Some((extent, bytes)) = run else { return };
        self.gathered.extend_from_slice(bytes);
        match self.extents.last_mut() {
            // A chunk has few pages.
            Some(last) if last.range().end == extent.pfn => last.pages += extent.pages,
            _ => self.extents.push(extent),
        }
    }
}

/// Memory that is listed and missing.
fn missing(pfn: u64) -> PipelineError {
    PipelineError::Memory { pfn, source: std::io::ErrorKind::UnexpectedEof.into() }
}

/// A run within a span, and its bytes.
fn run_of(span: PfnRange, bytes: &[u8], start: u64, pages: u64) -> Option<(Extent, &[u8])> {
    // Inside the span: small numbers.
    let first = usize::try_from(start - span.start).ok()? * BLOCK;
    let pages = u32::try_from(pages).ok()?;
    Some((Extent { pfn: start, pages }, bytes.get(first..first + pages as usize * BLOCK)?))
}

/// Whether a page is all zero. Leaves at the first line that is not, which is nearly always the first.
fn is_zero(page: &[u8]) -> bool {
    page.chunks_exact(64).all(|line| line.iter().fold(0, |all, byte| all | byte) == 0)
}
