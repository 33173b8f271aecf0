//! The keys of an image: who can open what is sealed. It has a block of its own, which changes when keys do.
//!
//! Nothing in it is a secret, and nothing in it is authenticated: whoever can write to the device can change it. So the
//! system that saves goes by a copy of its own, and what is opened with a key shows that the key was the right one.

use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::block::Frame;
use crate::error::{Block, FormatError};
use crate::{BLOCK, Uuid, block};

/// The first eight bytes of the block of keys.
pub const KEYS_MAGIC: [u8; 8] = *b"DMKEYS\0\0";

/// The most slots.
pub const KEYS_MAX: usize = 8;
/// The longest name of a device, in bytes.
const NAME_MAX: usize = 256;
/// The longest blob of a TPM, in bytes.
const BLOB_MAX: usize = 1024;
/// What a passphrase may cost: argon2id's memory in KiB, passes and lanes.
const MEMORY: [u32; 2] = [8 << 10, 4 << 20];
const PASSES: [u32; 2] = [1, 64];
const LANES: [u32; 2] = [1, 16];
/// A TPM has 24 registers (PCRs) in what every platform has.
const PCRS: u32 = 1 << 24;

/// The keys of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keys {
    /// The image that they are of; must equal the label's.
    pub image: Uuid,
    /// The slots, at most [`KEYS_MAX`], no two of them with the same number.
    pub slots: Vec<KeySlot>,
}

/// One of the keys that an image can be opened with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeySlot {
    /// Its number, by which a wrapped key and people know it.
    pub id: u32,
    /// Where the key comes from.
    pub source: KeySource,
}

/// Where a key comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeySource {
    /// A secret in a file, which is read without its filesystem.
    File(FileKey),
    /// Something that somebody knows.
    Passphrase(PassphraseKey),
    /// The machine's TPM, for as long as the machine boots as it did.
    Tpm2(TpmKey),
}

/// The kind of a key, as a number. It is also that of the wrapped keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u16)]
pub enum KeyKind {
    /// [`KeySource::File`].
    File = 1,
    /// [`KeySource::Passphrase`].
    Passphrase = 2,
    /// [`KeySource::Tpm2`].
    Tpm2 = 3,
}

/// A secret in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileKey {
    /// The block device under the file's filesystem, by a name that is the same in every kernel.
    pub device: String,
    /// Where on it the block with the secret is, in bytes.
    pub secret: u64,
    /// Where on it the block is that tells which save is expected, in bytes.
    pub expected: u64,
}

/// A pair of keys, the private half of which a passphrase opens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PassphraseKey {
    /// argon2id's salt.
    pub salt: [u8; 16],
    /// argon2id's memory, in KiB.
    pub memory_kib: u32,
    /// argon2id's passes.
    pub passes: u32,
    /// argon2id's lanes.
    pub lanes: u32,
    /// The public half, of X25519.
    pub public: [u8; 32],
    /// The private half, sealed with what argon2id makes of the passphrase.
    pub private: [u8; 48],
}

/// A pair of keys, the private half of which a TPM opens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TpmKey {
    /// The public half, of X25519.
    pub public: [u8; 32],
    /// The registers (PCRs) that must be as they were, a bit for each.
    pub pcrs: u32,
    /// The sealed object, as the TPM has made it: its private and its public part.
    pub blob: Vec<u8>,
}

impl KeySource {
    /// Its kind.
    #[must_use]
    pub fn kind(&self) -> KeyKind {
        match self {
            KeySource::File(_) => KeyKind::File,
            KeySource::Passphrase(_) => KeyKind::Passphrase,
            KeySource::Tpm2(_) => KeyKind::Tpm2,
        }
    }
}

