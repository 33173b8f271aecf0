//! What of a stopped kernel's memory depends on the architecture.

#[cfg(target_arch = "x86_64")]
mod x86_64;
#[cfg(target_arch = "x86_64")]
pub use x86_64::*;
#[cfg(not(target_arch = "x86_64"))]
compile_error!("Dormouse reads the memory of x86-64 kernels only");
