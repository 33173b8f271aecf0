//! Windows of bounded size onto long ranges of physical memory.
//!
//! Mapping costs page tables (2 MiB for each GiB of 4 KiB entries), and each mapping and unmapping a lock and a flush
//! on all CPUs. So memory is mapped in windows of 16 MiB that the workers share, only where it is touched, and the
//! windows used last are kept. Each thread also keeps the one that it used last to itself: as long as it stays there,
//! it writes nothing that other threads read.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, TryLockError};

use dormouse_image::PfnRange;

use crate::pipeline::lock::lock;

/// Pages in one window: 16 MiB. Windows begin at multiples of it.
pub const WINDOW_PAGES: u64 = 1 << 12;

/// Windows that are kept open beyond their use. All workers go through memory in order, so they are about as far.
const KEPT: usize = 16;

/// Threads that have a place of their own; more share them.
const PLACES: usize = 64;

/// The windows onto a set of ranges; `W` is what one mapping is.
#[derive(Debug)]
pub struct Windows<W> {
    ranges: Vec<PfnRange>,
    /// A window is in the slot of its number, so that windows that are mapped at the same time have locks of their own.
    kept: [Mutex<Option<Mapped<W>>>; KEPT],
    near: Box<[Near<W>]>,
}

/// What a window shows, and the window.
type Mapped<W> = (PfnRange, Arc<W>);

/// What one thread used last, on cache lines of its own.
#[derive(Debug)]
#[repr(align(128))]
struct Near<W>(Mutex<Option<Mapped<W>>>);

impl<W> Windows<W> {
    /// Windows onto `ranges`, which must ascend and not overlap. Nothing is mapped yet.
    #[must_use]
    pub fn new(ranges: Vec<PfnRange>) -> Windows<W> {
        let near = (0..PLACES).map(|_| Near(Mutex::new(None))).collect();
        Windows { ranges, kept: std::array::from_fn(|_| Mutex::new(None)), near }
    }

    /// The ranges.
    #[must_use]
    pub fn ranges(&self) -> &[PfnRange] {
        &self.ranges
    }

    /// Calls `look` with the window that holds `run` whole, mapped with `map` if it is not mapped already, and the
    /// frames that it shows.
    ///
    /// # Errors
    /// `InvalidInput` where `run` lies outside the ranges or across a window's boundary (see [`pieces`]); what `map`
    /// says.
    pub fn with<T>(
        &self,
        run: PfnRange,
        map: impl FnOnce(PfnRange) -> io::Result<W>,
        look: impl FnOnce(PfnRange, &W) -> T,
    ) -> io::Result<T> {
        let mut near = match self.near[place()].0.try_lock() {
            Ok(near) => near,
            Err(TryLockError::Poisoned(near)) => near.into_inner(),
            // This thread is looking already, or another one with the same place is.
            Err(TryLockError::WouldBlock) => {
                let (frames, window) = self.shared(run, map)?;
                return Ok(look(frames, &window));
            }
        };
        let mapped = match near.take().filter(|(frames, _)| frames.contains(&run)) {
            Some(mapped) => mapped,
            None => self.shared(run, map)?,
        };
        let (frames, window) = near.insert(mapped);
        Ok(look(*frames, window))
    }

    /// The window that holds `run`, from what all threads share.
    fn shared(&self, run: PfnRange, map: impl FnOnce(PfnRange) -> io::Result<W>) -> io::Result<Mapped<W>> {
        let at = self.ranges.partition_point(|range| range.end <= run.start);
        let number = run.start / WINDOW_PAGES;
        let aligned = number * WINDOW_PAGES;
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
        // Mapping under the slot's lock keeps two threads from mapping the same window.
        let mut slot = lock(&self.kept[usize::try_from(number).unwrap_or(0) % KEPT]);
        if let Some(found) = slot.as_ref().filter(|(frames, _)| *frames == window) {
            return Ok(found.clone());
        }
        let mapped = (window, Arc::new(map(window)?));
        let before = slot.replace(mapped.clone());
        drop(slot);
        // Unmapped only here, where nobody waits for it; or when its last user has left it.
        drop(before);
        Ok(mapped)
    }
}

/// This thread's place among [`PLACES`].
fn place() -> usize {
    static THREADS: AtomicUsize = AtomicUsize::new(0);
    thread_local!(static PLACE: usize = THREADS.fetch_add(1, Ordering::Relaxed) % PLACES);
    PLACE.with(|place| *place)
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
            let map = |frames| {
                mapped.push(frames);
                Ok(frames)
            };
            windows.with(run, map, |frames, window| assert_eq!(frames, *window)).unwrap();
        }
        assert_eq!(mapped, [range(0x100, 0x1000), range(0x9800, 0xa000), range(0xa000, 0xb000)]);
    }

    /// Counts how many of it there are.
    struct Counted<'a>(&'a AtomicUsize);

    impl<'a> Counted<'a> {
        fn new(count: &'a AtomicUsize) -> Counted<'a> {
            count.fetch_add(1, Ordering::Relaxed);
            Counted(count)
        }
    }

    impl Drop for Counted<'_> {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn few_windows_are_kept_and_looks_may_nest() {
        let (open, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let windows = Windows::new(vec![range(0, 1000 * WINDOW_PAGES)]);
        let map = |_| Ok(Counted::new(&open));
        for number in 0..1000 {
            let run = range(number * WINDOW_PAGES, number * WINDOW_PAGES + 1);
            let inner = range(5, 6);
            let looked = windows.with(run, map, |_, _| windows.with(inner, map, |frames, _| frames).unwrap());
            assert_eq!(looked.unwrap(), range(0, WINDOW_PAGES));
            most.fetch_max(open.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        assert!(most.into_inner() <= KEPT + 2);
    }

    #[test]
    fn threads_look_at_the_same_time() {
        let windows = Windows::new(vec![range(0, 8 * WINDOW_PAGES)]);
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let windows = &windows;
                scope.spawn(move || {
                    for number in 0..1000_u64 {
                        let start = (number * 7 + thread) % 8 * WINDOW_PAGES + number;
                        let run = range(start, start + 2);
                        windows
                            .with(run, Ok, |frames, window| assert!(frames == *window && frames.contains(&run)))
                            .unwrap();
                    }
                });
            }
        });
    }

    #[test]
    fn refuses_runs_outside_every_window() {
        let windows = Windows::new(vec![range(0x100, 0x1000), range(0x9000, 0x3_0000)]);
        for run in [range(0, 1), range(0xfff, 0x1001), range(0x9fff, 0xa001), range(0x3_0000, 0x3_0001)] {
            assert!(windows.with(run, Ok, |_, _| ()).is_err(), "{run:?}");
        }
    }

    #[test]
    fn runs_are_cut_at_boundaries() {
        let cut: Vec<_> = pieces(range(0xfff0, 0x1_1010)).collect();
        assert_eq!(cut, [range(0xfff0, 0x1_0000), range(0x1_0000, 0x1_1000), range(0x1_1000, 0x1_1010)]);
        assert_eq!(pieces(range(5, 5)).count(), 0);
    }
}
