//! The host's side: numbered requests, repeated until they are answered.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::{Message, Output, frame};

/// After this long without an answer a request is sent again.
const REPEAT: Duration = Duration::from_secs(1);

/// The greeting is short, and mostly sent to a guest that is just getting ready.
const REPEAT_HELLO: Duration = Duration::from_millis(100);

/// How long one look at the line may take.
const POLL: Duration = Duration::from_millis(20);

/// The host's end of the channel to one guest, through all of its power cycles.
#[derive(Debug)]
pub struct Client {
    path: PathBuf,
    line: Option<UnixStream>,
    received: Vec<u8>,
    server: Option<String>,
    last_request: u64,
    open: HashMap<u64, OpenRequest>,
    is_held: bool,
}

/// A request whose answer has not been taken yet.
#[derive(Debug)]
struct OpenRequest {
    server: String,
    command: String,
    sent: Instant,
    output: Option<Output>,
}

/// A request that was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request(u64);

impl Client {
    /// A client for the UART that QEMU's socket at `path` carries.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        Client {
            path: path.to_owned(),
            line: None,
            received: Vec::new(),
            server: None,
            last_request: 0,
            open: HashMap::new(),
            is_held: false,
        }
    }

    /// Connects to QEMU, which makes the socket while it starts. The guest need not be there yet.
    ///
    /// # Errors
    /// Fails where there is no socket to connect to within `timeout`.
    pub fn connect(&mut self, timeout: Duration) -> Result<()> {
        let deadline = Instant::now() + timeout;
        let line = loop {
            match UnixStream::connect(&self.path) {
                Ok(line) => break line,
                Err(_) if Instant::now() < deadline => std::thread::sleep(POLL),
                Err(error) => {
                    return Err(error).with_context(|| format!("{}: cannot be connected to", self.path.display()));
                }
            }
        };
        line.set_read_timeout(Some(POLL))?;
        line.set_write_timeout(Some(REPEAT))?;
        self.line = Some(line);
        self.received.clear();
        Ok(())
    }

    /// Sends nothing for as long as `held`: what is sent is repeated then.
    pub fn hold(&mut self, held: bool) {
        self.is_held = held;
    }

    /// Drops the connection and forgets which boot was there; open requests stay open.
    pub fn disconnect(&mut self) {
        self.line = None;
        self.server = None;
    }

    /// Sends a command to the connected server, once one is, and returns without waiting for the command's end.
    ///
    /// # Errors
    /// Fails where no server shows itself within `timeout`.
    pub fn send(&mut self, command: &str, timeout: Duration) -> Result<Request> {
        let server = self.server(timeout)?;
        self.last_request += 1;
        let request = self.last_request;
        let open = OpenRequest { server, command: command.to_owned(), sent: Instant::now(), output: None };
        self.open.insert(request, open);
        self.transmit_request(request)?;
        Ok(Request(request))
    }

    /// The answer to a request, if it has come. Takes no longer than a moment.
    ///
    /// # Errors
    /// Fails where another boot's server answers, and where the line fails.
    pub fn poll(&mut self, request: Request) -> Result<Option<Output>> {
        self.receive()?;
        let open = self.open.get_mut(&request.0).context("this request was answered already")?;
        if let Some(output) = open.output.take() {
            self.open.remove(&request.0);
            return Ok(Some(output));
        }
        match &self.server {
            Some(server) if *server != open.server => {
                bail!("the guest that was asked ({}) is gone: {server} answers in its place", open.server)
            }
            _ if open.sent.elapsed() >= REPEAT => self.transmit_request(request.0).map(|()| None),
            _ => Ok(None),
        }
    }

    /// The name of the connected server, waiting for one.
    fn server(&mut self, timeout: Duration) -> Result<String> {
        let deadline = Instant::now() + timeout;
        let mut repeat_at = Instant::now();
        loop {
            if let Some(server) = &self.server {
                return Ok(server.clone());
            }
            let now = Instant::now();
            if now >= deadline {
                bail!("nobody answers on the command channel after {timeout:?}");
            }
            if now >= repeat_at {
                self.transmit(&Message::Hello)?;
                repeat_at = now + REPEAT_HELLO;
            }
            self.receive()?;
        }
    }

    fn transmit_request(&mut self, request: u64) -> Result<()> {
        let open = self.open.get_mut(&request).context("this request was answered already")?;
        open.sent = Instant::now();
        let message = Message::Run { server: open.server.clone(), request, command: open.command.clone() };
        self.transmit(&message)
    }

    fn transmit(&mut self, message: &Message) -> Result<()> {
        let bytes = frame::encode(message)?;
        if self.is_held {
            return Ok(());
        }
        let Some(line) = &mut self.line else { bail!("the command channel is not connected") };
        match line.write_all(&bytes) {
            // A guest that reads nothing fills the socket; the message is repeated anyway.
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
            // QEMU has gone, which the guest's owner notices by its process.
            Err(error) if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => Ok(()),
            result => result.context("the command channel cannot be written"),
        }
    }

    /// Takes what the line holds, waiting for it at most [`POLL`].
    fn receive(&mut self) -> Result<()> {
        let Some(line) = &mut self.line else { bail!("the command channel is not connected") };
        let mut buffer = [0; 16384];
        match line.read(&mut buffer) {
            // QEMU has gone, which the guest's owner notices by its process.
            Ok(0) => std::thread::sleep(POLL),
            Ok(read) => self.received.extend_from_slice(buffer.get(..read).unwrap_or_default()),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => std::thread::sleep(POLL),
            Err(error) => return Err(error).context("the command channel cannot be read"),
        }
        let Some(end) = self.received.iter().rposition(|&byte| byte == b'\n') else {
            return Ok(());
        };
        let whole: Vec<u8> = self.received.drain(..=end).collect();
        for message in whole.split(|&byte| byte == b'\n').filter_map(frame::decode) {
            self.take(message);
        }
        Ok(())
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Done { server, request, output } => {
                // An answer to a request of another boot has a number of that boot's and means nothing here.
                if let Some(open) = self.open.get_mut(&request).filter(|open| open.server == server) {
                    open.output = Some(output);
                }
                self.server = Some(server);
            }
            Message::Here { server } | Message::Running { server, .. } => self.server = Some(server),
            Message::Hello | Message::Run { .. } => {}
        }
    }
}
