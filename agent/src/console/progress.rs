//! How far a phase is: one line on the consoles that changes in place, and milestones in the kernel log.

use std::fmt;
use std::time::{Duration, Instant};

use dormouse_linux::units::{mib, thousands};
use dormouse_sys::PAGE_SIZE;

use crate::console::phase::Phase;
use crate::console::screen::Screen;
use crate::policy::Verbosity;

/// How often the line changes: often enough for a person, and little for a serial line of 115,200 baud.
const PERIOD: Duration = Duration::from_millis(200);

/// The most and the fewest cells of a bar.
const CELLS: (usize, usize) = (40, 10);

/// What has progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// B writes the image.
    Saving,
    /// B reads it back.
    Verifying,
    /// D writes memory.
    Resuming,
}

impl Work {
    fn phase(self) -> Phase {
        match self {
            Work::Saving => Phase::SaveWrite,
            Work::Verifying => Phase::SaveVerify,
            Work::Resuming => Phase::RestoreWrite,
        }
    }
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Work::Saving => "Saving",
            Work::Verifying => "Verifying",
            Work::Resuming => "Resuming",
        })
    }
}

/// What has been done of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Done {
    /// Pages.
    pub pages: u64,
    /// Those of them that are stored compressed.
    pub stored_pages: u64,
    /// What these take, in bytes.
    pub stored_bytes: u64,
}

/// The progress of one phase.
#[derive(Debug)]
pub struct Progress {
    work: Work,
    pages: u64,
    verbosity: Verbosity,
    began: Instant,
    screen: Screen,
    drawn: Option<Instant>,
    tenths: u64,
}

impl Progress {
    /// Work that has `pages` pages to go through.
    #[must_use]
    pub fn new(work: Work, pages: u64, verbosity: Verbosity) -> Progress {
        let (began, screen) = (Instant::now(), Screen::open());
        Progress { work, pages, verbosity, began, screen, drawn: None, tenths: 0 }
    }

    /// This much of it is done.
    pub fn at(&mut self, done: Done) {
        let now = Amount { pages: self.pages, done, elapsed: self.began.elapsed() };
        let is_end = done.pages >= self.pages;
        if is_end || self.drawn.is_none_or(|drawn| drawn.elapsed() >= PERIOD) {
            self.drawn = Some(Instant::now());
            let work = self.work;
            match self.verbosity {
                Verbosity::Quiet => self.screen.draw(|columns| now.bar(work, columns)),
                _ => self.screen.draw(|_| format!("dormouse: {}", now.line(work.phase()))),
            }
        }
        let tenths = now.percent() / 10;
        if tenths > self.tenths {
            self.tenths = tenths;
            log::debug!("{}", now.line(self.work.phase()));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.screen.end_line();
    }
}

/// How far it has come after how long.
struct Amount {
    pages: u64,
    done: Done,
    elapsed: Duration,
}

impl Amount {
    fn percent(&self) -> u64 {
        self.done.pages.saturating_mul(100).checked_div(self.pages).unwrap_or(100).min(100)
    }

    fn millis(&self) -> u64 {
        u64::try_from(self.elapsed.as_millis()).unwrap_or(u64::MAX).max(1)
    }

    /// MiB of memory in a second.
    fn rate(&self) -> u64 {
        (bytes(self.done.pages) >> 20).saturating_mul(1000) / self.millis()
    }

    /// The seconds that are left, once they can be estimated.
    fn left(&self) -> Option<u64> {
        let remaining = self.pages.saturating_sub(self.done.pages);
        let millis = self.millis().saturating_mul(remaining).checked_div(self.done.pages);
        millis.map(|millis| millis.div_ceil(1000))
    }

    /// Everything, in a line among those of the kernel log.
    fn line(&self, phase: Phase) -> String {
        let ratio = match bytes(self.done.stored_pages).saturating_mul(10).checked_div(self.done.stored_bytes) {
            Some(tenths) => format!("{}.{}:1", tenths / 10, tenths % 10),
            None => "-".to_owned(),
        };
        let left = self.left().map_or_else(|| "-".to_owned(), |seconds| seconds.to_string());
        let (done, all) = (mib(bytes(self.done.pages)), mib(bytes(self.pages)));
        let (percent, rate) = (self.percent(), self.rate());
        format!("{phase}: {percent} %, {done} of {all}, {rate} MiB/s, compressed {ratio}, {left} s left")
    }

