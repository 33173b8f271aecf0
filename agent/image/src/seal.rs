//! Sealing: what an image says of a session is encrypted and authenticated, under a key that lives for one save.
//!
//! ```text
//! K0, N                    random, made in A for each save; K0 never reaches the device
//!  |    HKDF-SHA256 with N as its salt, the suite, the image and the save as its context
//!  +--> data               chunks
//!  +--> meta               header and index blocks
//!  +--> mac                commit record (HMAC-SHA256)
//!
//! commit record --mac--> tag of the header, tag of the last index block --> tag of the one before --> ... --> chunks
//! ```
//!
//! Nothing of a sealed image but label and commit record, which have a fixed form, is looked at before it is found to
//! be what a holder of the key has written. The commit record has K0 for each key slot, wrapped by that slot's own key.
//!
//! No I/O and no randomness here: keys and nonces come from the caller. Everything that holds a key overwrites it when
//! it is dropped.

mod cipher;
mod kdf;
mod schedule;
mod wrap;

use std::fmt;
use std::hint::black_box;

use zeroize::{Zeroize, Zeroizing};

pub use kdf::{hkdf, hmac};
pub use schedule::{Forged, Opener, Sealer};
pub use wrap::{WRAP, Wrap, unwrap, wrap};

use crate::{FormatError, Uuid};

/// The length of each key in bytes.
pub const KEY: usize = 32;

/// The most wrapped keys in an image.
pub const WRAPS_MAX: usize = 8;

/// What authenticates a block or a chunk.
pub type Tag = [u8; 16];

/// K0: the key of one save, from which all others follow. Overwritten when dropped, and printed by nothing.
pub struct SaveKey(Box<Zeroizing<[u8; KEY]>>);

impl SaveKey {
    /// The key of these bytes; the caller overwrites its own copy of them.
    #[must_use]
    pub fn new(bytes: &[u8; KEY]) -> SaveKey {
        // In its place before it has a content: a move would leave a copy.
        let mut key = Box::new(Zeroizing::new([0; KEY]));
        key.copy_from_slice(bytes);
        SaveKey(key)
    }

    /// Its bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8; KEY] {
        &self.0
    }
}

impl Clone for SaveKey {
    fn clone(&self) -> SaveKey {
        SaveKey::new(self.bytes())
    }
}

impl PartialEq for SaveKey {
    /// In a time that does not depend on where they differ.
    fn eq(&self, other: &SaveKey) -> bool {
        let differs = self.0.iter().zip(other.0.iter()).fold(0, |differs, (a, b)| black_box(differs | (a ^ b)));
        differs == 0
    }
}

impl Eq for SaveKey {}

impl fmt::Debug for SaveKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SaveKey(..)")
    }
}

/// N: random, in the open, one for each save: the salt of the key schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Nonce(pub [u8; 16]);

/// How chunks and blocks are encrypted and authenticated. Both have keys of 32 bytes and tags of 16.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suite {
    /// AES-256-GCM.
    Aes256Gcm,
    /// ChaCha20-Poly1305 (RFC 8439), for CPUs without instructions for AES.
    ChaCha20Poly1305,
}

impl Suite {
    /// The one that this CPU does best.
    #[must_use]
    pub fn of_this_cpu() -> Suite {
        #[cfg(target_arch = "x86_64")]
        if !(std::arch::is_x86_feature_detected!("aes") && std::arch::is_x86_feature_detected!("pclmulqdq")) {
            return Suite::ChaCha20Poly1305;
        }
        Suite::Aes256Gcm
    }

    /// Its number in the format.
    #[must_use]
    pub const fn number(self) -> u16 {
        match self {
            Suite::Aes256Gcm => 1,
            Suite::ChaCha20Poly1305 => 2,
        }
    }

    /// The suite of this number.
    #[must_use]
    pub fn from_number(number: u16) -> Option<Suite> {
        [Suite::Aes256Gcm, Suite::ChaCha20Poly1305].into_iter().find(|suite| suite.number() == number)
    }
}

