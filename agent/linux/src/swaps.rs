//! Swap areas that are in use: `/proc/swaps` (proc_swaps(5)).

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use crate::mountinfo::unescaped;
use crate::procfs;

/// Where the kernel shows them.
pub const PATH: &str = "/proc/swaps";

/// The block devices that are swap areas. Those in files are not listed, nor is compressed memory (zram).
///
/// # Errors
/// The kernel's list cannot be read.
pub fn devices() -> anyhow::Result<Vec<PathBuf>> {
    match std::path::Path::new(PATH).exists() {
        true => Ok(parse(&procfs::read(PATH)?)),
        // A kernel without swap.
        false => Ok(Vec::new()),
    }
}

/// A line: name, type, size, used, priority. The first has the names of these.
fn parse(text: &[u8]) -> Vec<PathBuf> {
    let device = |line: &[u8]| {
        let mut fields = line.split(u8::is_ascii_whitespace).filter(|field| !field.is_empty());
        let (name, kind) = (fields.next()?, fields.next()?);
        let is_disk = kind == b"partition" && !name.starts_with(b"/dev/zram");
        is_disk.then(|| OsString::from_vec(unescaped(name)).into())
    };
    text.split(|byte| *byte == b'\n').skip(1).filter_map(device).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::path::Path;

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
