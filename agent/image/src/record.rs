//! Tagged records: how label, header and orders between kernels hold what has no fixed length, and how they grow.
//!
//! A record is its kind, its flags, the length of its content, and the content, padded to a multiple of 8. Whoever uses
//! records has one table of [`Kind`]s. Each kind of that table occurs exactly once in what a version writes that has
//! it. A reader skips an unknown record where its flag allows that, and refuses it otherwise.

use thiserror::Error;
use zerocopy::byteorder::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::Version;

/// The flag of a record that a reader may skip if it does not know its kind. The other flags are reserved.
pub const SKIPPABLE: u16 = 1;

/// Records begin at multiples of this.
const ALIGN: usize = 8;

/// A kind of record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    /// The number that stands for it, unique in its table. 0 is not used.
    pub number: u16,
    /// What it holds, for people.
    pub name: &'static str,
    /// The first minor version that writes it.
    pub since: u16,
    /// Whether older readers may skip it.
    pub skippable: bool,
}

impl Kind {
    /// A kind that a reader must know.
    #[must_use]
    pub const fn mandatory(number: u16, name: &'static str, since: u16) -> Kind {
        Kind { number, name, since, skippable: false }
    }

    /// A kind that a reader may skip.
    #[must_use]
    pub const fn skippable(number: u16, name: &'static str, since: u16) -> Kind {
        Kind { number, name, since, skippable: true }
    }

    /// The flags of its records.
    const fn flags(&self) -> u16 {
        if self.skippable { SKIPPABLE } else { 0 }
    }

    /// The error for content that breaks a rule.
    #[must_use]
    pub const fn wrong(&self, why: &'static str) -> RecordError {
        RecordError::Content { kind: self.number, name: self.name, why }
    }
}

/// Why records cannot be read or written.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum RecordError {
    /// The records end before they should.
    #[error("its records need {needed} more bytes, {got} are left")]
    Truncated {
        /// Bytes needed for the next record.
        needed: usize,
        /// Bytes left.
        got: usize,
    },
    /// A record that this program does not know and may not skip.
    #[error("record {kind} of format version {written} is unknown to this program; use a newer Dormouse")]
    Unknown {
        /// The record's kind.
        kind: u16,
        /// The version that wrote it.
        written: Version,
    },
    /// A record that should be present.
    #[error("record {kind} ({name}) is missing")]
    Missing {
        /// The record's kind.
        kind: u16,
        /// Its name.
        name: &'static str,
    },
    /// A record that occurs again.
    #[error("record {kind} ({name}) occurs twice")]
    Twice {
        /// The record's kind.
        kind: u16,
        /// Its name.
        name: &'static str,
    },
    /// Flags that the kind does not have.
    #[error("record {kind} has the flags {flags:#x}, which this program does not know; use a newer Dormouse")]
    Flags {
        /// The record's kind.
        kind: u16,
        /// Its flags.
        flags: u16,
    },
    /// Padding that is not zero.
    #[error("record {kind} has padding that is not zero")]
    Padding {
        /// The record's kind.
        kind: u16,
    },
    /// Content that breaks a rule.
    #[error("record {kind} ({name}): {why}")]
    Content {
        /// The record's kind.
        kind: u16,
        /// Its name.
        name: &'static str,
        /// What is wrong.
        why: &'static str,
    },
    /// Content that is too long to write.
    #[error("record {kind} ({name}) would have {len} bytes, which is too long")]
    TooLong {
        /// The record's kind.
        kind: u16,
        /// Its name.
        name: &'static str,
        /// The length of the content.
        len: usize,
    },
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawRecord {
    kind: U16,
    flags: U16,
    len: U32,
}

const RECORD: usize = size_of::<RawRecord>();
const _: () = assert!(RECORD == ALIGN);

/// Writes records one after another.
#[derive(Debug, Clone, Default)]
pub struct Writer {
    bytes: Vec<u8>,
    count: u32,
}

impl Writer {
    /// No records yet.
    #[must_use]
    pub fn new() -> Writer {
        Writer::default()
    }

