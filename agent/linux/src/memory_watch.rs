//! How much memory the agent needed, and how close the machine came to having none.

use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// How often the memory that is available is looked at.
const PERIOD: Duration = Duration::from_millis(50);

/// What was seen, in KiB. Zero if the kernel does not report it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Vitals {
    /// The process's peak resident memory.
    pub peak_kib: u64,
    /// The least memory that was available to programs.
    pub least_available_kib: u64,
}

/// Watches until it is stopped.
#[derive(Debug)]
pub struct Watch {
    stop: Sender<()>,
    thread: Option<JoinHandle<u64>>,
}

impl Watch {
    /// Begins to watch. Without a thread to spare, only the beginning and the end are seen.
    #[must_use]
    pub fn start() -> Watch {
        let (stop, stopped) = channel();
        let thread = std::thread::Builder::new().name("vitals".into()).spawn(move || {
            let mut least = u64::MAX;
            loop {
                least = least.min(available_kib().unwrap_or(u64::MAX));
                if stopped.recv_timeout(PERIOD) != Err(RecvTimeoutError::Timeout) {
                    return least;
                }
            }
        });
        Watch { stop, thread: thread.ok() }
    }

    /// Stops, and returns what was seen.
    #[must_use]
    pub fn stop(mut self) -> Vitals {
        let _ = self.stop.send(());
        let seen = self.thread.take().and_then(|thread| thread.join().ok());
        let least = seen.into_iter().chain(available_kib()).min();
        Vitals {
            peak_kib: field("/proc/self/status", "VmHWM:").unwrap_or(0),
            least_available_kib: least.filter(|least| *least != u64::MAX).unwrap_or(0),
        }
    }
}

/// KiB of memory that programs could have now, if the kernel reports it.
#[must_use]
pub fn available_kib() -> Option<u64> {
    field("/proc/meminfo", "MemAvailable:")
}

/// A number of KiB from one of the kernel's files with a field on each line.
pub fn field(path: impl AsRef<Path>, name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(path).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_vitals() {
        let vitals = Watch::start().stop();
        assert!(vitals.peak_kib > 100 && vitals.least_available_kib > 100, "{vitals:?}");
    }
}
