//! The keys of sealed images: made and kept in A, wrapped around the key of each save, and found again in C.
//!
//! ```text
//!   A   dormouse key add ──> slots: the image's block of keys     what C needs, open to everybody
//!                       └──> ring:  /var/lib/dormouse/keys        the same, and what only A needs; A goes by this one
//!   A   hibernate:  K0, N random; for each slot  K0 ──wrap by the slot's key──> commit record; K0 ──order──> B
//!   C   resume:     slot ──file, TPM or passphrase──> its key ──unwrap──> K0 ──MAC of the commit record──> D
//! ```
//!
//! | kind | its secret is | A has | C asks |
//! | --- | --- | --- | --- |
//! | file | 32 bytes in a file of a filesystem that is encrypted as a whole | the file | nothing: it reads the block |
//! | passphrase | a private key under argon2id | its public half, and a secret of its own as the sender | a person |
//! | tpm2 | a private key that the TPM seals, made at each boot | the same | the TPM |
//!
//! A writes no secret to the image. Whoever can write to the image can exchange its slots for others; A writes back
//! what its ring says before it wraps anything.

mod check;
mod file;
mod finder;
pub mod manage;
mod passphrase;
mod recipient;
mod ring;
mod tpm;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use dormouse_image::seal::{Nonce, Opener, Save, SaveKey, Sealing, Suite, wrap};
use dormouse_image::{FormatError, KeyKind, KeySlot, KeySource, Label, Uuid};
use dormouse_linux::ask::AskError;
use dormouse_linux::tpm::TpmError;
use thiserror::Error;
use zeroize::Zeroizing;

use crate::policy::{Policy, SealKey};
use crate::store::{Image, StoreError};
use crate::target::Target;

pub use check::{KeyFacts, check};
pub use file::Found as KeyFile;
pub use finder::{Finder, Means, OfThisBoot};
pub use ring::{Ring, read_keys};

