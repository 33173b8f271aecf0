//! One connection to a server, and several requests at once on it.
//!
//! Whoever waits for a reply reads: the first that finds nobody reading reads the next header, and where that is
//! another's, leaves it to that one, which reads what follows into its own memory.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use dormouse_image::{BLOCK, NbdExport};

use crate::store::nbd::wire::{self, Command, Header, Kind, Part, Request, handshake, nonsense, option};

/// Bytes in one request, at most: more than every server takes that does not say what it takes.
const MOST: usize = 1 << 20;
/// How long a server may take to be there.
const TO_CONNECT: Duration = Duration::from_secs(20);
/// How long a server may take to let the last request in.
const TO_LEAVE: Duration = Duration::from_secs(1);
/// What a server may say at most in an answer to an option, or about an error.
const MOST_TEXT: u32 = 16 << 10;
/// What it may answer to one option: an export each, where they are listed.
const MOST_ANSWERS: usize = 4096;

/// What the server says of the export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Export {
    /// In bytes.
    pub(super) size: u64,
    /// What it can do.
    pub(super) flags: u16,
    /// Bytes in one request.
    pub(super) most: usize,
}

#[derive(Debug)]
pub(super) struct Connection {
    stream: TcpStream,
    deadline: Duration,
    export: Export,
    /// Held while a request goes out.
    sending: Mutex<()>,
    receiving: Mutex<Receiving>,
    changed: Condvar,
}

/// The names of what a server exports, as far as it tells.
pub(super) fn names(server: SocketAddr, deadline: Duration) -> io::Result<Vec<String>> {
    let stream = connected(server, deadline)?;
    Handshake { stream: &stream, deadline }.names()
}

fn connected(server: SocketAddr, deadline: Duration) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&server, deadline.min(TO_CONNECT))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(deadline))?;
    stream.set_write_timeout(Some(deadline))?;
    Ok(stream)
}

/// What is known of the replies.
#[derive(Debug, Default)]
struct Receiving {
    last_cookie: u64,
    /// The requests without a whole reply.
    awaited: Vec<u64>,
    is_reading: bool,
    /// A header that was read, of which somebody else must read what follows.
    next: Option<Header>,
    /// Nothing more can be had.
    broken: Option<(ErrorKind, String)>,
}

impl Connection {
    /// Connects, and asks for the export.
    pub(super) fn open(export: &NbdExport, deadline: Duration) -> io::Result<Connection> {
        let stream = connected(export.address, deadline)?;
        let export = Handshake { stream: &stream, deadline }.of(&export.name)?;
        let (sending, receiving, changed) = (Mutex::default(), Mutex::default(), Condvar::new());
        Ok(Connection { stream, deadline, export, sending, receiving, changed })
    }

    pub(super) fn export(&self) -> Export {
        self.export
    }

