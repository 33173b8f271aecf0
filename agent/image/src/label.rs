//! The label: which image this is, and where its parts are.

use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::error::{Block, FormatError};
use crate::layout::LABEL_MAX_EXTENTS;
use crate::record::{Kind, Records, Writer};
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
    /// Where the image lies on the block device under the filesystem that holds its file, in the order of the file.
    /// Empty where the image has a whole device.
    pub extents: Vec<DiskExtent>,
}

/// A piece of a block device that holds a piece of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskExtent {
    /// Offset on the block device in bytes, a multiple of [`BLOCK`] and not 0: a filesystem has its own data there.
    pub offset: u64,
    /// Length in bytes, a multiple of [`BLOCK`] and not 0.
    pub len: u64,
}

impl DiskExtent {
    /// The byte after it.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.len)
    }
}

/// The kinds of records in a label, in the order in which they are written.
pub const LABEL_KINDS: &[Kind] = &[EXTENTS, LEGS, STACK];

const EXTENTS: Kind = Kind::mandatory(1, "extents", 0);
/// The devices on each of which all of the image lies: an identity of 16 bytes for each. In this version one, zero.
const LEGS: Kind = Kind::mandatory(2, "legs", 0);
/// The layers between the file and the device. In this version none.
const STACK: Kind = Kind::mandatory(3, "stack", 0);

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawLabel {
    uuid: [u8; 16],
    created_unix: U64,
    records: U32,
    reserved: [u8; 20],
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawExtent {
    offset: U64,
    len: U64,
}

/// The identity of a leg: the partition's UUID.
type Leg = [u8; 16];

const _: () = assert!(size_of::<RawLabel>() == 48);
// With two legs, and room for a stack.
const _: () = assert!(block::PROLOGUE + 48 + (8 + LABEL_MAX_EXTENTS * 16) + (8 + 2 * 16) + 8 + 768 <= BLOCK);

impl Label {
    /// The label's block.
    ///
    /// # Errors
    /// [`FormatError::Field`] where the extents are not what they must be, which is what [`Label::decode`] refuses.
    pub fn encode(&self) -> Result<Vec<u8>, FormatError> {
        check(&self.extents)?;
        let extents = self.extents.iter().map(|at| RawExtent { offset: at.offset.into(), len: at.len.into() });
        let extents: Vec<RawExtent> = extents.collect();
        let mut records = Writer::new();
        for (kind, content) in [(EXTENTS, extents.as_bytes()), (LEGS, &Leg::default()), (STACK, &[])] {
            records.push(&kind, content).map_err(|error| FormatError::Record { block: Block::Label, error })?;
        }
        let raw = RawLabel {
            uuid: self.uuid.0,
            created_unix: self.created_unix.into(),
            records: records.count().into(),
            reserved: [0; 20],
        };
        let mut body = raw.as_bytes().to_vec();
        body.extend(records.into_bytes());
        block::frame(Block::Label, LABEL_MAGIC, &body, BLOCK)
    }

    /// Reads the label from an image's first block.
    ///
    /// What is decoded can be used as a map: its extents are whole blocks, do not overlap, and end before byte 2^63.
    ///
    /// # Errors
    /// [`FormatError::Magic`] where this is not an image device, [`FormatError::Newer`] where the image lies on several
    /// devices or on a stack of layers; otherwise what is wrong with the label.
    pub fn decode(bytes: &[u8]) -> Result<Label, FormatError> {
        let frame = block::unframe(Block::Label, LABEL_MAGIC, bytes, BLOCK)?;
        let (raw, rest) = RawLabel::ref_from_prefix(frame.body).map_err(|_| FormatError::Magic(Block::Label))?;
        frame.zero("a reserved field", &raw.reserved)?;
        let records = Records::read(LABEL_KINDS, frame.written, raw.records.get(), rest);
        let records = records.map_err(|error| frame.record(error))?;
        frame.zero("padding that is not zero", records.rest)?;
        let whole = |kind: &Kind| frame.record(kind.wrong("its length is not a whole number of entries"));

        let legs = <[Leg]>::ref_from_bytes(records.content(&LEGS)).map_err(|_| whole(&LEGS))?;
        match legs {
            [identity] => frame.zero("the identity of its device", identity)?,
            [_, _] => return Err(frame.newer("two legs")),
            _ => return Err(frame.field("number of legs", legs.len() as u64, "1 or 2")),
        }
        if !records.content(&STACK).is_empty() {
            return Err(frame.newer("a stack of layers"));
        }
        // At most a block's content.
        let table = <[RawExtent]>::ref_from_bytes(records.content(&EXTENTS)).map_err(|_| whole(&EXTENTS))?;
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

/// Whether extents can be a map of a file.
fn check(extents: &[DiskExtent]) -> Result<(), FormatError> {
    if extents.len() > LABEL_MAX_EXTENTS {
        return Err(wrong("number of extents", extents.len() as u64, "at most 192"));
    }
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