    /// What somebody at a console with this many columns wants to know. The last column stays free: with something in
    /// it, some terminals go on in the next line.
    fn bar(&self, work: Work, columns: usize) -> String {
        let width = columns.saturating_sub(1);
        let all = mib(bytes(self.pages));
        let done = thousands(bytes(self.done.pages).div_ceil(1 << 20));
        let amount = format!("  {done} of {all}");
        let rate = format!("  {} MiB/s", thousands(self.rate()));
        let left = match self.left() {
            Some(0) => format!("  in {} s", self.elapsed.as_secs_f64().ceil()),
            // The first pages are no measure: the device and the threads are just getting up.
            Some(seconds) if self.percent() > 0 => format!("  {seconds} s left"),
            _ => String::new(),
        };
        let (head, percent) = (format!("{work:<9} "), format!("{:>3} %", self.percent()));

        // Room is kept for the longest that is usual, so that the bar keeps its length.
        let amount_room = "   of ".len() + 2 * all.len() - " MiB".len();
        let (rate_room, left_room) = ("  99,999 MiB/s".len(), "  999 s left".len());
        let fixed = head.len() + "[] ".len() + percent.len();
        let choices = [
            (amount_room + rate_room + left_room, [amount.as_str(), &rate, &left]),
            (rate_room + left_room, ["", &rate, &left]),
            (left_room, ["", "", &left]),
            (0, ["", "", ""]),
        ];
        let fits = |(room, _): &&(usize, [&str; 3])| fixed + room + CELLS.1 <= width;
        let mut line = match choices.iter().find(fits) {
            Some((room, details)) => {
                let cells = (width - fixed - room).min(CELLS.0);
                let full = usize::try_from(self.percent()).unwrap_or(0) * cells / 100;
                let (full, empty) = ("#".repeat(full), "-".repeat(cells - full));
                format!("{head}[{full}{empty}] {percent}{}", details.concat())
            }
            None => format!("{head}{percent}"),
        };
        line.truncate(width);
        line
    }
}

fn bytes(pages: u64) -> u64 {
    pages.saturating_mul(PAGE_SIZE)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn amount(done: u64, pages: u64, millis: u64) -> Amount {
        let done = Done { pages: done, stored_pages: done / 2, stored_bytes: done * 800 };
        Amount { pages, done, elapsed: Duration::from_millis(millis) }
    }

    #[test]
    fn log_line_has_every_figure() {
        let done = Done { pages: 131_072, stored_pages: 65_536, stored_bytes: 100 << 20 };
        let now = Amount { pages: 524_288, done, elapsed: Duration::from_millis(500) };
        assert_eq!(
            now.line(Phase::SaveWrite),
            "save/write: 25 %, 512 MiB of 2,048 MiB, 1024 MiB/s, compressed 2.5:1, 2 s left"
        );
        assert_eq!(
            amount(0, 0, 0).line(Phase::RestoreWrite),
            "restore/write: 100 %, 0 MiB of 0 MiB, 0 MiB/s, compressed -, - s left"
        );
    }

    #[test]
    fn bar_adapts_to_the_columns() {
        let now = amount(308_224, 655_360, 1353);
        for (columns, expected) in [
            (80, "Saving    [#######--------]  47 %  1,204 of 2,560 MiB  889 MiB/s  2 s left"),
            (
                132,
                "Saving    [##################----------------------]  47 %  1,204 of 2,560 MiB  889 MiB/s  2 s left",
            ),
            (60, "Saving    [#######--------]  47 %  889 MiB/s  2 s left"),
            (41, "Saving    [####------]  47 %  2 s left"),
            (29, "Saving    [####------]  47 %"),
            (20, "Saving     47 %"),
            (9, "Saving  "),
            (0, ""),
        ] {
            assert_eq!(now.bar(Work::Saving, columns), expected);
        }
        let end = amount(655_360, 655_360, 2877);
        let expected = "Resuming  [###############] 100 %  2,560 of 2,560 MiB  889 MiB/s  in 3 s";
        assert_eq!(end.bar(Work::Resuming, 80), expected);
        let begin = amount(0, 655_360, 1);
        assert_eq!(begin.bar(Work::Verifying, 80), "Verifying [---------------]   0 %  0 of 2,560 MiB  0 MiB/s");
    }

    proptest! {
        /// A line that is longer than its console would go on in the next one, and not change in place.
        #[test]
        fn bar_fits_its_console(columns in 0_usize..300, pages: u64, done: u64, millis: u64) {
            let done = Done { pages: done, stored_pages: done, stored_bytes: millis };
            let now = Amount { pages, done, elapsed: Duration::from_millis(millis) };
            let bar = now.bar(Work::Verifying, columns);
            prop_assert!(bar.is_ascii() && bar.len() <= columns.saturating_sub(1), "{bar:?}");
        }

        #[test]
        fn bar_keeps_its_length(pages in 1_u64..1 << 28, parts in prop::collection::vec(0_u64..=1000, 2)) {
            let cells = |part: u64| {
                let bar = amount(pages * part / 1000, pages, 100 + part * 60).bar(Work::Saving, 100);
                bar.find(']').map(|end| end - bar.find('[').unwrap())
            };
            prop_assert_eq!(cells(parts[0]), cells(parts[1]));
        }
    }
}
