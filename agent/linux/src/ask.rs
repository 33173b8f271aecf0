//! Asking for a passphrase, in whatever way the system at hand asks for its own: what nobody may see is not shown.
//!
//! An initramfs with systemd has `systemd-ask-password`, whose agents show the question on the consoles and in
//! plymouth; one of Debian's initramfs-tools has cryptsetup's `askpass`, which knows plymouth and the consoles;
//! elsewhere plymouth is asked, where it runs, and the terminal or the console in the end.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::termios::{LocalFlags, SetArg, tcgetattr, tcsetattr};
use thiserror::Error;
use zeroize::{Zeroize, Zeroizing};

/// The longest passphrase, in bytes.
pub const MAX: usize = 1024;

/// Where systemd's agents find questions; it is there where systemd is PID 1 (systemd-ask-password(1)).
const SYSTEMD: &str = "/run/systemd/system";
const CRYPTSETUP: &str = "/lib/cryptsetup/askpass";
const CONSOLE: &str = "/dev/console";
const TERMINAL: &str = "/dev/tty";

/// Why there is no passphrase.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum AskError {
    /// Nobody can be asked.
    #[error("nobody can be asked for a passphrase: {0}")]
    NoWay(String),
    /// It is longer than [`MAX`].
    #[error("the passphrase is longer than {MAX} bytes")]
    TooLong,
}

/// A way to ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Systemd,
    Cryptsetup,
    Plymouth,
    Console,
}

/// The ways to ask in an initramfs, the best first.
fn ways(exists: impl Fn(&str) -> bool, is_plymouth_there: impl FnOnce() -> bool) -> Vec<Way> {
    let mut ways = Vec::new();
    let has_systemd = exists(SYSTEMD)
        && ["/usr/bin/systemd-ask-password", "/bin/systemd-ask-password"].iter().any(|path| exists(path));
    if has_systemd {
        ways.push(Way::Systemd);
    }
    if exists(CRYPTSETUP) {
        ways.push(Way::Cryptsetup);
    }
    if !has_systemd && is_plymouth_there() {
        ways.push(Way::Plymouth);
    }
    ways.push(Way::Console);
    ways
}

/// Asks in an initramfs. `note` precedes the question, such as that the last answer was wrong. Waits for as long as it
/// takes.
///
/// # Errors
/// [`AskError`].
pub fn at_boot(question: &str, note: Option<&str>) -> Result<Zeroizing<Vec<u8>>, AskError> {
    let question = match note {
        Some(note) => format!("{note} {question}"),
        None => question.to_owned(),
    };
    let exists = |path: &str| Path::new(path).exists();
    let mut tried = Vec::new();
    for way in ways(exists, is_plymouth_there) {
        let answer = match way {
            Way::Systemd => program(Command::new("systemd-ask-password").args(["--timeout=0", &question])),
            Way::Cryptsetup => program(Command::new(CRYPTSETUP).arg(format!("{question}: "))),
            Way::Plymouth => {
                program(Command::new("plymouth").args(["ask-for-password", &format!("--prompt={question}")]))
            }
            Way::Console => on_terminal(Path::new(CONSOLE), &question),
        };
        match answer {
            Ok(answer) => return checked(answer),
            Err(error) => tried.push(format!("{way:?}: {error}").to_lowercase()),
        }
    }
    Err(AskError::NoWay(tried.join("; ")))
}

/// Asks on the terminal of a running system.
///
/// # Errors
/// [`AskError`].
pub fn here(question: &str) -> Result<Zeroizing<Vec<u8>>, AskError> {
    let answer = on_terminal(Path::new(TERMINAL), question);
    checked(answer.map_err(|error| AskError::NoWay(format!("{TERMINAL}: {error}")))?)
}

/// The passphrase in what comes from a program or a file: all but a line feed at its end.
///
/// # Errors
/// It cannot be read, or is too long.
pub fn read_from(source: &mut dyn Read) -> io::Result<Zeroizing<Vec<u8>>> {
    // In one piece from the beginning: growing would leave copies.
    let mut answer = Zeroizing::new(Vec::with_capacity(MAX + 2));
    source.take(MAX as u64 + 2).read_to_end(&mut answer)?;
    if answer.last() == Some(&b'\n') {
        answer.pop();
    }
    checked(answer).map_err(io::Error::other)
}

