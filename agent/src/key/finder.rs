//! Which key opens an image: in C, one slot after another, those first that ask nobody.

use std::time::Duration;

use dormouse_image::seal::{Opener, Save, SaveKey, Seal, unwrap};
use dormouse_image::{FileKey, FormatError, KeyKind, KeySlot, KeySource, Keys, PassphraseKey, TpmKey};
use dormouse_linux::ask::{self, AskError};
use dormouse_linux::error_chain::in_full;
use dormouse_linux::tpm::{Tpm, TpmError, Transport};
use dormouse_linux::wait::wait_for;
use zeroize::Zeroizing;

use crate::key::file::{self, Found};
use crate::key::{KeyError, passphrase, read_keys, recipient, tpm};
use crate::policy::SealKey;
use crate::store::Image;

/// How often a person may answer.
const TRIES: u32 = 3;

/// What a kernel has to open an image with.
pub trait Means {
    /// What a key file holds, read below its filesystem.
    ///
    /// # Errors
    /// Why it cannot be.
    fn file(&mut self, place: &FileKey) -> anyhow::Result<Found>;

    /// The machine's TPM.
    ///
    /// # Errors
    /// There is none.
    fn tpm(&mut self) -> Result<Box<dyn Transport>, TpmError>;

    /// What a person answers. `note` is what was wrong with the answer before.
    ///
    /// # Errors
    /// Nobody can be asked.
    fn passphrase(&mut self, note: Option<&str>) -> Result<Zeroizing<Vec<u8>>, AskError>;
}

/// What C has.
#[derive(Debug)]
pub struct OfThisBoot {
    /// How long the device of a key file, or the TPM, may take to appear.
    pub wait: Duration,
}

impl OfThisBoot {
    /// What `find` finds in this time, or else why not.
    fn found<T, E>(&self, find: impl Fn() -> Result<T, E>) -> Result<T, E> {
        wait_for(self.wait, || find().ok()).map_or_else(&find, Ok)
    }
}

impl Means for OfThisBoot {
    fn file(&mut self, place: &FileKey) -> anyhow::Result<Found> {
        self.found(|| file::find(place))
    }

    fn tpm(&mut self) -> Result<Box<dyn Transport>, TpmError> {
        Ok(Box::new(self.found(Tpm::open)?))
    }

    fn passphrase(&mut self, note: Option<&str>) -> Result<Zeroizing<Vec<u8>>, AskError> {
        ask::at_boot("Passphrase of the hibernated session", note)
    }
}

/// What a command in a running system has beside files.
#[derive(Debug)]
pub(super) struct OnTerminal;

impl Means for OnTerminal {
    fn file(&mut self, _: &FileKey) -> anyhow::Result<Found> {
        anyhow::bail!("it is not read here")
    }

    fn tpm(&mut self) -> Result<Box<dyn Transport>, TpmError> {
        Err(TpmError::Policy)
    }

    fn passphrase(&mut self, note: Option<&str>) -> Result<Zeroizing<Vec<u8>>, AskError> {
        let question = "Passphrase of the image";
        ask::here(&note.map_or_else(|| question.to_owned(), |note| format!("{note} {question}")))
    }
}

/// Looks for the key of one save.
#[derive(Debug)]
pub struct Finder<'a> {
    policy: SealKey,
    image: &'a Image,
    seal: &'a Seal,
    save: Save,
    keys: Keys,
}

