//! Writing an image: strictly forward, in large aligned pieces, with the commit record last.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use dormouse_image::layout::{DATA_OFFSET, HEADER_OFFSET};
use dormouse_image::seal::{Seal, Sealer, Sealing};
use dormouse_image::{BLOCK, Block, Chunk, Commit, Header, IndexBuilder, Locator, SaveStats, State, Totals};
use dormouse_linux::error_chain::in_full;

use crate::pipeline::seams::{Piece, PieceSink, StoreFailure};
use crate::store::{Disk, Image, StoreError};

/// Writes in flight.
const WRITERS: usize = 4;

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
    /// Of an image that is sealed.
    sealer: Option<Arc<Sealer>>,
}

impl Writer {
    /// Invalidates whatever image there was, durably, and begins a new one with `header`, which is sealed where there
    /// is something to seal it with. A key is good for one writer.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn begin(mut image: Image, header: &Header, sealing: Option<&Sealing>) -> Result<Writer, StoreError> {
        let save_id = header.session.save_id;
        let sealer = sealing.map(|sealing| Sealer::new(sealing, image.label().uuid, save_id)).transpose();
        let sealer = sealer.map_err(|source| image.format(source))?.map(Arc::new);
        let encoded = match &sealer {
            Some(sealer) => sealer.header(header),
            None => header.encode().and_then(|block| {
                let locator = Locator::of(Block::Header, HEADER_OFFSET, &block)?;
                Ok((block, locator))
            }),
        };
        let (block, locator) = encoded.map_err(|source| image.format(source))?;
        let saving = Commit {
            seq: image.commit().seq.saturating_add(1),
            state: State::Saving,
            save_id,
            seal: sealer.as_ref().map(|sealer| Seal::without_key(sealer.suite())),
            ..Commit::empty(image.label().uuid)
        };
        image.record(saving)?;
        image.disk().write_copy(HEADER_OFFSET, &block)?;
        Ok(Writer {
            index: IndexBuilder::with(save_id, sealer.clone()),
            last_index: Locator::default(),
            header: locator,
            totals: Totals { ram_pages: header.session.ram_pages(), ..Totals::default() },
            stream: Stream::new(&image)?,
            sealer,
            image,
        })
    }

    /// Makes the image durable, has it checked, and then gives it its final state: `Complete`, or `Snapshot` where the
    /// session goes on. `stats` is given how long requests to the device took, all threads together.
    ///
    /// # Errors
    /// [`StoreError`]. The image is marked as failed then, as far as the device lets it: the commit record may have
    /// reached one of its slots, and nobody must believe it. [`StoreError::TooSmall`] says how large the image would
    /// have been.
    pub fn finish(
        mut self,
        state: State,
        omitted_pages: u64,
        check: impl FnOnce(&Image) -> Result<(), StoreFailure>,
        stats: impl FnOnce(Duration) -> SaveStats,
    ) -> Result<Image, StoreError> {
        match self.commit(state, omitted_pages, check, stats) {
            Ok(()) => Ok(self.image),
            Err(error) => {
                if let Err(second) = self.image.transition(State::Failed, &in_full(&error)) {
                    log::warn!("the image could not be marked as failed: {}", in_full(&second));
                }
                Err(error)
            }
        }
    }

    fn commit(
        &mut self,
        state: State,
        omitted_pages: u64,
        check: impl FnOnce(&Image) -> Result<(), StoreFailure>,
        stats: impl FnOnce(Duration) -> SaveStats,
    ) -> Result<(), StoreError> {
        self.end_index()?;
        self.stream.finish()?;
        self.totals.omitted_pages = omitted_pages;
        let commit = Commit {
            header: self.header,
            last_index: self.last_index,
            data_end: self.stream.end,
            totals: self.totals,
            ..self.image.commit().transition(state, "").map_err(|source| self.image.format(source))?
        };
        self.image.disk().flush()?;
        let sealed = self.sealed(commit.clone())?;
        let opener = self.sealer.as_ref().map(|sealer| sealer.opener(&sealed)).transpose();
        let opener = opener.map_err(|source| self.image.format(source))?;
        check(&self.image.as_if(sealed, opener))
            .map_err(|source| StoreError::Unverified { name: self.image.disk_name(), source })?;
        // The commit point: from here on there is an image.
        let commit = self.sealed(Commit { stats: stats(self.stream.in_requests()), ..commit })?;
        self.image.record(commit)
    }

    /// The record as it is written: authenticated where the image is sealed.
    fn sealed(&self, commit: Commit) -> Result<Commit, StoreError> {
        let Some(sealer) = &self.sealer else { return Ok(commit) };
        sealer.commit(commit).map_err(|source| self.image.format(source))
    }

    /// Marks the image as failed with `reason`, as far as the device lets it.
    ///
    /// # Errors
    /// [`StoreError`]. The image stays "being saved", which is not resumed either.
    pub fn fail(mut self, reason: &str) -> Result<(), StoreError> {
        // What the stream still wants to write is of no use; its threads must be out of the way.
        self.stream.failure.is_over.store(true, Ordering::Relaxed);
        let _ = self.stream.stop();
        self.image.transition(State::Failed, reason)
    }

    fn end_index(&mut self) -> Result<(), StoreError> {
        let at = self.stream.end;
        let (block, locator) = self.index.finish(at).map_err(|source| self.image.format(source))?;
        let len = block.len();
        self.stream.write(Write::Block(block), len)?;
        self.last_index = locator;
        self.totals.index_blocks += 1;
        Ok(())
    }

    fn add(&mut self, mut piece: Piece) -> Result<(), StoreError> {
        if !self.index.has_room(piece.chunks.len(), piece.extents.len(), piece.zero.len()) {
            self.end_index()?;
        }
        let image = &self.image;
        for (chunk, extents) in piece.chunks() {
            let chunk = Chunk { offset: self.stream.end + chunk.offset, ..*chunk };
            self.index.chunk(&chunk, extents).map_err(|source| image.format(source))?;
            self.totals.stored_bytes += u64::from(chunk.stored_len);
        }
        for run in &piece.zero {
            self.index.zero(*run).map_err(|source| image.format(source))?;
            self.totals.zero_pages += u64::from(run.pages);
        }
        self.totals.chunks += piece.chunks.len() as u64;
        self.totals.stored_pages += piece.stored();
        if let Some(buffer) = &mut piece.buffer {
            let len = piece.len.next_multiple_of(BLOCK);
            buffer[piece.len..len].fill(0);
            self.stream.write(Write::Piece(piece), len)?;
        }
        Ok(())
    }
}

