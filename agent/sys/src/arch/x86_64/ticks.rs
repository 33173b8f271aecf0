//! The CPU's time stamp counter.
#![allow(unsafe_code)]

use std::arch::x86_64::_rdtsc;

/// How far it has counted. It goes on where no clock of a kernel does: while that kernel is stopped and another runs.
#[must_use]
pub fn ticks() -> u64 {
    // SAFETY: every x86-64 CPU has the instruction, and Linux lets programs use it (prctl(2), PR_SET_TSC).
    unsafe { _rdtsc() }
}

#[cfg(test)]
mod tests {
    use super::ticks;

    #[test]
    fn it_counts() {
        let before = ticks();
        std::thread::sleep(std::time::Duration::from_millis(1));
        assert!(ticks() > before);
    }
}
