//! The guest's side: runs each request once and keeps its answer.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Message, Output, frame};

/// Answers kept for requests that are repeated. The host has very few open at once.
const KEPT: usize = 64;

/// The most of either output that an answer carries, in bytes: a serial line is slow.
const OUTPUT_LIMIT: usize = 1 << 20;

/// Runs commands for the host.
#[derive(Debug)]
pub struct Server {
    name: String,
    jobs: Arc<Mutex<Jobs>>,
}

/// The requests seen; `None` is one that is still running.
type Jobs = BTreeMap<u64, Option<Output>>;

impl Server {
    /// A server with a name that no other boot's server has.
    #[must_use]
    pub fn new(name: String) -> Self {
        Server { name, jobs: Arc::default() }
    }

    /// Reads requests until the end of `input` and writes answers to `output`. A request that is still running then
    /// goes on, and another call may answer for it.
    ///
    /// # Errors
    /// Fails where the line cannot be read or written.
    pub fn serve(&self, input: impl Read, output: impl Write + Send + 'static) -> io::Result<()> {
        let output: Arc<Mutex<dyn Write + Send>> = Arc::new(Mutex::new(output));
        let mut input = BufReader::new(input);
        let mut line = Vec::new();
        while input.read_until(b'\n', &mut line)? > 0 {
            match frame::decode(&line) {
                Some(Message::Run { server, request, command }) if server == self.name => {
                    self.run(request, command, &output)?;
                }
                Some(Message::Hello | Message::Run { .. }) => {
                    send(&output, &Message::Here { server: self.name.clone() })?;
                }
                // Ours never reach us, and garbage is what the frame is there for.
                Some(_) | None => {}
            }
            line.clear();
        }
        Ok(())
    }

    fn run(&self, request: u64, command: String, line: &Arc<Mutex<dyn Write + Send>>) -> io::Result<()> {
        let server = self.name.clone();
        let mut jobs = lock(&self.jobs);
        match jobs.get(&request) {
            Some(Some(output)) => {
                return send(line, &Message::Done { server, request, output: output.clone() });
            }
            Some(None) => return send(line, &Message::Running { server, request }),
            None => {}
        }
        jobs.insert(request, None);
        while jobs.len() > KEPT {
            jobs.pop_first();
        }
        drop(jobs);
        let (jobs, line) = (Arc::clone(&self.jobs), Arc::clone(line));
        std::thread::spawn(move || {
            let output = execute(&command);
            lock(&jobs).insert(request, Some(output.clone()));
            // Where nobody listens now, the repeated request is answered.
            let _ = send(&line, &Message::Done { server, request, output });
        });
        Ok(())
    }
}

fn execute(command: &str) -> Output {
    match Command::new("/bin/sh").arg("-c").arg(command).stdin(Stdio::null()).output() {
        Ok(output) => Output {
            status: output.status.code().or(output.status.signal().map(|signal| 128 + signal)).unwrap_or(-1),
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
        },
        Err(error) => Output { status: 127, stdout: String::new(), stderr: format!("/bin/sh: {error}\n") },
    }
}

fn text(bytes: &[u8]) -> String {
    let kept = bytes.get(..OUTPUT_LIMIT).unwrap_or(bytes);
    let mut text = String::from_utf8_lossy(kept).into_owned();
    if kept.len() < bytes.len() {
        text.push_str(&format!("\n[cut here: {} bytes]\n", bytes.len()));
    }
    text
}

fn send(line: &Arc<Mutex<dyn Write + Send>>, message: &Message) -> io::Result<()> {
    let bytes = frame::encode(message)?;
    let mut line = line.lock().unwrap_or_else(PoisonError::into_inner);
    line.write_all(&bytes)?;
    line.flush()
}

fn lock(jobs: &Mutex<Jobs>) -> MutexGuard<'_, Jobs> {
    jobs.lock().unwrap_or_else(PoisonError::into_inner)
}
