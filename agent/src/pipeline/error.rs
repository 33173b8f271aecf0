//! What can go wrong between memory and the store.

use std::io;

use dormouse_image::FormatError;
use thiserror::Error;

use crate::pipeline::seams::StoreFailure;

/// Why a pipeline stopped.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PipelineError {
    /// The threads could not be started.
    #[error("cannot start {threads} worker threads")]
    Threads {
        /// How many.
        threads: usize,
        /// What went wrong.
        source: io::Error,
    },
    /// A compression context could not be made.
    #[error("cannot set up compression: {0}")]
    Codec(io::Error),
    /// A chunk could not be sealed.
    #[error("a chunk cannot be sealed: {0}")]
    Seal(FormatError),
    /// No memory for a buffer.
    #[error("no memory for what is in flight: {0}")]
    Buffers(io::Error),
    /// A batch that is longer than a buffer.
    #[error("{0} bytes to be read at once")]
    Batch(usize),
    /// Memory could not be reached.
    #[error("memory at page frame {pfn:#x} cannot be reached")]
    Memory {
        /// The first page frame.
        pfn: u64,
        /// What went wrong.
        source: io::Error,
    },
    /// A chunk that does not decode.
    #[error("the chunk at offset {offset} is damaged: {why}")]
    Chunk {
        /// Its offset on the device in bytes.
        offset: u64,
        /// What is wrong with it.
        why: String,
    },
    /// The store failed. Its message says all.
    #[error(transparent)]
    Store(StoreFailure),
}
