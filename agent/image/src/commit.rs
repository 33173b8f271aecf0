//! The commit record: the state of the image, and where its parts are.
//!
//! It is kept twice. A change writes the new record to the slot that holds the older one, makes it durable, then writes
//! the other slot too. So a torn or damaged slot never hides the newest finished change, and no older state comes back.

use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::block::{self, Frame};
use crate::error::{Block, FormatError};
use crate::layout::{DATA_OFFSET, HEADER_MAX, HEADER_OFFSET, INDEX_MAX};
use crate::locator::{Locator, RawLocator};
use crate::seal::{Nonce, Seal, Suite, Tag, WRAP, WRAPS_MAX, Wrap};
use crate::{BLOCK, SEALED, SPENT_SINCE, State, Uuid};

/// The first eight bytes of a slot.
pub const COMMIT_MAGIC: [u8; 8] = *b"DMCOMMIT";

/// The longest reason, in bytes: it has a place of this size.
const REASON_MAX: usize = 1024;
/// The values in [`SaveStats::spent`].
pub const SPENT: usize = 12;
/// The place of wrapped keys, in bytes.
const WRAPS: usize = WRAPS_MAX * WRAP;

/// What the image holds, in pages of 4096 bytes, blocks and bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    /// Pages of memory that the image accounts for: the sum of the next three.
    pub ram_pages: u64,
    /// Pages stored in chunks.
    pub stored_pages: u64,
    /// Pages recorded as zero: they were, or what they held is not needed.
    pub zero_pages: u64,
    /// Pages that are neither stored nor restored.
    pub omitted_pages: u64,
    /// Chunks.
    pub chunks: u64,
    /// Index blocks.
    pub index_blocks: u64,
    /// Bytes of all chunks as stored.
    pub stored_bytes: u64,
}

/// How the save went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SaveStats {
    /// When it began, in seconds since 1970.
    pub started_unix: u64,
    /// How long it took, in milliseconds.
    pub millis: u64,
    /// Threads that compressed.
    pub threads: u32,
    /// The agent's peak resident memory, in KiB.
    pub agent_peak_kib: u64,
    /// The least memory that was available during the save, in KiB.
    pub least_available_kib: u64,
    /// What the save's threads spent their time on; see the format document.
    pub spent: [u32; SPENT],
}

/// The state of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit {
    /// Grows by one with every change.
    pub seq: u64,
    /// The state.
    pub state: State,
    /// When it was given this state, in seconds since 1970.
    pub changed_unix: u64,
    /// Restores begun of this save.
    pub attempts: u16,
    /// Boots that kept this save although the machine differed: it may be what it was at the next one.
    pub kept: u16,
    /// The device's identity; must equal the label's.
    pub image: Uuid,
    /// The save's identity; must equal the header's and each index block's. Zero before the first save, and
    /// where the data of the last one were wiped.
    pub save_id: Uuid,
    /// The header.
    pub header: Locator,
    /// The last index block, from which the others are found.
    pub last_index: Locator,
    /// End of the stream: the byte after the last index block.
    pub data_end: u64,
    /// What is in it.
    pub totals: Totals,
    /// How it was made.
    pub stats: SaveStats,
    /// Why it failed or was discarded, for people; at most 1024 bytes are kept.
    pub reason: String,
    /// Of a sealed image: how, and what opens it.
    pub seal: Option<Seal>,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawCommit {
    seq: U64,
    state: [u8; 8],
    image: [u8; 16],
    save_id: [u8; 16],
    header: RawLocator,
    last_index: RawLocator,
    data_end: U64,
    ram_pages: U64,
    stored_pages: U64,
    zero_pages: U64,
    omitted_pages: U64,
    chunks: U64,
    index_blocks: U64,
    stored_bytes: U64,
    started_unix: U64,
    millis: U64,
    agent_peak_kib: U64,
    least_available_kib: U64,
    changed_unix: U64,
    threads: U32,
    attempts: U16,
    kept: U16,
    reason_len: U32,
    sealing: RawSealing,
    reason: [u8; REASON_MAX],
    wraps: [u8; WRAPS],
    spent: [U32; SPENT],
}

/// Of a sealed image; else zero.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawSealing {
    suite: U16,
    wraps: U16,
    nonce: [u8; 16],
    header_tag: Tag,
    last_index_tag: Tag,
    mac: [u8; 32],
}

