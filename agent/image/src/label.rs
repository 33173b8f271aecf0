//! The label: which device this is.

use zerocopy::byteorder::little_endian::U64;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::error::{Block, FormatError};
use crate::{BLOCK, Uuid, block};

/// The first eight bytes of an image device.
pub const LABEL_MAGIC: [u8; 8] = *b"DORMOUSE";

/// What `image init` writes once, and nothing else ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Label {
    /// The device's identity, as `UUID=` names it.
    pub uuid: Uuid,
    /// When it was initialised, in seconds since 1970.
    pub created_unix: u64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawLabel {
    uuid: [u8; 16],
    created_unix: U64,
}

const _: () = assert!(size_of::<RawLabel>() == 24);

impl Label {
    /// The label's block.
    ///
    /// # Errors
    /// None that can happen: the block has one size.
    pub fn encode(&self) -> Result<Vec<u8>, FormatError> {
        let raw = RawLabel { uuid: self.uuid.0, created_unix: U64::new(self.created_unix) };
        block::seal(Block::Label, LABEL_MAGIC, raw.as_bytes(), BLOCK)
    }

    /// Reads the label from a device's first block.
    ///
    /// # Errors
    /// [`FormatError::Magic`] where this is no image device; otherwise what is wrong with the label.
    pub fn decode(bytes: &[u8]) -> Result<Label, FormatError> {
        let body = block::open(Block::Label, LABEL_MAGIC, bytes, BLOCK)?;
        let (raw, _) = RawLabel::ref_from_prefix(body).map_err(|_| FormatError::Magic(Block::Label))?;
        Ok(Label { uuid: Uuid(raw.uuid), created_unix: raw.created_unix.get() })
    }
}
