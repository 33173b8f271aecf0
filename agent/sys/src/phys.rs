//! Windows onto another kernel's memory: `/proc/vmcore` to read it, `/dev/mem` (or `/dev/oldmem`) to write it.
//!
//! Both are mapped, never read or written by `read(2)` and `write(2)`: reads of the vmcore map and unmap each
//! page (Linux 6.12, arch/x86/kernel/crash_dump_64.c), and `/dev/mem`'s calls stop at the running kernel's
//! `high_memory` (drivers/char/mem.c) where its `mmap` does not.

#![expect(unsafe_code, reason = "mmap(2) of memory that no Rust object describes")]

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use memmap2::{Mmap, MmapOptions, MmapRaw};

use crate::PAGE_LEN;

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
/// Several threads may write to one window at once: each borrows the pages of a range for the length of a
/// call, and a range with a page that is already borrowed is refused.
#[derive(Debug)]
pub struct WriteWindow {
    map: MmapRaw,
    borrowed: Box<[Borrowed]>,
}

/// Pages for which [`Borrowed`] has a bit.
const BORROWED: usize = u64::BITS as usize;

/// A bit for each of 64 pages: it is borrowed. Each on a cache line of its own, since neighbours are written by other
/// CPUs.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Borrowed(AtomicU64);

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
        let borrowed = (0..len.div_ceil(PAGE_LEN * BORROWED)).map(|_| Borrowed::default()).collect();
        Ok(WriteWindow { map, borrowed })
    }

    /// Calls `write` with the bytes of `range`, counted from the window's start.
    ///
    /// # Errors
    /// `InvalidInput` where the range leaves the window or has a page to which another call is writing.
    pub fn with<T>(&self, range: Range<usize>, write: impl FnOnce(&mut [u8]) -> T) -> io::Result<T> {
        if range.start > range.end || range.end > self.map.len() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("bytes {range:?} of a window of {} bytes", self.map.len()),
            ));
        }
        let _claim = Claim::new(&self.borrowed, &range)?;
        // SAFETY: the range lies inside the mapping, which lives as long as `self`, and the claim keeps every
        // other borrower out of it until the slice is gone. The memory under it is RAM that this kernel
        // does not manage (a caller that maps anything else breaks no Rust rule, only its machine).
        let bytes =
            unsafe { std::slice::from_raw_parts_mut(self.map.as_mut_ptr().wrapping_add(range.start), range.len()) };
        Ok(write(bytes))
    }
}

/// Borrowed pages; gives them back when dropped, also by a panic in the writer.
struct Claim<'a> {
    borrowed: &'a [Borrowed],
    pages: Range<usize>,
}

impl<'a> Claim<'a> {
    /// Borrows the pages of these bytes, which lie in the window.
    fn new(borrowed: &'a [Borrowed], bytes: &Range<usize>) -> io::Result<Claim<'a>> {
        let pages = bytes.start / PAGE_LEN..bytes.end.div_ceil(PAGE_LEN);
        // What it has so far, which is given back if more cannot be had.
        let mut claim = Claim { borrowed, pages: pages.start..pages.start };
        for (at, bits, end) in words(pages) {
            let before = borrowed[at].0.fetch_or(bits, Ordering::Acquire);
            if before & bits != 0 {
                borrowed[at].0.fetch_and(!bits | before, Ordering::Release);
                return Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    format!("bytes {bytes:?} of a window have a page that is being written"),
                ));
            }
            claim.pages.end = end;
        }
        Ok(claim)
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        for (at, bits, _) in words(self.pages.clone()) {
            self.borrowed[at].0.fetch_and(!bits, Ordering::Release);
        }
    }
}

/// Where the bits of these pages are: the word's number, its bits, and the page behind them.
fn words(pages: Range<usize>) -> impl Iterator<Item = (usize, u64, usize)> {
    let mut start = pages.start;
    std::iter::from_fn(move || {
        let at = start / BORROWED;
        let end = pages.end.min((at + 1) * BORROWED);
        let count = end.checked_sub(start).filter(|count| *count > 0)?;
        // 1 to 64 bits.
        let bits = u64::MAX >> (BORROWED - count) << (start % BORROWED);
        start = end;
        Some((at, bits, end))
    })
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
        let page = |number: usize| number * PAGE_LEN;
        let window = WriteWindow::map(&file(page(200)), 0, page(200)).unwrap();
        window
            .with(page(1)..page(131), |_| {
                for (first, end) in [(0, 2), (1, 2), (64, 65), (130, 140), (0, 200)] {
                    assert!(window.with(page(first)..page(end), |_| ()).is_err(), "{first} to {end}");
                }
                // What was refused has left nothing behind.
                assert!(window.with(page(0)..page(1), |_| ()).is_ok());
                assert!(window.with(page(131)..page(200), |_| ()).is_ok());
                // A part of a page is all of it.
                assert!(window.with(page(131) - 1..page(131), |_| ()).is_err());
            })
            .unwrap();
        assert!(window.with(page(0)..page(200), |_| ()).is_ok());
        assert!(window.with(7..7, |_| ()).is_ok());
    }

    #[test]
    fn a_page_has_one_writer() {
        let window = WriteWindow::map(&file(16 * PAGE_LEN), 0, 16 * PAGE_LEN).unwrap();
        let written = std::sync::Mutex::new([0_u64; 16]);
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (window, written) = (&window, &written);
                scope.spawn(move || {
                    for number in 0..4000_usize {
                        let page = (number * 5 + thread) % 16;
                        let range = page * PAGE_LEN..(page + 1) * PAGE_LEN;
                        let added = window.with(range, |bytes| {
                            let (count, _) = bytes.split_first_chunk_mut::<8>().unwrap();
                            *count = (u64::from_le_bytes(*count).wrapping_add(1)).to_le_bytes();
                        });
                        if added.is_ok() {
                            written.lock().unwrap()[page] += 1;
                        }
                    }
                });
            }
        });
        let seven = u64::from_le_bytes([7; 8]);
        for (page, count) in written.into_inner().unwrap().into_iter().enumerate() {
            let at = page * PAGE_LEN;
            let found = window.with(at..at + 8, |bytes| u64::from_le_bytes((&*bytes).try_into().unwrap())).unwrap();
            assert_eq!(found, seven + count, "page {page}");
        }
    }
}
