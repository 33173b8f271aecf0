//! The guest's serial console: every line with the time at which the host saw it, kept across power cycles.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result};

/// A line of the console.
#[derive(Debug, Clone)]
pub struct Line {
    /// When its end reached the host.
    pub at: Instant,
    /// Its text, without control characters and terminal sequences.
    pub text: String,
}

/// What [`Console::next`] found.
#[derive(Debug, Clone)]
pub enum Next {
    /// The next line; the cursor is after it.
    Line(Line),
    /// No line before the deadline.
    TimedOut,
    /// No further line will come: QEMU has ended.
    Closed,
}

/// A cause that a line prints twice in a row, where a chain of causes is separated by colons. Short words may well be
/// repeated.
#[must_use]
pub fn repeated_cause(line: &str) -> Option<&str> {
    const SHORTEST: usize = 15;
    let colons: Vec<usize> = line.match_indices(": ").map(|(at, _)| at).collect();
    colons.iter().enumerate().find_map(|(number, &colon)| {
        let starts = std::iter::once(0).chain(colons[..number].iter().map(|&before| before + 2));
        let rest = &line[colon + 2..];
        // What follows the cause again must end there too.
        let ends = |cause: &str| rest[cause.len()..].is_empty() || rest[cause.len()..].starts_with([':', ';']);
        let mut causes = starts.filter_map(|start| line.get(start..colon));
        causes.find(|cause| cause.len() >= SHORTEST && rest.starts_with(cause) && ends(cause))
    })
}

/// A place between two lines.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cursor(usize);

/// The console of one guest through all of its power cycles.
#[derive(Debug)]
pub struct Console {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    lines: Vec<Line>,
    /// What has been written of the line after these.
    partial: String,
    log: File,
    begin: Instant,
    /// Readers attached and not yet at their end.
    readers: usize,
}

impl Console {
    /// A console that is also written to the file `log`.
    ///
    /// # Errors
    /// Fails where the file cannot be created.
    pub fn create(log: &Path) -> Result<Arc<Self>> {
        let log = File::create(log).with_context(|| format!("{}: cannot be created", log.display()))?;
        let state = State { lines: Vec::new(), partial: String::new(), log, begin: Instant::now(), readers: 0 };
        Ok(Arc::new(Console { state: Mutex::new(state), changed: Condvar::new() }))
    }

    /// Reads lines from `source` until its end, in a thread of its own.
    pub fn attach(self: &Arc<Self>, source: impl Read + Send + 'static) {
        self.state().readers += 1;
        let console = Arc::clone(self);
        std::thread::spawn(move || {
            console.follow(BufReader::new(source));
            console.state().readers -= 1;
            console.changed.notify_all();
        });
    }

    fn follow(&self, mut source: impl BufRead) {
        let mut bytes = Vec::new();
        loop {
            let part = match source.fill_buf() {
                Ok(part) if !part.is_empty() => part,
                // An error ends a console like its end does: QEMU is gone, and whoever waits learns of it.
                _ => break,
            };
            // A carriage return ends a line too: what changes in place is a line for each change.
            let end = part.iter().position(|byte| matches!(byte, b'\r' | b'\n'));
            bytes.extend_from_slice(&part[..end.unwrap_or(part.len())]);
            let used = end.map_or(part.len(), |end| end + 1);
            source.consume(used);
            if end.is_some() {
                self.state().partial.clear();
                self.line(&bytes);
                bytes.clear();
            } else {
                self.state().partial = plain_text(&bytes);
                self.changed.notify_all();
            }
        }
        self.line(&bytes);
    }

    fn line(&self, bytes: &[u8]) {
        let text = plain_text(bytes);
        let text = text.trim_end();
        if !text.is_empty() {
            self.note(text);
        }
    }

