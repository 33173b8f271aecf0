//! An image on its blocks: writing, verifying, reading it.
//!
//! ```text
//!   Writer, Reader ──> Image ──> Disk ──> dyn Blocks: Device, Extents of a device, Legs that hold the same, Nbd, Nfs
//! ```

mod blocks;
mod device;
mod disk;
mod error;
mod extents;
mod image;
mod legs;
mod nbd;
mod nfs;
mod reader;
mod wipe;
mod writer;

pub use blocks::Blocks;
pub(crate) use device::NEITHER;
pub use device::{Access, Device};
pub use disk::Disk;
pub use error::{NotDiscarded, StoreError};
pub use extents::{ExtentMap, Extents};
pub use image::{FindKey, Image};
pub use nbd::Nbd;
pub use nfs::Nfs;
pub use reader::Reader;
pub use wipe::Wiping;
pub use writer::Writer;

#[cfg(test)]
mod faulty;
#[cfg(test)]
mod sealed_tests;
#[cfg(test)]
pub(crate) mod tests;
