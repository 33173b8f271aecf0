//! Accounting for every page that an image claims to hold.

use std::collections::BTreeMap;

use roaring::RoaringTreemap;

use crate::error::FormatError;
use crate::{Extent, PfnRange, Totals};

/// Runs of at least this many pages are kept as such: in a bitmap, a hostile image could make much of few bytes.
const LONG: u64 = 1 << 16;

/// Which pages of the saved memory an image holds.
///
/// It needs about a bit for each page of an image, and no more than a few times what the index needs for them, however
/// much memory a header claims.
#[derive(Debug, Clone)]
pub struct Coverage {
    ranges: Vec<PfnRange>,
    /// The pages of short runs.
    short: RoaringTreemap,
    /// The long runs: their ends by their starts.
    long: BTreeMap<u64, u64>,
    added: u64,
}

impl Coverage {
    /// Nothing of `ram`, which must be ascending and not overlap, as a decoded header's is.
    #[must_use]
    pub fn new(ram: &[PfnRange]) -> Coverage {
        // A run of pages may cross from a range into one that touches it.
        let ranges = PfnRange::merge(ram.iter().copied());
        Coverage { ranges, short: RoaringTreemap::new(), long: BTreeMap::new(), added: 0 }
    }

    /// Adds a run of pages.
    ///
    /// # Errors
    /// [`FormatError::OutsideRam`] where it leaves the memory, [`FormatError::Twice`] where a page was added before.
    pub fn add(&mut self, extent: Extent) -> Result<(), FormatError> {
        let run = extent.range();
        let at = self.ranges.partition_point(|range| range.end <= run.start);
        if self.ranges.get(at).is_none_or(|range| !range.contains(&run)) {
            return Err(FormatError::OutsideRam { start: run.start, end: run.end });
        }
        if let Some(twice) = self.first_of(&run) {
            return Err(FormatError::Twice(twice));
        }
        if run.pages() >= LONG {
            self.long.insert(run.start, run.end);
        } else {
            self.short.insert_range(run.start..run.end);
        }
        self.added += run.pages();
        Ok(())
    }

    /// The first page of `run` that is held already.
    fn first_of(&self, run: &PfnRange) -> Option<u64> {
        let mut short = self.short.iter();
        short.advance_to(run.start);
        let short = short.next().filter(|pfn| *pfn < run.end);
        let before = self.long.range(..run.start).next_back().filter(|(_, end)| **end > run.start).map(|_| run.start);
        let within = self.long.range(run.start..run.end).next().map(|(start, _)| *start);
        short.into_iter().chain(before).chain(within).min()
    }

    /// Checks that the image holds as many pages as its commit record says.
    ///
    /// # Errors
    /// [`FormatError::Count`].
    pub fn finish(&self, totals: &Totals) -> Result<(), FormatError> {
        let count = |what, expected, found| match expected == found {
            true => Ok(()),
            false => Err(FormatError::Count { what, expected, found }),
        };
        count("pages of memory", totals.ram_pages, self.ranges.iter().map(PfnRange::pages).sum())?;
        count("pages", totals.stored_pages.saturating_add(totals.zero_pages), self.added)
    }
}