impl RawSealing {
    fn decode(&self, frame: &Frame<'_>, wraps: &[u8; WRAPS]) -> Result<Option<Seal>, FormatError> {
        if self.suite.get() == 0 {
            frame.zero("a key or a tag of a sealed image", self.as_bytes())?;
            frame.zero("wrapped keys of a sealed image", wraps)?;
            return Ok(None);
        }
        let suite = Suite::from_number(self.suite.get()).ok_or_else(|| frame.newer("another suite of ciphers"))?;
        let count = usize::from(self.wraps.get());
        let (used, unused) =
            wraps.split_at_checked(count * WRAP).ok_or_else(|| field("number of wraps", count as u64, "at most 8"))?;
        frame.zero("more than its wrapped keys", unused)?;
        let wraps: Option<Vec<Wrap>> = used.chunks_exact(WRAP).map(Wrap::decode).collect();
        let wraps = wraps.ok_or_else(|| frame.newer("a reserved field of a wrapped key"))?;
        Ok(Some(Seal { suite, nonce: Nonce(self.nonce), mac: self.mac, wraps }))
    }
}

const _: () = assert!(std::mem::offset_of!(RawCommit, sealing) + block::PROLOGUE == 236);
const _: () = assert!(std::mem::offset_of!(RawCommit, reason) + block::PROLOGUE == 320);
const _: () = assert!(std::mem::offset_of!(RawCommit, spent) + block::PROLOGUE == 2112);
const _: () = assert!(size_of::<RawCommit>() + block::PROLOGUE == 2160);

impl Commit {
    /// The record of a device that was just initialised.
    #[must_use]
    pub fn empty(image: Uuid) -> Commit {
        Commit {
            seq: 1,
            state: State::Empty,
            changed_unix: 0,
            attempts: 0,
            kept: 0,
            image,
            save_id: Uuid::default(),
            header: Locator::default(),
            last_index: Locator::default(),
            data_end: 0,
            totals: Totals::default(),
            stats: SaveStats::default(),
            reason: String::new(),
            seal: None,
        }
    }

    /// The record that follows this one with the state `next`, everything else the same.
    ///
    /// # Errors
    /// [`FormatError::Transition`] where the rules forbid it.
    pub fn transition(&self, next: State, reason: &str) -> Result<Commit, FormatError> {
        if !self.state.may_become(next) {
            return Err(FormatError::Transition { from: self.state, to: next });
        }
        let (seq, reason) = (self.seq.saturating_add(1), reason.to_string());
        let commit = Commit { seq, state: next, reason, ..self.clone() };
        Ok(if next.holds_a_session() { commit } else { commit.without_key() })
    }

    /// The same record without all from which the key of a sealed image could be had again.
    #[must_use]
    pub fn without_key(self) -> Commit {
        let untagged = |locator| Locator { tag: Tag::default(), ..locator };
        let (header, last_index) = (untagged(self.header), untagged(self.last_index));
        Commit { header, last_index, seal: self.seal.as_ref().map(Seal::wiped), ..self }
    }

    /// The record's block. A reason that is too long is cut.
    ///
    /// # Errors
    /// Whatever [`Commit::decode`] would find wrong with the values.
    pub fn encode(&self) -> Result<Vec<u8>, FormatError> {
        self.check()?;
        let cut = (0..=REASON_MAX.min(self.reason.len())).rev().find(|at| self.reason.is_char_boundary(*at));
        let reason = &self.reason[..cut.unwrap_or(0)];
        let minor = match (self.says_what_was_spent(), self.seal.is_some()) {
            (true, _) => SPENT_SINCE,
            (_, true) => SEALED,
            _ => 0,
        };
        block::frame_since(minor, Block::Commit, COMMIT_MAGIC, self.raw(reason).as_bytes(), BLOCK)
    }