    /// Adds a record.
    ///
    /// # Errors
    /// [`RecordError::TooLong`] where the content has 4 GiB or more.
    pub fn push(&mut self, kind: &Kind, content: &[u8]) -> Result<(), RecordError> {
        let too_long = RecordError::TooLong { kind: kind.number, name: kind.name, len: content.len() };
        let len = u32::try_from(content.len()).map_err(|_| too_long)?;
        let raw = RawRecord { kind: kind.number.into(), flags: kind.flags().into(), len: len.into() };
        self.bytes.extend(raw.as_bytes());
        self.bytes.extend(content);
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGN), 0);
        self.count = self.count.saturating_add(1);
        Ok(())
    }

    /// How many records there are.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.count
    }

    /// The records as bytes, a multiple of 8.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

/// Records that were read: those of known kinds, by kind.
#[derive(Debug, Clone)]
pub struct Records<'a> {
    found: Vec<(u16, &'a [u8])>,
    /// The bytes after the last record.
    pub rest: &'a [u8],
}

impl<'a> Records<'a> {
    /// Reads `count` records from `bytes`, which a program of version `written` wrote.
    ///
    /// Takes memory in proportion to `kinds` only, whatever the bytes claim. The records of kinds that were known to
    /// `written` are each present exactly once, those of others are skipped.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn read(kinds: &[Kind], written: Version, count: u32, mut bytes: &'a [u8]) -> Result<Records<'a>, RecordError> {
        let mut found: Vec<(u16, &[u8])> = Vec::with_capacity(kinds.len());
        let known = || kinds.iter().filter(|kind| kind.since <= written.minor);
        for _ in 0..count {
            let Split { kind: number, flags, content, rest } = split(bytes)?;
            bytes = rest;
            let Some(kind) = known().find(|kind| kind.number == number) else {
                match flags {
                    SKIPPABLE => continue,
                    _ if flags & !SKIPPABLE != 0 => return Err(RecordError::Flags { kind: number, flags }),
                    _ => return Err(RecordError::Unknown { kind: number, written }),
                }
            };
            if flags != kind.flags() {
                return Err(RecordError::Flags { kind: number, flags });
            }
            if found.iter().any(|(other, _)| *other == number) {
                return Err(RecordError::Twice { kind: number, name: kind.name });
            }
            found.push((number, content));
        }
        let records = Records { found, rest: bytes };
        match known().find(|kind| records.get(kind).is_none()) {
            Some(kind) => Err(RecordError::Missing { kind: kind.number, name: kind.name }),
            None => Ok(records),
        }
    }

    /// The content of a kind's record. `None` where the version that wrote the records did not have that kind.
    #[must_use]
    pub fn get(&self, kind: &Kind) -> Option<&'a [u8]> {
        self.found.iter().find(|(number, _)| *number == kind.number).map(|(_, content)| *content)
    }

    /// The content of a kind's record, empty where the version that wrote the records did not have that kind.
    #[must_use]
    pub fn content(&self, kind: &Kind) -> &'a [u8] {
        self.get(kind).unwrap_or_default()
    }
}

/// A record and the bytes after it.
struct Split<'a> {
    kind: u16,
    flags: u16,
    content: &'a [u8],
    rest: &'a [u8],
}

fn split(bytes: &[u8]) -> Result<Split<'_>, RecordError> {
    let truncated = |needed| RecordError::Truncated { needed, got: bytes.len() };
    let (raw, rest) = RawRecord::ref_from_prefix(bytes).map_err(|_| truncated(RECORD))?;
    let (kind, len) = (raw.kind.get(), raw.len.get() as usize);
    // A length of 32 bits and its padding fit 64 bits.
    let padded = len.next_multiple_of(ALIGN);
    let (content, rest) = rest.split_at_checked(padded).ok_or_else(|| truncated(RECORD + padded))?;
    let (content, padding) = content.split_at(len);
    if padding.iter().any(|byte| *byte != 0) {
        return Err(RecordError::Padding { kind });
    }
    Ok(Split { kind, flags: raw.flags.get(), content, rest })
}
