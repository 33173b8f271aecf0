//! Files for targets that need one.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use nix::sys::memfd::{MFdFlags, memfd_create};

/// A file in memory alone, which is gone when this is dropped.
pub(super) struct Scratch(File);

impl Scratch {
    /// A file of `len` zero bytes.
    pub(super) fn new(len: u64) -> Scratch {
        let file = memfd_create("dormouse-fuzz", MFdFlags::MFD_CLOEXEC).map(File::from).expect("a file can be made");
        file.set_len(len).expect("it can be made longer");
        Scratch(file)
    }

    /// Writes `bytes` at `offset`.
    pub(super) fn write(&self, offset: u64, bytes: &[u8]) {
        self.0.write_all_at(bytes, offset).expect("it can be written");
    }

    /// A path to open it by, new each time.
    pub(super) fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.0.as_raw_fd()).into()
    }
}
