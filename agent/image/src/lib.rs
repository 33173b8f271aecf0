//! The on-disk format of a Dormouse image, version 1: `agent/docs/FORMAT.md` describes it byte by byte.
//!
//! This crate turns values into blocks and blocks into values. It does no I/O, allocates no more than its limits say,
//! and trusts nothing that it decodes: every length, offset and page frame number is checked before it is used.
//!
//! ```text
//! 0         label           which image this is, and where it lies; written once
//! 4 KiB     commit record   two slots: the state of the image, and where its parts are
//! 64 KiB    header          the session that is saved, and the machine that it was saved on
//! 1 MiB     the stream      chunks, and after every few of them the index block that describes them
//! ```

#![forbid(unsafe_code)]

pub mod block;
mod commit;
mod coverage;
mod error;
mod header;
mod index;
mod keys;
mod label;
mod locator;
mod name;
mod range;
pub mod record;
pub mod seal;
mod session;
mod state;
mod uuid;
mod version;

pub use commit::{COMMIT_MAGIC, Commit, SPENT, SaveStats, Slot, Totals, newest};
pub use coverage::Coverage;
pub use error::{Block, FormatError};
pub use header::{HEADER_MAGIC, Header};
pub use index::{Chunk, ChunkView, Codec, INDEX_MAGIC, IndexBlock, IndexBuilder};
pub use keys::{FileKey, KEYS_MAGIC, KEYS_MAX, KeyKind, KeySlot, KeySource, Keys, PassphraseKey, TpmKey};
pub use label::{DiskExtent, LABEL_KINDS, LABEL_MAGIC, Label, Layer, LayerKind};
pub use locator::Locator;
pub use name::{ImageDevice, ImageDeviceError, NbdExport, NfsFile, Remote};
pub use range::{Extent, PfnRange, PhysRange};
pub use session::{
    Architecture, Cpu, DiskPlace, EfiRange, Filesystem, FirmwareKind, FirmwareRange, Mailbox, SESSION_KINDS,
    SESSION_MAGIC, SessionRecord, SwapArea,
};
pub use state::State;
pub use uuid::{Uuid, UuidError};
pub(crate) use version::SPENT_SINCE;
pub use version::{LOADER, NETWORK, SEALED, VERSION, Version};

/// The size of a block, and of a page of memory, in bytes. Everything but chunks begins and ends on a block.
pub const BLOCK: usize = 4096;

/// Offsets on the image device, and limits, in bytes unless said otherwise.
pub mod layout {
    use super::BLOCK;

    /// Where the label lies.
    pub const LABEL_OFFSET: u64 = 0;
    /// The most pieces of a block device that an image in a file may lie in.
    pub const LABEL_MAX_EXTENTS: usize = 192;
    /// Where the two slots of the commit record lie.
    pub const SLOT_OFFSETS: [u64; 2] = [4096, 8192];
    /// Where the block of keys lies, in an image that has keys.
    pub const KEYS_OFFSET: u64 = 12288;
    /// Where the header lies.
    pub const HEADER_OFFSET: u64 = 64 << 10;
    /// The longest header.
    pub const HEADER_MAX: usize = 960 << 10;
    /// The longest session record: with what the jump adds to it, it is a header.
    pub const SESSION_MAX: usize = HEADER_MAX - BLOCK;
    /// Where the stream of chunks and index blocks begins.
    pub const DATA_OFFSET: u64 = 1 << 20;
    /// The longest index block.
    pub const INDEX_MAX: usize = 1 << 20;
    /// The most chunks that one index block describes.
    pub const INDEX_MAX_CHUNKS: usize = 4096;
    /// The most pages in one chunk: 256 KiB of memory.
    pub const CHUNK_PAGES: u32 = 64;
    /// The longest chunk, uncompressed.
    pub const CHUNK_MAX: usize = CHUNK_PAGES as usize * BLOCK;
    /// Page frame numbers are below this: 52 bits of physical address.
    pub const PFN_LIMIT: u64 = 1 << 40;
    /// The smallest device that can carry an image at all: the front matter and one index block.
    pub const DEVICE_MIN: u64 = DATA_OFFSET + INDEX_MAX as u64;
}

/// The one checksum of the format: XXH3 with 64 bits and seed 0.
#[must_use]
pub fn checksum(bytes: &[u8]) -> u64 {
    twox_hash::XxHash3_64::oneshot(bytes)
}
