//! The label: which image this is, and where its parts are.

use std::fmt;

use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::block::Frame;
use crate::error::{Block, FormatError};
use crate::layout::LABEL_MAX_EXTENTS;
use crate::record::{Kind, Records, Writer};
use crate::version::LAYERS;
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
    /// The identities of the two partitions on each of which all of it lies, at the same offsets. `None` where it lies
    /// on one device.
    pub mirror: Option<[Uuid; 2]>,
    /// What lies between the file, or the volume, and the device, from the top down. Empty where a filesystem is on
    /// the device itself.
    pub stack: Vec<Layer>,
}

/// Something that lies between a file and the device, and must not have changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// What it is.
    pub kind: LayerKind,
    /// Which one it is: a text without control characters, not empty.
    pub identity: String,
}

/// What a layer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerKind {
    /// The filesystem that holds the file, by its type.
    Filesystem,
    /// Pieces of device-mapper's kind `linear`, such as a logical volume, by its UUID.
    Linear,
    /// device-mapper's `crypt`, such as LUKS, by its UUID.
    Crypt,
    /// A mirror of md's, by the array's UUID.
    Raid1,
    /// A partition of something that is put together, by its number.
    Partition,
}

impl LayerKind {
    /// All of them.
    pub const ALL: [LayerKind; 5] =
        [LayerKind::Filesystem, LayerKind::Linear, LayerKind::Crypt, LayerKind::Raid1, LayerKind::Partition];

    /// The number that stands for it.
    #[must_use]
    pub const fn number(self) -> u16 {
        match self {
            LayerKind::Filesystem => 1,
            LayerKind::Linear => 2,
            LayerKind::Crypt => 3,
            LayerKind::Raid1 => 4,
            LayerKind::Partition => 5,
        }
    }

    /// What people call it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            LayerKind::Filesystem => "filesystem",
            LayerKind::Linear => "linear",
            LayerKind::Crypt => "crypt",
            LayerKind::Raid1 => "raid1",
            LayerKind::Partition => "partition",
        }
    }
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind.name(), self.identity)
    }
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
/// The devices on each of which all of the image lies: an identity of 16 bytes for each; one has zero.
const LEGS: Kind = Kind::mandatory(2, "legs", 0);
/// The layers between the file and the device.
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

/// What every layer begins with. Its text follows.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawLayer {
    len: U32,
    kind: U16,
    text_len: U16,
}

/// The identity of a leg: the partition's UUID.
type Leg = [u8; 16];

/// The most bytes that all layers take.
const STACK_MAX: usize = 768;

const _: () = assert!(size_of::<RawLabel>() == 48);
// With two legs, and room for a stack.
const _: () = assert!(block::PROLOGUE + 48 + (8 + LABEL_MAX_EXTENTS * 16) + (8 + 2 * 16) + 8 + STACK_MAX <= BLOCK);