impl PieceSink for Writer {
    fn piece(&mut self, piece: Piece) -> Result<(), StoreFailure> {
        Ok(self.add(piece)?)
    }

    fn sealer(&self) -> Option<Arc<Sealer>> {
        self.sealer.clone()
    }

    fn room(&self) -> u64 {
        self.stream.size.saturating_sub(self.stream.end)
    }
}

/// Consecutive whole blocks, written by threads of their own.
///
/// Past the device's end nothing is written but everything is counted, so that the error can name what was needed.
#[derive(Debug)]
struct Stream {
    /// What messages call the device.
    name: String,
    size: u64,
    /// Offset on the device of the next block.
    end: u64,
    threads: Option<Threads>,
    failure: Arc<Failure>,
    /// Nanoseconds in requests, of the threads that have ended.
    in_requests: Arc<AtomicU64>,
}

/// The threads, and the way to hand them work: what to write, and where.
type Threads = (Sender<(u64, Write)>, Vec<JoinHandle<()>>);

/// What the writing threads have failed with first.
#[derive(Debug, Default)]
struct Failure {
    /// Nothing more need be written.
    is_over: AtomicBool,
    first: Mutex<Option<StoreError>>,
}

impl Failure {
    fn set(&self, error: StoreError) {
        self.is_over.store(true, Ordering::Relaxed);
        self.first.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    }

