//! The keys that follow from a save's key, and what is done with them.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use thiserror::Error;
use zeroize::Zeroizing;

use super::cipher::{Cipher, nonce};
use super::{KEY, Save, SaveKey, Seal, Sealing, Suite, Wrap, hkdf, hmac, kdf, wrap};
use crate::error::{Block, FormatError};
use crate::layout::HEADER_OFFSET;
use crate::{BLOCK, Chunk, Commit, Header, IndexBlock, Locator, Uuid, checksum};

/// The first part of a nonce: what it is for.
const OF_CHUNK: u32 = 0;
const OF_HEADER: u32 = 1;
const OF_INDEX: u32 = 2;

/// A chunk's seal does not fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("its seal does not fit: it is damaged or forged")]
pub struct Forged;

/// The keys of one save.
struct Keys {
    save: Save,
    suite: Suite,
    data: Cipher,
    meta: Cipher,
    mac: Box<Zeroizing<[u8; KEY]>>,
}

impl Keys {
    fn new(key: &SaveKey, save: Save, suite: Suite) -> Result<Keys, FormatError> {
        let number = suite.number().to_le_bytes();
        let derive = |purpose: &[u8]| {
            hkdf(&save.nonce.0, key.bytes(), &[b"dormouse 1 ", purpose, &number, &save.image.0, &save.save_id.0])
        };
        let mut mac = Box::new(Zeroizing::new([0; KEY]));
        mac.copy_from_slice(&derive(b"mac ")[..]);
        let cipher = |purpose| Cipher::new(suite, &derive(purpose)).map_err(|_| FormatError::Cipher);
        let (data, meta) = (cipher(b"data")?, cipher(b"meta")?);
        Ok(Keys { save, suite, data, meta, mac })
    }

    /// What is authenticated of a chunk beside its bytes.
    fn about_chunk(chunk: &Chunk, pages: usize) -> [u8; 8] {
        let mut about = [0; 8];
        about[..2].copy_from_slice(&chunk.codec.number().to_le_bytes());
        // At most 64.
        about[2..4].copy_from_slice(&u16::try_from(pages).unwrap_or(u16::MAX).to_le_bytes());
        about[4..].copy_from_slice(&chunk.stored_len.to_le_bytes());
        about
    }

    /// The nonce of a block: at each place one is sealed in a save.
    fn of_block(block: Block, offset: u64) -> [u8; 12] {
        nonce(if block == Block::Header { OF_HEADER } else { OF_INDEX }, offset / BLOCK as u64)
    }
}

/// Seals one save. Its counter keeps a nonce from being used again, so there is no second one for the same key.
pub struct Sealer {
    keys: Arc<Keys>,
    wraps: Vec<Wrap>,
    /// The number of the next chunk, from 1: 0 is a chunk that is not sealed.
    next: AtomicU64,
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sealer").field("suite", &self.keys.suite).finish_non_exhaustive()
    }
}

impl Sealer {
    /// Seals the save `save_id` of `image`.
    ///
    /// # Errors
    /// [`FormatError::Field`] where there are too many wraps.
    pub fn new(sealing: &Sealing, image: Uuid, save_id: Uuid) -> Result<Sealer, FormatError> {
        wrap::count(&sealing.wraps)?;
        let save = Save { image, save_id, nonce: sealing.nonce };
        let keys = Arc::new(Keys::new(&sealing.key, save, sealing.suite)?);
        Ok(Sealer { keys, wraps: sealing.wraps.clone(), next: AtomicU64::new(1) })
    }

    /// How it seals.
    #[must_use]
    pub fn suite(&self) -> Suite {
        self.keys.suite
    }

    /// Encrypts the stored bytes of a chunk of `pages` pages in place, and notes its number and tag.
    ///
    /// # Errors
    /// [`FormatError::Cipher`], which does not happen.
    pub fn chunk(&self, chunk: &mut Chunk, pages: usize, bytes: &mut [u8]) -> Result<(), FormatError> {
        let counter = self.next.fetch_add(1, Ordering::Relaxed);
        let about = Keys::about_chunk(chunk, pages);
        chunk.tag = self.keys.data.seal(nonce(OF_CHUNK, counter), &about, bytes).map_err(|_| FormatError::Cipher)?;
        chunk.counter = counter;
        Ok(())
    }

    /// Encrypts a header or an index block in place, for its place at `offset`.
    ///
    /// # Errors
    /// [`FormatError::TooLarge`] where `bytes` are longer than any block.
    pub fn block(&self, block: Block, offset: u64, bytes: &mut [u8]) -> Result<Locator, FormatError> {
        let mut locator = Locator::of(block, offset, bytes)?;
        let about = locator.len.to_le_bytes();
        let sealed = self.keys.meta.seal(Keys::of_block(block, offset), &about, bytes);
        locator.tag = sealed.map_err(|_| FormatError::Cipher)?;
        locator.checksum = checksum(bytes);
        Ok(locator)
    }

