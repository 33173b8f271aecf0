//! The image on its device: finding it, writing it, reading it.

mod device;
mod disk;
mod error;
mod extents;
mod hardware;
mod image;
mod reader;
mod writer;

pub use device::{DirectDevice, block_devices, direct_devices, find, node, resolve};
pub use disk::{Access, Disk, Place};
pub use error::StoreError;
pub use extents::Extents;
pub use hardware::{Hardware, NoHardware, refuse_virtual};
pub use image::Image;
pub use reader::Reader;
pub use writer::Writer;

#[cfg(test)]
mod tests;