    pub(super) fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.ask(Command::Read, offset, len_of(into.len())?, &[], into)
    }

    pub(super) fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.ask(Command::Write, offset, len_of(bytes.len())?, bytes, &mut [])
    }

    /// The same, durably; the server must have offered that.
    pub(super) fn write_through(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.ask(Command::WriteThrough, offset, len_of(bytes.len())?, bytes, &mut [])
    }

    pub(super) fn without_data(&self, command: Command, offset: u64, len: u32) -> io::Result<()> {
        self.ask(command, offset, len, &[], &mut [])
    }

    /// Sends a request with these bytes, and receives what comes back.
    fn ask(&self, command: Command, offset: u64, len: u32, bytes: &[u8], into: &mut [u8]) -> io::Result<()> {
        let cookie = self.send(command, offset, len, bytes)?;
        self.receive(cookie, &mut Reply { offset, into, filled: 0, error: None })
    }

    fn state(&self) -> MutexGuard<'_, Receiving> {
        self.receiving.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, command: Command, offset: u64, len: u32, bytes: &[u8]) -> io::Result<u64> {
        let cookie = {
            let mut state = self.state();
            state.demand_whole()?;
            state.last_cookie += 1;
            let cookie = state.last_cookie;
            state.awaited.push(cookie);
            cookie
        };
        let request = Request { command, cookie, offset, len }.encode();
        let sent = {
            let _one = self.sending.lock().unwrap_or_else(PoisonError::into_inner);
            let within = Instant::now() + self.deadline;
            send_all(&self.stream, &request, within).and_then(|()| send_all(&self.stream, bytes, within))
        };
        // Half a request may have gone out.
        sent.map(|()| cookie).map_err(|error| self.broken(&error))
    }

    /// Receives all of a reply.
    fn receive(&self, cookie: u64, reply: &mut Reply<'_>) -> io::Result<()> {
        loop {
            let header = self.turn(cookie)?;
            let fill = |bytes: &mut [u8]| fill(&self.stream, bytes, Instant::now() + self.deadline);
            let is_over = reply.take(header.part, fill).map_err(|error| self.broken(&error))?;
            let mut state = self.state();
            state.is_reading = false;
            if is_over {
                state.awaited.retain(|awaited| *awaited != cookie);
            }
            self.changed.notify_all();
            drop(state);
            if is_over {
                return reply.result();
            }
        }
    }

    /// Waits until a part of this request's reply is next. Then nobody else reads.
    fn turn(&self, cookie: u64) -> io::Result<Header> {
        let mut state = self.state();
        loop {
            state.demand_whole()?;
            match state.next {
                Some(header) if header.cookie == cookie => {
                    (state.next, state.is_reading) = (None, true);
                    return Ok(header);
                }
                None if !state.is_reading => {
                    state.is_reading = true;
                    drop(state);
                    let header = Header::read(|bytes| fill(&self.stream, bytes, Instant::now() + self.deadline));
                    state = self.state();
                    state.is_reading = false;
                    match header {
                        Ok(header) if state.awaited.contains(&header.cookie) => state.next = Some(header),
                        Ok(_) => state.break_with(&nonsense("a reply to nothing")),
                        Err(error) => state.break_with(&error),
                    }
                    self.changed.notify_all();
                }
                _ => state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    /// Has everybody fail with this error.
    fn broken(&self, error: &io::Error) -> io::Error {
        let mut state = self.state();
        state.break_with(error);
        self.changed.notify_all();
        state.demand_whole().err().unwrap_or_else(|| ErrorKind::BrokenPipe.into())
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // So that the server does not take it for a fault; but nobody waits for one that is gone.
        let goodbye = Request { command: Command::Disconnect, cookie: 0, offset: 0, len: 0 }.encode();
        if self.state().broken.is_none() && self.stream.set_write_timeout(Some(TO_LEAVE)).is_ok() {
            let _ = (&self.stream).write_all(&goodbye);
        }
    }
}

impl Receiving {
    fn demand_whole(&self) -> io::Result<()> {
        let again = |(kind, text): &(ErrorKind, String)| Err(io::Error::new(*kind, text.clone()));
        self.broken.as_ref().map_or(Ok(()), again)
    }

    fn break_with(&mut self, error: &io::Error) {
        self.broken.get_or_insert_with(|| (error.kind(), error.to_string()));
    }
}

/// A reply in the making.
struct Reply<'a> {
    offset: u64,
    into: &'a mut [u8],
    filled: usize,
    error: Option<io::Error>,
}

impl Reply<'_> {
    /// Takes a part of it, whose bytes `fill` reads. Whether it was the last one.
    ///
    /// # Errors
    /// The connection is of no use any more.
    fn take(&mut self, part: Part, mut fill: impl FnMut(&mut [u8]) -> io::Result<()>) -> io::Result<bool> {
        match part {
            Part::Simple { error: 0 } => {
                fill(self.into)?;
                self.filled = self.into.len();
                Ok(true)
            }
            Part::Simple { error } => {
                self.error = Some(error_of(error, ""));
                Ok(true)
            }
            Part::Structured { kind, len, is_last } => {
                match kind {
                    Kind::Nothing if len == 0 => {}
                    Kind::Data if len > 8 => {
                        let offset = number(&mut fill)?;
                        fill(self.place(offset, len - 8)?)?;
                    }
                    Kind::Hole if len == 12 => {
                        let (offset, mut count) = (number(&mut fill)?, [0; 4]);
                        fill(&mut count)?;
                        self.place(offset, u32::from_be_bytes(count))?.fill(0);
                    }
                    Kind::Error if (6..=MOST_TEXT).contains(&len) => {
                        let mut said = vec![0; len as usize];
                        fill(&mut said)?;
                        let text = said.get(6..).and_then(|rest| rest.get(..wire::be16(&said, 4).into()));
                        let text = text.ok_or_else(|| nonsense("an error without its text"))?;
                        self.error.get_or_insert(error_of(wire::be32(&said, 0), &String::from_utf8_lossy(text)));
                    }
                    kind => return Err(nonsense(&format!("{len} bytes in a part of a reply that is {kind:?}"))),
                }
                Ok(is_last)
            }
        }
    }

    /// Where these bytes of the export go.
    fn place(&mut self, offset: u64, len: u32) -> io::Result<&mut [u8]> {
        let start = offset.checked_sub(self.offset).and_then(|start| usize::try_from(start).ok());
        let place = start.and_then(|start| self.into.get_mut(start..start.checked_add(len as usize)?));
        self.filled += len as usize;
        place.ok_or_else(|| nonsense("bytes that were not asked for"))
    }

    fn result(&mut self) -> io::Result<()> {
        match self.error.take() {
            Some(error) => Err(error),
            None if self.filled == self.into.len() => Ok(()),
            None => Err(nonsense("less than was asked for, or more")),
        }
    }
}

