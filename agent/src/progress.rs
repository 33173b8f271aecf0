//! How far a phase is, as milestones in the kernel log.

use std::time::Instant;

use crate::phase::Phase;

/// Says every tenth of a phase, with the rate so far.
#[derive(Debug)]
pub struct Progress {
    phase: Phase,
    pages: u64,
    began: Instant,
    tenths: u64,
}

impl Progress {
    /// A phase that has `pages` pages to go through.
    #[must_use]
    pub fn new(phase: Phase, pages: u64) -> Progress {
        Progress { phase, pages, began: Instant::now(), tenths: 0 }
    }

    /// `done` pages are done.
    pub fn at(&mut self, done: u64) {
        let tenths = done.saturating_mul(10).checked_div(self.pages).unwrap_or(10);
        if tenths <= self.tenths {
            return;
        }
        self.tenths = tenths;
        let mib = (done * dormouse_sys::PAGE_SIZE) >> 20;
        let millis = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX).max(1);
        log::info!("{}: {} %, {} MiB/s of memory", self.phase, tenths * 10, mib.saturating_mul(1000) / millis);
    }
}