impl Label {
    /// The label's block.
    ///
    /// # Errors
    /// [`FormatError::Field`] where the extents are not what they must be, which is what [`Label::decode`] refuses.
    pub fn encode(&self) -> Result<Vec<u8>, FormatError> {
        self.check()?;
        let legs = self.mirror.unwrap_or_default().map(|uuid| uuid.0);
        let legs = if self.mirror.is_some() { &legs[..] } else { &legs[..1] };
        let extents = self.extents.iter().map(|at| RawExtent { offset: at.offset.into(), len: at.len.into() });
        let extents: Vec<RawExtent> = extents.collect();
        let mut records = Writer::new();
        for (kind, content) in [(EXTENTS, extents.as_bytes()), (LEGS, legs.as_bytes()), (STACK, &stack(&self.stack))] {
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
        let minor = if self.mirror.is_some() || !self.stack.is_empty() { LAYERS } else { 0 };
        block::frame_since(minor, Block::Label, LABEL_MAGIC, &body, BLOCK)
    }

    /// Reads the label from an image's first block.
    ///
    /// What is decoded can be used as a map: its extents are whole blocks, do not overlap, and end before byte 2^63.
    ///
    /// # Errors
    /// [`FormatError::Magic`] where this is not an image device, [`FormatError::Newer`] where there is a kind of layer
    /// that is not known here; otherwise what is wrong with the label.
    pub fn decode(bytes: &[u8]) -> Result<Label, FormatError> {
        let frame = block::unframe(Block::Label, LABEL_MAGIC, bytes, BLOCK)?;
        let (raw, rest) = RawLabel::ref_from_prefix(frame.body).map_err(|_| FormatError::Magic(Block::Label))?;
        frame.zero("a reserved field", &raw.reserved)?;
        let records = Records::read(LABEL_KINDS, frame.written, raw.records.get(), rest);
        let records = records.map_err(|error| frame.record(error))?;
        frame.zero("padding that is not zero", records.rest)?;
        let whole = |kind: &Kind| frame.record(kind.wrong("its length is not a whole number of entries"));

        let legs = <[Leg]>::ref_from_bytes(records.content(&LEGS)).map_err(|_| whole(&LEGS))?;
        let mirror = match legs {
            [identity] => {
                frame.zero("the identity of its device", identity)?;
                None
            }
            [_, _] if frame.written.minor < LAYERS => return Err(frame.newer("two legs")),
            [first, second] => Some([Uuid(*first), Uuid(*second)]),
            _ => return Err(frame.field("number of legs", legs.len() as u64, "1 or 2")),
        };
        if frame.written.minor < LAYERS {
            frame.zero("a stack of layers", records.content(&STACK))?;
        }
        let stack = layers(&frame, records.content(&STACK))?;
        // At most a block's content.
        let table = <[RawExtent]>::ref_from_bytes(records.content(&EXTENTS)).map_err(|_| whole(&EXTENTS))?;
        let extents: Vec<DiskExtent> =
            table.iter().map(|raw| DiskExtent { offset: raw.offset.get(), len: raw.len.get() }).collect();
        let label = Label { uuid: Uuid(raw.uuid), created_unix: raw.created_unix.get(), extents, mirror, stack };
        label.check()?;
        Ok(label)
    }

    /// Whether a layer encrypts what is above it, and the image, which lies below it, does not get that.
    #[must_use]
    pub fn bypasses_encryption(&self) -> bool {
        self.stack.iter().any(|layer| layer.kind == LayerKind::Crypt)
    }

    /// Whether its values can be written to a label.
    fn check(&self) -> Result<(), FormatError> {
        check(&self.extents)?;
        let is_whole = self.extents.is_empty();
        if let Some([first, second]) = self.mirror
            && (is_whole || first == second || [first, second].contains(&Uuid::default()))
        {
            return Err(wrong("identity of a leg", 0, "not zero and not that of the other, with a map of extents"));
        }
        if is_whole && !self.stack.is_empty() {
            return Err(wrong("number of layers", self.stack.len() as u64, "0 without a map of extents"));
        }
        let is_text = |layer: &Layer| !layer.identity.is_empty() && !layer.identity.chars().any(char::is_control);
        if let Some(at) = self.stack.iter().position(|layer| !is_text(layer)) {
            return Err(wrong("layer's identity", at as u64, "a text without control characters, not empty"));
        }
        let len: usize = self.stack.iter().map(layer_len).sum();
        if len > STACK_MAX { Err(wrong("length of the layers", len as u64, "at most 768 bytes")) } else { Ok(()) }
    }

    /// Where on its block device the image begins: 0 where it has the device for itself.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.extents.first().map_or(0, |extent| extent.offset)
    }
}

fn layer_len(layer: &Layer) -> usize {
    (size_of::<RawLayer>() + layer.identity.len()).next_multiple_of(8)
}

/// The record of layers. [`Label::check`] has seen to it that all lengths fit.
fn stack(layers: &[Layer]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for layer in layers {
        let end = bytes.len() + layer_len(layer);
        let number = |len: usize| u16::try_from(len).unwrap_or(u16::MAX);
        let raw = RawLayer {
            len: u32::from(number(layer_len(layer))).into(),
            kind: layer.kind.number().into(),
            text_len: number(layer.identity.len()).into(),
        };
        bytes.extend(raw.as_bytes());
        bytes.extend(layer.identity.as_bytes());
        bytes.resize(end, 0);
    }
    bytes
}

/// Reads the record of layers.
fn layers(frame: &Frame<'_>, mut bytes: &[u8]) -> Result<Vec<Layer>, FormatError> {
    let broken = || frame.record(STACK.wrong("a layer does not end where it says"));
    let mut layers = Vec::new();
    while !bytes.is_empty() {
        let (raw, _) = RawLayer::ref_from_prefix(bytes).map_err(|_| broken())?;
        let len = raw.len.get() as usize;
        if len < size_of::<RawLayer>() || !len.is_multiple_of(8) {
            return Err(broken());
        }
        let (layer, rest) = bytes.split_at_checked(len).ok_or_else(broken)?;
        let text = layer[size_of::<RawLayer>()..].split_at_checked(raw.text_len.get().into());
        let (text, padding) = text.ok_or_else(broken)?;
        frame.zero("more about a layer", padding)?;
        let kind = LayerKind::ALL.into_iter().find(|kind| kind.number() == raw.kind.get());
        let kind = kind.ok_or_else(|| frame.newer("a kind of layer"))?;
        let text = std::str::from_utf8(text);
        let text = text.map_err(|_| FormatError::Text { block: Block::Label, field: "layer's identity" })?;
        layers.push(Layer { kind, identity: text.to_owned() });
        bytes = rest;
    }
    Ok(layers)
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
