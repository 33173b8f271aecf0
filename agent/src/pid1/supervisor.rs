//! PID 1 as it waits for its worker: it listens for Esc, demands progress, and keeps the hardware
//! watchdog from restarting the machine for as long as this kernel runs at all.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use thiserror::Error;
use zeroize::Zeroizing;

use crate::pid1::keys::Keys;
use crate::pid1::watchdogs::Watchdogs;
use crate::pid1::worker::{self, Errand, Message};

/// How often it looks when nothing happens.
const TICK: Duration = Duration::from_millis(500);
/// How often it looks while it waits for what follows an Esc.
const SHORT_TICK: Duration = Duration::from_millis(20);
/// How long a worker may take to end. What it has handed to a device keeps it from ending, and is waited for;
/// a device that does not answer is abandoned: the jump takes its access to memory away (drivers/pci/pci-driver.c,
/// `pci_device_shutdown`).
const END: Duration = Duration::from_secs(5);

/// What the work is guarded against, and by which means.
#[derive(Debug)]
pub(super) struct Guard {
    /// Whether Esc stops the work.
    pub(super) escape: bool,
    /// How long the work may take without any progress.
    pub(super) stall: Option<Duration>,
    /// How much longer the beginning may take, until the image device exists.
    pub(super) wait: Duration,
}

/// Esc was pressed.
#[derive(Debug, Error)]
#[error("aborted by user")]
pub(super) struct Aborted;

/// Starts the worker, gives it its errand and waits for its end.
///
/// # Errors
/// Why it did not end as it should.
pub(super) fn run(errand: &Errand, guard: &Guard, watchdogs: &mut Watchdogs) -> anyhow::Result<Message> {
    let order = errand.order.encode()?;
    let mut child = Command::new("/proc/self/exe")
        .arg(worker::ROLE)
        .arg(errand.arguments.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("the process that does the work cannot be started")?;
    // It is what goes when memory runs out, and not the kernel: PID 1 is never chosen (mm/oom_kill.c).
    if let Err(error) = std::fs::write(format!("/proc/{}/oom_score_adj", child.id()), "1000") {
        log::debug!("oom_score_adj: {error}");
    }
    let end = give(child.stdin.take(), order)
        .and_then(|()| child.stdout.take().context("the worker has no pipe"))
        .and_then(|pipe| follow(guard, &mut child, &mut Pipe::new(pipe.into())?, watchdogs));
    if end.is_err() {
        let _ = child.kill();
    }
    await_end(&mut child);
    watchdogs.tick();
    end
}

/// Gives the worker its order, which is longer than a pipe takes at once. PID 1 does not wait for that: a worker that
/// does not read it does not get anything done either, and its end closes the pipe.
fn give(stdin: Option<ChildStdin>, order: Zeroizing<Vec<u8>>) -> anyhow::Result<()> {
    let mut stdin = stdin.context("the worker has no pipe")?;
    let write = move || {
        if let Err(error) = stdin.write_all(&order) {
            log::debug!("the worker did not read its order: {error}");
        }
    };
    thread::Builder::new().spawn(write).context("the worker cannot be given its order")?;
    Ok(())
}

fn follow(guard: &Guard, child: &mut Child, pipe: &mut Pipe, watchdogs: &mut Watchdogs) -> anyhow::Result<Message> {
    let mut keys = if guard.escape { Keys::listen() } else { Keys::none() };
    let mut last_done = Instant::now() + guard.wait;
    loop {
        watchdogs.tick();
        wait(pipe, &keys)?;
        while let Some(message) = pipe.next()? {
            match message {
                Message::Alive => last_done = Instant::now(),
                Message::Failed(reason) => bail!("{reason}"),
                end => return Ok(end),
            }
        }
        if pipe.is_closed {
            let status = child.wait().context("the worker's end")?;
            bail!("the agent {}", how_it_ended(status));
        }
        if keys.escape() {
            bail!(Aborted);
        }
        if let Some(stall) = guard.stall.filter(|stall| last_done.elapsed() >= *stall) {
            bail!("no progress for {} s", stall.as_secs());
        }
    }
}

/// Until something happens.
fn wait(pipe: &Pipe, keys: &Keys) -> anyhow::Result<()> {
    let tick = if keys.is_waiting() { SHORT_TICK } else { TICK };
    let all = std::iter::once(pipe.file.as_fd()).chain(keys.descriptors());
    let mut descriptors: Vec<PollFd<'_>> = all.map(|one| PollFd::new(one, PollFlags::POLLIN)).collect();
    match poll(&mut descriptors, PollTimeout::try_from(tick)?) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
        Err(error) => Err(anyhow!("poll: {error}")),
    }
}