    fn take(&self) -> Result<(), StoreError> {
        self.first.lock().unwrap_or_else(PoisonError::into_inner).take().map_or(Ok(()), Err)
    }
}

#[derive(Debug)]
enum Write {
    Piece(Piece),
    Block(Vec<u8>),
}

impl Write {
    fn to(&self, disk: &Disk, offset: u64) -> Result<(), StoreError> {
        match self {
            Write::Piece(piece) => {
                let bytes = piece.buffer.as_deref().unwrap_or_default();
                disk.write(offset, &bytes[..piece.len.next_multiple_of(BLOCK)])
            }
            Write::Block(block) => disk.write_copy(offset, block),
        }
    }
}

/// Writes what comes until no more does. After a failure of any thread, what comes is dropped, so that nobody waits for
/// its buffers.
/// Returns how long its requests took.
fn write_all(disk: &Disk, receiver: &Mutex<Receiver<(u64, Write)>>, failure: &Failure) -> Duration {
    let mut in_requests = Duration::ZERO;
    loop {
        // Waits under the lock: the others have nothing to take until then either.
        let next = receiver.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok((offset, write)) = next else { return in_requests };
        let began = Instant::now();
        if !failure.is_over.load(Ordering::Relaxed)
            && let Err(error) = write.to(disk, offset)
        {
            failure.set(error);
        }
        in_requests += began.elapsed();
    }
}

impl Stream {
    fn new(image: &Image) -> Result<Stream, StoreError> {
        let name = image.disk_name();
        let (sender, receiver) = channel();
        let receiver = Arc::new(Mutex::new(receiver));
        let (failure, in_requests) = (Arc::<Failure>::default(), Arc::<AtomicU64>::default());
        let spawn = |_| {
            let (disk, receiver, failure) = (image.disk().clone(), Arc::clone(&receiver), Arc::clone(&failure));
            let sum = Arc::clone(&in_requests);
            let thread = std::thread::Builder::new().name("write".into());
            thread.spawn(move || {
                let nanoseconds = write_all(&disk, &receiver, &failure).as_nanos();
                sum.fetch_add(u64::try_from(nanoseconds).unwrap_or(u64::MAX), Ordering::Relaxed);
            })
        };
        let threads: std::io::Result<Vec<_>> = (0..WRITERS).map(spawn).collect();
        let threads = threads.map_err(|source| StoreError::Threads { name: name.clone(), source })?;
        Ok(Stream {
            size: image.disk().size(),
            end: DATA_OFFSET,
            threads: Some((sender, threads)),
            failure,
            in_requests,
            name,
        })
    }

    /// How long requests took, all threads that have ended together.
    fn in_requests(&self) -> Duration {
        Duration::from_nanos(self.in_requests.load(Ordering::Relaxed))
    }

    /// Hands over what is to be written next, `len` bytes in whole blocks.
    fn write(&mut self, write: Write, len: usize) -> Result<(), StoreError> {
        let offset = self.end;
        self.end += len as u64;
        self.failure.take()?;
        if self.end <= self.size
            && let Some((sender, _)) = &self.threads
        {
            sender.send((offset, write)).map_err(|_| StoreError::WriterGone { name: self.name.clone() })?;
        }
        Ok(())
    }

    /// Waits until everything is written.
    fn finish(&mut self) -> Result<(), StoreError> {
        self.stop()?;
        if self.end > self.size {
            return Err(StoreError::TooSmall { name: self.name.clone(), size: self.size, needed: self.end });
        }
        Ok(())
    }

    /// Waits until the threads are gone; what they have been handed is written then.
    fn stop(&mut self) -> Result<(), StoreError> {
        let Some((sender, threads)) = self.threads.take() else {
            return Ok(());
        };
        drop(sender);
        for thread in threads {
            thread.join().map_err(|_| StoreError::WriterGone { name: self.name.clone() })?;
        }
        self.failure.take()
    }
}