/// Why an image is not sealed, or not opened.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum KeyError {
    /// It must be sealed, and there is no key for it.
    #[error("the image must be sealed ({why}), and it has no key for that")]
    NoKey {
        /// Why it must.
        why: String,
        /// The kind of key that is missing, where any will not do.
        kind: SealKey,
    },
    /// A slot of the image's block of keys is not one of this system's.
    #[error("the image's keys were made by another system, or the record of them ({}) is lost", .0.display())]
    Foreign(PathBuf),
    /// The file with the secret, or its place.
    #[error("the key file {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: anyhow::Error,
    },
    /// This system's record of keys.
    #[error("the record of the image's keys {}", path.display())]
    Ring {
        /// The record.
        path: PathBuf,
        /// What is wrong with it.
        source: anyhow::Error,
    },
    /// There is a session in the image, which the keys open.
    #[error("a session waits in the image, and these keys open it")]
    Waiting,
    /// There is no such slot.
    #[error("the image has no key {0}")]
    NoSlot(u32),
    /// There is one of this kind already.
    #[error("the image has a key of this kind already, number {0}")]
    Twice(u32),
    /// Nothing opens it.
    #[error("no key opens the image: {}", .0.join("; "))]
    NotOpened(Vec<String>),
    /// It is another save than the one that A has made last.
    #[error("it is not the save that is expected: an old copy of the image was put back, or the session went on")]
    Replayed,
    /// The passphrase is empty, or differs from the one that was typed first.
    #[error("{0}")]
    Passphrase(&'static str),
    /// Nobody can be asked.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// The TPM does not do it.
    #[error(transparent)]
    Tpm(#[from] TpmError),
    /// There is not enough memory for what a passphrase costs.
    #[error("a passphrase takes {needed} KiB of memory, of which {available} KiB are there")]
    Memory {
        /// What it takes.
        needed: u64,
        /// What there is.
        available: u64,
    },
    /// Random numbers, or the key function's own.
    #[error("no key can be made")]
    Make(#[source] anyhow::Error),
    /// The image is not what was sealed.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The image's blocks.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A secret of 32 bytes, overwritten when it is dropped, and printed by nothing.
pub(crate) struct Secret(Zeroizing<[u8; 32]>);

impl Secret {
    /// These bytes.
    fn new(bytes: [u8; 32]) -> Secret {
        Secret(Zeroizing::new(bytes))
    }

    /// Random ones.
    fn random() -> Result<Secret, KeyError> {
        let mut secret = Zeroizing::new([0; 32]);
        random(&mut secret[..])?;
        Ok(Secret(secret))
    }

    /// Its bytes.
    fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Fills `bytes` with random ones.
fn random(bytes: &mut [u8]) -> Result<(), KeyError> {
    dormouse_linux::procfs::fill_random(bytes).map_err(KeyError::Make)
}

/// Whether an image is not written or resumed unless it is sealed: the policy says so, or a server has it whom the
/// policy does not trust.
#[must_use]
pub fn must_be_sealed(policy: &Policy, image: &Image) -> bool {
    policy.image.key != SealKey::None || is_with_a_stranger(policy, image)
}

/// Whether a server has an image that could read it and change it, and may not.
fn is_with_a_stranger(policy: &Policy, image: &Image) -> bool {
    image.disk().remote().is_some() && !policy.image.trust_server
}

/// The kind of key that a save must have, and why it must have one.
fn demanded(policy: &Policy, image: &Image) -> Option<KeyError> {
    if policy.image.key == SealKey::None && is_with_a_stranger(policy, image) {
        let why = "a server has it, which could read all memory and change it: set image.trust_server = true if it, \
                   and whoever is on the way to it, may do that";
        return Some(KeyError::NoKey { why: why.to_owned(), kind: SealKey::None });
    }
    demanded_on_a_disk(policy.image.key, image.label())
}

/// The same of what is on a disk of this machine.
fn demanded_on_a_disk(key: SealKey, label: &Label) -> Option<KeyError> {
    let why = match key {
        SealKey::None if label.bypasses_encryption() => "it goes around the encryption that it lies under".to_owned(),
        SealKey::None => return None,
        key => format!("image.key = \"{key}\""),
    };
    Some(KeyError::NoKey { why, kind: key })
}

/// Whether a slot is of the kind that a policy names.
fn is_of(key: SealKey, kind: KeyKind) -> bool {
    match key {
        SealKey::None => true,
        SealKey::File => kind == KeyKind::File,
        SealKey::Passphrase => kind == KeyKind::Passphrase,
        SealKey::Tpm2 => kind == KeyKind::Tpm2,
    }
}

/// What the save `save_id` of `image` is to be sealed with: the image's keys, where it has some. `None` where it is not
/// to be sealed. What the slots of the image say is put right if it is not what this system has made of them.
///
/// # Errors
/// It must be sealed and cannot be.
pub fn for_save(policy: &Policy, target: &Target, image: &Image, save_id: Uuid) -> Result<Option<Sealing>, KeyError> {
    let demanded = demanded(policy, image);
    let uuid = image.label().uuid;
    let Some(ring) = Ring::load(uuid)? else {
        // Keys of another system are nobody's here.
        let has_some = read_keys(image)?.is_some_and(|keys| !keys.slots.is_empty());
        return if has_some { Err(KeyError::Foreign(ring::path(uuid))) } else { demanded.map_or(Ok(None), Err) };
    };
    let slots = &ring.keys.slots;
    match demanded {
        Some(error) if !slots.iter().any(|slot| is_of(policy.image.key, slot.source.kind())) => return Err(error),
        None if slots.is_empty() => return Ok(None),
        _ => {}
    }
    ring.restore(target, image)?;
    let (key, mut nonce) = (Secret::random()?, Nonce::default());
    random(&mut nonce.0)?;
    let key = SaveKey::new(key.bytes());
    let save = Save { image: uuid, save_id, nonce };
    let mut wraps = Vec::new();
    for slot in slots {
        let (kek, ephemeral) = match &slot.source {
            KeySource::File(place) => (file::secret(ring.file(slot.id)?, place)?, [0; 32]),
            KeySource::Passphrase(passphrase) => recipient::to(&passphrase.public, ring.sender(slot.id)?, &nonce)?,
            KeySource::Tpm2(tpm) => recipient::to(&tpm.public, ring.sender(slot.id)?, &nonce)?,
        };
        let kind = u32::from(slot.source.kind().number());
        wraps.push(wrap(kek.bytes(), &save, slot.id, kind, ephemeral, &key)?);
    }
    Ok(Some(Sealing { key, nonce, suite: Suite::of_this_cpu(), wraps }))
}

/// Notes beside each secret in a file which save comes next, so that a copy of an older one is not taken for it.
/// Durable when it returns.
///
/// # Errors
/// [`KeyError::File`].
pub fn expect(image: Uuid, save_id: Uuid) -> Result<(), KeyError> {
    let Some(ring) = Ring::load(image)? else { return Ok(()) };
    for slot in &ring.keys.slots {
        if let KeySource::File(place) = &slot.source {
            file::expect(ring.file(slot.id)?, place, save_id)?;
        }
    }
    Ok(())
}

/// Notes that no save is expected any more: the session goes on.
///
/// # Errors
/// As [`expect`].
pub fn expect_none(image: Uuid) -> Result<(), KeyError> {
    expect(image, Uuid::default())
}

/// The key of the save in `image`, of which nothing but label and commit record has been believed before. The commit
/// record is what a holder of that key has written, when this returns.
///
/// # Errors
/// [`KeyError::NotOpened`] where no slot's key is at hand, [`KeyError::Replayed`], [`KeyError::Format`].
pub fn for_resume(policy: &Policy, image: &Image, means: &mut dyn Means) -> Result<SaveKey, KeyError> {
    Finder::new(policy.image.key, image)?.find(means)
}

/// The key of the save in `image`, in the running system, which has mounted its filesystems: by a secret in a file that
/// its ring names. `None` where there is no such thing. What is expected makes no difference.
///
/// # Errors
/// [`KeyError::File`], [`KeyError::Format`].
pub fn for_reading(image: &Image) -> Result<Option<SaveKey>, KeyError> {
    let Some(ring) = Ring::load(image.label().uuid)? else { return Ok(None) };
    let finder = Finder::new(SealKey::File, image)?;
    for slot in &ring.keys.slots {
        let KeySource::File(place) = &slot.source else { continue };
        let secret = file::secret(ring.file(slot.id)?, place)?;
        if let Some(key) = finder.open(slot.id, KeyKind::File, secret.bytes()) {
            Opener::new(image.commit(), &key)?;
            return Ok(Some(key));
        }
    }
    Ok(None)
}

/// The key of the save in `image`, by a passphrase that is asked for on the terminal. `None` where the save has none.
///
/// # Errors
/// As [`for_resume`].
pub fn by_asking_here(image: &Image) -> Result<Option<SaveKey>, KeyError> {
    let finder = Finder::new(SealKey::Passphrase, image)?;
    if finder.may_ask() { finder.find(&mut finder::OnTerminal).map(Some) } else { Ok(None) }
}

/// Whether the key of `image` is a secret in a file, so that a boot that has not unlocked its volumes yet cannot have
/// it. An image that waits and is not sealed with such a key needs none.
#[must_use]
pub fn is_in_a_volume(policy: &Policy, image: &Image) -> bool {
    let commit = image.commit();
    if commit.state.is_waiting() {
        let is_file = |kind: u32| kind == u32::from(KeyKind::File.number());
        return commit.seal.as_ref().is_some_and(|seal| seal.wraps.iter().any(|wrap| is_file(wrap.kind)));
    }
    let has_slot = || {
        let keys = read_keys(image).ok().flatten();
        keys.is_some_and(|keys| keys.slots.iter().any(|slot| slot.source.kind() == KeyKind::File))
    };
    policy.image.key == SealKey::File || has_slot()
}

/// How much memory a passphrase of `image` takes, in bytes; `None` where it has none.
#[must_use]
pub fn memory_of_passphrase(image: &Image) -> Option<u64> {
    let keys = read_keys(image).ok().flatten()?;
    let of_slot = |slot: &KeySlot| match &slot.source {
        KeySource::Passphrase(key) => Some(u64::from(key.memory_kib) * 1024),
        _ => None,
    };
    keys.slots.iter().filter_map(of_slot).max()
}

/// Why a boot that has unlocked its volumes could not read the secret of an image, where it has one in a file.
#[must_use]
pub fn missing_secret(image: &Image, wait: Duration) -> Option<String> {
    let keys = read_keys(image).ok().flatten()?;
    let mut means = OfThisBoot { wait };
    keys.slots.iter().find_map(|slot| match &slot.source {
        KeySource::File(place) => means.file(place).err().map(|error| format!("{error:#}")),
        _ => None,
    })
}

#[cfg(test)]
mod tests;
