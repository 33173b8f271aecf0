//! Windows onto another kernel's memory: `/proc/vmcore` to read it, `/dev/mem` (or `/dev/oldmem`) to write it.
//!
//! Both are mapped, never read or written by `read(2)` and `write(2)`: reads of the vmcore map and unmap each
//! page (Linux 6.12, arch/x86/kernel/crash_dump_64.c), and `/dev/mem`'s calls stop at the running kernel's
//! `high_memory` (drivers/char/mem.c) where its `mmap` does not.

#![expect(unsafe_code, reason = "mmap(2) of memory that no Rust object describes")]

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use memmap2::{Mmap, MmapOptions, MmapRaw};

/// A read-only window onto a file such as `/proc/vmcore`.
#[derive(Debug)]
pub struct ReadWindow {
    map: Mmap,
}

impl ReadWindow {
    /// Maps `len` bytes of `file` from `offset`, both multiples of the page size.
    ///
    /// # Errors
    /// Those of `mmap(2)`.
    pub fn map(file: &File, offset: u64, len: usize) -> io::Result<ReadWindow> {
        // SAFETY: the file is /proc/vmcore: the memory of a kernel that no longer runs, on pages that this
        // kernel does not manage, so nothing changes them while they are mapped. (A test's stand-in is a
        // file that nothing else writes.)
        let map = unsafe { MmapOptions::new().offset(offset).len(len).map(file) }?;
        Ok(ReadWindow { map })
    }

    /// The mapped bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }
}

/// A writable window onto physical memory.
///
/// Several threads may write to one window at once: each borrows a range of it for the length of a call,
/// and a range that overlaps one already borrowed is refused.
#[derive(Debug)]
pub struct WriteWindow {
    map: MmapRaw,
    borrowed: Mutex<Vec<Range<usize>>>,
}

impl WriteWindow {
    /// Maps `len` bytes of `file` from `offset`, both multiples of the page size.
    ///
    /// The file must have been opened without `O_SYNC` and `O_DSYNC`, or the mapping is uncached
    /// (Linux 6.12, arch/x86/mm/pat/memtype.c).
    ///
    /// # Errors
    /// Those of `mmap(2)`: `EPERM` where the kernel guards the range (`CONFIG_STRICT_DEVMEM`, lockdown).
    pub fn map(file: &File, offset: u64, len: usize) -> io::Result<WriteWindow> {
        let map = MmapOptions::new().offset(offset).len(len).map_raw(file)?;
        Ok(WriteWindow { map, borrowed: Mutex::new(Vec::new()) })
    }

    /// Calls `write` with the bytes of `range`, counted from the window's start.
    ///
    /// # Errors
    /// `InvalidInput` where the range leaves the window or overlaps one that another thread is writing.
    pub fn with<T>(&self, range: Range<usize>, write: impl FnOnce(&mut [u8]) -> T) -> io::Result<T> {
        if range.start > range.end || range.end > self.map.len() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("bytes {range:?} of a window of {} bytes", self.map.len()),
            ));
        }
        let _claim = Claim::new(&self.borrowed, range.clone())?;
        // SAFETY: the range lies inside the mapping, which lives as long as `self`, and the claim keeps every
        // other borrower out of it until the slice is gone. The memory under it is RAM that this kernel
        // does not manage (a caller that maps anything else breaks no Rust rule, only its machine).
        let bytes =
            unsafe { std::slice::from_raw_parts_mut(self.map.as_mut_ptr().wrapping_add(range.start), range.len()) };
        Ok(write(bytes))
    }
}

/// One borrowed range; gives it back when dropped, also by a panic in the writer.
struct Claim<'a> {
    borrowed: &'a Mutex<Vec<Range<usize>>>,
    range: Range<usize>,
}

impl<'a> Claim<'a> {
    fn new(borrowed: &'a Mutex<Vec<Range<usize>>>, range: Range<usize>) -> io::Result<Claim<'a>> {
        let mut ranges = borrowed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(other) = ranges.iter().find(|other| other.start < range.end && range.start < other.end) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("bytes {range:?} of a window overlap {other:?}, which is being written"),
            ));
        }
        ranges.push(range.clone());
        Ok(Claim { borrowed, range })
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut ranges = self.borrowed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(index) = ranges.iter().position(|range| *range == self.range) {
            ranges.swap_remove(index);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::io::Write;

    fn file(len: usize) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![7; len]).unwrap();
        file
    }

    #[test]
    fn writes_reach_the_file_and_reads_see_them() {
        let file = file(8192);
        let window = WriteWindow::map(&file, 4096, 4096).unwrap();
        window.with(16..32, |bytes| bytes.fill(9)).unwrap();
        let read = ReadWindow::map(&file, 4096, 4096).unwrap();
        assert_eq!(read.bytes()[15..33], [&[7][..], &[9; 16], &[7]].concat());
    }

    #[test]
    fn a_range_outside_the_window_is_refused() {
        let window = WriteWindow::map(&file(4096), 0, 4096).unwrap();
        assert_eq!(window.with(4000..4097, |_| ()).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn overlapping_borrows_are_refused_and_given_back() {
        let window = WriteWindow::map(&file(4096), 0, 4096).unwrap();
        window
            .with(0..100, |_| {
                assert!(window.with(99..101, |_| ()).is_err());
                assert!(window.with(100..200, |_| ()).is_ok());
            })
            .unwrap();
        assert!(window.with(99..101, |_| ()).is_ok());
    }
}