    /// The sealed block of a header.
    ///
    /// # Errors
    /// Those of [`Header::encode`].
    pub fn header(&self, header: &Header) -> Result<(Vec<u8>, Locator), FormatError> {
        let mut bytes = header.encode()?;
        let locator = self.block(Block::Header, HEADER_OFFSET, &mut bytes)?;
        Ok((bytes, locator))
    }

    /// The same commit record, authenticated, with what a holder of the key needs to open the image.
    ///
    /// # Errors
    /// Those of [`Commit::encode`].
    pub fn commit(&self, commit: Commit) -> Result<Commit, FormatError> {
        let (suite, nonce) = (self.keys.suite, self.keys.save.nonce);
        let mut seal = Seal { suite, nonce, mac: [0; 32], wraps: self.wraps.clone() };
        let commit = Commit { seal: Some(seal.clone()), ..commit };
        seal.mac = *hmac(&self.keys.mac, &[&commit.authenticated()?]);
        Ok(Commit { seal: Some(seal), ..commit })
    }

    /// Opens what this has sealed, if `commit` is the record of it.
    ///
    /// # Errors
    /// Those of [`Opener::new`].
    pub fn opener(&self, commit: &Commit) -> Result<Opener, FormatError> {
        let seal = commit.seal.as_ref().ok_or(FormatError::NotSealed)?;
        Opener::of(Arc::clone(&self.keys), commit, seal)
    }
}

/// Opens one save, whose commit record it has found to be the key holder's.
pub struct Opener(Arc<Keys>);

impl fmt::Debug for Opener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Opener").field(&self.0.suite).finish()
    }
}

impl Opener {
    /// Opens the save that `commit` describes.
    ///
    /// # Errors
    /// [`FormatError::NotSealed`], [`FormatError::KeyWiped`]; [`FormatError::Forged`] where the record is not what a
    /// holder of `key` has written.
    pub fn new(commit: &Commit, key: &SaveKey) -> Result<Opener, FormatError> {
        let seal = commit.seal.as_ref().ok_or(FormatError::NotSealed)?;
        if seal.is_wiped() {
            return Err(FormatError::KeyWiped(commit.state));
        }
        let save = Save { image: commit.image, save_id: commit.save_id, nonce: seal.nonce };
        Opener::of(Arc::new(Keys::new(key, save, seal.suite)?), commit, seal)
    }

    fn of(keys: Arc<Keys>, commit: &Commit, seal: &Seal) -> Result<Opener, FormatError> {
        if !kdf::is_hmac(&keys.mac, &commit.authenticated()?, &seal.mac) {
            return Err(FormatError::Forged(Block::Commit));
        }
        Ok(Opener(keys))
    }

    /// How it is sealed.
    #[must_use]
    pub fn suite(&self) -> Suite {
        self.0.suite
    }

    /// Decrypts the stored bytes of a chunk of `pages` pages in place.
    ///
    /// # Errors
    /// They are not what was sealed: then they must not be used.
    pub fn chunk(&self, chunk: &Chunk, pages: usize, bytes: &mut [u8]) -> Result<(), Forged> {
        let about = Keys::about_chunk(chunk, pages);
        self.0.data.open(nonce(OF_CHUNK, chunk.counter), &about, bytes, &chunk.tag).map_err(|_| Forged)
    }

    /// Decrypts a header or an index block in place, which is what `locator` has authenticated.
    fn block(&self, block: Block, locator: &Locator, bytes: &mut [u8]) -> Result<(), FormatError> {
        let computed = checksum(bytes);
        if bytes.len() != locator.len as usize {
            return Err(FormatError::Truncated { block, needed: locator.len as usize, got: bytes.len() });
        }
        if computed != locator.checksum {
            return Err(FormatError::Checksum { block, found: locator.checksum, computed });
        }
        let about = locator.len.to_le_bytes();
        let opened = self.0.meta.open(Keys::of_block(block, locator.offset), &about, bytes, &locator.tag);
        opened.map_err(|_| FormatError::Forged(block))
    }

    /// Opens the header that lies in `bytes`.
    ///
    /// # Errors
    /// [`FormatError::Checksum`], [`FormatError::Forged`], and those of [`Header::decode`].
    pub fn header(&self, locator: &Locator, bytes: &mut [u8]) -> Result<Header, FormatError> {
        self.block(Block::Header, locator, bytes)?;
        Header::decode(bytes)
    }

    /// Opens the index block that lies in `bytes`.
    ///
    /// # Errors
    /// [`FormatError::Checksum`], [`FormatError::Forged`], and those of [`IndexBlock::decode`].
    pub fn index(&self, locator: &Locator, bytes: &mut [u8]) -> Result<IndexBlock, FormatError> {
        self.block(Block::Index, locator, bytes)?;
        IndexBlock::decode_sealed(bytes, locator.offset)
    }
}
