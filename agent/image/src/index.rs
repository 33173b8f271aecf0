//! Index blocks: which pages are where.

mod builder;

pub use builder::IndexBuilder;

use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::error::{Block, FormatError};
use crate::layout::{CHUNK_PAGES, DATA_OFFSET, INDEX_MAX, INDEX_MAX_CHUNKS, PFN_LIMIT};
use crate::seal::Tag;
use crate::{BLOCK, Extent, Locator, Uuid, block};

/// The first eight bytes of an index block.
pub const INDEX_MAGIC: [u8; 8] = *b"DMINDEX\0";

/// How a chunk is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Codec {
    /// As it is.
    #[default]
    Store,
    /// One zstd frame.
    Zstd,
}

impl Codec {
    pub(crate) const fn number(self) -> u16 {
        match self {
            Codec::Store => 0,
            Codec::Zstd => 1,
        }
    }

    fn from_number(number: u16) -> Option<Codec> {
        [Codec::Store, Codec::Zstd].into_iter().find(|codec| codec.number() == number)
    }
}

/// A chunk as its writer describes it: up to 64 pages that are compressed together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Chunk {
    /// Offset on the device in bytes.
    pub offset: u64,
    /// Length on the device in bytes.
    pub stored_len: u32,
    /// How it is stored.
    pub codec: Codec,
    /// The checksum of its pages, uncompressed, in the order of its extents.
    pub checksum: u64,
    /// Its number among the sealed chunks of the save, from 1; 0 where it is not sealed.
    pub counter: u64,
    /// What authenticates it where it is sealed; else zero.
    pub tag: Tag,
}

/// A chunk of a decoded index block, together with its extents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkView<'a> {
    /// The chunk.
    pub chunk: &'a Chunk,
    /// Where its pages belong, ascending.
    pub extents: &'a [Extent],
}

impl ChunkView<'_> {
    /// Its length uncompressed, in bytes.
    #[must_use]
    pub fn raw_len(&self) -> usize {
        self.extents.iter().map(|extent| extent.pages as usize * BLOCK).sum()
    }
}

/// A decoded and checked index block.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct IndexBlock {
    /// The save that it belongs to.
    pub save_id: Uuid,
    /// The index block before it; none for the first.
    pub prev: Locator,
    /// Runs of pages that are restored as zeroes.
    pub zero: Vec<Extent>,
    chunks: Vec<Chunk>,
    extents: Vec<Extent>,
    /// For each chunk, where its extents end in `extents`.
    ends: Vec<usize>,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawIndex {
    save_id: [u8; 16],
    prev_offset: U64,
    prev_checksum: U64,
    prev_len: U32,
    chunks: U32,
    extents: U32,
    zero: U32,
    /// Of the previous block, in a sealed image.
    prev_tag: Tag,
    reserved: [u8; 8],
}

#[derive(Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawChunk {
    offset: U64,
    checksum: U64,
    stored_len: U32,
    codec: U16,
    extents: U16,
    /// In a sealed image.
    counter: U64,
    /// In a sealed image.
    tag: Tag,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawExtent {
    pfn: U64,
    pages: U32,
}

const INDEX: usize = size_of::<RawIndex>();
const CHUNK: usize = size_of::<RawChunk>();
const EXTENT: usize = size_of::<RawExtent>();
const _: () = assert!(INDEX == 72 && CHUNK == 48 && EXTENT == 12);

impl IndexBlock {
    /// Reads the index block that lies at `at` on the device.
    ///
    /// Beyond its own consistency this checks that its chunks lie one after another between the index block before it
    /// and itself.
    ///
    /// # Errors
    /// [`FormatError`] describes what is wrong with it.
    pub fn decode(bytes: &[u8], at: u64) -> Result<IndexBlock, FormatError> {
        IndexBlock::read(bytes, at, false)
    }

    /// Reads an index block that was sealed and has been opened.
    pub(crate) fn decode_sealed(bytes: &[u8], at: u64) -> Result<IndexBlock, FormatError> {
        IndexBlock::read(bytes, at, true)
    }