impl KeyKind {
    /// The number that stands for it.
    #[must_use]
    pub fn number(self) -> u16 {
        self as u16
    }
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawKeys {
    image: [u8; 16],
    slots: U32,
    reserved: [u8; 20],
}

/// What each slot begins with.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawSlot {
    kind: U16,
    /// Of the content that follows, a multiple of 8.
    len: U16,
    id: U32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawFile {
    secret: U64,
    expected: U64,
    name_len: U16,
    reserved: [u8; 6],
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawPassphrase {
    salt: [u8; 16],
    memory_kib: U32,
    passes: U32,
    lanes: U32,
    reserved: [u8; 4],
    public: [u8; 32],
    private: [u8; 48],
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawTpm {
    public: [u8; 32],
    pcrs: U32,
    blob_len: U16,
    reserved: [u8; 2],
}

const _: () = assert!(size_of::<RawKeys>() == 40 && size_of::<RawSlot>() == 8 && size_of::<RawFile>() == 24);
const _: () = assert!(size_of::<RawPassphrase>() == 112 && size_of::<RawTpm>() == 40);

impl Keys {
    /// No keys yet.
    #[must_use]
    pub fn none(image: Uuid) -> Keys {
        Keys { image, slots: Vec::new() }
    }

    /// The block of keys.
    ///
    /// # Errors
    /// [`FormatError`]: values that [`Keys::decode`] would refuse, or more than a block holds.
    pub fn encode(&self) -> Result<Vec<u8>, FormatError> {
        self.check()?;
        // At most KEYS_MAX.
        let slots = u32::try_from(self.slots.len()).unwrap_or(u32::MAX);
        let raw = RawKeys { image: self.image.0, slots: slots.into(), reserved: [0; 20] };
        let mut body = raw.as_bytes().to_vec();
        for slot in &self.slots {
            let content = content_of(&slot.source);
            let len = u16::try_from(content.len()).map_err(|_| wrong("slot's length", u64::MAX, "less than 64 KiB"))?;
            let raw = RawSlot { kind: slot.source.kind().number().into(), len: len.into(), id: slot.id.into() };
            body.extend(raw.as_bytes());
            body.extend(content);
        }
        block::frame_since(1, Block::Keys, KEYS_MAGIC, &body, BLOCK)
    }

    /// Reads the block of keys.
    ///
    /// # Errors
    /// [`FormatError::Magic`] where there is none; otherwise what is wrong with it.
    pub fn decode(bytes: &[u8]) -> Result<Keys, FormatError> {
        let frame = block::unframe(Block::Keys, KEYS_MAGIC, bytes, BLOCK)?;
        let (raw, mut rest) = RawKeys::ref_from_prefix(frame.body).map_err(|_| FormatError::Magic(Block::Keys))?;
        frame.zero("a reserved field", &raw.reserved)?;
        let count = raw.slots.get() as usize;
        if count > KEYS_MAX {
            return Err(frame.field("number of slots", count as u64, MOST));
        }
        let mut slots = Vec::with_capacity(count);
        for _ in 0..count {
            let short = |needed: usize, got: usize| FormatError::Truncated { block: Block::Keys, needed, got };
            let (raw, after) = RawSlot::ref_from_prefix(rest).map_err(|_| short(size_of::<RawSlot>(), rest.len()))?;
            let len = usize::from(raw.len.get());
            if !len.is_multiple_of(8) {
                return Err(frame.field("slot's length", len as u64, "a multiple of 8"));
            }
            let (content, after) = after.split_at_checked(len).ok_or_else(|| short(len, after.len()))?;
            rest = after;
            slots.push(KeySlot { id: raw.id.get(), source: source(&frame, raw.kind.get(), content)? });
        }
        frame.zero("padding that is not zero", rest)?;
        let keys = Keys { image: Uuid(raw.image), slots };
        keys.check()?;
        Ok(keys)
    }

    /// The slot with this number.
    #[must_use]
    pub fn slot(&self, id: u32) -> Option<&KeySlot> {
        self.slots.iter().find(|slot| slot.id == id)
    }

    /// The lowest number that no slot has.
    #[must_use]
    pub fn free_id(&self) -> u32 {
        (1..).find(|id| self.slot(*id).is_none()).unwrap_or(u32::MAX)
    }

    /// The rules that the values must keep.
    fn check(&self) -> Result<(), FormatError> {
        if self.slots.len() > KEYS_MAX {
            return Err(wrong("number of slots", self.slots.len() as u64, MOST));
        }
        for (at, slot) in self.slots.iter().enumerate() {
            if slot.id == 0 || self.slots[..at].iter().any(|other| other.id == slot.id) {
                return Err(wrong("slot's number", slot.id.into(), "not 0, and that of no other slot"));
            }
            match &slot.source {
                KeySource::File(file) => file.check()?,
                KeySource::Passphrase(passphrase) => passphrase.check()?,
                KeySource::Tpm2(tpm) => tpm.check()?,
            }
        }
        Ok(())
    }
}

const MOST: &str = "at most 8";

fn wrong(field: &'static str, value: u64, why: &'static str) -> FormatError {
    FormatError::Field { block: Block::Keys, field, value, why }
}

impl FileKey {
    fn check(&self) -> Result<(), FormatError> {
        let is_named = (1..=NAME_MAX).contains(&self.device.len()) && !self.device.contains(char::is_control);
        if !is_named {
            let why = "that of 1 to 256 bytes without control characters";
            return Err(wrong("device name's length", self.device.len() as u64, why));
        }
        for (field, offset) in [("secret's offset", self.secret), ("expected save's offset", self.expected)] {
            if !offset.is_multiple_of(BLOCK as u64) || offset >= 1 << 62 {
                return Err(wrong(field, offset, "a multiple of 4096 below 2^62"));
            }
        }
        if self.secret == self.expected {
            return Err(wrong("expected save's offset", self.expected, "not the secret's"));
        }
        Ok(())
    }
}

impl PassphraseKey {
    fn check(&self) -> Result<(), FormatError> {
        for (field, value, [min, max], why) in [
            ("memory for a passphrase", self.memory_kib, MEMORY, "8192 to 4194304 KiB"),
            ("passes for a passphrase", self.passes, PASSES, "1 to 64"),
            ("lanes for a passphrase", self.lanes, LANES, "1 to 16"),
        ] {
            if !(min..=max).contains(&value) {
                return Err(wrong(field, value.into(), why));
            }
        }
        Ok(())
    }
}

impl TpmKey {
    fn check(&self) -> Result<(), FormatError> {
        if self.pcrs == 0 || self.pcrs >= PCRS {
            return Err(wrong("registers of the TPM", self.pcrs.into(), "at least one of the first 24"));
        }
        if !(1..=BLOB_MAX).contains(&self.blob.len()) {
            return Err(wrong("length of the TPM's blob", self.blob.len() as u64, "1 to 1024"));
        }
        Ok(())
    }
}

/// A slot's content.
fn content_of(source: &KeySource) -> Vec<u8> {
    // The lengths were checked.
    let short = |len: usize| U16::new(u16::try_from(len).unwrap_or(u16::MAX));
    let mut content = Vec::new();
    match source {
        KeySource::File(file) => {
            let raw = RawFile {
                secret: file.secret.into(),
                expected: file.expected.into(),
                name_len: short(file.device.len()),
                reserved: [0; 6],
            };
            content.extend(raw.as_bytes());
            content.extend(file.device.as_bytes());
        }
        KeySource::Passphrase(key) => {
            let raw = RawPassphrase {
                salt: key.salt,
                memory_kib: key.memory_kib.into(),
                passes: key.passes.into(),
                lanes: key.lanes.into(),
                reserved: [0; 4],
                public: key.public,
                private: key.private,
            };
            content.extend(raw.as_bytes());
        }
        KeySource::Tpm2(key) => {
            let raw =
                RawTpm { public: key.public, pcrs: key.pcrs.into(), blob_len: short(key.blob.len()), reserved: [0; 2] };
            content.extend(raw.as_bytes());
            content.extend(&key.blob);
        }
    }
    content.resize(content.len().next_multiple_of(8), 0);
    content
}

/// What a slot's content means.
fn source(frame: &Frame<'_>, kind: u16, content: &[u8]) -> Result<KeySource, FormatError> {
    fn split<T: FromBytes + KnownLayout + Immutable + Unaligned>(content: &[u8]) -> Result<(&T, &[u8]), FormatError> {
        let (needed, got) = (size_of::<T>(), content.len());
        T::ref_from_prefix(content).map_err(|_| FormatError::Truncated { block: Block::Keys, needed, got })
    }
    let cut = |rest: &'_ [u8], len: usize| -> Result<Vec<u8>, FormatError> {
        let short = FormatError::Truncated { block: Block::Keys, needed: len, got: rest.len() };
        let (bytes, padding) = rest.split_at_checked(len).ok_or(short)?;
        frame.zero("padding that is not zero", padding)?;
        Ok(bytes.to_vec())
    };
    if kind == KeyKind::File.number() {
        let (raw, rest) = split::<RawFile>(content)?;
        frame.zero("a reserved field", &raw.reserved)?;
        let device = String::from_utf8(cut(rest, usize::from(raw.name_len.get()))?);
        let device = device.map_err(|_| FormatError::Text { block: Block::Keys, field: "device name" })?;
        return Ok(KeySource::File(FileKey { device, secret: raw.secret.get(), expected: raw.expected.get() }));
    }
    if kind == KeyKind::Passphrase.number() {
        let (raw, rest) = split::<RawPassphrase>(content)?;
        frame.zero("a reserved field", &raw.reserved)?;
        frame.zero("more than a passphrase's key", rest)?;
        return Ok(KeySource::Passphrase(PassphraseKey {
            salt: raw.salt,
            memory_kib: raw.memory_kib.get(),
            passes: raw.passes.get(),
            lanes: raw.lanes.get(),
            public: raw.public,
            private: raw.private,
        }));
    }
    if kind == KeyKind::Tpm2.number() {
        let (raw, rest) = split::<RawTpm>(content)?;
        frame.zero("a reserved field", &raw.reserved)?;
        let blob = cut(rest, usize::from(raw.blob_len.get()))?;
        return Ok(KeySource::Tpm2(TpmKey { public: raw.public, pcrs: raw.pcrs.get(), blob }));
    }
    Err(frame.newer("a kind of key"))
}
