//! Accounting for every page that an image claims to hold.

use crate::error::FormatError;
use crate::{Extent, PfnRange, Totals};

/// Which pages of the saved memory an image holds: one bit for each.
#[derive(Debug, Clone)]
pub struct Coverage {
    /// The memory, each range with the number of pages before it.
    ranges: Vec<(PfnRange, u64)>,
    bits: Vec<u64>,
    added: u64,
    pages: u64,
}

impl Coverage {
    /// Nothing of `ram`, which must be ascending and not overlap, as a decoded header's is.
    #[must_use]
    pub fn new(ram: &[PfnRange]) -> Coverage {
        let mut pages = 0;
        let mut ranges: Vec<(PfnRange, u64)> = Vec::with_capacity(ram.len());
        for range in ram {
            match ranges.last_mut() {
                // A run of pages may cross from a range into one that touches it.
                Some((last, _)) if last.end == range.start => last.end = range.end,
                _ => ranges.push((*range, pages)),
            }
            pages += range.pages();
        }
        let words = usize::try_from(pages.div_ceil(64)).unwrap_or(usize::MAX);
        Coverage { ranges, bits: vec![0; words], added: 0, pages }
    }

    /// Adds a run of pages.
    ///
    /// # Errors
    /// [`FormatError::OutsideRam`] where it leaves the memory, [`FormatError::Twice`] where a page was added before.
    pub fn add(&mut self, extent: Extent) -> Result<(), FormatError> {
        let run = extent.range();
        let at = self.ranges.partition_point(|(range, _)| range.end <= run.start);
        let Some((range, before)) = self.ranges.get(at).filter(|(range, _)| range.contains(&run)) else {
            return Err(FormatError::OutsideRam { start: run.start, end: run.end });
        };
        let first = before + (run.start - range.start);
        let end = first + run.pages();
        let mut bit = first;
        while bit < end {
            let (word, shift) = (bit / 64, bit % 64);
            let count = (64 - shift).min(end - bit);
            let mask = (u64::MAX >> (64 - count)) << shift;
            // The run lies inside the ranges, and there is a bit for each page of them.
            let word = &mut self.bits[usize::try_from(word).unwrap_or(usize::MAX)];
            if *word & mask != 0 {
                let twice = bit + u64::from((*word & mask).trailing_zeros()) - shift;
                return Err(FormatError::Twice(run.start + (twice - first)));
            }
            *word |= mask;
            bit += count;
        }
        self.added += run.pages();
        Ok(())
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
        count("pages of memory", totals.ram_pages, self.pages)?;
        count("pages", totals.stored_pages.saturating_add(totals.zero_pages), self.added)
    }
}