impl<'a> Finder<'a> {
    /// Of the save that is in `image`, by a policy's kind of key.
    ///
    /// # Errors
    /// It is not sealed, or its key was wiped, or its slots cannot be read.
    pub fn new(policy: SealKey, image: &'a Image) -> Result<Finder<'a>, KeyError> {
        let commit = image.commit();
        let seal = commit.seal.as_ref().ok_or(FormatError::NotSealed)?;
        if seal.is_wiped() {
            return Err(FormatError::KeyWiped(commit.state).into());
        }
        let save = Save { image: commit.image, save_id: commit.save_id, nonce: seal.nonce };
        let keys = read_keys(image)?.unwrap_or_else(|| Keys::none(commit.image));
        Ok(Finder { policy, image, seal, save, keys })
    }

    /// Whether a person will be asked where nothing else helps.
    #[must_use]
    pub fn may_ask(&self) -> bool {
        self.slots(KeyKind::Passphrase).next().is_some()
    }

    /// The slots of a kind that have the key of this save.
    fn slots(&self, kind: KeyKind) -> impl Iterator<Item = &KeySlot> {
        let is_wrapped = move |slot: &&KeySlot| {
            let is_it = |id, number| id == slot.id && number == u32::from(kind.number());
            self.seal.wraps.iter().any(|wrap| is_it(wrap.slot, wrap.kind))
        };
        self.keys.slots.iter().filter(move |slot| slot.source.kind() == kind).filter(is_wrapped)
    }

    /// The save's key by a slot's own key.
    pub(super) fn open(&self, id: u32, kind: KeyKind, kek: &[u8; 32]) -> Option<SaveKey> {
        let is_of = |slot: u32, number: u32| slot == id && number == u32::from(kind.number());
        let wraps = self.seal.wraps.iter().filter(|wrap| is_of(wrap.slot, wrap.kind));
        wraps.filter_map(|wrap| unwrap(kek, &self.save, wrap)).next()
    }

    /// The same by the private half of a slot's pair.
    fn open_by_pair(&self, id: u32, kind: KeyKind, private: &super::Secret) -> Option<SaveKey> {
        let ephemeral = self.seal.wraps.iter().find(|wrap| wrap.slot == id)?.ephemeral;
        let kek = recipient::from(private, &ephemeral, &self.save.nonce)?;
        self.open(id, kind, kek.bytes())
    }

    /// Finds the key, and demands that the commit record is what its holder has written.
    ///
    /// # Errors
    /// [`KeyError::NotOpened`], [`KeyError::Replayed`], [`KeyError::Format`].
    pub fn find(&self, means: &mut dyn Means) -> Result<SaveKey, KeyError> {
        let mut tried = Vec::new();
        let key = self
            .by_file(means, &mut tried)?
            .or_else(|| self.by_tpm(means, &mut tried))
            .or_else(|| self.by_passphrase(means, &mut tried));
        let Some(key) = key else {
            if tried.is_empty() {
                tried.push("it has no slot for the key of this save".to_owned());
            }
            return Err(KeyError::NotOpened(tried));
        };
        Opener::new(self.image.commit(), &key)?;
        Ok(key)
    }

    fn by_file(&self, means: &mut dyn Means, tried: &mut Vec<String>) -> Result<Option<SaveKey>, KeyError> {
        for slot in self.slots(KeyKind::File) {
            let KeySource::File(place) = &slot.source else { continue };
            let found = match means.file(place) {
                Ok(found) => found,
                Err(error) => {
                    tried.push(format!("key {} (file): {error:#}", slot.id));
                    continue;
                }
            };
            let Some(key) = self.open(slot.id, KeyKind::File, found.secret.bytes()) else {
                tried.push(format!("key {} (file): it is of another secret", slot.id));
                continue;
            };
            if found.expected != self.save.save_id {
                return Err(KeyError::Replayed);
            }
            return Ok(Some(key));
        }
        Ok(None)
    }

    /// Whoever can use the machine's TPM can have it seal a key of his own, so that a slot for the TPM shows nothing
    /// unless the policy expects one. A file's secret and a passphrase are known to nobody else.
    fn by_tpm(&self, means: &mut dyn Means, tried: &mut Vec<String>) -> Option<SaveKey> {
        if self.policy != SealKey::Tpm2 {
            return None;
        }
        self.slots(KeyKind::Tpm2).find_map(|slot| {
            let KeySource::Tpm2(key) = &slot.source else { return None };
            let opened = self.ask_tpm(slot.id, key, means);
            opened.map_err(|why| tried.push(format!("key {} (tpm2): {why}", slot.id))).ok()
        })
    }

    fn ask_tpm(&self, id: u32, key: &TpmKey, means: &mut dyn Means) -> Result<SaveKey, String> {
        let mut transport = means.tpm().map_err(|error| in_full(&error))?;
        let private = tpm::open(&mut *transport, key).map_err(|error| in_full(&error))?;
        self.open_by_pair(id, KeyKind::Tpm2, &private).ok_or_else(|| "it is of another pair".to_owned())
    }

    fn by_passphrase(&self, means: &mut dyn Means, tried: &mut Vec<String>) -> Option<SaveKey> {
        if !self.may_ask() {
            return None;
        }
        for why in &*tried {
            log::warn!("{why}");
        }
        for attempt in 0..TRIES {
            let note = (attempt > 0).then_some("That is not it.");
            let answer = match means.passphrase(note) {
                Ok(answer) => answer,
                Err(error) => {
                    tried.push(format!("passphrase: {error}"));
                    return None;
                }
            };
            for slot in self.slots(KeyKind::Passphrase) {
                let KeySource::Passphrase(key) = &slot.source else { continue };
                match self.try_passphrase(slot.id, key, &answer) {
                    Ok(Some(key)) => return Some(key),
                    Ok(None) => {}
                    Err(error) => {
                        tried.push(format!("key {} (passphrase): {}", slot.id, in_full(&error)));
                        return None;
                    }
                }
            }
        }
        tried.push(format!("{TRIES} passphrases, none of them right"));
        None
    }

    fn try_passphrase(&self, id: u32, key: &PassphraseKey, answer: &[u8]) -> Result<Option<SaveKey>, KeyError> {
        let private = passphrase::open(answer, key, self.save.image, id)?;
        Ok(private.and_then(|private| self.open_by_pair(id, KeyKind::Passphrase, &private)))
    }
}
