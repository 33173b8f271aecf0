//! The bound: the codec alone, on all threads, over the pages that Dormouse stores, from memory to memory. No filter,
//! no checksum, no file; nothing that uses this codec can be faster.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use dormouse_image::layout::CHUNK_MAX;
use zstd::bulk::{Compressor, Decompressor};
use zstd::zstd_safe::compress_bound;

use super::dormouse::Dump;
use super::measure::Clock;

/// Which half of the codec.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Half {
    Compress,
    Decompress,
    /// Neither: the pages are copied.
    Copy,
}

/// Measures one half of zstd at `level`.
pub(super) fn run(half: Half, vmcore: &Path, level: i32, threads: usize) -> Result<()> {
    let mut pages = Vec::new();
    Dump::open(vmcore)?.selected(|_, page| {
        pages.extend_from_slice(page);
        Ok(())
    })?;
    match half {
        Half::Compress => {
            let clock = Clock::start()?;
            let bytes = AtomicUsize::new(0);
            each(pages.chunks(CHUNK_MAX).collect(), threads, || {
                let (mut zstd, mut room) = (Compressor::new(level)?, vec![0; compress_bound(CHUNK_MAX)]);
                let bytes = &bytes;
                Ok(move |raw: &[u8]| {
                    let len = zstd.compress_to_buffer(raw, &mut room)?;
                    bytes.fetch_add(len.min(raw.len()), Ordering::Relaxed);
                    Ok(())
                })
            })?;
            clock.stop(Some(bytes.into_inner() as u64))?.print()
        }
        Half::Copy => {
            // Both have been touched.
            let mut copy = pages.clone();
            let work: Vec<_> = pages.chunks(CHUNK_MAX).zip(copy.chunks_mut(CHUNK_MAX)).collect();
            let clock = Clock::start()?;
            each(work, threads, || {
                Ok(|(from, to): (&[u8], &mut [u8])| {
                    to.copy_from_slice(from);
                    Ok(())
                })
            })?;
            clock.stop(Some(pages.len() as u64))?.print()
        }
        Half::Decompress => {
            let mut zstd = Compressor::new(level)?;
            let packed: Vec<Vec<u8>> =
                pages.chunks(CHUNK_MAX).map(|raw| zstd.compress(raw)).collect::<std::io::Result<_>>()?;
            // Over the pages themselves: memory that has been touched, as D's has.
            let work: Vec<_> = packed.iter().zip(pages.chunks_mut(CHUNK_MAX)).collect();
            let clock = Clock::start()?;
            each(work, threads, || {
                let mut zstd = Decompressor::new()?;
                Ok(move |(packed, raw): (&Vec<u8>, &mut [u8])| {
                    ensure!(zstd.decompress_to_buffer(packed, raw)? == raw.len(), "a chunk is not what it was");
                    Ok(())
                })
            })?;
            clock.stop(None)?.print()
        }
    }
}

/// Does each piece of work on some of `threads` threads, with a worker for each thread.
fn each<T: Send, W: FnMut(T) -> Result<()>>(
    work: Vec<T>,
    threads: usize,
    worker: impl Fn() -> Result<W> + Sync,
) -> Result<()> {
    let work = Mutex::new(work.into_iter());
    let next = || work.lock().unwrap_or_else(PoisonError::into_inner).next();
    std::thread::scope(|scope| {
        let run = || -> Result<()> {
            let mut worker = worker()?;
            while let Some(piece) = next() {
                worker(piece)?;
            }
            Ok(())
        };
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
        threads.into_iter().try_for_each(|thread| thread.join().ok().context("a thread of the codec panicked")?)
    })
}
