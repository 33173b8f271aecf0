//! What the demonstration prints while it runs: one line for each phase, with its time since the step began.

use std::time::Instant;

use dormouse_tests::console::Line;
use dormouse_tests::workload::counter::CONSOLE_MARK;

/// What every line of the agent's in the kernel log carries.
const AGENT: &str = "dormouse: ";

/// Characters of a phase's text that are shown unless verbose.
const WIDTH: usize = 110;

/// The demonstration's terminal.
#[derive(Debug)]
pub(crate) struct Screen {
    verbose: bool,
    step_began: Instant,
    /// The last phase was B's or D's, so the next tick of the counter is the first one of a session that came back.
    away: bool,
}

impl Screen {
    pub(crate) fn new(verbose: bool) -> Self {
        Screen { verbose, step_began: Instant::now(), away: false }
    }

    /// Begins a step; times count from here.
    pub(crate) fn step(&mut self, title: &str) {
        println!("\n{title}");
        self.step_began = Instant::now();
    }

    /// Prints something that happened now.
    pub(crate) fn say(&self, kernel: char, text: &str) {
        self.print(Instant::now(), kernel, text);
    }

    /// Shows a line of the console: all of them if verbose, else the phases and the first sign of life after one.
    pub(crate) fn line(&mut self, line: &Line) {
        let phase = phase(&line.text);
        let first_tick = self.away && line.text.contains(CONSOLE_MARK);
        if let Some((kernel, text)) = phase {
            self.away = matches!(kernel, 'B' | 'D') || (self.away && kernel == 'A');
            if self.verbose {
                self.print(line.at, kernel, text);
            } else if !is_halfway(text) {
                self.print(line.at, kernel, &shortened(text));
            }
        } else if first_tick {
            self.away = false;
            self.print(line.at, 'A', "the workload goes on");
        } else if self.verbose {
            println!("{:12}| {}", "", line.text);
        }
    }

    fn print(&self, at: Instant, kernel: char, text: &str) {
        let seconds = at.saturating_duration_since(self.step_began).as_secs_f64();
        println!("{seconds:8.2} s  {kernel}  {text}");
    }
}

/// The kernel that runs in a phase, and the phase with its text, of a line that begins one.
fn phase(line: &str) -> Option<(char, &str)> {
    let (_, text) = line.split_once(AGENT)?;
    let (group, _) = text.split_once('/')?;
    let kernel = match group {
        "hibernate" => 'A',
        "save" => 'B',
        "resume" => 'C',
        "restore" => 'D',
        _ => return None,
    };
    Some((kernel, text))
}

/// A phase's progress before its end.
fn is_halfway(text: &str) -> bool {
    text.contains(" %, ") && !text.contains(" 100 %, ")
}

/// What fits a wide terminal.
fn shortened(text: &str) -> String {
    if text.chars().count() <= WIDTH { text.to_owned() } else { text.chars().take(WIDTH).chain(['…']).collect() }
}

#[cfg(test)]
mod tests {
    use super::{WIDTH, is_halfway, phase, shortened};

    #[test]
    fn progress_and_long_lines_are_cut_down() {
        assert!(is_halfway("save/write: 10 %, 57 MiB/s of memory"));
        assert!(!is_halfway("save/write: 100 %, 57 MiB/s of memory"));
        assert!(!is_halfway("save/start: kernel B is up"));
        assert_eq!(shortened("short"), "short");
        assert_eq!(shortened(&"é".repeat(1000)).chars().count(), WIDTH + 1);
    }

    #[test]
    fn phases_are_told_from_other_lines() {
        assert_eq!(phase("[ 1.2] dormouse: save/write: 3 threads"), Some(('B', "save/write: 3 threads")));
        assert_eq!(phase("dormouse: restore/jump: to 0x1000"), Some(('D', "restore/jump: to 0x1000")));
        assert_eq!(phase("dormouse: no image on /dev/vda"), None);
        assert_eq!(phase("save/write: not ours"), None);
    }
}
