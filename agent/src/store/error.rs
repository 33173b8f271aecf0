//! What can go wrong with an image on its blocks. Every message names the device.

use std::error::Error;
use std::io;

use dormouse_image::{FormatError, State};
use dormouse_linux::units::mib;
use thiserror::Error;

/// An image that no boot may resume any more still exists: a context for the error that kept it from being discarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the image could not be discarded")]
pub struct NotDiscarded;

/// Why an image could not be used. In each variant, `name` is what messages call its device.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StoreError {
    /// It is in use.
    #[error("image device {name}: it is in use (mounted, active swap, or part of another device)")]
    Busy {
        /// The device.
        name: String,
    },
    /// Something is put together of it that the image's label does not know.
    #[error("image device {name}: {by} is put together of it, which is not among the layers that the image lies below")]
    Held {
        /// The device.
        name: String,
        /// What has it.
        by: String,
    },
    /// Opening it failed.
    #[error("image device {name}: cannot open it")]
    Open {
        /// The device.
        name: String,
        /// What went wrong.
        source: io::Error,
    },
    /// Reading or writing failed.
    #[error("image device {name}: {what} {len} bytes at offset {offset} failed")]
    Io {
        /// The device.
        name: String,
        /// "reading" or "writing".
        what: &'static str,
        /// Where, in bytes.
        offset: u64,
        /// How much, in bytes.
        len: usize,
        /// What went wrong.
        source: io::Error,
    },
    /// What was written could not be made durable.
    #[error("image device {name}: flushing it failed")]
    Flush {
        /// The device.
        name: String,
        /// What went wrong.
        source: io::Error,
    },
    /// What is on it is not a valid image.
    #[error("image device {name}: what is on it is not a valid image")]
    Format {
        /// The device.
        name: String,
        /// What is wrong.
        source: FormatError,
    },
    /// A label that belongs elsewhere.
    #[error(
        "image device {name}: the label at byte {offset} is that of an image that begins at byte {expected}: this is a \
         copy of a file's image, or the file has been moved. It is not touched"
    )]
    Misplaced {
        /// The device.
        name: String,
        /// Where the label is, in bytes.
        offset: u64,
        /// Where its image begins, in bytes.
        expected: u64,
    },
    /// The label of a file that was removed: its blocks may be another file's.
    #[error("image device {name}: the file is gone, and other data are in its place. It is not touched")]
    Gone {
        /// The device.
        name: String,
    },
    /// It carries no label.
    #[error("image device {name}: not initialised")]
    NotInitialised {
        /// The device.
        name: String,
    },
    /// The image does not fit.
    #[error("image device {name}: {}, the image needs {}", mib(*.size), mib(*.needed))]
    TooSmall {
        /// The device.
        name: String,
        /// Its size in bytes.
        size: u64,
        /// What the image would need, in bytes.
        needed: u64,
    },
    /// It has no complete image.
    #[error("image device {name}: the image is {state}, not complete")]
    Incomplete {
        /// The device.
        name: String,
        /// The image's state.
        state: State,
    },
    /// Something points outside the device.
    #[error("image device {name}: the image ends at byte {end}, the device at {size}; it was cut short")]
    Beyond {
        /// The device.
        name: String,
        /// Where the image ends.
        end: u64,
        /// The device's size in bytes.
        size: u64,
    },
    /// What was read back is not what was saved.
    #[error("image device {name}: what was read back from it is not what was saved")]
    Unverified {
        /// The device.
        name: String,
        /// What is wrong.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The writing threads could not be started.
    #[error("image device {name}: the writing threads cannot be started")]
    Threads {
        /// The device.
        name: String,
        /// What went wrong.
        source: io::Error,
    },
    /// A writing thread is gone.
    #[error("image device {name}: a writing thread ended unexpectedly")]
    WriterGone {
        /// The device.
        name: String,
    },
}