    /// What authenticates a sealed image: the record without what changes after the save, and without the prologue,
    /// which is that of the program that changed it last.
    pub(crate) fn authenticated(&self) -> Result<Vec<u8>, FormatError> {
        self.check()?;
        let mut raw = self.raw("");
        for zero in [&mut raw.seq, &mut raw.changed_unix] {
            *zero = U64::new(0);
        }
        (raw.state, raw.attempts, raw.kept) = ([0; 8], U16::new(0), U16::new(0));
        raw.sealing.mac = [0; 32];
        let mut bytes = raw.as_bytes().to_vec();
        if !self.says_what_was_spent() {
            // As before there was anything to say.
            bytes.truncate(std::mem::offset_of!(RawCommit, spent));
        }
        Ok(bytes)
    }

    fn says_what_was_spent(&self) -> bool {
        self.stats.spent != [0; SPENT]
    }

    fn raw(&self, reason: &str) -> RawCommit {
        let (totals, stats) = (&self.totals, &self.stats);
        let none = Seal::without_key(Suite::Aes256Gcm);
        let seal = self.seal.as_ref().unwrap_or(&none);
        let mut wraps = [0; WRAPS];
        for (place, wrap) in wraps.chunks_exact_mut(WRAP).zip(&seal.wraps) {
            place.copy_from_slice(&wrap.encode());
        }
        RawCommit {
            seq: self.seq.into(),
            state: self.state.marker(),
            image: self.image.0,
            save_id: self.save_id.0,
            header: (&self.header).into(),
            last_index: (&self.last_index).into(),
            data_end: self.data_end.into(),
            ram_pages: totals.ram_pages.into(),
            stored_pages: totals.stored_pages.into(),
            zero_pages: totals.zero_pages.into(),
            omitted_pages: totals.omitted_pages.into(),
            chunks: totals.chunks.into(),
            index_blocks: totals.index_blocks.into(),
            stored_bytes: totals.stored_bytes.into(),
            started_unix: stats.started_unix.into(),
            millis: stats.millis.into(),
            agent_peak_kib: stats.agent_peak_kib.into(),
            least_available_kib: stats.least_available_kib.into(),
            changed_unix: self.changed_unix.into(),
            threads: stats.threads.into(),
            attempts: self.attempts.into(),
            kept: self.kept.into(),
            // At most REASON_MAX.
            reason_len: U32::new(u32::try_from(reason.len()).unwrap_or(0)),
            sealing: RawSealing {
                suite: self.seal.as_ref().map_or(0, |seal| seal.suite.number()).into(),
                // At most 8: checked.
                wraps: u16::try_from(seal.wraps.len()).unwrap_or(u16::MAX).into(),
                nonce: seal.nonce.0,
                header_tag: self.header.tag,
                last_index_tag: self.last_index.tag,
                mac: seal.mac,
            },
            reason: std::array::from_fn(|at| reason.as_bytes().get(at).copied().unwrap_or(0)),
            wraps,
            spent: stats.spent.map(U32::new),
        }
    }

