//! A second kernel, loaded and jumped into; and the way back.

pub mod arch;
mod confined;
mod direct;
pub mod region;
mod second_kernel;
mod segments;
mod vmcoreinfo_note;
mod way_back;

pub use arch::bridge::SIZE as BRIDGE_SIZE;
pub use confined::{NotConfined, demand_confined};
pub use direct::NotDirect;
pub use second_kernel::{FileError, Jumped, Loaded, SecondKernel, loader_command_line, order_archive, unload};
pub use segments::{LoaderError, Note, Plan, Purpose, Request, plan};
pub use vmcoreinfo_note::vmcoreinfo_note;
pub use way_back::{go_and_wait, go_and_wait_by_module, jump_back, jump_loaded, load_bridge};
