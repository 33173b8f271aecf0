//! How far a phase is: one line on the consoles that changes in place, and milestones in the kernel log.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use dormouse_sys::PAGE_SIZE;
use nix::fcntl::OFlag;

use crate::phase::Phase;
use crate::pipeline::Step;
use crate::policy::Verbosity;
use crate::report::mib;

/// The names of the consoles, separated by spaces.
pub(crate) const ACTIVE_CONSOLES: &str = "/sys/class/tty/console/active";

/// How often the line changes: often enough for a person, and little for a serial line of 115,200 baud.
const PERIOD: Duration = Duration::from_millis(200);

/// The progress of one phase.
#[derive(Debug)]
pub struct Progress {
    phase: Phase,
    pages: u64,
    began: Instant,
    consoles: Vec<File>,
    last_line: Option<Instant>,
    /// Characters of the line that is on the consoles.
    width: usize,
    tenths: u64,
}

impl Progress {
    /// A phase that has `pages` pages to go through.
    #[must_use]
    pub fn new(phase: Phase, pages: u64, verbosity: Verbosity) -> Progress {
        let consoles = if verbosity == Verbosity::Quiet { Vec::new() } else { consoles() };
        Progress { phase, pages, began: Instant::now(), consoles, last_line: None, width: 0, tenths: 0 }
    }

    /// It has come so far.
    pub fn at(&mut self, step: Step) {
        let percent = step.done.saturating_mul(100).checked_div(self.pages).unwrap_or(100);
        let is_end = step.done >= self.pages;
        if is_end || self.last_line.is_none_or(|last| last.elapsed() >= PERIOD) {
            self.last_line = Some(Instant::now());
            self.draw(&format!("dormouse: {}", line(self.phase, self.pages, step, self.began.elapsed())));
        }
        if percent / 10 > self.tenths {
            self.tenths = percent / 10;
            log::debug!("{}", line(self.phase, self.pages, step, self.began.elapsed()));
        }
    }

    fn draw(&mut self, line: &str) {
        let width = self.width.max(line.chars().count());
        self.width = line.chars().count();
        self.put(&format!("\r{line:<width$}"));
    }

    /// A console that takes nothing now, such as a serial line that is held, goes without.
    fn put(&mut self, text: &str) {
        self.consoles.retain_mut(|console| match console.write(text.as_bytes()) {
            Ok(_) => true,
            Err(error) => error.kind() == std::io::ErrorKind::WouldBlock,
        });
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.width > 0 && !self.consoles.is_empty() {
            self.put("\n");
            // The kernel's own lines overtake what is still on its way to a serial line, at 115,200 baud for so long.
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// All that is to be said, for a person.
fn line(phase: Phase, pages: u64, step: Step, elapsed: Duration) -> String {
    let percent = step.done.saturating_mul(100).checked_div(pages).unwrap_or(100);
    let millis = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX).max(1);
    let bytes = |pages: u64| pages.saturating_mul(PAGE_SIZE);
    let rate = (bytes(step.done) >> 20).saturating_mul(1000) / millis;
    let ratio = match bytes(step.stored).saturating_mul(10).checked_div(step.bytes) {
        Some(tenths) => format!("{}.{}:1", tenths / 10, tenths % 10),
        None => "-".to_owned(),
    };
    let left = millis.saturating_mul(pages.saturating_sub(step.done)).checked_div(step.done);
    let left = left.map_or_else(|| "-".to_owned(), |millis| millis.div_ceil(1000).to_string());
    let (done, all) = (mib(bytes(step.done)), mib(bytes(pages)));
    format!("{phase}: {percent} %, {done} of {all}, {rate} MiB/s, compressed {ratio}, {left} s left")
}

/// All consoles of this kernel, for writing without waiting.
fn consoles() -> Vec<File> {
    let names = std::fs::read_to_string(ACTIVE_CONSOLES).unwrap_or_default();
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let open =
        |name: &str| OpenOptions::new().write(true).custom_flags(flags.bits()).open(Path::new("/dev").join(name)).ok();
    names.split_whitespace().filter_map(open).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_person_reads_how_far_it_is() {
        let step = Step { done: 131_072, stored: 65_536, bytes: 100 << 20 };
        assert_eq!(
            line(Phase::SaveWrite, 524_288, step, Duration::from_millis(500)),
            "save/write: 25 %, 512 MiB of 2,048 MiB, 1024 MiB/s, compressed 2.5:1, 2 s left"
        );
        assert_eq!(
            line(Phase::RestoreWrite, 0, Step::default(), Duration::ZERO),
            "restore/write: 100 %, 0 MiB of 0 MiB, 0 MiB/s, compressed -, - s left"
        );
    }
}
