//! Ranges of physical memory.

use std::fmt;

/// Bytes of physical memory, from `start` up to but not including `end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct PhysRange {
    /// The first byte.
    pub start: u64,
    /// The byte after the last.
    pub end: u64,
}

impl PhysRange {
    /// Its length in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    /// Whether there is nothing in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.end <= self.start
    }

    /// Whether `self` and `other` share a byte.
    #[must_use]
    pub fn overlaps(&self, other: &PhysRange) -> bool {
        self.start < other.end && other.start < self.end
    }

    /// The page frames that it touches.
    #[must_use]
    pub fn frames(&self) -> PfnRange {
        let page = crate::BLOCK as u64;
        PfnRange { start: self.start / page, end: self.end.div_ceil(page) }
    }
}

/// As in messages of the kernel, but with the end after the last byte.
impl fmt::Display for PhysRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}-{:#x}", self.start, self.end)
    }
}

/// Page frames, from `start` up to but not including `end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct PfnRange {
    /// The first page frame number: a physical address divided by 4096.
    pub start: u64,
    /// The one after the last.
    pub end: u64,
}

impl PfnRange {
    /// Its length in pages.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    /// The bytes of its pages.
    #[must_use]
    pub fn bytes(&self) -> PhysRange {
        let page = crate::BLOCK as u64;
        PhysRange { start: self.start.saturating_mul(page), end: self.end.saturating_mul(page) }
    }

    /// Whether all of `other` lies in `self`.
    #[must_use]
    pub fn contains(&self, other: &PfnRange) -> bool {
        self.start <= other.start && other.end <= self.end
    }

    /// Joins ranges that touch or overlap; `ranges` must ascend by their starts.
    #[must_use]
    pub fn merge(ranges: impl IntoIterator<Item = PfnRange>) -> Vec<PfnRange> {
        let mut merged: Vec<PfnRange> = Vec::new();
        for range in ranges {
            match merged.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => merged.push(range),
            }
        }
        merged
    }
}

/// A run of consecutive page frames, as an index stores it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Extent {
    /// The first page frame number.
    pub pfn: u64,
    /// How many pages, at least one.
    pub pages: u32,
}

impl Extent {
    /// The same run as a range.
    #[must_use]
    pub fn range(&self) -> PfnRange {
        PfnRange { start: self.pfn, end: self.pfn.saturating_add(u64::from(self.pages)) }
    }
}
