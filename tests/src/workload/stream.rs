//! One TCP connection over loopback that always has bytes in flight.
//!
//! The sender writes a sequence that both ends know, in blocks, and may be at most [`WINDOW`] blocks ahead of the
//! receiver's acknowledgements. The receiver is the slower of the two, so the window is always full: those bytes are
//! in the sockets' buffers. Each block is compared with the sequence and acknowledged with a checksum over
//! everything so far, which the sender compares with its own. The connection is made once. Whatever ends it or breaks
//! the sequence is a fault that stays.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use twox_hash::XxHash3_64;

use super::report::{Receiver, Sender};
use super::role::{self, Answer};
use super::{DIRECTORY, pattern};

const PORT: u16 = 4040;
const BLOCK: usize = 16 << 10;
const BLOCK_BYTES: u64 = 16 << 10;
const BLOCK_WORDS: u64 = BLOCK_BYTES / 8;

/// Blocks that may be under way: 512 KiB, less than the sockets' buffers hold.
const WINDOW: usize = 32;

/// The receiver's rest after each block: about 800 KB a second.
const REST: Duration = Duration::from_millis(20);

/// What an end has done so far, shared by the thread that does it and the one that answers.
#[derive(Debug, Default)]
struct Progress {
    sent: u64,
    received: u64,
    /// The checksums that the receiver owes the sender.
    awaited: VecDeque<u64>,
    fault: Option<String>,
}

#[derive(Debug, Default)]
struct Shared {
    progress: Mutex<Progress>,
    window_opened: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a part of this end in a thread; its end is a fault, since none of them should ever end.
    fn spawn(self: &Arc<Self>, part: impl FnOnce(&Shared) -> Result<()> + Send + 'static) {
        let shared = Arc::clone(self);
        std::thread::spawn(move || {
            let end = part(&shared);
            let fault = end.map_or_else(|error| format!("{error:#}"), |()| "ended".to_owned());
            shared.lock().fault.get_or_insert(fault);
        });
    }
}

/// The end that writes, for ever.
///
/// # Errors
/// Fails where the connection cannot be made.
pub fn send(seed: u64) -> Result<()> {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, PORT)).context("the sender cannot connect")?;
    let connection = ends(&stream)?;
    let shared = Arc::new(Shared::default());
    start_sender(&shared, stream, seed)?;
    role::serve(Path::new(DIRECTORY), "sender", || {
        let progress = shared.lock();
        let (sent, acknowledged) = (progress.sent, progress.received);
        Answer {
            evidence: Sender { connection: connection.clone(), sent, acknowledged },
            fault: progress.fault.clone(),
        }
    })
}

/// The end that reads, for ever.
///
/// # Errors
/// Fails where the port cannot be had.
pub fn receive(seed: u64) -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, PORT)).context("the receiver cannot listen")?;
    let shared = Arc::new(Shared::default());
    let connection = Arc::new(Mutex::new(<[String; 2]>::default()));
    shared.spawn({
        let connection = Arc::clone(&connection);
        move |shared| {
            let (stream, _) = listener.accept().context("nobody connects")?;
            // Whoever else connects is refused: there is one connection, and it is never made again.
            drop(listener);
            *connection.lock().unwrap_or_else(PoisonError::into_inner) = ends(&stream)?;
            receive_blocks(shared, stream, seed, REST)
        }
    });
    role::serve(Path::new(DIRECTORY), "receiver", || {
        let connection = connection.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let progress = shared.lock();
        Answer { evidence: Receiver { connection, received: progress.received }, fault: progress.fault.clone() }
    })
}

fn ends(stream: &TcpStream) -> Result<[String; 2]> {
    Ok([stream.local_addr()?.to_string(), stream.peer_addr()?.to_string()])
}

fn start_sender(shared: &Arc<Shared>, stream: TcpStream, seed: u64) -> Result<()> {
    let acknowledgements = stream.try_clone().context("the sender's second handle")?;
    shared.spawn(move |shared| send_blocks(shared, stream, seed));
    shared.spawn(move |shared| take_acknowledgements(shared, acknowledgements));
    Ok(())
}