fn checked(answer: Zeroizing<Vec<u8>>) -> Result<Zeroizing<Vec<u8>>, AskError> {
    if answer.len() > MAX { Err(AskError::TooLong) } else { Ok(answer) }
}

fn is_plymouth_there() -> bool {
    let ping = Command::new("plymouth").arg("--ping").stdin(Stdio::null()).stderr(Stdio::null()).status();
    ping.is_ok_and(|status| status.success())
}

/// What a program prints.
fn program(command: &mut Command) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut child = command.stdout(Stdio::piped()).spawn()?;
    let answer = match child.stdout.take() {
        Some(mut stdout) => read_from(&mut stdout),
        None => Err(io::Error::other("it has no output")),
    };
    let status = child.wait()?;
    if !status.success() {
        return Err(io::Error::other(format!("it ended with {status}")));
    }
    answer
}

/// Asks on a terminal, without showing what is typed.
fn on_terminal(path: &Path, question: &str) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut terminal = File::options().read(true).write(true).open(path)?;
    // What is no terminal cannot hide what is typed.
    let before = tcgetattr(terminal.as_fd())?;
    let mut quiet = before.clone();
    quiet.local_flags.remove(LocalFlags::ECHO | LocalFlags::ECHOE | LocalFlags::ECHOK | LocalFlags::ECHONL);
    quiet.local_flags.insert(LocalFlags::ICANON);
    // What was typed before the question is not the answer.
    tcsetattr(terminal.as_fd(), SetArg::TCSAFLUSH, &quiet)?;
    let answer = write!(terminal, "{question}: ").and_then(|()| line(&mut terminal));
    let restored = tcsetattr(terminal.as_fd(), SetArg::TCSADRAIN, &before);
    let _ = writeln!(terminal);
    restored?;
    answer
}

/// One line, byte by byte: nothing is left in a buffer.
fn line(source: &mut dyn Read) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut answer = Zeroizing::new(Vec::with_capacity(MAX + 1));
    let mut byte = [0];
    loop {
        match source.read(&mut byte)? {
            0 if answer.is_empty() => return Err(io::ErrorKind::UnexpectedEof.into()),
            0 => break,
            _ if matches!(byte, [b'\n' | b'\r']) => break,
            _ if answer.len() <= MAX => answer.push(byte[0]),
            _ => {}
        }
    }
    byte.zeroize();
    Ok(answer)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn asks_as_the_boot_asks_for_its_own() {
        let with = |paths: &[&str], plymouth: bool| ways(|path| paths.contains(&path), || plymouth);
        assert_eq!(with(&[], false), [Way::Console]);
        assert_eq!(with(&[], true), [Way::Plymouth, Way::Console]);
        assert_eq!(with(&[CRYPTSETUP], true), [Way::Cryptsetup, Way::Plymouth, Way::Console]);
        let systemd = [SYSTEMD, "/usr/bin/systemd-ask-password"];
        // Its agents ask plymouth.
        assert_eq!(with(&systemd, true), [Way::Systemd, Way::Console]);
        assert_eq!(with(&systemd[1..], false), [Way::Console]);
    }

    #[test]
    fn an_answer_is_what_is_printed_without_its_line_feed() {
        let print = |text: &str| program(Command::new("printf").arg(text));
        assert_eq!(&print("a b \\n").unwrap()[..], b"a b ");
        assert_eq!(&print("").unwrap()[..], b"");
        assert_eq!(&print("x\\n\\n").unwrap()[..], b"x\n");
        assert!(program(&mut Command::new("false")).is_err());
        assert!(program(Command::new("sh").args(["-c", "echo x; exit 1"])).is_err());
        assert!(program(&mut Command::new("/nonexistent")).is_err());
    }

    #[test]
    fn rejects_an_answer_that_is_too_long() {
        assert_eq!(read_from(&mut &[b'x'; MAX][..]).unwrap().len(), MAX);
        for len in [MAX + 1, MAX + 2, 10 * MAX] {
            assert!(read_from(&mut &vec![b'x'; len][..]).is_err());
        }
        assert!(checked(line(&mut &[b'x'; 10 * MAX][..]).unwrap()).is_err());
    }

    #[test]
    fn what_is_no_terminal_is_not_asked() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "secret\n").unwrap();
        assert!(on_terminal(file.path(), "x").is_err());
        assert_eq!(&line(&mut &b"one\rtwo\n"[..]).unwrap()[..], b"one");
        assert!(line(&mut &b""[..]).is_err());
    }
}
