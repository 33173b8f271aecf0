//! A page of this process that stays where it is in physical memory, and its page frame number.
//!
//! The save and restore kernels leave their report in such a page of the process that asked for the
//! hibernation: it is the only channel back that no failing device can close.

#![expect(unsafe_code, reason = "vmsplice(2) and access to memory that another kernel writes")]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;

use memmap2::MmapMut;

use crate::{PAGE_LEN, PAGE_SIZE};

/// Pages that are allocated at once while one in the right place is looked for: 1 MiB.
const BATCH: usize = 256;

/// A locked page that cannot be migrated.
///
/// Locking keeps the page in memory but not in place: compaction may move it. A pipe that holds a reference to it does
/// the rest, because a page with a reference that the page tables do not explain is not moved (Linux 6.12,
/// mm/migrate.c, `folio_migrate_mapping`).
#[derive(Debug)]
pub struct PinnedPage {
    map: MmapMut,
    /// Where in `map` the page begins, in bytes.
    offset: usize,
    pfn: u64,
    _pipe: (OwnedFd, OwnedFd),
}

impl PinnedPage {
    /// Allocates pages until `accept` takes the page frame number of one, pins that one and frees the others. It starts
    /// with `content`; the rest is zero. At most `limit` bytes are allocated.
    ///
    /// # Errors
    /// Out of memory or of locked memory; `InvalidInput` where `content` is longer than a page; a pagemap without page
    /// frame numbers (they need `CAP_SYS_ADMIN`); `OutOfMemory` where `accept` takes none.
    pub fn new(content: &[u8], limit: usize, accept: impl Fn(u64) -> bool) -> io::Result<PinnedPage> {
        if content.len() > PAGE_LEN {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "more than a page of content"));
        }
        // Pages in the wrong place are kept until one is in the right place, or the kernel would hand them out again.
        let mut misplaced = Vec::new();
        while misplaced.len() * BATCH * PAGE_LEN < limit {
            let mut map = MmapMut::map_anon(BATCH * PAGE_LEN)?;
            map.lock()?;
            let start = map.as_ptr() as u64;
            for offset in (0..BATCH * PAGE_LEN).step_by(PAGE_LEN) {
                // Written, so that it is a page of its own and not the shared zero page.
                map[offset..offset + content.len()].copy_from_slice(content);
                let pfn = page_frame(start + offset as u64)?;
                if accept(pfn) {
                    return PinnedPage::pin(map, offset, pfn);
                }
            }
            misplaced.push(map);
        }
        Err(io::Error::new(io::ErrorKind::OutOfMemory, format!("none of {limit} bytes lies where it may")))
    }

    fn pin(mut map: MmapMut, offset: usize, pfn: u64) -> io::Result<PinnedPage> {
        let pipe = nix::unistd::pipe()?;
        let vector = libc::iovec { iov_base: map[offset..].as_mut_ptr().cast(), iov_len: PAGE_LEN };
        // SAFETY: the vector describes one page that is mapped for as long as the pipe is open; the pipe is never read,
        // so the kernel only keeps its reference.
        let spliced = unsafe { libc::vmsplice(pipe.1.as_fd().as_raw_fd(), &raw const vector, 1, 0) };
        if spliced < 0 {
            return Err(io::Error::last_os_error());
        }
        // It may have moved until it was pinned; from now on it does not.
        if page_frame(map.as_ptr() as u64 + offset as u64)? != pfn {
            return Err(io::Error::new(io::ErrorKind::Interrupted, "the page was moved while it was being pinned"));
        }
        Ok(PinnedPage { map, offset, pfn, _pipe: pipe })
    }

    /// Where the page lies: its physical address divided by the page size.
    #[must_use]
    pub fn pfn(&self) -> u64 {
        self.pfn
    }

    /// Its address in this process.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.map.as_ptr() as u64 + self.offset as u64
    }

    /// Writes `bytes` at `offset`, or nothing if they would leave the page.
    pub fn write(&mut self, offset: usize, bytes: &[u8]) {
        let page = &mut self.map[self.offset..self.offset + PAGE_LEN];
        if let Some(place) = offset.checked_add(bytes.len()).and_then(|end| page.get_mut(offset..end)) {
            place.copy_from_slice(bytes);
        }
    }

    /// What the page holds now, read from memory and not from what this process last wrote.
    #[must_use]
    pub fn read(&self) -> Vec<u8> {
        let page = self.map[self.offset..].as_ptr();
        (0..PAGE_LEN)
            .map(|offset| {
                // SAFETY: the offset lies inside the mapping. The read is volatile because another kernel may
                // have written the page while this one was stopped.
                unsafe { page.wrapping_add(offset).read_volatile() }
            })
            .collect()
    }
}

/// The page frame at a virtual address of this process (Documentation/admin-guide/mm/pagemap.rst).
fn page_frame(address: u64) -> io::Result<u64> {
    const PRESENT: u64 = 1 << 63;
    const PFN: u64 = (1 << 55) - 1;
    let mut entry = [0; 8];
    File::open("/proc/self/pagemap")?.read_exact_at(&mut entry, address / PAGE_SIZE * 8)?;
    let entry = u64::from_le_bytes(entry);
    match entry & PFN {
        0 => Err(io::Error::new(io::ErrorKind::PermissionDenied, "/proc/self/pagemap shows no page frame numbers")),
        _ if entry & PRESENT == 0 => Err(io::Error::other("a locked page is not present")),
        pfn => Ok(pfn),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_page_is_pinned_where_it_is_accepted() {
        let seen = std::cell::Cell::new(0);
        let third = |pfn| {
            seen.set(seen.get() + 1);
            pfn > 0 && seen.get() == 3
        };
        match PinnedPage::new(b"content", 1 << 20, third) {
            Ok(page) => {
                assert!(page.pfn() > 0);
                assert_eq!(page.read()[..8], *b"content\0");
            }
            // Page frame numbers are for root alone.
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::PermissionDenied),
        }
    }

    #[test]
    fn the_search_ends() {
        let error = PinnedPage::new(b"content", 3 << 20, |_| false).unwrap_err();
        assert!(matches!(error.kind(), io::ErrorKind::OutOfMemory | io::ErrorKind::PermissionDenied), "{error}");
    }
}
