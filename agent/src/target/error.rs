//! Why a target could not be found, or is not where it should be.

use std::path::PathBuf;

use dormouse_image::ImageDevice;
use dormouse_linux::network::{Down, NoWay};
use thiserror::Error;

use crate::store::StoreError;
use crate::target::Target;

/// Why an image could not be reached.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TargetError {
    /// It did not appear.
    #[error("image device {name}: not found within {seconds} s")]
    NotFound {
        /// As the policy names it.
        name: ImageDevice,
        /// How long it was waited for.
        seconds: u64,
    },
    /// A file that is on no mounted filesystem.
    #[error("image device {path}: the file does not exist", path = .path.display())]
    NoFile {
        /// The file.
        path: PathBuf,
    },
    /// Several devices have the name.
    #[error("image device {name}: both {first} and {second} match that name")]
    Ambiguous {
        /// As the policy names it.
        name: ImageDevice,
        /// One of them.
        first: Box<Target>,
        /// Another.
        second: Box<Target>,
    },
    /// Another disk than the recorded one has the name.
    #[error(
        "image device {name}: {target} has that name and is another disk ({found}) than the image was put on \
         ({recorded})"
    )]
    OtherDisk {
        /// As the policy names it.
        name: ImageDevice,
        /// What has the name.
        target: Box<Target>,
        /// Its disk.
        found: String,
        /// The disk that is recorded.
        recorded: String,
    },
    /// One of the two disks that hold it is not here.
    #[error("image device {target}: it lies on two disks that hold the same, and the other one is not here")]
    NoLeg {
        /// Where the other one is.
        target: Box<Target>,
    },
    /// A file that is reached through its filesystem where nothing may be mounted yet.
    #[error(
        "image device {path}: the filesystem that this file is on is mounted already, so nothing can be resumed",
        path = .path.display()
    )]
    Mounted {
        /// The file.
        path: PathBuf,
    },
    /// A server has it that another kernel would not reach.
    #[error("the image is with a server")]
    NoWay(#[from] NoWay),
    /// The network did not come up.
    #[error("the network does not come up")]
    Down(#[from] Down),
    /// A server has it, and the order does not say how that is reached.
    #[error("image device {name}: the order does not say by which interface its server is reached")]
    NoLink {
        /// As the order names it.
        name: ImageDevice,
    },
    /// It cannot be opened, or carries no valid image.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The file is not, or not certainly, where its label says.
    #[error(transparent)]
    Moved(anyhow::Error),
}
