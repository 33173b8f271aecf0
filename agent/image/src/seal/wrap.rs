//! The save's key, wrapped by the key of a key slot.

use zerocopy::byteorder::little_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};
use zeroize::Zeroizing;

use super::cipher::{Cipher, Unfit, nonce};
use super::{KEY, Save, SaveKey, Suite, WRAPS_MAX, hkdf};
use crate::error::{Block, FormatError};

/// The length of a wrapped key in the format.
pub const WRAP: usize = 96;

/// What the key that wraps is made for.
const PURPOSE: &[u8] = b"dormouse 1 wrap";

/// K0 for a holder of one slot's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wrap {
    /// Which slot: its identifier in the block of keys.
    pub slot: u32,
    /// What kind of slot.
    pub kind: u32,
    /// The public half of a key pair made for this save, where the kind of slot has one.
    pub ephemeral: [u8; 32],
    /// The key, encrypted, and its tag.
    pub sealed: [u8; 48],
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawWrap {
    slot: U32,
    kind: U32,
    ephemeral: [u8; 32],
    sealed: [u8; 48],
    reserved: [u8; 8],
}

const _: () = assert!(size_of::<RawWrap>() == WRAP);

impl Wrap {
    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; WRAP] {
        let Wrap { slot, kind, ephemeral, sealed } = *self;
        let raw = RawWrap { slot: slot.into(), kind: kind.into(), ephemeral, sealed, reserved: [0; 8] };
        zerocopy::transmute!(raw)
    }

    /// What [`Wrap::encode`] made. `None` where it is something else.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Wrap> {
        let raw = RawWrap::ref_from_bytes(bytes).ok()?;
        let (slot, kind) = (raw.slot.get(), raw.kind.get());
        let wrap = Wrap { slot, kind, ephemeral: raw.ephemeral, sealed: raw.sealed };
        (raw.reserved == [0; 8]).then_some(wrap)
    }
}

/// The number of wraps, if it is not too large.
pub(super) fn count(wraps: &[Wrap]) -> Result<u16, FormatError> {
    let why = "at most 8";
    let error = FormatError::Field { block: Block::Commit, field: "number of wraps", value: wraps.len() as u64, why };
    u16::try_from(wraps.len()).ok().filter(|_| wraps.len() <= WRAPS_MAX).ok_or(error)
}

/// The cipher for one wrap, whose key is used for nothing else: not even where `kek` is the same for every save.
fn cipher(kek: &[u8; KEY], save: &Save, slot: u32, kind: u32, ephemeral: &[u8; 32]) -> Result<Cipher, Unfit> {
    let (slot, kind) = (slot.to_le_bytes(), kind.to_le_bytes());
    let info: [&[u8]; 6] = [PURPOSE, &save.image.0, &save.save_id.0, &slot, &kind, ephemeral];
    Cipher::new(Suite::Aes256Gcm, &hkdf(&save.nonce.0, kek, &info))
}

/// Wraps the key of `save` by `kek`, the key of slot number `slot`, which a holder of the slot's secret can make again.
///
/// # Errors
/// [`FormatError::Cipher`], which does not happen.
pub fn wrap(
    kek: &[u8; KEY],
    save: &Save,
    slot: u32,
    kind: u32,
    ephemeral: [u8; 32],
    key: &SaveKey,
) -> Result<Wrap, FormatError> {
    let mut sealed = Zeroizing::new([0; KEY]);
    sealed.copy_from_slice(key.bytes());
    let cipher = cipher(kek, save, slot, kind, &ephemeral);
    let tag = cipher.and_then(|cipher| cipher.seal(nonce(0, 0), &[], &mut sealed[..]));
    let tag = tag.map_err(|_| FormatError::Cipher)?;
    let mut wrap = Wrap { slot, kind, ephemeral, sealed: [0; 48] };
    wrap.sealed[..KEY].copy_from_slice(&sealed[..]);
    wrap.sealed[KEY..].copy_from_slice(&tag);
    Ok(wrap)
}

/// The key of `save` out of `wrap`, by the key of its slot. `None` where that is another one, or the wrap of another
/// save or not what was made.
#[must_use]
pub fn unwrap(kek: &[u8; KEY], save: &Save, wrap: &Wrap) -> Option<SaveKey> {
    let (sealed, tag) = wrap.sealed.split_first_chunk::<KEY>()?;
    let mut key = Zeroizing::new(*sealed);
    let cipher = cipher(kek, save, wrap.slot, wrap.kind, &wrap.ephemeral).ok()?;
    cipher.open(nonce(0, 0), &[], &mut key[..], tag.try_into().ok()?).ok()?;
    Some(SaveKey::new(&key))
}