    fn read(bytes: &[u8], at: u64, is_sealed: bool) -> Result<IndexBlock, FormatError> {
        let frame = block::unframe(Block::Index, INDEX_MAGIC, bytes, INDEX_MAX)?;
        let field = |field, value, why| FormatError::Field { block: Block::Index, field, value, why };
        let (raw, rest) = RawIndex::ref_from_prefix(frame.body).map_err(|_| FormatError::Magic(Block::Index))?;
        if !is_sealed {
            frame.zero("the tag of a sealed block", &raw.prev_tag)?;
        }
        frame.zero("a reserved field", &raw.reserved)?;
        let counts = (raw.chunks.get() as usize, raw.extents.get() as usize, raw.zero.get() as usize);
        if counts.0 > INDEX_MAX_CHUNKS {
            return Err(field("chunk count", counts.0 as u64, "at most 4096"));
        }
        // Counts of 32 bits times small sizes fit 64 bits.
        let needed = counts.0 * CHUNK + (counts.1 + counts.2) * EXTENT;
        let (tables, padding) = rest.split_at_checked(needed).ok_or(FormatError::Truncated {
            block: Block::Index,
            needed: INDEX + needed,
            got: frame.body.len(),
        })?;
        frame.zero("padding that is not zero", padding)?;
        let (chunks, tables) = tables.split_at(counts.0 * CHUNK);
        let (extents, zero) = tables.split_at(counts.1 * EXTENT);
        let extents = decode_extents(extents)?;
        let zero = decode_extents(zero)?;

        let prev = Locator {
            offset: raw.prev_offset.get(),
            len: raw.prev_len.get(),
            checksum: raw.prev_checksum.get(),
            tag: raw.prev_tag,
        };
        let mut floor = DATA_OFFSET;
        if prev.is_some() {
            let why = "in the stream, before this block, whole blocks of at most 1 MiB";
            floor = prev
                .end(DATA_OFFSET, INDEX_MAX)
                .filter(|end| *end <= at)
                .ok_or_else(|| field("previous block", prev.offset, why))?;
        }

        let mut block = IndexBlock {
            save_id: Uuid(raw.save_id),
            prev,
            zero,
            chunks: Vec::with_capacity(counts.0),
            extents,
            ends: Vec::with_capacity(counts.0),
        };
        let mut first = 0;
        for record in chunks.chunks_exact(CHUNK) {
            let (raw, _) = RawChunk::ref_from_prefix(record).map_err(|_| FormatError::Magic(Block::Index))?;
            if !is_sealed {
                frame.zero("the counter of a sealed chunk", raw.counter.as_bytes())?;
                frame.zero("the tag of a sealed chunk", &raw.tag)?;
            } else if raw.counter.get() == 0 {
                return Err(field("chunk's counter", 0, "not 0 in a sealed image"));
            }
            let end = first + usize::from(raw.extents.get());
            let extents = block
                .extents
                .get(first..end)
                .ok_or_else(|| field("chunk's extents", end as u64, "within the extent table"))?;
            let codec = Codec::from_number(raw.codec.get())
                .ok_or_else(|| field("codec", raw.codec.get().into(), "0 (store) or 1 (zstd)"))?;
            let chunk = Chunk {
                offset: raw.offset.get(),
                stored_len: raw.stored_len.get(),
                codec,
                checksum: raw.checksum.get(),
                counter: raw.counter.get(),
                tag: raw.tag,
            };
            floor = check_chunk(&chunk, extents, floor, at)?;
            block.chunks.push(chunk);
            block.ends.push(end);
            first = end;
        }
        if first != block.extents.len() {
            return Err(field("extent count", block.extents.len() as u64, "the sum of the chunks' extents"));
        }
        Ok(block)
    }

    /// Its chunks, in the order in which they lie on the device.
    pub fn chunks(&self) -> impl ExactSizeIterator<Item = ChunkView<'_>> {
        (0..self.chunks.len()).map(|at| self.chunk(at))
    }

    /// The chunk number `at`. Panics where there are fewer, as a slice does.
    #[must_use]
    pub fn chunk(&self, at: usize) -> ChunkView<'_> {
        let first = at.checked_sub(1).map_or(0, |before| self.ends[before]);
        ChunkView { chunk: &self.chunks[at], extents: &self.extents[first..self.ends[at]] }
    }
}

fn decode_extents(table: &[u8]) -> Result<Vec<Extent>, FormatError> {
    table
        .chunks_exact(EXTENT)
        .map(|record| {
            let (raw, _) = RawExtent::ref_from_prefix(record).map_err(|_| FormatError::Magic(Block::Index))?;
            let extent = Extent { pfn: raw.pfn.get(), pages: raw.pages.get() };
            check_extent(&extent)?;
            Ok(extent)
        })
        .collect()
}

fn check_extent(extent: &Extent) -> Result<(), FormatError> {
    if extent.pages == 0 || extent.pfn >= PFN_LIMIT || extent.range().end > PFN_LIMIT {
        return Err(FormatError::Field {
            block: Block::Index,
            field: "extent",
            value: extent.pfn,
            why: "at least one page, below 2^40",
        });
    }
    Ok(())
}

/// Checks one chunk that must lie from `floor` up to `ceiling`; returns its end.
fn check_chunk(chunk: &Chunk, extents: &[Extent], floor: u64, ceiling: u64) -> Result<u64, FormatError> {
    let field = |field, value, why| FormatError::Field { block: Block::Index, field, value, why };
    let mut pages: u32 = 0;
    let mut next = 0;
    for extent in extents {
        check_extent(extent)?;
        if extent.pfn < next {
            return Err(field("chunk's extents", extent.pfn, "ascending"));
        }
        next = extent.range().end;
        pages = pages.saturating_add(extent.pages);
    }
    if pages == 0 || pages > CHUNK_PAGES {
        return Err(field("chunk's pages", pages.into(), "1 to 64"));
    }
    let raw_len = u64::from(pages) * BLOCK as u64;
    let stored = u64::from(chunk.stored_len);
    let fits = match chunk.codec {
        Codec::Store => stored == raw_len,
        Codec::Zstd => (1..raw_len).contains(&stored),
    };
    if !fits {
        return Err(field("chunk's length", stored, "its pages' length if stored, less if compressed"));
    }
    match chunk.offset.checked_add(stored) {
        Some(end) if chunk.offset >= floor && end <= ceiling => Ok(end),
        _ => Err(field("chunk's offset", chunk.offset, "after the chunk before it, before its index block")),
    }
}
