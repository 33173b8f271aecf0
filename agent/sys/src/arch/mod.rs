//! What depends on the architecture: the code between two kernels, what the CPU reports, and the architecture's number.

#[cfg(target_arch = "x86_64")]
mod x86_64;
#[cfg(target_arch = "x86_64")]
pub use x86_64::*;
#[cfg(not(target_arch = "x86_64"))]
compile_error!("Dormouse runs on x86-64 only");
