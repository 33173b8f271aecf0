//! The label: which image this is, and where its parts are.

use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::error::{Block, FormatError};
use crate::layout::LABEL_MAX_EXTENTS;
use crate::{BLOCK, Uuid, block};

/// The first eight bytes of an image device.
pub const LABEL_MAGIC: [u8; 8] = *b"DORMOUSE";

/// What `image init` or `image create` writes once, and nothing else ever.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Label {
    /// The device's identity, as `UUID=` names it.
    pub uuid: Uuid,
    /// When it was initialised, in seconds since 1970.
    pub created_unix: u64,
    /// Where the image lies on the block device under the filesystem that holds its file, in the order of the file. Empty where
    /// the image has a whole device.
    pub extents: Vec<DiskExtent>,
}

/// A piece of a block device that holds a piece of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskExtent {
    /// Offset on the block device in bytes, a multiple of [`BLOCK`] and not 0: there a filesystem has its own data.
    pub offset: u64,
    /// Length in bytes, a multiple of [`BLOCK`] and not 0.
    pub len: u64,
}

impl DiskExtent {
    /// The byte behind it.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.len)
    }
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawLabel {
    uuid: [u8; 16],
    created_unix: U64,
    extents: U32,
    reserved: U32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawExtent {
    offset: U64,
    len: U64,
}

const _: () = assert!(size_of::<RawLabel>() == 32);
const _: () = assert!(block::PROLOGUE + size_of::<RawLabel>() + LABEL_MAX_EXTENTS * size_of::<RawExtent>() <= BLOCK);

impl Label {
    /// The label's block.
    ///
    /// # Errors
    /// [`FormatError::Field`] where the extents are not what they must be, which is what [`Label::decode`] refuses.
    pub fn encode(&self) -> Result<Vec<u8>, FormatError> {
        check(&self.extents)?;
        let raw = RawLabel {
            uuid: self.uuid.0,
            created_unix: U64::new(self.created_unix),
            extents: count(self.extents.len())?,
            reserved: U32::new(0),
        };
        let mut body = raw.as_bytes().to_vec();
        for extent in &self.extents {
            body.extend(RawExtent { offset: U64::new(extent.offset), len: U64::new(extent.len) }.as_bytes());
        }
        block::seal(Block::Label, LABEL_MAGIC, &body, BLOCK)
    }

    /// Reads the label from an image's first block.
    ///
    /// What is decoded can be used as a map: its extents are whole blocks, do not overlap, and end before byte 2^63.
    ///
    /// # Errors
    /// [`FormatError::Magic`] where this is no image device; otherwise what is wrong with the label.
    pub fn decode(bytes: &[u8]) -> Result<Label, FormatError> {
        let body = block::open(Block::Label, LABEL_MAGIC, bytes, BLOCK)?;
        let magic = FormatError::Magic(Block::Label);
        let (raw, rest) = RawLabel::ref_from_prefix(body).map_err(|_| magic.clone())?;
        // Checked before anything of that length is made.
        let number = count(usize::try_from(raw.extents.get()).unwrap_or(usize::MAX))?.get() as usize;
        let (table, _) = <[RawExtent]>::ref_from_prefix_with_elems(rest, number).map_err(|_| magic)?;
        let extents: Vec<DiskExtent> =
            table.iter().map(|raw| DiskExtent { offset: raw.offset.get(), len: raw.len.get() }).collect();
        check(&extents)?;
        Ok(Label { uuid: Uuid(raw.uuid), created_unix: raw.created_unix.get(), extents })
    }

    /// Where on its block device the image begins: 0 where it has the device for itself.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.extents.first().map_or(0, |extent| extent.offset)
    }
}

fn wrong(field: &'static str, value: u64, why: &'static str) -> FormatError {
    FormatError::Field { block: Block::Label, field, value, why }
}

/// The number of extents, if a label has room for so many.
fn count(extents: usize) -> Result<U32, FormatError> {
    let fits = u32::try_from(extents).ok().filter(|_| extents <= LABEL_MAX_EXTENTS);
    fits.map(U32::new).ok_or_else(|| wrong("number of extents", extents as u64, "at most 252"))
}

/// Whether extents can be a map of a file.
fn check(extents: &[DiskExtent]) -> Result<(), FormatError> {
    let is_whole_blocks = |bytes: u64| bytes != 0 && bytes.is_multiple_of(BLOCK as u64);
    for extent in extents {
        if !is_whole_blocks(extent.offset) {
            return Err(wrong("extent's offset", extent.offset, "a multiple of 4096, and not 0"));
        }
        // The kernel's own limit of what can be addressed (loff_t), and room for the sum of all of them.
        let fits = extent.offset.checked_add(extent.len).is_some_and(|end| end <= i64::MAX as u64);
        if !is_whole_blocks(extent.len) || !fits {
            return Err(wrong("extent's length", extent.len, "a multiple of 4096, not 0, ending before byte 2^63"));
        }
    }
    let mut sorted: Vec<&DiskExtent> = extents.iter().collect();
    sorted.sort_by_key(|extent| extent.offset);
    match sorted.windows(2).find(|pair| pair[0].end() > pair[1].offset) {
        Some(pair) => Err(wrong("extent's offset", pair[1].offset, "outside every other extent")),
        None => Ok(()),
    }
}