/// What the server says has gone wrong. Its numbers are those of Linux.
fn error_of(number: u32, text: &str) -> io::Error {
    let error = i32::try_from(number).map_or_else(|_| ErrorKind::Other.into(), io::Error::from_raw_os_error);
    let text = printable(text);
    match text.as_str() {
        "" => io::Error::new(error.kind(), format!("the server says: {error}")),
        text => io::Error::new(error.kind(), format!("the server says: {text} ({error})")),
    }
}

/// What may go to a console of what a server says.
fn printable(text: &str) -> String {
    text.chars().filter(|char| !char.is_control()).take(200).collect()
}

/// What comes before requests: the server, the export, and how replies look.
struct Handshake<'a> {
    stream: &'a TcpStream,
    deadline: Duration,
}

impl Handshake<'_> {
    /// What comes before any option.
    fn begin(&self) -> io::Result<()> {
        let hello: [u8; 18] = self.get()?;
        if hello[..8] != wire::MAGIC {
            return Err(nonsense("something else than an NBD server does"));
        }
        let flags = wire::be16(&hello, 16);
        if hello[8..16] != wire::OPTION_MAGIC || flags & handshake::FIXED_NEWSTYLE == 0 {
            return Err(io::Error::new(ErrorKind::Unsupported, "the server speaks a protocol from before 2011"));
        }
        let ours = handshake::FIXED_NEWSTYLE | flags & handshake::NO_ZEROES;
        self.put(&u32::from(ours).to_be_bytes())
    }

    fn names(&self) -> io::Result<Vec<String>> {
        self.begin()?;
        self.option(option::LIST, &[])?;
        let mut names = Vec::new();
        self.answers(option::LIST, "", |listed| {
            let name = listed.get(4..).and_then(|rest| rest.get(..wire::be32(listed, 0) as usize));
            let name = name.ok_or_else(|| nonsense("a part of an export's name"))?;
            names.push(String::from_utf8_lossy(name).into_owned());
            Ok(())
        })?;
        // Nobody is angry who is not told.
        let _ = self.option(option::ABORT, &[]);
        Ok(names)
    }

    fn of(&self, name: &str) -> io::Result<Export> {
        self.begin()?;
        // With them, an error that is found in the middle of a read does not end the connection.
        self.option(option::STRUCTURED_REPLY, &[])?;
        self.answers(option::STRUCTURED_REPLY, name, |_| Ok(()))?;
        let mut go = len_of(name.len())?.to_be_bytes().to_vec();
        go.extend_from_slice(name.as_bytes());
        go.extend_from_slice(&1_u16.to_be_bytes());
        go.extend_from_slice(&option::INFO_BLOCK_SIZE.to_be_bytes());
        self.option(option::GO, &go)?;
        let mut found = None;
        let (mut least, mut most) = (1, MOST);
        self.answers(option::GO, name, |info| {
            match (wire::be16(info, 0), info.len()) {
                (option::INFO_EXPORT, 12) => found = Some((wire::be64(info, 2), wire::be16(info, 10))),
                (option::INFO_BLOCK_SIZE, 14) => {
                    least = wire::be32(info, 2) as usize;
                    most = MOST.min(wire::be32(info, 10) as usize / BLOCK * BLOCK);
                }
                (option::INFO_EXPORT | option::INFO_BLOCK_SIZE, _) => {
                    return Err(nonsense("information about the export of a wrong length"));
                }
                _ => {}
            }
            Ok(())
        })?;
        if !BLOCK.is_multiple_of(least.max(1)) || most == 0 {
            let text = format!("it takes blocks of {least} bytes at least, and {BLOCK} are needed");
            return Err(io::Error::new(ErrorKind::Unsupported, text));
        }
        let (size, flags) = found.ok_or_else(|| nonsense("no size of the export"))?;
        Ok(Export { size, flags, most })
    }

    fn option(&self, option: u32, data: &[u8]) -> io::Result<()> {
        let mut bytes = wire::OPTION_MAGIC.to_vec();
        bytes.extend_from_slice(&option.to_be_bytes());
        bytes.extend_from_slice(&len_of(data.len())?.to_be_bytes());
        bytes.extend_from_slice(data);
        self.put(&bytes)
    }

    /// Reads the answers to an option until it is taken or, where it can be done without, refused. `take` gets what the
    /// server tells.
    fn answers(&self, option: u32, name: &str, mut take: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        for _ in 0..MOST_ANSWERS {
            let header: [u8; 20] = self.get()?;
            let (kind, len) = (wire::be32(&header, 12), wire::be32(&header, 16));
            if wire::be64(&header, 0) != wire::ANSWER_MAGIC || wire::be32(&header, 8) != option || len > MOST_TEXT {
                return Err(nonsense("an answer to something else"));
            }
            let mut data = vec![0; len as usize];
            fill(self.stream, &mut data, Instant::now() + self.deadline)?;
            match kind {
                option::ACK => return Ok(()),
                option::INFO | option::SERVER => take(&data)?,
                _ if kind & option::ERROR == 0 => return Err(nonsense("an answer of an unknown kind")),
                _ if option == option::STRUCTURED_REPLY => return Ok(()),
                _ if option == option::LIST => return Err(io::Error::other("the server does not list its exports")),
                _ => return Err(refused(kind, name, &String::from_utf8_lossy(&data))),
            }
        }
        Err(nonsense("answers without end"))
    }

    fn put(&self, bytes: &[u8]) -> io::Result<()> {
        send_all(self.stream, bytes, Instant::now() + self.deadline)
    }

    fn get<const N: usize>(&self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        fill(self.stream, &mut bytes, Instant::now() + self.deadline)?;
        Ok(bytes)
    }
}

