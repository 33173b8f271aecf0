//! The two ciphers behind one interface: in place, with the tag apart.

use dormouse_sys::wiped::Wiped;
use ring::aead::{AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};

use super::{KEY, Suite, Tag, scrub_stack};

/// A cipher with its key, overwritten when dropped. Its nonces are the caller's affair.
pub(super) struct Cipher(Wiped<LessSafeKey>);

/// What a cipher is asked to do cannot be done: the seal does not fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Unfit;

impl From<ring::error::Unspecified> for Unfit {
    fn from(_: ring::error::Unspecified) -> Unfit {
        Unfit
    }
}

/// A nonce: its kind, and a number that is used once.
pub(super) fn nonce(kind: u32, number: u64) -> [u8; 12] {
    let mut nonce = [0; 12];
    nonce[..4].copy_from_slice(&kind.to_le_bytes());
    nonce[4..].copy_from_slice(&number.to_le_bytes());
    nonce
}

impl Cipher {
    /// The cipher of `suite` with `key`.
    ///
    /// # Errors
    /// None with keys of this length.
    pub(super) fn new(suite: Suite, key: &[u8; KEY]) -> Result<Cipher, Unfit> {
        let cipher = Cipher::with_traces(suite, key);
        scrub_stack();
        cipher
    }

    /// Leaves what was made of the key on the stack.
    #[inline(never)]
    fn with_traces(suite: Suite, key: &[u8; KEY]) -> Result<Cipher, Unfit> {
        let algorithm = match suite {
            Suite::Aes256Gcm => &AES_256_GCM,
            Suite::ChaCha20Poly1305 => &CHACHA20_POLY1305,
        };
        Ok(Cipher(Wiped::new(LessSafeKey::new(UnboundKey::new(algorithm, key)?))))
    }

    /// Encrypts `bytes` in place.
    pub(super) fn seal(&self, nonce: [u8; 12], about: &[u8], bytes: &mut [u8]) -> Result<Tag, Unfit> {
        let nonce = Nonce::assume_unique_for_key(nonce);
        // Fails for more than 64 GiB only.
        let tag = self.0.seal_in_place_separate_tag(nonce, Aad::from(about), bytes)?;
        tag.as_ref().try_into().map_err(|_| Unfit)
    }

    /// Decrypts `bytes` in place, if they are what was sealed; otherwise they are of no use.
    pub(super) fn open(&self, nonce: [u8; 12], about: &[u8], bytes: &mut [u8], tag: &Tag) -> Result<(), Unfit> {
        let nonce = Nonce::assume_unique_for_key(nonce);
        self.0.open_in_place_separate_tag(nonce, Aad::from(about), (*tag).into(), bytes, 0..)?;
        Ok(())
    }
}
