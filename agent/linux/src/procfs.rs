//! Small files, those of the kernel above all, its clock and its random numbers.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;

/// For how long this kernel has run, in seconds; 0 where it does not say.
#[must_use]
pub fn uptime() -> f64 {
    let text = text("/proc/uptime").unwrap_or_default();
    text.split(' ').next().and_then(|seconds| seconds.parse().ok()).unwrap_or(0.0)
}

/// The content of a text file.
///
/// # Errors
/// The file cannot be read, or is not UTF-8. The error names it.
pub fn text(path: impl AsRef<Path>) -> anyhow::Result<String> {
    named(path.as_ref(), |path| fs::read_to_string(path))
}

/// The content of a text file, if it exists.
///
/// # Errors
/// It exists and cannot be read, or is not UTF-8. The error names it.
pub fn text_if_present(path: impl AsRef<Path>) -> anyhow::Result<Option<String>> {
    named(path.as_ref(), |path| match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        text => text.map(Some),
    })
}

/// The content of a file.
///
/// # Errors
/// The file cannot be read. The error names it.
pub fn read(path: impl AsRef<Path>) -> anyhow::Result<Vec<u8>> {
    named(path.as_ref(), |path| fs::read(path))
}

/// The first `limit` bytes of a file.
///
/// # Errors
/// The file cannot be read. The error names it.
pub fn head(path: impl AsRef<Path>, limit: u64) -> anyhow::Result<Vec<u8>> {
    named(path.as_ref(), |path| {
        let mut bytes = Vec::new();
        File::open(path)?.take(limit).read_to_end(&mut bytes)?;
        Ok(bytes)
    })
}

/// Reads from a file; an error gets its name.
fn named<T>(path: &Path, read: impl FnOnce(&Path) -> io::Result<T>) -> anyhow::Result<T> {
    read(path).with_context(|| format!("{}: cannot read it", path.display()))
}

/// What tells this boot from every other one: the running kernel's boot_id, a UUID.
///
/// # Errors
/// `/proc` does not have it.
pub fn boot_id() -> anyhow::Result<String> {
    Ok(text("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
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
    fill_random(&mut bytes)?;
    Ok(bytes)
}

/// Fills `bytes` with random ones, from the kernel.
///
/// # Errors
/// `/dev/urandom` cannot be read.
pub fn fill_random(bytes: &mut [u8]) -> anyhow::Result<()> {
    named(Path::new("/dev/urandom"), |path| File::open(path)?.read_exact(bytes))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn errors_name_the_file_once_and_the_cause_once() {
        for error in [text("/nonexistent").unwrap_err(), read("/nonexistent").unwrap_err()] {
            assert_eq!(format!("{error:#}"), "/nonexistent: cannot read it: No such file or directory (os error 2)");
        }
    }

    #[test]
    fn reads_no_more_than_the_limit() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "text").unwrap();
        assert_eq!(text(file.path()).unwrap(), "text");
        assert_eq!(text_if_present(file.path()).unwrap().as_deref(), Some("text"));
        assert_eq!(text_if_present("/nonexistent").unwrap(), None);
        assert!(text_if_present("/proc").is_err());
        assert_eq!([head(file.path(), 2).unwrap(), head(file.path(), 9).unwrap()], [&b"te"[..], b"text"]);
    }
}
