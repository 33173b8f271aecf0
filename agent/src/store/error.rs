//! What can go wrong with an image device. Every message names the device.

use std::io;
use std::path::PathBuf;

use dormouse_image::{FormatError, ImageDevice, State};
use dormouse_linux::units::mib;
use thiserror::Error;

use crate::store::Place;

/// An image that no boot may resume any more is still there: a context for the error that kept it from being discarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the image could not be discarded")]
pub struct NotDiscarded;

/// Why an image device could not be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StoreError {
    /// It did not appear.
    #[error("image device {device}: not found within {seconds} s")]
    NotFound {
        /// As the policy names it.
        device: ImageDevice,
        /// How long it was waited for.
        seconds: u64,
    },
    /// A file that is on no mounted filesystem.
    #[error("image device {path}: there is no such file", path = .path.display())]
    NoFile {
        /// The file.
        path: PathBuf,
    },
    /// Several devices have the name.
    #[error("image device {device}: both {first} and {second} match that name")]
    Ambiguous {
        /// As the policy names it.
        device: ImageDevice,
        /// One of them.
        first: Place,
        /// Another.
        second: Place,
    },
    /// It is in use.
    #[error("image device {path}: it is in use (mounted, active swap, or part of another device)", path = .path.display())]
    Busy {
        /// The device.
        path: PathBuf,
    },
    /// Opening it failed.
    #[error("image device {path}: cannot open it", path = .path.display())]
    Open {
        /// The device.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
    /// Reading or writing failed.
    #[error("image device {path}: {what} {len} bytes at offset {offset} failed", path = .path.display())]
    Io {
        /// The device.
        path: PathBuf,
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
    #[error("image device {path}: flushing it failed", path = .path.display())]
    Flush {
        /// The device.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
    /// What is on it is not a valid image.
    #[error("image device {path}: what is on it cannot be used", path = .path.display())]
    Format {
        /// The device.
        path: PathBuf,
        /// What is wrong.
        source: FormatError,
    },
    /// A label that belongs elsewhere.
    #[error(
        "image device {path}: the label at byte {offset} is that of an image that begins at byte {expected}: this is a copy of a \
         file's image, or the file has been moved. It is not touched",
        path = .path.display()
    )]
    Misplaced {
        /// The device.
        path: PathBuf,
        /// Where the label is, in bytes.
        offset: u64,
        /// Where its image begins, in bytes.
        expected: u64,
    },
    /// The label of a file that was removed: its blocks may be another file's.
    #[error("image device {place}: the file is gone, and other data are in its place. It is not touched")]
    Gone {
        /// Where it was.
        place: Place,
    },
    /// It carries no label.
    #[error("image device {path}: not initialised", path = .path.display())]
    NotInitialised {
        /// The device.
        path: PathBuf,
    },
    /// The image does not fit.
    #[error("image device {path}: {}, the image needs {}", mib(*.size), mib(*.needed), path = .path.display())]
    TooSmall {
        /// The device.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
        /// What the image would need, in bytes.
        needed: u64,
    },
    /// There is no whole image on it.
    #[error("image device {path}: the image is {state}, so there is no complete image to read", path = .path.display())]
    Incomplete {
        /// The device.
        path: PathBuf,
        /// The image's state.
        state: State,
    },
    /// Something points outside the device.
    #[error("image device {path}: the image ends at byte {end}, the device at {size}; it was cut short", path = .path.display())]
    Beyond {
        /// The device.
        path: PathBuf,
        /// Where the image ends.
        end: u64,
        /// The device's size in bytes.
        size: u64,
    },
    /// What was read back is not what was saved.
    #[error("image device {path}: what was read back from it is not what was saved", path = .path.display())]
    Unverified {
        /// The device.
        path: PathBuf,
        /// What is wrong.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The writing thread is gone.
    #[error("image device {path}: the writing thread ended unexpectedly", path = .path.display())]
    WriterGone {
        /// The device.
        path: PathBuf,
    },
}
