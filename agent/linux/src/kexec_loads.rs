//! How often a kernel has been loaded for kexec, by which a program knows that what it has loaded is still what is
//! loaded.
//!
//! Nothing names the kernel that is loaded. But a limit can be set on the number of loads, which each call of
//! `kexec_load(2)` or `kexec_file_load(2)` for a reboot lowers by one, whatever it does (Linux 6.12,
//! kernel/kexec_core.c, `kexec_load_permitted`; since 6.3). Two thousand million are no limit.

use std::fs;
use std::io;

/// Nobody who wants to limit loads allows so many.
const NO_LIMIT: u64 = 1 << 30;
const LIMIT: &str = "/proc/sys/kernel/kexec_load_limit_reboot";

/// Begins to count, where nobody has. The limit can only be lowered.
///
/// # Errors
/// A kernel before 6.3, or no root.
pub fn begin() -> io::Result<()> {
    if left()? < 0 { fs::write(LIMIT, i32::MAX.to_string()) } else { Ok(()) }
}

/// How many loads somebody allows, where that is few.
#[must_use]
pub fn limit() -> Option<u64> {
    left().ok().and_then(|left| u64::try_from(left).ok()).filter(|left| *left < NO_LIMIT)
}

/// How many loads are left: two numbers that are equal had none between them. Below zero where nobody counts.
///
/// # Errors
/// A kernel before 6.3.
pub fn left() -> io::Result<i32> {
    fs::read_to_string(LIMIT)?.trim().parse().map_err(io::Error::other)
}
