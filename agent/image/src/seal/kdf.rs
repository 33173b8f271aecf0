//! HMAC-SHA256 (RFC 2104), and HKDF-SHA256 (RFC 5869) for one key at a time.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use zeroize::Zeroizing;

use super::KEY;

/// The block of SHA-256.
const BLOCK: usize = 64;

fn keyed(key: &[u8; KEY]) -> Hmac<Sha256> {
    // A key shorter than a block is padded with zeroes: so the RFC has it.
    let mut padded = Zeroizing::new([0; BLOCK]);
    padded[..KEY].copy_from_slice(key);
    Hmac::new((&*padded).into())
}

fn of(mut mac: Hmac<Sha256>, parts: &[&[u8]]) -> Zeroizing<[u8; KEY]> {
    parts.iter().for_each(|part| mac.update(part));
    Zeroizing::new(mac.finalize().into_bytes().into())
}

/// The HMAC of `parts`, one after another.
#[must_use]
pub fn hmac(key: &[u8; KEY], parts: &[&[u8]]) -> Zeroizing<[u8; KEY]> {
    of(keyed(key), parts)
}

/// A key of `secret`, salted with `salt`, for the purpose that `info` names, its parts one after another.
///
/// Where a part has no fixed length, it must come last or after its length.
#[must_use]
pub fn hkdf(salt: &[u8; 16], secret: &[u8], info: &[&[u8]]) -> Zeroizing<[u8; KEY]> {
    let mut padded = Zeroizing::new([0; KEY]);
    padded[..salt.len()].copy_from_slice(salt);
    let extracted = hmac(&padded, &[secret]);
    let mut mac = keyed(&extracted);
    info.iter().for_each(|part| mac.update(part));
    // The first and only block of the expansion.
    of(mac, &[&[1]])
}

/// Whether `found` is the HMAC of `parts`, in a time that does not depend on where they differ.
pub(super) fn is_hmac(key: &[u8; KEY], parts: &[&[u8]], found: &[u8; KEY]) -> bool {
    let mut mac = keyed(key);
    parts.iter().for_each(|part| mac.update(part));
    mac.verify_slice(found).is_ok()
}
