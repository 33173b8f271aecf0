//! Where the jump has put the pages that it swapped.
//!
//! The kexec image of the stopped kernel has a list of entries: a destination, then the source pages that go there
//! consecutively, the next destination, and so on (kernel/kexec_core.c: `IND_DESTINATION` 1, `IND_INDIRECTION` 2,
//! `IND_DONE` 4, `IND_SOURCE` 8 in the low bits, a page's address above). The control page holds the list's head, for
//! the way back. Kernel versions keep it at different places in that page, so each word of it is tried, and only a list
//! whose destinations are exactly the pages that were loaded is believed.

use dormouse_image::PfnRange;
use dormouse_sys::PAGE_SIZE;

use crate::memory::select::{Physical, SelectError, Swapped, word};

const DESTINATION: u64 = 1;
const INDIRECTION: u64 = 2;
const DONE: u64 = 4;
const SOURCE: u64 = 8;

/// Pages that are swapped at most, 8 GiB of them: no region and low memory are so large, and what an image's header
/// claims is no reason to take memory and time.
const MOST: u64 = 1 << 21;

/// For each swapped page frame, the page frame that holds its content now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SwapMap {
    ranges: Vec<PfnRange>,
    sources: Vec<u64>,
}

impl SwapMap {
    /// The map of memory in which nothing is swapped, such as that of a machine that was dumped from outside.
    #[must_use]
    pub fn nothing() -> SwapMap {
        SwapMap { ranges: Vec::new(), sources: Vec::new() }
    }

    /// Finds the list that hangs off the control page in which `entry`, the jump-back entry, lies. `memory` must show
    /// physical memory as it is now.
    ///
    /// # Errors
    /// [`SelectError::NoSwapMap`].
    pub fn find(memory: &impl Physical, entry: u64, swapped: Swapped<'_>) -> Result<SwapMap, SelectError> {
        let control = entry / PAGE_SIZE * PAGE_SIZE;
        (0..PAGE_SIZE / 8)
            .filter_map(|at| word(memory, control + at * 8).ok())
            .find_map(|head| SwapMap::follow(memory, head, swapped))
            .ok_or(SelectError::NoSwapMap(control))
    }

    /// The map that the list beginning with `head` describes, if it is one.
    fn follow(memory: &impl Physical, head: u64, swapped: Swapped<'_>) -> Option<SwapMap> {
        // A list begins with its first page of entries: a plain page would be found everywhere.
        if head & (PAGE_SIZE - 1) != INDIRECTION {
            return None;
        }
        let ranges = swapped.ranges();
        let mut expected = ranges.iter().flat_map(|range| range.start..range.end).peekable();
        let count = ranges.iter().map(PfnRange::pages).sum::<u64>();
        if count > MOST {
            return None;
        }
        let mut sources = Vec::with_capacity(usize::try_from(count).ok()?);
        let (mut at, mut destination) = (head, None);
        // Each source has one entry, and there are fewer of the others; a longer list goes round in a circle.
        for _ in 0..count * 2 + 1024 {
            let entry = if at & (PAGE_SIZE - 1) == INDIRECTION { at } else { word(memory, at).ok()? };
            let page = entry & !(PAGE_SIZE - 1);
            at = match entry & (PAGE_SIZE - 1) {
                INDIRECTION => page,
                DESTINATION => {
                    destination = Some(page / PAGE_SIZE);
                    at + 8
                }
                SOURCE => {
                    if destination? != expected.next()? {
                        return None;
                    }
                    sources.push(page / PAGE_SIZE);
                    destination = destination.map(|pfn| pfn + 1);
                    at + 8
                }
                DONE => {
                    return expected.peek().is_none().then_some(SwapMap { ranges, sources });
                }
                _ => return None,
            };
        }
        None
    }

    /// Checks that what holds the swapped pages is memory: part of `ram`, which ascends, or swapped itself.
    ///
    /// # Errors
    /// [`SelectError::Holder`].
    pub(super) fn check(&self, ram: &[PfnRange]) -> Result<(), SelectError> {
        let within = |ranges: &[PfnRange], pfn: u64| {
            let at = ranges.partition_point(|range| range.end <= pfn);
            ranges.get(at).is_some_and(|range| range.start <= pfn)
        };
        let is_memory = |pfn: u64| within(ram, pfn) || self.ranges.iter().any(|range| within(&[*range], pfn));
        match self.sources.iter().find(|pfn| !is_memory(**pfn)) {
            Some(pfn) => Err(SelectError::Holder(*pfn)),
            None => Ok(()),
        }
    }

    /// The page frames that hold the content of the first pages of `run` now: of as many as lie together, at least of
    /// one.
    #[must_use]
    pub fn holders(&self, run: PfnRange) -> PfnRange {
        if self.ranges.iter().any(|range| (range.start..range.end).contains(&run.start)) {
            let holder = self.holder(run.start);
            return PfnRange { start: holder, end: holder + 1 };
        }
        let next = self.ranges.iter().map(|range| range.start).filter(|start| *start > run.start).min();
        PfnRange { start: run.start, end: next.map_or(run.end, |next| run.end.min(next)) }
    }

    /// The page frame that holds the content of `pfn` now: `pfn` itself where it was not swapped.
    #[must_use]
    pub fn holder(&self, pfn: u64) -> u64 {
        let mut before = 0;
        let at = self.ranges.iter().find_map(|range| {
            let at = (range.start..range.end).contains(&pfn).then(|| before + pfn - range.start);
            before += range.pages();
            at
        });
        let Some(at) = at else { return pfn };
        usize::try_from(at).ok().and_then(|at| self.sources.get(at)).copied().unwrap_or(pfn)
    }
}
