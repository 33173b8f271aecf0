//! What the threads of a pipeline spend their time on.
//!
//! Each thread has a stopwatch of its own, so that counting costs it a read of the CPU's time stamp counter and nothing
//! that other threads write. A clock of the kernel's would be dearer: B and D often have none that a process can read
//! without a system call.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use dormouse_sys::ticks::ticks;

use crate::handoff::spent::Spent;
use crate::pipeline::lock::{lock, waits};

/// What a thread is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Activity {
    /// A worker waits: for a buffer when it saves, for chunks when it restores. The device is behind.
    Waiting,
    /// A worker maps memory of the session, or waits for another one that does.
    Mapping,
    /// It looks at pages and copies them: those of zeroes are left out, others are put together to a chunk, or
    /// distributed from one.
    Pages,
    /// It compresses, decompresses, or copies what is stored as it is.
    Coding,
    /// It computes checksums.
    Checking,
    /// It seals or opens chunks.
    Sealing,
    /// It writes zeroes.
    Zeroing,
    /// A thread of the device's reads or writes.
    Device,
    /// A thread of the device's waits for a buffer: the workers are behind.
    Buffers,
}

/// How many activities there are.
const ACTIVITIES: usize = 9;

/// What one thread does, from the stopwatch's making on.
#[derive(Debug)]
pub(super) struct Stopwatch {
    last: u64,
    ticks: [u64; ACTIVITIES],
    /// How often the thread had waited for a lock.
    waits: u32,
}

impl Stopwatch {
    pub(super) fn start() -> Stopwatch {
        Stopwatch { last: ticks(), ticks: [0; ACTIVITIES], waits: waits() }
    }

    /// All since the last call was `activity`.
    pub(super) fn lap(&mut self, activity: Activity) {
        let now = ticks();
        // Counters of CPUs may differ by a little.
        self.ticks[activity as usize] += now.saturating_sub(self.last);
        self.last = now;
    }
}

/// The times of all threads of a pipeline.
#[derive(Debug)]
pub(super) struct Times {
    began: (Instant, u64),
    threads: Mutex<Vec<[u64; ACTIVITIES]>>,
    waits: AtomicU32,
}

impl Times {
    pub(super) fn start() -> Times {
        Times { began: (Instant::now(), ticks()), threads: Mutex::default(), waits: AtomicU32::new(0) }
    }

    /// This thread, whose stopwatch it is, has ended.
    pub(super) fn add(&self, watch: &Stopwatch) {
        lock(&self.threads).push(watch.ticks);
        self.waits.fetch_add(waits().saturating_sub(watch.waits), Ordering::Relaxed);
    }

    /// What they have spent until now.
    pub(super) fn spent(&self) -> Spent {
        let (began, first) = self.began;
        let threads = lock(&self.threads);
        let lock_waits = self.waits.load(Ordering::Relaxed);
        Spent { lock_waits, ..spent(&threads, began.elapsed(), ticks().saturating_sub(first)) }
    }
}

/// `threads` with their ticks, of which there were `ticks` in `elapsed`.
fn spent(threads: &[[u64; ACTIVITIES]], elapsed: Duration, ticks: u64) -> Spent {
    let millis = |of: u64| {
        let millis = u128::from(of) * elapsed.as_micros() / u128::from(ticks.max(1)) / 1000;
        u32::try_from(millis).unwrap_or(u32::MAX)
    };
    let sum = |activity: Activity| millis(threads.iter().map(|ticks| ticks[activity as usize]).sum());
    let works = [
        Activity::Mapping,
        Activity::Pages,
        Activity::Coding,
        Activity::Checking,
        Activity::Sealing,
        Activity::Zeroing,
    ];
    let busy = || threads.iter().map(|ticks| works.iter().map(|work| ticks[*work as usize]).sum::<u64>());
    // Readers of the device do none of it.
    let workers = || busy().filter(|ticks| *ticks > 0);
    Spent {
        waiting_ms: sum(Activity::Waiting),
        mapping_ms: sum(Activity::Mapping),
        pages_ms: sum(Activity::Pages),
        coding_ms: sum(Activity::Coding),
        checking_ms: sum(Activity::Checking),
        sealing_ms: sum(Activity::Sealing),
        zeroing_ms: sum(Activity::Zeroing),
        device_ms: sum(Activity::Device),
        buffers_ms: sum(Activity::Buffers),
        least_busy_ms: millis(workers().min().unwrap_or(0)),
        most_busy_ms: millis(workers().max().unwrap_or(0)),
        lock_waits: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_become_milliseconds_of_all_threads() {
        let mut worker = [0; ACTIVITIES];
        worker[Activity::Coding as usize] = 3_000;
        worker[Activity::Waiting as usize] = 1_000;
        let mut other = worker;
        other[Activity::Checking as usize] = 2_000;
        let mut reader = [0; ACTIVITIES];
        reader[Activity::Device as usize] = 4_000;
        // A thousand ticks are a second.
        let spent = spent(&[worker, other, reader], Duration::from_secs(5), 5_000);
        let expected = Spent {
            coding_ms: 6_000,
            waiting_ms: 2_000,
            checking_ms: 2_000,
            device_ms: 4_000,
            least_busy_ms: 3_000,
            most_busy_ms: 5_000,
            ..Spent::default()
        };
        assert_eq!(spent, expected);
    }

    #[test]
    fn a_stopwatch_gives_each_activity_what_passed_before() {
        let mut watch = Stopwatch::start();
        watch.lap(Activity::Pages);
        std::thread::sleep(Duration::from_millis(2));
        watch.lap(Activity::Coding);
        assert!(watch.ticks[Activity::Coding as usize] > watch.ticks[Activity::Pages as usize]);
        assert_eq!(watch.ticks[Activity::Checking as usize], 0);
    }
}