fn send_blocks(shared: &Shared, mut stream: TcpStream, seed: u64) -> Result<()> {
    let mut block = vec![0; BLOCK];
    let mut checksum = 0;
    for number in 0_u64.. {
        pattern::fill(&mut block, seed, number * BLOCK_WORDS);
        checksum = XxHash3_64::oneshot_with_seed(checksum, &block);
        let mut progress = shared.lock();
        while progress.awaited.len() >= WINDOW {
            progress = shared.window_opened.wait(progress).unwrap_or_else(PoisonError::into_inner);
        }
        // Before the write, since the answer may come before this thread runs again.
        progress.awaited.push_back(checksum);
        drop(progress);
        stream.write_all(&block).with_context(|| format!("block {number} cannot be sent"))?;
        shared.lock().sent += BLOCK_BYTES;
    }
    Ok(())
}

fn take_acknowledgements(shared: &Shared, mut stream: TcpStream) -> Result<()> {
    let mut answer = [0; 8];
    loop {
        stream.read_exact(&mut answer).context("no acknowledgement")?;
        let mut progress = shared.lock();
        let expected = progress.awaited.pop_front().context("an acknowledgement of nothing")?;
        let answer = u64::from_le_bytes(answer);
        if answer != expected {
            bail!("acknowledged {answer:016x} in place of {expected:016x} at byte {}", progress.received);
        }
        progress.received += BLOCK_BYTES;
        drop(progress);
        shared.window_opened.notify_all();
    }
}

fn receive_blocks(shared: &Shared, mut stream: TcpStream, seed: u64, rest: Duration) -> Result<()> {
    let mut block = vec![0; BLOCK];
    let mut checksum = 0;
    for number in 0_u64.. {
        stream.read_exact(&mut block).with_context(|| format!("block {number} cannot be read"))?;
        if let Some(word) = pattern::mismatch(&block, seed, number * BLOCK_WORDS) {
            bail!("byte {} of the stream is not the one that was sent", word * 8);
        }
        checksum = XxHash3_64::oneshot_with_seed(checksum, &block);
        stream.write_all(&checksum.to_le_bytes()).with_context(|| format!("block {number} cannot be acknowledged"))?;
        shared.lock().received += BLOCK_BYTES;
        std::thread::sleep(rest);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Instant;

    use super::*;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (stream, listener.accept().unwrap().0)
    }

    fn wait_for(shared: &Shared, condition: impl Fn(&Progress) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !condition(&shared.lock()) {
            assert!(Instant::now() < deadline, "{:?}", shared.lock());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn the_window_stays_full_and_the_stream_goes_on() {
        let (near, far) = pair();
        let (sender, receiver) = (Arc::new(Shared::default()), Arc::new(Shared::default()));
        start_sender(&sender, near, 5).unwrap();
        wait_for(&sender, |progress| progress.sent == BLOCK_BYTES * 32);
        assert_eq!(sender.lock().received, 0);
        receiver.spawn(move |shared| receive_blocks(shared, far, 5, Duration::ZERO));
        wait_for(&sender, |progress| progress.received > BLOCK_BYTES * 200);
        assert_eq!((sender.lock().fault.clone(), receiver.lock().fault.clone()), (None, None));
    }

    #[test]
    fn another_sequence_is_a_fault_of_both_ends() {
        let (near, far) = pair();
        let (sender, receiver) = (Arc::new(Shared::default()), Arc::new(Shared::default()));
        start_sender(&sender, near, 5).unwrap();
        receiver.spawn(move |shared| receive_blocks(shared, far, 6, Duration::ZERO));
        wait_for(&receiver, |progress| progress.fault.as_ref().is_some_and(|fault| fault.contains("byte 0 ")));
        wait_for(&sender, |progress| progress.fault.is_some());
    }
}
