//! What all blocks have in common: magic, version, checksum.

use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::error::{Block, FormatError};
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
pub(crate) fn seal(block: Block, magic: [u8; 8], body: &[u8], max: usize) -> Result<Vec<u8>, FormatError> {
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
        minor: U16::new(VERSION.minor),
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

/// Checks a block's prologue and checksum and returns its body, padding included.
///
/// `bytes` may be longer than the block.
pub(crate) fn open(block: Block, magic: [u8; 8], bytes: &[u8], max: usize) -> Result<&[u8], FormatError> {
    let (prologue, _) = Prologue::ref_from_prefix(bytes).map_err(|_| FormatError::Truncated {
        block,
        needed: PROLOGUE,
        got: bytes.len(),
    })?;
    if prologue.magic != magic {
        return Err(FormatError::Magic(block));
    }
    let found = Version { major: prologue.major.get(), minor: prologue.minor.get() };
    if !VERSION.reads(found) {
        return Err(FormatError::Version { block, found });
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
    let mut state = xxhash_rust::xxh3::Xxh3Default::new();
    state.update(&bytes[..CHECKSUM.start]);
    state.update(&[0; 8]);
    state.update(&bytes[CHECKSUM.end..]);
    let (found, computed) = (prologue.checksum.get(), state.digest());
    if found != computed {
        return Err(FormatError::Checksum { block, found, computed });
    }
    Ok(&bytes[PROLOGUE..])
}

/// The checksum that a sealed block carries, for the [`Locator`](crate::Locator) that points to it.
pub(crate) fn sealed_checksum(bytes: &[u8]) -> u64 {
    bytes.get(CHECKSUM).and_then(|sum| sum.try_into().ok()).map_or(0, u64::from_le_bytes)
}