impl fmt::Display for Suite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Suite::Aes256Gcm => "AES-256-GCM",
            Suite::ChaCha20Poly1305 => "ChaCha20-Poly1305",
        })
    }
}

/// One save of one image: what its keys are made for, and of no use to any other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Save {
    /// The image's identity.
    pub image: Uuid,
    /// The save's.
    pub save_id: Uuid,
    /// The save's nonce.
    pub nonce: Nonce,
}

/// With what a save is sealed: A makes it, B uses it once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealing {
    /// The save's key.
    pub key: SaveKey,
    /// Its nonce.
    pub nonce: Nonce,
    /// How.
    pub suite: Suite,
    /// The key again, once for each key slot, wrapped; at most [`WRAPS_MAX`].
    pub wraps: Vec<Wrap>,
}

/// Before its wraps: key, nonce, suite, number of wraps, four reserved bytes.
const SEALING: usize = KEY + 16 + 2 + 2 + 4;

impl Sealing {
    /// Its bytes, as an order has them.
    ///
    /// # Errors
    /// [`FormatError::Field`] where there are too many wraps.
    pub fn encode(&self) -> Result<Zeroizing<Vec<u8>>, FormatError> {
        let count = wrap::count(&self.wraps)?;
        // Without a second allocation, which would leave a copy.
        let mut bytes = Zeroizing::new(Vec::with_capacity(SEALING + WRAPS_MAX * WRAP));
        bytes.extend(self.key.bytes());
        bytes.extend(self.nonce.0);
        bytes.extend(self.suite.number().to_le_bytes());
        bytes.extend(count.to_le_bytes());
        bytes.extend([0; 4]);
        self.wraps.iter().for_each(|wrap| bytes.extend(wrap.encode()));
        Ok(bytes)
    }

    /// What [`Sealing::encode`] made. `None` where it is something else.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Sealing> {
        let (key, rest) = bytes.split_first_chunk::<KEY>()?;
        let (nonce, rest) = rest.split_first_chunk::<16>()?;
        let ([s0, s1, c0, c1, 0, 0, 0, 0], rest) = rest.split_first_chunk::<8>()? else { return None };
        let suite = Suite::from_number(u16::from_le_bytes([*s0, *s1]))?;
        let count = usize::from(u16::from_le_bytes([*c0, *c1]));
        if count > WRAPS_MAX || rest.len() != count * WRAP {
            return None;
        }
        let wraps = rest.chunks_exact(WRAP).map(Wrap::decode).collect::<Option<Vec<Wrap>>>()?;
        Some(Sealing { key: SaveKey::new(key), nonce: Nonce(*nonce), suite, wraps })
    }
}

/// What a sealed image's commit record has of it beside the tags: all zero but the suite where the key was wiped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seal {
    /// How it is sealed.
    pub suite: Suite,
    /// The save's nonce.
    pub nonce: Nonce,
    /// What authenticates the commit record.
    pub mac: [u8; 32],
    /// The save's key, wrapped for each key slot.
    pub wraps: Vec<Wrap>,
}

impl Seal {
    /// That of a record of an image whose key is not in it.
    #[must_use]
    pub fn without_key(suite: Suite) -> Seal {
        Seal { suite, nonce: Nonce::default(), mac: [0; 32], wraps: Vec::new() }
    }

    /// Without all from which the key could be had again.
    #[must_use]
    pub fn wiped(&self) -> Seal {
        Seal::without_key(self.suite)
    }

    /// Whether the key was wiped, and nothing opens the image any more.
    #[must_use]
    pub fn is_wiped(&self) -> bool {
        *self == self.wiped()
    }
}

/// Overwrites what calls that have returned have left below this one on the stack: ciphers keep parts of their keys
/// there. To be called at the end of a thread that has used one.
#[inline(never)]
pub fn scrub_stack() {
    let mut room = [0_u8; 32 << 10];
    room.zeroize();
    black_box(&room);
}

#[cfg(test)]
mod tests;
