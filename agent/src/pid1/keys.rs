//! Esc, on any of the kernel's consoles.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::sys::termios::{InputFlags, LocalFlags, SetArg, tcgetattr, tcsetattr};

use crate::console::screen::ACTIVE_CONSOLES;

const ESC: u8 = 0x1b;

/// Keys such as the arrows send Esc and more after it. What does not come within this time on a slow serial line does
/// not belong to it.
const SEQUENCE: Duration = Duration::from_millis(50);

/// The consoles, as keys come from them.
#[derive(Debug)]
pub(super) struct Keys {
    consoles: Vec<Console>,
}

#[derive(Debug)]
struct Console {
    file: File,
    /// When an Esc came that nothing has followed yet.
    escaped: Option<Instant>,
}

impl Keys {
    /// Listens on every console that can be read.
    pub(super) fn listen() -> Keys {
        let names = std::fs::read_to_string(ACTIVE_CONSOLES).unwrap_or_default();
        let consoles = names.split_whitespace().filter_map(open).map(|file| Console { file, escaped: None });
        Keys { consoles: consoles.collect() }
    }

    /// On nothing.
    pub(super) fn none() -> Keys {
        Keys { consoles: Vec::new() }
    }

    /// What to wait for keys on.
    pub(super) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.consoles.iter().map(|console| console.file.as_fd())
    }

    /// Whether an Esc is waited for, so that the caller looks again soon.
    pub(super) fn is_waiting(&self) -> bool {
        self.consoles.iter().any(|console| console.escaped.is_some())
    }

    /// Whether Esc was pressed since this was asked last.
    pub(super) fn escape(&mut self) -> bool {
        let mut pressed = false;
        self.consoles.retain_mut(|console| {
            let mut keys = [0; 64];
            match console.file.read(&mut keys) {
                // It hung up.
                Ok(0) => return false,
                Ok(len) => console.take(&keys[..len]),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => return false,
            }
            pressed |= console.escaped.is_some_and(|since| since.elapsed() >= SEQUENCE);
            true
        });
        pressed
    }
}

impl Console {
    fn take(&mut self, keys: &[u8]) {
        // Whatever follows an Esc makes it a part of something else.
        self.escaped = (keys.last() == Some(&ESC)).then(Instant::now);
    }
}

/// Opens a console for keys one at a time, that are not shown.
fn open(name: &str) -> Option<File> {
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits()).open(Path::new("/dev").join(name)).ok()?;
    let mut settings = tcgetattr(&file).ok()?;
    settings.local_flags.remove(LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ISIG | LocalFlags::IEXTEN);
    settings.input_flags.remove(InputFlags::IXON | InputFlags::ICRNL);
    // One byte is enough to be read; what was typed before does not count.
    settings.control_chars[nix::libc::VMIN] = 1;
    settings.control_chars[nix::libc::VTIME] = 0;
    tcsetattr(&file, SetArg::TCSAFLUSH, &settings).ok()?;
    Some(file)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn console() -> Console {
        Console { file: File::open("/dev/null").unwrap(), escaped: None }
    }

    #[test]
    fn arrows_are_not_escape() {
        let mut console = console();
        for (keys, is_escape) in [
            (b"\x1b[A".as_slice(), false),
            (b"a", false),
            (b"\x1b", true),
            (b"[A", false),
            (b"x\x1b", true),
            (b"\x1b\x1b", true),
            (b"OP", false),
        ] {
            console.take(keys);
            assert_eq!(console.escaped.is_some(), is_escape, "{keys:?}");
        }
    }
}
