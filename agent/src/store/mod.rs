//! An image on its blocks: writing, verifying, reading it.

mod disk;
mod error;
mod extents;
mod image;
mod reader;
mod writer;

pub use disk::{Access, Disk, Place};
pub use error::{NotDiscarded, StoreError};
pub use extents::Extents;
pub use image::Image;
pub use reader::Reader;
pub use writer::Writer;

#[cfg(test)]
mod tests;
