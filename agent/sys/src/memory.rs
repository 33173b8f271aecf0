//! The C library's allocator, set up for little memory.

#![expect(unsafe_code, reason = "mallopt(3)")]

/// Keeps the allocator to two arenas.
///
/// glibc gives each thread an arena of its own by default, which in the small memory of B and D would
/// hold freed buffers once for each CPU.
pub fn limit_arenas() {
    // SAFETY: mallopt takes two numbers; M_ARENA_MAX is honoured at any time before further arenas exist.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 2) };
}
