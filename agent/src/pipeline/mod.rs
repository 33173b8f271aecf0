//! From pages to chunks and back, on all CPUs.
//!
//! Both directions have the same shape: workers, one for each thread of the pool and each with its own codec context and
//! scratch memory, take work off a shared list, and one thread does the I/O. What is in flight between them is bounded,
//! so memory use depends on the number of threads and not on the size of what is saved.

mod error;
mod restore;
mod save;

pub use error::PipelineError;
pub use restore::{discard, restore};
pub use save::{Counts, save};

use std::sync::{Mutex, PoisonError};

/// Results in flight for each worker.
const IN_FLIGHT: usize = 2;

fn thread_pool(threads: usize) -> Result<rayon::ThreadPool, PipelineError> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    pool.map_err(|source| PipelineError::Threads { threads, source })
}

/// The first failure of several workers, which stops the others.
#[derive(Debug, Default)]
struct FirstFailure(Mutex<Option<PipelineError>>);

impl FirstFailure {
    fn set(&self, error: PipelineError) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    }

    fn is_set(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    fn into_result(self) -> Result<(), PipelineError> {
        self.0.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }
}

#[cfg(test)]
mod tests;
