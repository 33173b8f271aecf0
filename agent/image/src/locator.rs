//! Pointers from one block to another.

use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::BLOCK;
use crate::block::{self, Frame};
use crate::error::{Block, FormatError};
use crate::layout::INDEX_MAX;
use crate::seal::Tag;

/// Where a block lies, and what it must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Locator {
    /// Offset on the device in bytes, a multiple of [`BLOCK`].
    pub offset: u64,
    /// Length in bytes, a multiple of [`BLOCK`]. Zero stands for "no block".
    pub len: u32,
    /// The checksum that the block carries. Of a sealed one, that of its bytes as they are on the device.
    pub checksum: u64,
    /// What authenticates a sealed block; zero for any other.
    pub tag: Tag,
}

impl Locator {
    /// The locator of a block that [`Header`](crate::Header) or [`IndexBlock`](crate::IndexBlock) encoded.
    ///
    /// # Errors
    /// [`FormatError::TooLarge`] where `block` is longer than any block.
    pub fn of(kind: Block, offset: u64, block: &[u8]) -> Result<Locator, FormatError> {
        let len = u32::try_from(block.len()).map_err(|_| FormatError::TooLarge {
            block: kind,
            size: block.len(),
            max: INDEX_MAX,
        })?;
        Ok(Locator { offset, len, checksum: block::framed_checksum(block), tag: [0; 16] })
    }

    /// Whether it points to a block at all.
    #[must_use]
    pub fn is_some(&self) -> bool {
        self.len != 0
    }

    /// Checks that `block` is the one that was meant, and not an older one at the same place.
    ///
    /// # Errors
    /// [`FormatError::Truncated`] and [`FormatError::Checksum`].
    pub fn check(&self, kind: Block, block: &[u8]) -> Result<(), FormatError> {
        if block.len() != self.len as usize {
            return Err(FormatError::Truncated { block: kind, needed: self.len as usize, got: block.len() });
        }
        let computed = block::framed_checksum(block);
        if computed != self.checksum {
            return Err(FormatError::Checksum { block: kind, found: self.checksum, computed });
        }
        Ok(())
    }

    /// The byte after the block, if a block of at most `max` bytes can lie here, at `floor` or after it.
    ///
    /// What passes may be read into memory: its length is bounded.
    pub(crate) fn end(&self, floor: u64, max: usize) -> Option<u64> {
        let (block, len) = (BLOCK as u64, u64::from(self.len));
        let whole_blocks = self.offset.is_multiple_of(block) && len.is_multiple_of(block);
        let bounded = self.offset >= floor && (1..=max as u64).contains(&len);
        self.offset.checked_add(len).filter(|_| whole_blocks && bounded)
    }
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct RawLocator {
    offset: U64,
    checksum: U64,
    len: U32,
    reserved: U32,
}

const _: () = assert!(size_of::<RawLocator>() == 24);

impl From<&Locator> for RawLocator {
    fn from(locator: &Locator) -> RawLocator {
        RawLocator {
            offset: locator.offset.into(),
            checksum: locator.checksum.into(),
            len: locator.len.into(),
            reserved: U32::new(0),
        }
    }
}

impl RawLocator {
    /// The locator, whose reserved field is zero, with the tag that lies elsewhere.
    pub(crate) fn decode(&self, frame: &Frame<'_>, tag: Tag) -> Result<Locator, FormatError> {
        frame.zero("a reserved field of a locator", self.reserved.as_bytes())?;
        Ok(Locator { offset: self.offset.get(), len: self.len.get(), checksum: self.checksum.get(), tag })
    }
}
