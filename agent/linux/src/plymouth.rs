//! Plymouth, the splash screen of a boot, where it runs: it is told what happens, and makes way before the jump, so
//! that the screen shows what the next kernel has to say.
//!
//! The protocol is that of plymouth's own client (src/ply-boot-protocol.h, src/client/ply-boot-client.c and
//! src/ply-boot-server.c in plymouth): a request is a letter and a zero byte; or a letter, the byte 2, the length of a
//! text with its zero byte, and the text. An answer begins with a byte, of which 6 means that it was done. Only root is
//! listened to.
//!
//! It is a courtesy: whatever fails is logged and makes no difference.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, setsockopt, socket, sockopt};
use nix::sys::time::TimeVal;

/// Where plymouth listens, a name in the abstract namespace (`PLY_BOOT_PROTOCOL_TRIMMED_ABSTRACT_SOCKET_PATH`).
const SOCKET: &str = "/org/freedesktop/plymouthd";

/// How long each request may take.
const PATIENCE: Duration = Duration::from_millis(100);

const PING: u8 = b'P';
const SHOW_MESSAGE: u8 = b'M';
const HIDE_MESSAGE: u8 = b'm';
const SHOW_SPLASH: u8 = b'$';
const HIDE_SPLASH: u8 = b'H';
const ACK: u8 = 6;

/// The splash screen that runs, with a message of ours. When this is dropped, it is as it was before.
#[derive(Debug)]
pub struct Splash {
    socket: String,
    message: &'static str,
    is_hidden: bool,
}

impl Splash {
    /// Has the splash screen show a message, if there is one that runs.
    pub fn say(message: &'static str) -> Option<Splash> {
        Splash::say_at(SOCKET, message)
    }

    fn say_at(socket: &str, message: &'static str) -> Option<Splash> {
        if let Err(error) = request(socket, PING, "") {
            log::debug!("no splash screen of plymouth's: {error}");
            return None;
        }
        let splash = Splash { socket: socket.to_owned(), message, is_hidden: false };
        splash.ask(SHOW_MESSAGE, message);
        Some(splash)
    }

    /// Has it make way for the text consoles.
    pub fn hide(&mut self) {
        self.ask(HIDE_SPLASH, "");
        self.is_hidden = true;
    }

    fn ask(&self, letter: u8, text: &str) {
        if let Err(error) = request(&self.socket, letter, text) {
            log::debug!("plymouth, asked for {:?}: {error}", char::from(letter));
        }
    }
}

impl Drop for Splash {
    fn drop(&mut self) {
        if self.is_hidden {
            self.ask(SHOW_SPLASH, "");
        }
        self.ask(HIDE_MESSAGE, self.message);
    }
}

/// One request on a connection of its own, so that an answer that comes too late is not taken for another's.
fn request(name: &str, letter: u8, text: &str) -> io::Result<()> {
    let stream = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    let patience = TimeVal::new(0, PATIENCE.subsec_micros().into());
    // The first is also for how long connecting may take (net/unix/af_unix.c, `unix_stream_connect`).
    setsockopt(&stream, sockopt::SendTimeout, &patience)?;
    setsockopt(&stream, sockopt::ReceiveTimeout, &patience)?;
    connect(stream.as_raw_fd(), &UnixAddr::new_abstract(name.as_bytes())?)?;
    let mut stream = File::from(stream);
    stream.write_all(&frame(letter, text)?)?;
    let mut answer = [0];
    stream.read_exact(&mut answer)?;
    if answer == [ACK] { Ok(()) } else { Err(io::Error::other(format!("it answered {}", answer[0]))) }
}

fn frame(letter: u8, text: &str) -> io::Result<Vec<u8>> {
    if text.is_empty() {
        return Ok(vec![letter, 0]);
    }
    let len = u8::try_from(text.len() + 1).map_err(|_| io::Error::from(ErrorKind::InvalidInput))?;
    Ok([&[letter, 2, len], text.as_bytes(), &[0]].concat())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixListener};
    use std::sync::mpsc::{Receiver, channel};
    use std::time::Instant;

    use super::*;

    fn listen(name: &str) -> (String, UnixListener) {
        let name = format!("dormouse-test-{}-{name}", std::process::id());
        let listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        (name, listener)
    }

    /// A plymouth that answers each request with this byte, and what it was asked.
    fn plymouth(name: &str, answer: u8) -> (String, Receiver<Vec<u8>>) {
        let (name, listener) = listen(name);
        let (sender, requests) = channel();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut bytes = vec![0; 256];
                let len = stream.read(&mut bytes).unwrap();
                bytes.truncate(len);
                stream.write_all(&[answer]).unwrap();
                if sender.send(bytes).is_err() {
                    break;
                }
            }
        });
        (name, requests)
    }

    #[test]
    fn a_splash_shows_the_message_makes_way_and_comes_back() {
        let (name, requests) = plymouth("good", ACK);
        let mut splash = Splash::say_at(&name, "Hibernating").unwrap();
        let asked = |count| requests.iter().take(count).collect::<Vec<_>>();
        assert_eq!(asked(2), [b"P\0".to_vec(), b"M\x02\x0cHibernating\0".to_vec()]);
        splash.hide();
        assert_eq!(asked(1), [b"H\0"]);
        drop(splash);
        assert_eq!(asked(2), [b"$\0".to_vec(), b"m\x02\x0cHibernating\0".to_vec()]);
    }

    #[test]
    fn a_splash_that_was_not_hidden_is_not_shown() {
        let (name, requests) = plymouth("shown", ACK);
        drop(Splash::say_at(&name, "x"));
        let asked: Vec<_> = requests.iter().take(3).map(|request| request[0]).collect();
        assert_eq!(asked, b"PMm");
    }

    #[test]
    fn without_plymouth_nothing_happens() {
        assert!(Splash::say_at("dormouse-test-nobody", "x").is_none());
        let (name, _requests) = plymouth("refuses", 0x15);
        assert!(Splash::say_at(&name, "x").is_none());
    }

    #[test]
    fn a_plymouth_that_hangs_is_not_waited_for() {
        let (name, _listener) = listen("hangs");
        let begin = Instant::now();
        assert!(Splash::say_at(&name, "x").is_none());
        assert!((PATIENCE..10 * PATIENCE).contains(&begin.elapsed()), "{:?}", begin.elapsed());
    }

    #[test]
    fn a_text_that_is_too_long_is_not_sent() {
        assert_eq!(frame(b'M', &"x".repeat(254)).unwrap().len(), 258);
        assert!(frame(b'M', &"x".repeat(255)).is_err());
    }
}