    /// Adds a line of the harness's own.
    pub fn note(&self, text: &str) {
        let mut state = self.state();
        // The log is for people; a full disk must not end the test that it explains.
        let _ = writeln!(state.log, "{text}");
        state.lines.push(Line { at: Instant::now(), text: text.to_owned() });
        drop(state);
        self.changed.notify_all();
    }

    /// Adds a line to the log alone, with the seconds that have passed: what the harness does, for people who read the
    /// log.
    pub fn remark(&self, text: &str) {
        let mut state = self.state();
        let seconds = state.begin.elapsed().as_secs_f64();
        let _ = writeln!(state.log, "-------- {seconds:.1} s: {text}");
    }

    /// The place after the last line so far.
    #[must_use]
    pub fn end(&self) -> Cursor {
        Cursor(self.state().lines.len())
    }

    /// The next line from `cursor` on, waiting for it until `deadline`.
    pub fn next(&self, cursor: &mut Cursor, deadline: Instant) -> Next {
        let mut state = self.state();
        loop {
            if let Some(line) = state.lines.get(cursor.0) {
                cursor.0 += 1;
                return Next::Line(line.clone());
            }
            if state.readers == 0 {
                return Next::Closed;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Next::TimedOut;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits until `deadline` for `text` in a line from `cursor` on, whether the line has ended or not: a prompt does
    /// not end its line. The cursor is after the line that it came in, ended or not. Returns whether it has come.
    #[must_use]
    pub fn wait_for_prompt(&self, cursor: &mut Cursor, text: &str, deadline: Instant) -> bool {
        let mut state = self.state();
        loop {
            let lines = state.lines.get(cursor.0..).unwrap_or_default();
            let found = lines.iter().position(|line| line.text.contains(text)).map(|at| cursor.0 + at);
            // A cursor after the line that has not ended has seen its prompt.
            let is_next = cursor.0 <= state.lines.len() && state.partial.contains(text);
            let found = found.or(is_next.then_some(state.lines.len()));
            let is_there = found.is_some();
            cursor.0 = found.map_or(cursor.0.max(state.lines.len()), |at| at + 1);
            let left = deadline.saturating_duration_since(Instant::now());
            if is_there || state.readers == 0 || left.is_zero() {
                return is_there;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The lines from `cursor` on so far; the cursor is after them.
    #[must_use]
    pub fn since(&self, cursor: &mut Cursor) -> Vec<Line> {
        let state = self.state();
        let lines = state.lines.get(cursor.0..).unwrap_or_default().to_vec();
        cursor.0 = state.lines.len();
        lines
    }

    /// Waits until all readers are at their end, which they are soon after QEMU's.
    pub fn wait_for_end(&self) {
        let mut state = self.state();
        while state.readers > 0 {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// A line of Dormouse's that prints the cause of an error twice.
    #[must_use]
    pub fn repeated_cause(&self) -> Option<String> {
        let state = self.state();
        let ours = state.lines.iter().map(|line| &line.text).filter(|text| text.contains("dormouse: "));
        ours.into_iter().find(|text| repeated_cause(text).is_some()).cloned()
    }

    /// All lines that begin with `prefix`.
    #[must_use]
    pub fn beginning_with(&self, prefix: &str) -> Vec<String> {
        let state = self.state();
        state.lines.iter().map(|line| &line.text).filter(|text| text.starts_with(prefix)).cloned().collect()
    }

    /// The last `count` lines, for an error message.
    #[must_use]
    pub fn tail(&self, count: usize) -> String {
        let state = self.state();
        let first = state.lines.len().saturating_sub(count);
        let lines: Vec<&str> = state.lines.iter().skip(first).map(|line| line.text.as_str()).collect();
        lines.join("\n")
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing under this lock leaves the state half changed, so a panic elsewhere does not spoil it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The text of a line as a terminal would show it: no line ends, no control characters, no CSI sequences (firmware
/// clears the screen and moves the cursor).
fn plain_text(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut plain = String::with_capacity(text.len());
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        if character == '\u{1b}' {
            if characters.next_if_eq(&'[').is_some() {
                while characters.next().is_some_and(|c| !('@'..='~').contains(&c)) {}
            } else {
                characters.next();
            }
        } else if character == '\t' || !character.is_control() {
            plain.push(character);
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use std::time::Duration;

    use super::*;

    fn console() -> (Arc<Console>, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        (Console::create(&dir.path().join("serial.log")).unwrap(), dir)
    }

    #[test]
    fn control_sequences_are_left_out() {
        assert_eq!(plain_text(b"\x1b[2J\x1b[01;01Hhello \x1b[1;31mred\x1b[0m\r\n"), "hello red");
        assert_eq!(plain_text(b"cut \x1b["), "cut ");
        assert_eq!(plain_text(b"\x1bcreset\tkeep \xff\x00"), "reset\tkeep \u{fffd}");
    }

    #[test]
    fn a_cause_twice_in_a_row_is_found() {
        let cause = "Input/output error (os error 5)";
        let line = format!("dormouse: save/end: writing failed: {cause}: {cause}; the session was not touched");
        assert_eq!(repeated_cause(&line), Some(cause));
        let chain = format!("dormouse: image device /dev/vda: {cause}");
        let whole = format!("image device /dev/vda: {cause}");
        assert_eq!(repeated_cause(&format!("{chain}: {whole}")), Some(whole.as_str()));
        assert_eq!(repeated_cause(&format!("{chain}: {cause}")), Some(cause));
        for line in [chain.as_str(), "dormouse: a: a: a", "dormouse: not resuming: the image: the image is kept", ""] {
            assert_eq!(repeated_cause(line), None, "{line}");
        }
    }

    #[test]
    fn lines_come_in_order_and_the_end_is_told() {
        let (console, dir) = console();
        let mut cursor = console.end();
        console.attach(&b"one\r\n\r50 %   \r100 %\n\r\nno line end"[..]);
        let deadline = Instant::now() + Duration::from_secs(10);
        for expected in ["one", "50 %", "100 %", "no line end"] {
            let Next::Line(line) = console.next(&mut cursor, deadline) else { panic!("no line {expected:?}") };
            assert_eq!(line.text, expected);
        }
        assert!(matches!(console.next(&mut cursor, deadline), Next::Closed));
        assert_eq!(console.tail(2), "100 %\nno line end");
        assert_eq!(std::fs::read_to_string(dir.path().join("serial.log")).unwrap(), "one\n50 %\n100 %\nno line end\n");
    }

    #[test]
    fn a_prompt_is_seen_before_its_line_ends() {
        let (console, _dir) = console();
        let (mut writer, reader) = std::os::unix::net::UnixStream::pair().unwrap();
        let mut cursor = console.end();
        console.attach(reader);
        writer.write_all(b"one\nPlease unlock disk a: ").unwrap();
        let soon = || Instant::now() + Duration::from_secs(10);
        assert!(console.wait_for_prompt(&mut cursor, "unlock disk", soon()));
        // It is seen once, whatever becomes of its line.
        let shortly = || Instant::now() + Duration::from_millis(20);
        assert!(!console.wait_for_prompt(&mut cursor, "unlock disk", shortly()));
        writer.write_all(b"[ 1.0] usb\nPlease unlock disk b: more\n").unwrap();
        assert!(console.wait_for_prompt(&mut cursor, "disk b", soon()));
        assert!(!console.wait_for_prompt(&mut cursor, "unlock disk", shortly()));
    }

    #[test]
    fn a_silent_console_times_out() {
        let (console, _dir) = console();
        let (_writer, reader) = std::os::unix::net::UnixStream::pair().unwrap();
        console.attach(reader);
        let deadline = Instant::now() + Duration::from_millis(20);
        assert!(matches!(console.next(&mut console.end(), deadline), Next::TimedOut));
    }
}
