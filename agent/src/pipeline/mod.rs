//! From pages to chunks and back, on all CPUs.
//!
//! Both directions have the same shape: workers, one for each thread of the pool and each with its own codec context
//! and scratch memory, take work off a shared list; a few threads of the store's do the I/O, so that several requests
//! are in flight. What is in flight lies in a fixed number of buffers ([`crate::pipeline::buffers`]), so memory use
//! depends on the policy and the number of threads, and not on the size of what is saved.

pub mod buffers;
mod chooser;
mod codec;
mod error;
mod lock;
mod restore;
mod save;
pub mod seams;
mod times;
pub mod window;

pub use error::PipelineError;
pub use restore::{discard, restore};
pub use save::{Task, save};

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::console::progress::Done;
use crate::handoff::spent::Spent;
use crate::pipeline::buffers::{BUFFER_LEN, Buffers};
use crate::pipeline::lock::lock;
use crate::policy::PipelinePolicy;

/// What was saved or restored, in pages. No two are equal: they have taken their time.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counts {
    /// Stored in chunks.
    pub stored: u64,
    /// To be restored as zeroes: all zero, or of no use.
    pub zero: u64,
    /// Neither read nor restored.
    pub left: u64,
    /// What the threads spent their time on.
    pub spent: Spent,
}

impl Counts {
    /// The pages stored, of zeroes, and left out.
    #[must_use]
    pub fn pages(&self) -> (u64, u64, u64) {
        (self.stored, self.zero, self.left)
    }
}

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Step {
    /// Pages that are done, those that are left out not counted.
    pub done: u64,
    /// Those of them that are stored in chunks.
    pub stored: u64,
    /// The length of these chunks in bytes.
    pub bytes: u64,
}

impl From<Step> for Done {
    fn from(Step { done, stored, bytes }: Step) -> Done {
        Done { pages: done, stored_pages: stored, stored_bytes: bytes }
    }
}

/// How much of the machine may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Threads that compress or decompress.
    pub threads: usize,
    /// Bytes for what is in flight between them and the device.
    pub memory: u64,
}

impl Limits {
    /// What the policy lets the pipelines use.
    #[must_use]
    pub fn of_policy(policy: &PipelinePolicy) -> Limits {
        Limits { memory: policy.memory, ..Limits::of_threads(policy.threads) }
    }

    /// That many threads, or one for each CPU where that is 0, and memory that is enough for any device.
    #[must_use]
    pub fn of_threads(threads: usize) -> Limits {
        let cpus = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let threads = if threads == 0 { cpus() } else { threads };
        Limits { threads, memory: (threads + 16) as u64 * BUFFER_LEN as u64 }
    }

    /// How many workers there are at most.
    #[must_use]
    pub fn workers(self) -> usize {
        self.resolve().0
    }

    /// The number of workers, and their buffers: there are never that many workers that no buffer is left for the
    /// device.
    fn resolve(self) -> (usize, Buffers) {
        let buffers = usize::try_from(self.memory).unwrap_or(usize::MAX) / BUFFER_LEN;
        let buffers = buffers.max(IN_FLIGHT + 1);
        (self.threads.clamp(1, buffers - IN_FLIGHT), Buffers::new(buffers))
    }
}

/// Buffers that workers leave for the device.
const IN_FLIGHT: usize = 2;

fn thread_pool(threads: usize) -> Result<rayon::ThreadPool, PipelineError> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    // rayon's own error repeats the text of its cause.
    pool.map_err(|error| PipelineError::Threads { threads, source: std::io::Error::other(error.to_string()) })
}

/// The first failure of several workers, which stops the others.
#[derive(Debug, Default)]
struct FirstFailure {
    /// Looked at all the time, and written at most once for each thread.
    is_set: AtomicBool,
    error: Mutex<Option<PipelineError>>,
}

impl FirstFailure {
    fn set(&self, error: PipelineError) {
        lock(&self.error).get_or_insert(error);
        self.is_set.store(true, Ordering::Relaxed);
    }

    fn is_set(&self) -> bool {
        self.is_set.load(Ordering::Relaxed)
    }

    fn into_result(self) -> Result<(), PipelineError> {
        self.error.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }
}

#[cfg(test)]
mod tests;
