//! HMAC-SHA256 (RFC 2104), and HKDF-SHA256 (RFC 5869) for one key at a time.

use dormouse_sys::wiped::Wiped;
use ring::hmac::{Context, HMAC_SHA256, Key, verify};
use zeroize::Zeroizing;

use super::{KEY, scrub_stack};

fn keyed(key: &[u8; KEY]) -> Wiped<Key> {
    Wiped::new(Key::new(HMAC_SHA256, key))
}

/// The HMAC of `parts`, one after another.
#[must_use]
pub fn hmac(key: &[u8; KEY], parts: &[&[u8]]) -> Zeroizing<[u8; KEY]> {
    let mac = hmac_with_traces(key, parts);
    scrub_stack();
    mac
}

/// Leaves what was made of the key on the stack.
#[inline(never)]
fn hmac_with_traces(key: &[u8; KEY], parts: &[&[u8]]) -> Zeroizing<[u8; KEY]> {
    let mut context = Context::with_key(&keyed(key));
    parts.iter().for_each(|part| context.update(part));
    let mut mac = Zeroizing::new([0; KEY]);
    mac.copy_from_slice(context.sign().as_ref());
    mac
}

/// A key of `secret`, salted with `salt`, for the purpose that `info` names, its parts one after another.
///
/// Where a part has no fixed length, it must come last or after its length.
#[must_use]
pub fn hkdf(salt: &[u8; 16], secret: &[u8], info: &[&[u8]]) -> Zeroizing<[u8; KEY]> {
    // A key shorter than a block is padded with zeroes: so the RFC has it.
    let mut padded = Zeroizing::new([0; KEY]);
    padded[..salt.len()].copy_from_slice(salt);
    let extracted = hmac(&padded, &[secret]);
    // The first and only block of the expansion.
    hmac(&extracted, &[info, &[&[1]]].concat())
}

/// Whether `found` is the HMAC of `message`, in a time that does not depend on where they differ.
pub(super) fn is_hmac(key: &[u8; KEY], message: &[u8], found: &[u8; KEY]) -> bool {
    let is_it = is_hmac_with_traces(key, message, found);
    scrub_stack();
    is_it
}

#[inline(never)]
fn is_hmac_with_traces(key: &[u8; KEY], message: &[u8], found: &[u8; KEY]) -> bool {
    verify(&keyed(key), message, found).is_ok()
}