fn refused(kind: u32, name: &str, text: &str) -> io::Error {
    let why = match kind {
        option::UNSUPPORTED => "the server is too old: it does not know NBD_OPT_GO".to_owned(),
        option::POLICY => format!("the server does not let this machine have the export `{name}`"),
        option::TLS_REQUIRED => "the server demands TLS, which is not had here: an image is sealed instead".to_owned(),
        option::UNKNOWN => format!("the server has no export `{name}`"),
        kind => format!("the server refuses the export `{name}` (error {})", kind & !option::ERROR),
    };
    let text = printable(text);
    io::Error::other(if text.is_empty() { why } else { format!("{why}: {text}") })
}

fn len_of(len: usize) -> io::Result<u32> {
    u32::try_from(len).map_err(io::Error::other)
}

fn number(fill: &mut impl FnMut(&mut [u8]) -> io::Result<()>) -> io::Result<u64> {
    let mut bytes = [0; 8];
    fill(&mut bytes)?;
    Ok(u64::from_be_bytes(bytes))
}

/// Reads all of `bytes` before `deadline`. A server that sends a byte now and then has no more time than one that sends
/// none.
fn fill(mut stream: &TcpStream, mut bytes: &mut [u8], deadline: Instant) -> io::Result<()> {
    while !bytes.is_empty() {
        match uninterrupted(|| stream.read(bytes))? {
            0 => return Err(io::Error::new(ErrorKind::UnexpectedEof, "the server has closed the connection")),
            read => bytes = &mut bytes[read..],
        }
        in_time(deadline)?;
    }
    Ok(())
}

/// Sends all of `bytes` before `deadline`.
fn send_all(mut stream: &TcpStream, mut bytes: &[u8], deadline: Instant) -> io::Result<()> {
    while !bytes.is_empty() {
        match uninterrupted(|| stream.write(bytes))? {
            0 => return Err(ErrorKind::WriteZero.into()),
            sent => bytes = &bytes[sent..],
        }
        in_time(deadline)?;
    }
    Ok(())
}

fn in_time(deadline: Instant) -> io::Result<()> {
    if Instant::now() <= deadline { Ok(()) } else { Err(ErrorKind::TimedOut.into()) }
}

/// A signal is no reason to give up.
fn uninterrupted(mut call: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match call() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            result => return result.map_err(in_words),
        }
    }
}

/// A socket's timeout is told as "resource temporarily unavailable".
fn in_words(error: io::Error) -> io::Error {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => {
            io::Error::new(ErrorKind::TimedOut, "the server does not answer")
        }
        _ => error,
    }
}
