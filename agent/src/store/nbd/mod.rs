//! A client of NBD, the Network Block Device protocol: an export of a server as blocks.
//!
//! ```text
//!   writers, readers ──> Nbd ──> Connection ──> server        one to four, if the server allows several
//!                                several requests at once on each
//! ```
//!
//! A connection that fails stays failed, and nothing is tried again: what was written may be lost with it, so the save
//! must fail, or the restore. Everything has a deadline.
//!
//! Source: doc/proto.md of the NBD project.

mod connection;
mod wire;

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use dormouse_image::{BLOCK, NbdExport, Remote};

use crate::store::nbd::connection::Connection;
use crate::store::nbd::wire::{Command, export};
use crate::store::{Access, Blocks, StoreError};

/// How many connections there are at most: as many as the store has threads that write or read.
const CONNECTIONS: usize = 4;
/// How long a server may take for anything. It may have to write gigabytes before it has flushed them.
const DEADLINE: Duration = Duration::from_secs(60);

/// What a server exports.
#[derive(Debug)]
pub struct Nbd {
    remote: Remote,
    name: String,
    /// In whole blocks.
    size: u64,
    can_write_zeroes: bool,
    can_write_through: bool,
    /// Bytes in one request.
    most: usize,
    connections: Vec<Connection>,
    turn: AtomicUsize,
}

impl Nbd {
    /// Connects.
    ///
    /// # Errors
    /// [`StoreError::Open`]: the server cannot be reached, or the export will not do.
    pub fn open(export: &NbdExport, access: Access) -> Result<Nbd, StoreError> {
        Nbd::open_within(export, access, DEADLINE)
    }

    fn open_within(export: &NbdExport, access: Access, deadline: Duration) -> Result<Nbd, StoreError> {
        let connected = || {
            let first = Connection::open(export, deadline)?;
            let found = first.export();
            let unfit = |why: &str| Err(io::Error::new(io::ErrorKind::Unsupported, why));
            if access == Access::Write && found.flags & export::READ_ONLY != 0 {
                return unfit("the server exports it for reading only");
            }
            if access == Access::Write && found.flags & export::FLUSH == 0 {
                return unfit("the server cannot be told to make durable what was written (NBD_FLAG_SEND_FLUSH)");
            }
            let mut connections = vec![first];
            while found.flags & export::MULTI_CONNECTION != 0 && connections.len() < CONNECTIONS {
                let next = Connection::open(export, deadline)?;
                if next.export() != found {
                    return unfit("its size or what it can do changed while it was opened");
                }
                connections.push(next);
            }
            Ok((found, connections))
        };
        let name = export.to_string();
        let (found, connections) = connected().map_err(|source| StoreError::Open { name: name.clone(), source })?;
        Ok(Nbd {
            size: found.size / BLOCK as u64 * BLOCK as u64,
            can_write_zeroes: found.flags & export::WRITE_ZEROES != 0,
            can_write_through: found.flags & export::FUA != 0,
            most: found.most,
            turn: AtomicUsize::new(0),
            remote: Remote::Nbd(export.clone()),
            connections,
            name,
        })
    }

    /// What a server exports, as far as it tells, and how many of its exports have names that cannot be written in a
    /// policy.
    ///
    /// # Errors
    /// [`StoreError::Open`]: the server cannot be reached, or does not list its exports.
    pub fn list(server: SocketAddr) -> Result<(Vec<NbdExport>, usize), StoreError> {
        let export = |name| NbdExport { address: server, name };
        let failed = |source| StoreError::Open { name: export(String::new()).to_string(), source };
        let names = connection::names(server, DEADLINE).map_err(failed)?;
        let count = names.len();
        let is_written = |found: &NbdExport| found.to_string().parse().as_ref() == Ok(found);
        let exports: Vec<NbdExport> = names.into_iter().map(export).filter(is_written).collect();
        let others = count - exports.len();
        Ok((exports, others))
    }

    /// The connection for the next request.
    fn connection(&self) -> &Connection {
        // There is always one.
        &self.connections[self.turn.fetch_add(1, Ordering::Relaxed) % self.connections.len()]
    }

    /// Demands that these bytes are there: the server's own answer would only say that something is invalid.
    fn within(&self, offset: u64, len: usize) -> io::Result<()> {
        match offset.checked_add(len as u64) {
            Some(end) if end <= self.size => Ok(()),
            _ => Err(io::Error::new(io::ErrorKind::InvalidInput, format!("it has {} bytes", self.size))),
        }
    }
}

impl Blocks for Nbd {
    fn name(&self) -> &str {
        &self.name
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn origin(&self) -> Option<u64> {
        Some(0)
    }

    fn remote(&self) -> Option<&Remote> {
        Some(&self.remote)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.within(offset, buffer.len())?;
        let mut at = offset;
        for part in buffer.chunks_mut(self.most) {
            self.connection().read(at, part)?;
            at += part.len() as u64;
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.within(offset, bytes.len())?;
        let mut at = offset;
        for part in bytes.chunks(self.most) {
            self.connection().write(at, part)?;
            at += part.len() as u64;
        }
        Ok(())
    }

    fn write_through(&self, offset: u64, bytes: &[u8]) -> Option<io::Result<()>> {
        let write = || {
            self.within(offset, bytes.len())?;
            self.connection().write_through(offset, bytes)
        };
        (self.can_write_through && bytes.len() <= self.most).then(write)
    }

    fn clear_at(&self, offset: u64, len: usize) -> io::Result<()> {
        self.within(offset, len)?;
        if !self.can_write_zeroes {
            return self.write_at(offset, &memmap2::MmapMut::map_anon(len)?);
        }
        let (mut at, end) = (offset, offset + len as u64);
        while at < end {
            let len = u32::try_from((end - at).min(self.most as u64)).map_err(io::Error::other)?;
            self.connection().without_data(Command::WriteZeroes, at, len)?;
            at += u64::from(len);
        }
        Ok(())
    }

    /// On one connection: where there are several, the server has promised that this is enough.
    fn flush(&self) -> io::Result<()> {
        self.connection().without_data(Command::Flush, 0, 0)
    }
}

#[cfg(test)]
mod tests;
