//! The two ciphers behind one interface: in place, with the tag apart.

use aes_gcm::aead::AeadInOut;
use aes_gcm::{Aes256Gcm, KeyInit};
use chacha20poly1305::ChaCha20Poly1305;

use super::{KEY, Suite, Tag};

/// A cipher with its key. On the heap, so that no move leaves a copy of it; overwritten when dropped.
pub(super) enum Cipher {
    Aes(Box<Aes256Gcm>),
    ChaCha(Box<ChaCha20Poly1305>),
}

/// What a cipher is asked to do cannot be done: the seal does not fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Unfit;

/// A nonce: its kind, and a number that is used once.
pub(super) fn nonce(kind: u32, number: u64) -> [u8; 12] {
    let mut nonce = [0; 12];
    nonce[..4].copy_from_slice(&kind.to_le_bytes());
    nonce[4..].copy_from_slice(&number.to_le_bytes());
    nonce
}

impl Cipher {
    pub(super) fn new(suite: Suite, key: &[u8; KEY]) -> Cipher {
        match suite {
            Suite::Aes256Gcm => Cipher::Aes(Box::new(Aes256Gcm::new(key.into()))),
            Suite::ChaCha20Poly1305 => Cipher::ChaCha(Box::new(ChaCha20Poly1305::new(key.into()))),
        }
    }

    /// Encrypts `bytes` in place.
    pub(super) fn seal(&self, nonce: [u8; 12], about: &[u8], bytes: &mut [u8]) -> Result<Tag, Unfit> {
        let nonce = &nonce.into();
        let sealed = match self {
            Cipher::Aes(cipher) => cipher.encrypt_inout_detached(nonce, about, bytes.into()),
            Cipher::ChaCha(cipher) => cipher.encrypt_inout_detached(nonce, about, bytes.into()),
        };
        // Fails for more than 64 GiB only.
        sealed.map(Into::into).map_err(|_| Unfit)
    }

    /// Decrypts `bytes` in place, if they are what was sealed; otherwise they stay encrypted or are of no use.
    pub(super) fn open(&self, nonce: [u8; 12], about: &[u8], bytes: &mut [u8], tag: &Tag) -> Result<(), Unfit> {
        let (nonce, tag) = (&nonce.into(), &(*tag).into());
        let opened = match self {
            Cipher::Aes(cipher) => cipher.decrypt_inout_detached(nonce, about, bytes.into(), tag),
            Cipher::ChaCha(cipher) => cipher.decrypt_inout_detached(nonce, about, bytes.into(), tag),
        };
        opened.map_err(|_| Unfit)
    }
}
