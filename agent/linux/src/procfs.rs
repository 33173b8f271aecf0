//! The kernel's small text files, its clock and its random numbers.

use std::fs::File;
use std::io::Read;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;

/// The content of one of the kernel's text files.
///
/// # Errors
/// The file cannot be read, or is no text.
pub fn text(path: &str) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("{path}: cannot read it"))
}

/// Seconds since 1970, or 0 where the clock is before that.
#[must_use]
pub fn now_unix() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Random bytes, from the kernel.
///
/// # Errors
/// `/dev/urandom` cannot be read.
pub fn random() -> anyhow::Result<[u8; 16]> {
    let mut bytes = [0; 16];
    let path = "/dev/urandom";
    File::open(path)
        .and_then(|mut file| file.read_exact(&mut bytes))
        .with_context(|| format!("{path}: cannot read it"))?;
    Ok(bytes)
}