    /// Reads one slot.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn decode(bytes: &[u8]) -> Result<Commit, FormatError> {
        let frame = block::unframe(Block::Commit, COMMIT_MAGIC, bytes, BLOCK)?;
        let (raw, padding) = RawCommit::ref_from_prefix(frame.body).map_err(|_| FormatError::Magic(Block::Commit))?;
        let seal = raw.sealing.decode(&frame, &raw.wraps)?;
        frame.zero("padding that is not zero", padding)?;
        let state = State::from_marker(raw.state)
            .ok_or_else(|| field("state", u64::from_le_bytes(raw.state), "one of the states' markers"))?;
        let (reason, unused) = raw
            .reason
            .split_at_checked(raw.reason_len.get() as usize)
            .ok_or_else(|| field("reason length", raw.reason_len.get().into(), "at most 1024"))?;
        frame.zero("more than its reason", unused)?;
        let reason = std::str::from_utf8(reason)
            .map_err(|_| FormatError::Text { block: Block::Commit, field: "reason" })?
            .to_string();
        if frame.written.minor < SPENT_SINCE {
            frame.zero("what a save's threads spent their time on", raw.spent.as_bytes())?;
        }
        let totals = Totals {
            ram_pages: raw.ram_pages.get(),
            stored_pages: raw.stored_pages.get(),
            zero_pages: raw.zero_pages.get(),
            omitted_pages: raw.omitted_pages.get(),
            chunks: raw.chunks.get(),
            index_blocks: raw.index_blocks.get(),
            stored_bytes: raw.stored_bytes.get(),
        };
        let commit = Commit {
            seq: raw.seq.get(),
            state,
            changed_unix: raw.changed_unix.get(),
            attempts: raw.attempts.get(),
            kept: raw.kept.get(),
            image: Uuid(raw.image),
            save_id: Uuid(raw.save_id),
            header: raw.header.decode(&frame, raw.sealing.header_tag)?,
            last_index: raw.last_index.decode(&frame, raw.sealing.last_index_tag)?,
            data_end: raw.data_end.get(),
            totals,
            stats: SaveStats {
                started_unix: raw.started_unix.get(),
                millis: raw.millis.get(),
                threads: raw.threads.get(),
                agent_peak_kib: raw.agent_peak_kib.get(),
                least_available_kib: raw.least_available_kib.get(),
                spent: raw.spent.map(U32::get),
            },
            reason,
            seal,
        };
        commit.check()?;
        Ok(commit)
    }

    /// The rules that the values must keep.
    fn check(&self) -> Result<(), FormatError> {
        let totals = &self.totals;
        let sum =
            totals.stored_pages.checked_add(totals.zero_pages).and_then(|sum| sum.checked_add(totals.omitted_pages));
        if sum != Some(totals.ram_pages) {
            let why = "the sum of the pages stored, zero and left out";
            return Err(field("pages of memory", totals.ram_pages, why));
        }
        let (header, index) = (&self.header, &self.last_index);
        if header.is_some() && (header.offset != HEADER_OFFSET || header.end(0, HEADER_MAX).is_none()) {
            let why = "64 KiB, for whole blocks of at most 960 KiB";
            return Err(field("header's offset", header.offset, why));
        }
        if index.is_some() && index.end(DATA_OFFSET, INDEX_MAX) != Some(self.data_end) {
            let why = "in the stream, for whole blocks of at most 1 MiB that end it";
            return Err(field("last index block's offset", index.offset, why));
        }
        let holds_a_session = self.state.holds_a_session();
        if holds_a_session && !(header.is_some() && index.is_some()) {
            let why = "not empty in an image that holds a session: it has a header and an index";
            return Err(field("header's and last index block's length", 0, why));
        }
        let wraps = self.seal.as_ref().map_or(0, |seal| seal.wraps.len());
        if wraps > WRAPS_MAX {
            return Err(field("number of wraps", wraps as u64, "at most 8"));
        }
        if !holds_a_session && *self != self.clone().without_key() {
            return Err(field(
                "number of wraps",
                wraps as u64,
                "0, with no nonce and no tag, where no session is held",
            ));
        }
        Ok(())
    }
}

fn field(field: &'static str, value: u64, why: &'static str) -> FormatError {
    FormatError::Field { block: Block::Commit, field, value, why }
}

/// One of the two places of the commit record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slot {
    /// The first.
    First,
    /// The second.
    Second,
}

impl Slot {
    /// Offset on the device in bytes.
    #[must_use]
    pub fn offset(self) -> u64 {
        let [first, second] = crate::layout::SLOT_OFFSETS;
        match self {
            Slot::First => first,
            Slot::Second => second,
        }
    }

    /// The other one.
    #[must_use]
    pub fn other(self) -> Slot {
        match self {
            Slot::First => Slot::Second,
            Slot::Second => Slot::First,
        }
    }
}

/// The newest valid record of the two slots' bytes, and the slot that holds it. The next change begins with the other.
///
/// # Errors
/// Where neither is valid, what is wrong with the first, or with the second where the first has no record at all.
/// [`FormatError::Newer`] where one of them is whole and needs a newer version: it may be the newest.
pub fn newest(first: &[u8], second: &[u8]) -> Result<(Commit, Slot), FormatError> {
    match (Commit::decode(first), Commit::decode(second)) {
        (Err(error @ FormatError::Newer { .. }), _) | (_, Err(error @ FormatError::Newer { .. })) => Err(error),
        (Ok(a), Ok(b)) if b.seq > a.seq => Ok((b, Slot::Second)),
        (Ok(a), _) => Ok((a, Slot::First)),
        (Err(_), Ok(b)) => Ok((b, Slot::Second)),
        (Err(FormatError::Magic(_)), Err(error)) | (Err(error), Err(_)) => Err(error),
    }
}
