//! What all blocks have in common: magic, version, checksum.
//!
//! The blocks of an image are framed with it, and so is what passes between the kernels without being part of an image.

use std::hash::Hasher;

use twox_hash::XxHash3_64;
use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::error::{Block, FormatError};
use crate::record::RecordError;
use crate::version::{VERSION, Version};
use crate::{BLOCK, checksum};

/// The first 24 bytes of every block.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct Prologue {
    pub(crate) magic: [u8; 8],
    pub(crate) major: U16,
    pub(crate) minor: U16,
    /// The block's length in bytes, a multiple of [`BLOCK`].
    pub(crate) len: U32,
    /// Of the whole block, with this field zero.
    pub(crate) checksum: U64,
}

const CHECKSUM: std::ops::Range<usize> = 16..24;
pub(crate) const PROLOGUE: usize = 24;
const _: () = assert!(size_of::<Prologue>() == PROLOGUE);

/// Puts a prologue before `body` and pads the whole to blocks.
///
/// # Errors
/// [`FormatError::TooLarge`] where that has more than `max` bytes.
pub fn frame(block: Block, magic: [u8; 8], body: &[u8], max: usize) -> Result<Vec<u8>, FormatError> {
    frame_since(0, block, magic, body, max)
}

/// As [`frame`], for a body with something that has a meaning only since this minor version.
///
/// # Errors
/// Those of [`frame`].
pub fn frame_since(minor: u16, block: Block, magic: [u8; 8], body: &[u8], max: usize) -> Result<Vec<u8>, FormatError> {
    let size = (PROLOGUE + body.len()).next_multiple_of(BLOCK);
    let too_large = FormatError::TooLarge { block, size, max };
    let Ok(len) = u32::try_from(size) else {
        return Err(too_large);
    };
    if size > max {
        return Err(too_large);
    }
    let prologue = Prologue {
        magic,
        major: U16::new(VERSION.major),
        minor: U16::new(minor),
        len: U32::new(len),
        checksum: U64::new(0),
    };
    let mut bytes = Vec::with_capacity(size);
    bytes.extend(prologue.as_bytes());
    bytes.extend(body);
    bytes.resize(size, 0);
    let sum = checksum(&bytes);
    bytes[CHECKSUM].copy_from_slice(&sum.to_le_bytes());
    Ok(bytes)
}

/// A block whose prologue and checksum are right: what is in it is still to be checked.
#[derive(Debug, Clone, Copy)]
pub struct Frame<'a> {
    /// Which block it is, for messages.
    pub block: Block,
    /// The version that wrote it.
    pub written: Version,
    /// What follows the prologue, padding included.
    pub body: &'a [u8],
}

impl Frame<'_> {
    /// The error for something that only a newer version of the format gives a meaning.
    #[must_use]
    pub fn newer(&self, what: &'static str) -> FormatError {
        FormatError::Newer { block: self.block, what, written: self.written }
    }

    /// Checks that `bytes`, to which this version gives no meaning, are zero: a newer version may have given them one.
    ///
    /// # Errors
    /// [`FormatError::Newer`] with `what`.
    pub fn zero(&self, what: &'static str, bytes: &[u8]) -> Result<(), FormatError> {
        if bytes.iter().all(|byte| *byte == 0) { Ok(()) } else { Err(self.newer(what)) }
    }

    /// The error for a field whose value breaks a rule.
    #[must_use]
    pub fn field(&self, field: &'static str, value: u64, why: &'static str) -> FormatError {
        FormatError::Field { block: self.block, field, value, why }
    }

    /// The error for records that cannot be read.
    #[must_use]
    pub fn record(&self, error: RecordError) -> FormatError {
        FormatError::Record { block: self.block, error }
    }
}

/// Checks a block's prologue and checksum and returns the version that wrote it and its body.
///
/// `bytes` may be longer than the block.
///
/// # Errors
/// What is wrong with them; a length of more than `max` bytes is.
pub fn unframe(block: Block, magic: [u8; 8], bytes: &[u8], max: usize) -> Result<Frame<'_>, FormatError> {
    let (prologue, _) = Prologue::ref_from_prefix(bytes).map_err(|_| FormatError::Truncated {
        block,
        needed: PROLOGUE,
        got: bytes.len(),
    })?;
    if prologue.magic != magic {
        return Err(FormatError::Magic(block));
    }
    let written = Version { major: prologue.major.get(), minor: prologue.minor.get() };
    if !VERSION.reads(written) {
        return Err(FormatError::Version { block, found: written });
    }
    let len = prologue.len.get() as usize;
    if len == 0 || !len.is_multiple_of(BLOCK) || len > max {
        return Err(FormatError::Field {
            block,
            field: "length",
            value: len as u64,
            why: "a multiple of 4096 within the block's limit",
        });
    }
    let bytes = bytes.get(..len).ok_or(FormatError::Truncated { block, needed: len, got: bytes.len() })?;
    let mut state = XxHash3_64::new();
    state.write(&bytes[..CHECKSUM.start]);
    state.write(&[0; 8]);
    state.write(&bytes[CHECKSUM.end..]);
    let (found, computed) = (prologue.checksum.get(), state.finish());
    if found != computed {
        return Err(FormatError::Checksum { block, found, computed });
    }
    Ok(Frame { block, written, body: &bytes[PROLOGUE..] })
}

/// The checksum that a block carries, for the [`Locator`](crate::Locator) that points to it.
pub(crate) fn framed_checksum(bytes: &[u8]) -> u64 {
    bytes.get(CHECKSUM).and_then(|sum| sum.try_into().ok()).map_or(0, u64::from_le_bytes)
}
