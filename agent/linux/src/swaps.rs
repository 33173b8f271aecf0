//! Swap areas that are in use: `/proc/swaps` (proc_swaps(5)).

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::mountinfo::unescaped;
use crate::procfs;

/// Where the kernel shows them.
pub const PATH: &str = "/proc/swaps";

/// The block devices that are swap areas. Those in files are not listed, nor is compressed memory (zram).
///
/// # Errors
/// The kernel's list cannot be read.
pub fn devices() -> anyhow::Result<Vec<PathBuf>> {
    match Path::new(PATH).exists() {
        true => Ok(parse(&procfs::read(PATH)?)),
        // A kernel without swap.
        false => Ok(Vec::new()),
    }
}

/// All swap areas, files and compressed memory among them. What cannot be read is none.
#[must_use]
pub fn all() -> Vec<PathBuf> {
    areas(&procfs::read(PATH).unwrap_or_default()).map(|(name, _)| name).collect()
}

fn parse(text: &[u8]) -> Vec<PathBuf> {
    let is_disk = |(name, kind): &(PathBuf, &[u8])| {
        *kind == b"partition" && !name.as_os_str().as_bytes().starts_with(b"/dev/zram")
    };
    areas(text).filter(is_disk).map(|(name, _)| name).collect()
}

/// The name and the type of each area. A line: name, type, size, used, priority. The first has the names of these.
fn areas(text: &[u8]) -> impl Iterator<Item = (PathBuf, &[u8])> {
    text.split(|byte| *byte == b'\n').skip(1).filter_map(|line| {
        let mut fields = line.split(u8::is_ascii_whitespace).filter(|field| !field.is_empty());
        let name = OsString::from_vec(unescaped(fields.next()?));
        Some((name.into(), fields.next()?))
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn lists_devices_and_neither_files_nor_compressed_memory() {
        let text = b"\
Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority
/dev/zram0                              partition\t4194300\t\t0\t\t100
/dev/vda2                               partition\t1048572\t\t512\t\t-2
/swap\\040file                           file\t\t524284\t\t0\t\t-3
/dev/mapper/vg\\040x-swap                partition\t1048572\t\t0\t\t-4
";
        assert_eq!(parse(text), [Path::new("/dev/vda2"), Path::new("/dev/mapper/vg x-swap")]);
        assert!(parse(b"").is_empty() && parse(b"x\n\n/dev/vda2\n").is_empty());
        devices().unwrap();
    }
}
