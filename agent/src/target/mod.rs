//! Where an image is, and how it is reached.

pub mod device;
pub mod file;
pub mod find;
pub mod signature;

pub use find::{DirectDevice, direct_devices, find, resolve};
