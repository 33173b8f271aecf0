//! The header: the session record, and what only the jump made known.

use zerocopy::byteorder::little_endian::U64;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::error::{Block, FormatError};
use crate::layout::HEADER_MAX;
use crate::record::Kind;
use crate::session::{SESSION_KINDS, SessionRecord};
use crate::{BLOCK, block};

/// The first eight bytes of a header.
pub const HEADER_MAGIC: [u8; 8] = *b"DMHEADER";

/// What an image says of the session in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// What A handed over.
    pub session: SessionRecord,
    /// A's jump-back entry, a physical address in the saved memory.
    pub entry: u64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawHeader {
    entry: U64,
    reserved: [u8; 8],
}

const _: () = assert!(size_of::<RawHeader>() == 16);

impl Header {
    /// The header's block.
    ///
    /// # Errors
    /// [`FormatError::TooLarge`], and whatever [`Header::decode`] would find wrong with the values.
    pub fn encode(&self) -> Result<Vec<u8>, FormatError> {
        self.check()?;
        let raw = RawHeader { entry: self.entry.into(), reserved: [0; 8] };
        let mut body = raw.as_bytes().to_vec();
        self.session.write(Block::Header, &mut body)?;
        block::frame_since(self.session.since(), Block::Header, HEADER_MAGIC, &body, HEADER_MAX)
    }

    /// Reads a header.
    ///
    /// # Errors
    /// [`FormatError`] describes what is wrong with it.
    pub fn decode(bytes: &[u8]) -> Result<Header, FormatError> {
        Header::decode_with(SESSION_KINDS, bytes)
    }

    /// Reads a header as a version would that has these kinds of records. For tests of the version rule.
    #[doc(hidden)]
    pub fn decode_with(kinds: &[Kind], bytes: &[u8]) -> Result<Header, FormatError> {
        let frame = block::unframe(Block::Header, HEADER_MAGIC, bytes, HEADER_MAX)?;
        let (raw, rest) = RawHeader::ref_from_prefix(frame.body).map_err(|_| FormatError::Magic(Block::Header))?;
        frame.zero("a reserved field", &raw.reserved)?;
        let session = SessionRecord::read(&frame, kinds, rest)?;
        let header = Header { session, entry: raw.entry.get() };
        header.check()?;
        Ok(header)
    }

    fn check(&self) -> Result<(), FormatError> {
        self.session.check(Block::Header)?;
        // D jumps to it: a page of A's own, which the swap leaves in place.
        if self.entry == 0 || !self.session.saves(self.entry / BLOCK as u64) {
            let (field, value, why) = ("jump-back entry", self.entry, "in the saved memory, not 0");
            return Err(FormatError::Field { block: Block::Header, field, value, why });
        }
        Ok(())
    }
}
