//! How each chunk of a save is stored.
//!
//! `auto` goes by the pieces that wait for the device. While there are few, chunks are stored as they are, so that the
//! device always has something to do. Where there are enough, they are compressed; how well goes by what happens in the
//! end. If workers had to wait for buffers, the device is behind, and there is time to compress better; if the pieces
//! have become few, there is less. A few of the same in a row are one step.
//!
//! So it settles where device and CPUs are both busy, or goes back and forth around that point between two methods,
//! which the queue evens out. It need not know how fast either is.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::pipeline::buffers::Buffers;
use crate::pipeline::codec::Method;
use crate::pipeline::lock::lock;
use crate::policy::Compression;

/// What `auto` chooses from, from the quickest to the densest. Quicker levels would gain 2 % of the time at most, and
/// LZ4 11 % on fast devices (PERFORMANCE.md).
const METHODS: [Method; 4] = [QUICKEST, Method::Zstd(-1), Method::Zstd(1), DENSEST];

/// What it takes while the device has little to do.
const QUICKEST: Method = Method::Store;

/// What it takes where room may be short.
const DENSEST: Method = Method::Zstd(3);

/// Which it begins with.
const FIRST: usize = 1;

/// Chooses how chunks are stored.
#[derive(Debug)]
pub(super) struct Chooser {
    compression: Compression,
    buffers: Buffers,
    /// The device has little to do while it has fewer pieces than this.
    few: usize,
    /// The device may not hold all that is still to come unless it is compressed well.
    is_tight: AtomicBool,
    /// Which of the methods. Looked at for each chunk, and written only when it changes.
    step: AtomicUsize,
    /// How many more pieces found the device behind than found it with little to do, since the last step.
    behind: Mutex<i64>,
    /// How many of these are a step.
    patience: i64,
}

impl Chooser {
    pub(super) fn new(compression: Compression, threads: usize, buffers: &Buffers) -> Chooser {
        Chooser {
            compression,
            buffers: buffers.clone(),
            // Each worker has a buffer that it fills; the others are for the device.
            few: (buffers.limit().saturating_sub(threads) / 4).max(1),
            is_tight: AtomicBool::new(false),
            step: AtomicUsize::new(FIRST),
            behind: Mutex::default(),
            // The pieces in the making, one for each worker, are still of the step before.
            patience: i64::try_from(threads).map_or(i64::MAX, |threads| threads.saturating_mul(2)),
        }
    }

    pub(super) fn set_tight(&self, is_tight: bool) {
        // Every worker reads it for each chunk.
        if self.is_tight.load(Ordering::Relaxed) != is_tight {
            self.is_tight.store(is_tight, Ordering::Relaxed);
        }
    }

    /// How the next chunk is to be stored.
    pub(super) fn method(&self) -> Method {
        match self.compression {
            Compression::Store => Method::Store,
            Compression::Zstd { level } => Method::Zstd(level),
            Compression::Auto if self.is_tight.load(Ordering::Relaxed) => DENSEST,
            Compression::Auto if self.has_little_to_do() => QUICKEST,
            Compression::Auto => METHODS.get(self.step.load(Ordering::Relaxed)).copied().unwrap_or(DENSEST),
        }
    }

    /// Learns from a piece that is about to be handed over, for whose buffer a worker had to wait or not.
    pub(super) fn learn(&self, is_late: bool) {
        if self.compression != Compression::Auto {
            return;
        }
        let change = match (is_late, self.has_little_to_do()) {
            (true, false) => 1,
            (false, true) => -1,
            // Neither, or the device was behind and is no longer.
            _ => return,
        };
        let mut behind = lock(&self.behind);
        *behind += change;
        if behind.abs() >= self.patience {
            *behind = 0;
            let step = self.step.load(Ordering::Relaxed);
            let next = if change < 0 { step.saturating_sub(1) } else { (step + 1).min(METHODS.len() - 1) };
            self.step.store(next, Ordering::Relaxed);
        }
    }

    fn has_little_to_do(&self) -> bool {
        self.buffers.handed_over() < self.few
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::pipeline::buffers::Buffer;

    const AUTO: Compression = Compression::Auto;

    /// A chooser for two threads, and the pieces that wait for the device.
    fn chooser(compression: Compression, pieces: usize) -> (Chooser, Vec<Buffer>) {
        let buffers = Buffers::new(18);
        let mut handed_over: Vec<Buffer> = (0..pieces).map(|_| buffers.take().unwrap()).collect();
        handed_over.iter_mut().for_each(Buffer::hand_over);
        (Chooser::new(compression, 2, &buffers), handed_over)
    }

    fn learn(chooser: &Chooser, is_late: bool, times: usize) {
        (0..times).for_each(|_| chooser.learn(is_late));
    }

    #[test]
    fn auto_compresses_better_step_by_step_while_the_device_is_behind() {
        let (chooser, _pieces) = chooser(AUTO, 16);
        for (times, method) in
            [(3, Method::Zstd(-1)), (1, Method::Zstd(1)), (4, Method::Zstd(3)), (40, Method::Zstd(3))]
        {
            learn(&chooser, true, times);
            assert_eq!(chooser.method(), method);
        }
    }

    #[test]
    fn auto_keeps_the_device_busy() {
        let (chooser, mut pieces) = chooser(AUTO, 4);
        assert_eq!(chooser.method(), Method::Zstd(-1));
        drop(pieces.pop());
        assert_eq!(chooser.method(), Method::Store);
    }

    #[test]
    fn auto_compresses_less_when_the_device_had_little_to_do() {
        let (chooser, mut pieces) = chooser(AUTO, 4);
        learn(&chooser, true, 4);
        assert_eq!(chooser.method(), Method::Zstd(1));
        drop(pieces.pop());
        learn(&chooser, false, 4);
        let mut again = chooser.buffers.take().unwrap();
        again.hand_over();
        assert_eq!(chooser.method(), Method::Zstd(-1));
        drop(again);
        learn(&chooser, false, 40);
        assert_eq!(chooser.step.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn auto_stays_where_device_and_workers_are_busy() {
        let (chooser, mut pieces) = chooser(AUTO, 4);
        for _ in 0..10 {
            learn(&chooser, false, 10);
            learn(&chooser, true, 2);
            drop(pieces.pop());
            learn(&chooser, true, 10);
            learn(&chooser, false, 2);
            let mut piece = chooser.buffers.take().unwrap();
            piece.hand_over();
            pieces.push(piece);
            assert_eq!(chooser.method(), Method::Zstd(-1));
        }
    }

    #[test]
    fn where_room_is_short_auto_is_as_dense_as_it_can_be() {
        let (tight, _) = chooser(AUTO, 0);
        tight.set_tight(true);
        assert_eq!(tight.method(), Method::Zstd(3));
        tight.set_tight(false);
        assert_eq!(tight.method(), Method::Store);
    }

    #[test]
    fn a_method_that_is_set_stays() {
        let (fixed, _pieces) = chooser(Compression::Zstd { level: 7 }, 16);
        fixed.set_tight(true);
        learn(&fixed, true, 20);
        assert_eq!(fixed.method(), Method::Zstd(7));
    }
}
