//! A bound on the memory that a target may take, whatever its input claims.
//!
//! libFuzzer's own limits do not do: `-malloc_limit_mb` needs the hooks of a sanitizer, and `-rss_limit_mb` does not
//! see memory that was asked for and never touched.

#![expect(unsafe_code, reason = "a global allocator is unsafe to implement")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What all of a target's allocations together may take, in bytes.
const LIMIT: usize = 256 << 20;

#[global_allocator]
static ALLOCATOR: Limited = Limited(AtomicUsize::new(0));

/// The system's allocator, and how many bytes are taken from it.
struct Limited(AtomicUsize);

impl Limited {
    /// Counts `len` bytes more, or ends the process: a panic would want memory itself.
    fn take(&self, len: usize) {
        let before = self.0.fetch_add(len, Ordering::Relaxed);
        if before.saturating_add(len) > LIMIT {
            // What cannot be written here will show in libFuzzer's output.
            let _ = writeln!(std::io::stderr(), "an allocation of {len} bytes beside {before}; the limit is {LIMIT}");
            std::process::abort();
        }
    }

    fn give_back(&self, len: usize) {
        self.0.fetch_sub(len, Ordering::Relaxed);
    }
}

// SAFETY: every call is the system allocator's, with the caller's own arguments.
unsafe impl GlobalAlloc for Limited {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.take(layout.size());
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        self.take(layout.size());
        // SAFETY: as the caller promises.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, len: usize) -> *mut u8 {
        self.take(len);
        self.give_back(layout.size());
        // SAFETY: as the caller promises.
        unsafe { System.realloc(memory, layout, len) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        self.give_back(layout.size());
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(memory, layout) }
    }
}
