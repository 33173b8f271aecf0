//! A second kernel, loaded and jumped into; and the way back.

pub mod arch;
pub mod region;
mod segments;
mod vmcoreinfo_note;
mod way_back;

pub use arch::bridge::SIZE as BRIDGE_SIZE;
pub use segments::*;
pub use vmcoreinfo_note::vmcoreinfo_note;
pub use way_back::{WayBack, jump_back, load_bridge};
