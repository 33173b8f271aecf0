//! A device of memory that fails as a test asks it to.

#![allow(clippy::unwrap_used)]

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

use nix::errno::Errno;

use crate::store::{Blocks, Disk};

/// What fails. Each stays until [`Faulty::mend`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Every read of this byte.
    Read(u64),
    /// Every read of this byte ends before it.
    ShortRead(u64),
    /// Every write to this byte; nothing is written.
    Write(u64),
    /// Every write to this byte; what comes before it is written.
    TornWrite(u64),
    /// The flush that comes after as many others, alone.
    Flush(usize),
    /// Everything from the write on that comes after as many others; of that one, half is written.
    Death(usize),
}

/// A device of memory. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Faulty {
    name: &'static str,
    origin: Option<u64>,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    bytes: Vec<u8>,
    faults: Vec<Fault>,
    writes: usize,
    flushes: usize,
    is_dead: bool,
    /// What writes since the last flush have written over.
    unflushed: Vec<(usize, Vec<u8>)>,
}

impl Faulty {
    /// A block device of zeroes.
    pub(crate) fn new(size: u64) -> Faulty {
        Faulty::named("/dev/faulty", size)
    }

    /// The same, with a name of its own.
    pub(crate) fn named(name: &'static str, size: u64) -> Faulty {
        let state = State { bytes: vec![0; usize::try_from(size).unwrap()], ..State::default() };
        Faulty { name, origin: Some(0), state: Arc::new(Mutex::new(state)) }
    }

    pub(crate) fn disk(&self) -> Disk {
        Disk::new(self.clone())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Has it fail, counted from now.
    pub(crate) fn fail(&self, fault: Fault) {
        let mut state = self.state();
        (state.writes, state.flushes) = (0, 0);
        state.faults.push(fault);
    }

    /// Nothing fails any more.
    pub(crate) fn mend(&self) {
        let mut state = self.state();
        state.faults.clear();
        state.is_dead = false;
    }

    /// The power goes and comes back: nothing fails any more, and what was not flushed is lost, or is not.
    pub(crate) fn power_cycle(&self, is_lost: bool) {
        self.mend();
        let mut state = self.state();
        for (start, before) in std::mem::take(&mut state.unflushed).into_iter().rev().filter(|_| is_lost) {
            state.bytes[start..start + before.len()].copy_from_slice(&before);
        }
    }

    /// How many writes there were since the last fault was added.
    pub(crate) fn writes(&self) -> usize {
        self.state().writes
    }

    /// Makes it shorter.
    pub(crate) fn cut(&self, size: u64) {
        self.state().bytes.truncate(usize::try_from(size).unwrap());
    }

    /// What is on it.
    pub(crate) fn bytes(&self, range: Range<u64>) -> Vec<u8> {
        self.state().bytes[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()].to_vec()
    }

    /// Puts something on it, whatever fails.
    pub(crate) fn put(&self, offset: u64, bytes: &[u8]) {
        self.state().bytes[usize::try_from(offset).unwrap()..][..bytes.len()].copy_from_slice(bytes);
    }
}

fn broken() -> io::Error {
    Errno::EIO.into()
}

impl State {
    /// The range of the bytes, where it is on the device and that works.
    fn range(&self, offset: u64, len: usize) -> io::Result<Range<usize>> {
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let range = start..start.checked_add(len).ok_or(io::ErrorKind::UnexpectedEof)?;
        match () {
            () if self.is_dead => Err(broken()),
            () if range.end > self.bytes.len() => Err(io::ErrorKind::UnexpectedEof.into()),
            () => Ok(range),
        }
    }

    fn write(&mut self, start: usize, bytes: &[u8]) {
        let at = start..start + bytes.len();
        self.unflushed.push((start, self.bytes[at.clone()].to_vec()));
        self.bytes[at].copy_from_slice(bytes);
    }
}

/// Where in a range a fault at this byte is.
fn within(range: &Range<usize>, byte: u64) -> Option<usize> {
    let byte = usize::try_from(byte).unwrap();
    range.contains(&byte).then(|| byte - range.start)
}

impl Blocks for Faulty {
    fn name(&self) -> &str {
        self.name
    }

    fn size(&self) -> u64 {
        self.state().bytes.len() as u64
    }

    fn origin(&self) -> Option<u64> {
        self.origin
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let state = self.state();
        let range = state.range(offset, buffer.len())?;
        for fault in &state.faults {
            match *fault {
                Fault::Read(byte) if within(&range, byte).is_some() => return Err(broken()),
                Fault::ShortRead(byte) => {
                    if let Some(len) = within(&range, byte) {
                        buffer[..len].copy_from_slice(&state.bytes[range][..len]);
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
                _ => {}
            }
        }
        buffer.copy_from_slice(&state.bytes[range]);
        Ok(())
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.state();
        let range = state.range(offset, bytes.len())?;
        let number = state.writes;
        state.writes += 1;
        let written = state.faults.iter().find_map(|fault| match *fault {
            Fault::Write(byte) => within(&range, byte).map(|_| 0),
            Fault::TornWrite(byte) => within(&range, byte),
            Fault::Death(writes) => (number >= writes).then_some(bytes.len() / 2),
            _ => None,
        });
        state.is_dead = state.faults.iter().any(|fault| matches!(fault, Fault::Death(writes) if number >= *writes));
        state.write(range.start, &bytes[..written.unwrap_or(bytes.len())]);
        written.map_or(Ok(()), |_| Err(broken()))
    }

    fn flush(&self) -> io::Result<()> {
        let mut state = self.state();
        let number = state.flushes;
        state.flushes += 1;
        if state.is_dead || state.faults.contains(&Fault::Flush(number)) {
            return Err(broken());
        }
        state.unflushed.clear();
        Ok(())
    }
}
