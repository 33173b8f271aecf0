//! The image on its device: finding it, writing it, reading it.

mod device;
mod disk;
mod error;
mod image;
mod reader;
mod writer;

pub use device::{Place, block_devices, find, node, places, resolve};
pub use disk::{Access, Disk};
pub use error::StoreError;
pub use image::Image;
pub use reader::Reader;
pub use writer::Writer;

#[cfg(test)]
mod tests;