/// Until the worker is gone, and with it all that it had mapped.
fn await_end(child: &mut Child) {
    let deadline = Instant::now() + END;
    while matches!(child.try_wait(), Ok(None)) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn how_it_ended(status: ExitStatus) -> String {
    match status.signal() {
        Some(9) => "was killed: memory has run out, a larger region.size or fewer pipeline.threads help".to_string(),
        Some(signal) => format!("was killed by signal {signal}"),
        None => format!("exited without reporting ({status})"),
    }
}

/// The worker's messages.
struct Pipe {
    file: File,
    /// The beginning of a line whose end has yet to come.
    bytes: Vec<u8>,
    is_closed: bool,
}

impl Pipe {
    fn new(descriptor: OwnedFd) -> anyhow::Result<Pipe> {
        fcntl(&descriptor, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).context("the worker's pipe")?;
        Ok(Pipe { file: descriptor.into(), bytes: Vec::new(), is_closed: false })
    }

    /// The next message that has come whole.
    fn next(&mut self) -> anyhow::Result<Option<Message>> {
        loop {
            if let Some(end) = self.bytes.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.bytes.drain(..=end).collect();
                let message = serde_json::from_slice(&line);
                return Ok(Some(
                    message.with_context(|| format!("the worker sent {:?}", String::from_utf8_lossy(&line)))?,
                ));
            }
            let mut part = [0; 4096];
            match self.file.read(&mut part) {
                Ok(0) => {
                    self.is_closed = true;
                    return Ok(None);
                }
                Ok(len) => self.bytes.extend(&part[..len]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                    return Ok(None);
                }
                Err(error) => return Err(error).context("the worker's pipe"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::io::Write;

    #[test]
    fn messages_arrive_in_pieces() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        let mut pipe = Pipe::new(reader.into()).unwrap();
        assert_eq!(pipe.next().unwrap(), None);
        let text =
            "\"Alive\"\n{\"Failed\":\"why\"}\n{\"Restored\":{\"entry\":77,\"is_loaded\":false,\"watchdog\":null}}\n";
        writer.write_all(&text.as_bytes()[..12]).unwrap();
        assert_eq!(pipe.next().unwrap(), Some(Message::Alive));
        assert_eq!(pipe.next().unwrap(), None);
        writer.write_all(&text.as_bytes()[12..]).unwrap();
        drop(writer);
        assert_eq!(pipe.next().unwrap(), Some(Message::Failed("why".into())));
        assert_eq!(pipe.next().unwrap(), Some(Message::Restored { entry: 77, is_loaded: false, watchdog: None }));
        assert!(!pipe.is_closed);
        assert_eq!(pipe.next().unwrap(), None);
        assert!(pipe.is_closed);
    }

    #[test]
    fn rejects_lines_that_are_not_messages() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        writer.write_all(b"panic!\n").unwrap();
        let error = Pipe::new(reader.into()).unwrap().next().unwrap_err().to_string();
        assert!(error.contains("panic!"), "{error}");
    }

    #[test]
    fn exit_is_described() {
        assert!(how_it_ended(ExitStatus::from_raw(9)).contains("memory has run out"));
        assert!(how_it_ended(ExitStatus::from_raw(11)).contains("signal 11"));
        assert!(how_it_ended(ExitStatus::from_raw(0x100)).contains("without reporting"));
    }
}
