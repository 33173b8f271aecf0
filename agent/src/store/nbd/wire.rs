//! What goes over the wire: the protocol's numbers, and the two headers of a transmission.
//!
//! All of it is big endian. Source: doc/proto.md of the NBD project.

use std::io;

/// What a server begins with.
pub(super) const MAGIC: [u8; 8] = *b"NBDMAGIC";
/// What follows it, and begins each option.
pub(super) const OPTION_MAGIC: [u8; 8] = *b"IHAVEOPT";
/// What begins the answer to an option.
pub(super) const ANSWER_MAGIC: u64 = 0x0003_e889_0455_65a9;

/// The server's flags and the client's answer to them.
pub(super) mod handshake {
    /// Options are possible.
    pub(in super::super) const FIXED_NEWSTYLE: u16 = 1;
    /// No padding of 124 bytes follows, which only an option that is not used here would bring.
    pub(in super::super) const NO_ZEROES: u16 = 2;
}

/// Options, and the answers to them.
pub(super) mod option {
    pub(in super::super) const ABORT: u32 = 2;
    pub(in super::super) const LIST: u32 = 3;
    pub(in super::super) const GO: u32 = 7;
    pub(in super::super) const STRUCTURED_REPLY: u32 = 8;

    pub(in super::super) const ACK: u32 = 1;
    pub(in super::super) const SERVER: u32 = 2;
    pub(in super::super) const INFO: u32 = 3;
    /// An answer with this bit is an error.
    pub(in super::super) const ERROR: u32 = 1 << 31;
    pub(in super::super) const UNSUPPORTED: u32 = ERROR | 1;
    pub(in super::super) const POLICY: u32 = ERROR | 2;
    pub(in super::super) const TLS_REQUIRED: u32 = ERROR | 5;
    pub(in super::super) const UNKNOWN: u32 = ERROR | 6;

    pub(in super::super) const INFO_EXPORT: u16 = 0;
    pub(in super::super) const INFO_BLOCK_SIZE: u16 = 3;
}

/// What an export can do.
pub(super) mod export {
    pub(in super::super) const READ_ONLY: u16 = 1 << 1;
    pub(in super::super) const FLUSH: u16 = 1 << 2;
    /// It can make a single write durable.
    pub(in super::super) const FUA: u16 = 1 << 3;
    pub(in super::super) const WRITE_ZEROES: u16 = 1 << 6;
    /// What one connection has written, a flush on another makes durable.
    pub(in super::super) const MULTI_CONNECTION: u16 = 1 << 8;
}

const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_MAGIC: u32 = 0x6744_6698;
const STRUCTURED_MAGIC: u32 = 0x668e_33ef;
/// The last part of a structured reply.
const DONE: u16 = 1;

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Command {
    Read = 0,
    Write = 1,
    Disconnect = 2,
    Flush = 3,
    WriteZeroes = 6,
    /// A write that is durable when it is answered (`NBD_CMD_FLAG_FUA`).
    WriteThrough = 1 << 16 | 1,
}

/// A request's header. What is written follows it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Request {
    pub(super) command: Command,
    /// What tells its reply from others.
    pub(super) cookie: u64,
    pub(super) offset: u64,
    pub(super) len: u32,
}

impl Request {
    pub(super) fn encode(self) -> [u8; 28] {
        let mut bytes = [0; 28];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, &REQUEST_MAGIC.to_be_bytes());
        // Flags, and the kind of request.
        put(4, &(self.command as u32).to_be_bytes());
        put(8, &self.cookie.to_be_bytes());
        put(16, &self.offset.to_be_bytes());
        put(24, &self.len.to_be_bytes());
        bytes
    }
}

/// What follows a reply's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// All that was asked for, without a length, where there is no error; nothing else comes.
    Simple { error: u32 },
    /// `len` bytes, of a kind of its own.
    Structured { kind: Kind, len: u32, is_last: bool },
}

/// What a part of a structured reply is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Nothing,
    Data,
    /// Zeroes, which are not sent.
    Hole,
    Error,
}

/// A reply's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) cookie: u64,
    pub(super) part: Part,
}

/// The length of the beginning that both kinds of headers have, and of what else the longer one has.
pub(super) const HEADER: usize = 16;
pub(super) const REST: usize = 4;

impl Header {
    /// Reads one; `fill` gets the next bytes.
    ///
    /// # Errors
    /// That of `fill`; `InvalidData` where it is no header.
    pub(super) fn read(mut fill: impl FnMut(&mut [u8]) -> io::Result<()>) -> io::Result<Header> {
        let mut bytes = [0; HEADER];
        fill(&mut bytes)?;
        let cookie = be64(&bytes, 8);
        match be32(&bytes, 0) {
            SIMPLE_MAGIC => Ok(Header { cookie, part: Part::Simple { error: be32(&bytes, 4) } }),
            STRUCTURED_MAGIC => {
                let mut len = [0; REST];
                fill(&mut len)?;
                let (flags, kind) = (be16(&bytes, 4), be16(&bytes, 6));
                let kind = match kind {
                    0 => Kind::Nothing,
                    1 => Kind::Data,
                    2 => Kind::Hole,
                    kind if kind & 0x8000 != 0 => Kind::Error,
                    kind => return Err(nonsense(&format!("a part of a reply of kind {kind}"))),
                };
                let part = Part::Structured { kind, len: u32::from_be_bytes(len), is_last: flags & DONE != 0 };
                Ok(Header { cookie, part })
            }
            other => Err(nonsense(&format!("a reply that begins with {other:#010x}"))),
        }
    }
}

/// What no server that follows the protocol sends.
pub(super) fn nonsense(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the server sent {what}"))
}

/// Numbers in what was read, 0 where it is too short: what counts is as long as it must be.
pub(super) fn be16(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).and_then(|field| field.try_into().ok()).map_or(0, u16::from_be_bytes)
}

pub(super) fn be32(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|field| field.try_into().ok()).map_or(0, u32::from_be_bytes)
}

pub(super) fn be64(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|field| field.try_into().ok()).map_or(0, u64::from_be_bytes)
}
