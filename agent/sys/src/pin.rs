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

use crate::PAGE_SIZE;

const PAGE: usize = 4096;

/// A locked page that cannot be migrated.
///
/// Locking keeps the page in memory but not in place: compaction may move it. A pipe that holds a reference
/// to it does the rest, because a page with a reference that the page tables do not explain is not moved
/// (Linux 6.12, mm/migrate.c, `folio_migrate_mapping`).
#[derive(Debug)]
pub struct PinnedPage {
    map: MmapMut,
    pfn: u64,
    _pipe: (OwnedFd, OwnedFd),
}

impl PinnedPage {
    /// Allocates and pins a page that starts with `content`; the rest is zero.
    ///
    /// # Errors
    /// Out of memory or of locked memory; `InvalidInput` where `content` is longer than a page; a pagemap
    /// without page frame numbers (they need `CAP_SYS_ADMIN`).
    pub fn new(content: &[u8]) -> io::Result<PinnedPage> {
        let mut map = MmapMut::map_anon(PAGE)?;
        map.lock()?;
        let Some(start) = map.get_mut(..content.len()) else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "more than a page of content"));
        };
        start.copy_from_slice(content);
        let pipe = nix::unistd::pipe()?;
        let vector = libc::iovec { iov_base: map.as_mut_ptr().cast(), iov_len: PAGE };
        // SAFETY: the vector describes one page that is mapped for as long as the pipe is open; the pipe is
        // never read, so the kernel only keeps its reference.
        let spliced = unsafe { libc::vmsplice(pipe.1.as_fd().as_raw_fd(), &raw const vector, 1, 0) };
        if spliced < 0 {
            return Err(io::Error::last_os_error());
        }
        let pfn = page_frame(map.as_ptr() as u64)?;
        Ok(PinnedPage { map, pfn, _pipe: pipe })
    }

    /// Where the page lies: its physical address divided by the page size.
    #[must_use]
    pub fn pfn(&self) -> u64 {
        self.pfn
    }

    /// What the page holds now, read from memory and not from what this process last wrote.
    #[must_use]
    pub fn read(&self) -> Vec<u8> {
        let page = self.map.as_ptr();
        (0..PAGE)
            .map(|offset| {
                // SAFETY: the offset lies inside the mapping. The read is volatile because another kernel may
                // have written the page while this one was stopped.
                unsafe { page.wrapping_add(offset).read_volatile() }
            })
            .collect()
    }
}

/// The page frame behind a virtual address of this process (Documentation/admin-guide/mm/pagemap.rst).
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
