//! The consoles of B and D, as a person sees them: whole lines, and one that changes in place.
//!
//! Nothing here waits: a console that takes nothing now, such as a serial line that is held, goes without.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use nix::fcntl::OFlag;
use terminal_size::{Width, terminal_size_of};

use crate::policy::Verbosity;

/// The names of the consoles, separated by spaces.
pub(crate) const ACTIVE_CONSOLES: &str = "/sys/class/tty/console/active";

/// How long a line is on its way to a serial line of 115,200 baud. The kernel's own lines would overtake it, and so
/// would the end of the power.
const ON_ITS_WAY: Duration = Duration::from_millis(10);

/// The columns of a console that does not know how many it has, as serial lines do not.
const USUAL_COLUMNS: usize = 80;

/// Shows a person at the consoles something, in a line of its own. Whoever has asked for more reads it in the kernel
/// log, where the caller writes it too.
pub(crate) fn show(verbosity: Verbosity, text: &str) {
    if verbosity == Verbosity::Quiet {
        Screen::open().print_line(text);
    }
}

/// All consoles of this kernel.
#[derive(Debug)]
pub(crate) struct Screen {
    consoles: Vec<Console>,
}

#[derive(Debug)]
struct Console {
    file: File,
    columns: usize,
    /// Characters of the line that changes in place.
    drawn: usize,
}

impl Screen {
    /// Every console that can be written.
    pub(crate) fn open() -> Screen {
        let names = std::fs::read_to_string(ACTIVE_CONSOLES).unwrap_or_default();
        let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let open = |name: &str| {
            let path = Path::new("/dev").join(name);
            OpenOptions::new().write(true).custom_flags(flags.bits()).open(path).ok()
        };
        Screen { consoles: names.split_whitespace().filter_map(open).map(Console::new).collect() }
    }

    /// A line of its own.
    pub(crate) fn print_line(&mut self, text: &str) {
        self.put(|console| {
            console.drawn = 0;
            format!("{text}\n")
        });
        std::thread::sleep(ON_ITS_WAY);
    }

    /// What a console with this many columns shows in the line that changes in place, from now on.
    pub(crate) fn draw(&mut self, line: impl Fn(usize) -> String) {
        self.put(|console| {
            let line = line(console.columns);
            let width = console.drawn.max(line.len());
            console.drawn = line.len();
            format!("\r{line:<width$}")
        });
    }

    /// Ends the line that changes in place, if there is one.
    pub(crate) fn end_line(&mut self) {
        self.put(|console| if std::mem::take(&mut console.drawn) > 0 { "\n".to_owned() } else { String::new() });
        std::thread::sleep(ON_ITS_WAY);
    }

    fn put(&mut self, mut text: impl FnMut(&mut Console) -> String) {
        self.consoles.retain_mut(|console| {
            let text = text(console);
            console
                .file
                .write_all(text.as_bytes())
                .map_or_else(|error| error.kind() == ErrorKind::WouldBlock, |()| true)
        });
    }
}

impl Console {
    fn new(file: File) -> Console {
        let columns = terminal_size_of(&file).map_or(USUAL_COLUMNS, |(Width(columns), _)| columns.into());
        Console { file, columns, drawn: 0 }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::{Read, Seek};

    use super::*;

    /// A screen of one console, and what it has been given.
    fn screen() -> (Screen, File) {
        let file = tempfile::tempfile().unwrap();
        let console = Console::new(file.try_clone().unwrap());
        (Screen { consoles: vec![console] }, file)
    }

    fn text(mut file: File) -> String {
        let mut text = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn line_changes_in_place_and_is_overwritten_whole() {
        let (mut screen, file) = screen();
        screen.print_line("first");
        screen.end_line();
        screen.draw(|columns| format!("of {columns} columns"));
        screen.draw(|_| "short".to_owned());
        screen.draw(|_| "long again".to_owned());
        screen.end_line();
        screen.end_line();
        screen.print_line("last");
        assert_eq!(text(file), "first\n\rof 80 columns\rshort        \rlong again\nlast\n");
    }

    #[test]
    fn closed_console_is_dropped() {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut screen = Screen { consoles: vec![Console::new(File::from(std::os::fd::OwnedFd::from(writer)))] };
        screen.print_line("nobody reads it");
        assert!(screen.consoles.is_empty());
    }
}
