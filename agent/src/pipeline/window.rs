//! Windows of bounded size onto long ranges of physical memory.
//!
//! Mapping costs page tables (2 MiB for each GiB of 4 KiB entries), and each mapping and unmapping a lock and a flush
//! on all CPUs. So memory is mapped in windows of 16 MiB that the workers share, only where it is touched, and the
//! windows used last are kept.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use dormouse_image::PfnRange;

/// Pages in one window: 16 MiB. Windows begin at multiples of it.
pub const WINDOW_PAGES: u64 = 1 << 12;

/// Windows that are kept open beyond their use. All workers go through memory in order, so they are about as far.
const KEPT: usize = 16;

/// The windows onto a set of ranges; `W` is what one mapping is.
#[derive(Debug)]
pub struct Windows<W> {
    ranges: Vec<PfnRange>,
    recent: Mutex<Vec<(PfnRange, Arc<W>)>>,
}

impl<W> Windows<W> {
    /// Windows onto `ranges`, which must ascend and not overlap. Nothing is mapped yet.
    #[must_use]
    pub fn new(ranges: Vec<PfnRange>) -> Windows<W> {
        Windows { ranges, recent: Mutex::new(Vec::new()) }
    }

    /// The ranges.
    #[must_use]
    pub fn ranges(&self) -> &[PfnRange] {
        &self.ranges
    }

    /// The window that holds `run` whole, mapped with `map` if it is not mapped already, and the frames that it shows.
    ///
    /// # Errors
    /// `InvalidInput` where `run` lies outside the ranges or across a window's boundary (see [`pieces`]); what `map`
    /// says.
    pub fn get(&self, run: PfnRange, map: impl FnOnce(PfnRange) -> io::Result<W>) -> io::Result<(PfnRange, Arc<W>)> {
        let at = self.ranges.partition_point(|range| range.end <= run.start);
        let aligned = run.start / WINDOW_PAGES * WINDOW_PAGES;
        let window = self
            .ranges
            .get(at)
            .map(|range| PfnRange { start: range.start.max(aligned), end: range.end.min(aligned + WINDOW_PAGES) });
        let Some(window) = window.filter(|window| window.contains(&run)) else {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("page frames {:#x} to {:#x} are in no window", run.start, run.end),
            ));
        };
        // Mapping under the lock keeps two workers from mapping the same window.
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(position) = recent.iter().rposition(|(frames, _)| *frames == window) {
            let found = recent.remove(position);
            recent.push(found.clone());
            return Ok(found);
        }
        let mapped = (window, Arc::new(map(window)?));
        if recent.len() >= KEPT {
            recent.remove(0);
        }
        recent.push(mapped.clone());
        Ok(mapped)
    }
}

/// Cuts a run at the windows' boundaries.
pub fn pieces(run: PfnRange) -> impl Iterator<Item = PfnRange> {
    let mut start = run.start;
    std::iter::from_fn(move || {
        let end = run.end.min((start / WINDOW_PAGES + 1) * WINDOW_PAGES);
        let piece = PfnRange { start, end };
        start = end;
        (piece.start < piece.end).then_some(piece)
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn range(start: u64, end: u64) -> PfnRange {
        PfnRange { start, end }
    }

    #[test]
    fn a_window_is_mapped_once_and_ends_with_its_range() {
        let windows = Windows::new(vec![range(0x100, 0x1000), range(0x9800, 0x3_0000)]);
        let mut mapped = Vec::new();
        for run in [range(0x100, 0x101), range(0x200, 0x300), range(0x9900, 0xa000), range(0xa000, 0xa001)] {
            let (frames, window) = windows
                .get(run, |frames| {
                    mapped.push(frames);
                    Ok(frames)
                })
                .unwrap();
            assert_eq!(frames, *window);
        }
        assert_eq!(mapped, [range(0x100, 0x1000), range(0x9800, 0xa000), range(0xa000, 0xb000)]);
    }

    #[test]
    fn refuses_runs_outside_every_window() {
        let windows = Windows::new(vec![range(0x100, 0x1000), range(0x9000, 0x3_0000)]);
        for run in [range(0, 1), range(0xfff, 0x1001), range(0x9fff, 0xa001), range(0x3_0000, 0x3_0001)] {
            assert!(windows.get(run, Ok).is_err(), "{run:?}");
        }
    }

    #[test]
    fn runs_are_cut_at_boundaries() {
        let cut: Vec<_> = pieces(range(0xfff0, 0x1_1010)).collect();
        assert_eq!(cut, [range(0xfff0, 0x1_0000), range(0x1_0000, 0x1_1000), range(0x1_1000, 0x1_1010)]);
        assert_eq!(pieces(range(5, 5)).count(), 0);
    }
}
