//! Keys are added, listed and taken away.

use std::fmt;
use std::path::{Path, PathBuf};

use dormouse_image::{KEYS_MAX, KeyKind, KeySlot, KeySource, Uuid};
use dormouse_linux::tpm::{Tpm, Transport};
use serde::Serialize;

use crate::key::ring::Entry;
use crate::key::{KeyError, Ring, file, passphrase, read_keys, ring, tpm};
use crate::policy::SealKey;
use crate::store::Image;
use crate::target::Target;

/// Where the file with a secret is unless another place is named.
pub const DEFAULT_FILE: &str = "/var/lib/dormouse/key";

/// A key that was added.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Added {
    /// Its number.
    pub id: u32,
    /// Its kind.
    pub kind: &'static str,
    /// What it opens with, in words.
    pub details: String,
    /// What there is to know of it, if anything is.
    pub warning: Option<String>,
}

impl fmt::Display for Added {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Added { id, kind, details, warning } = self;
        writeln!(f, "key {id} ({kind}): {details}")?;
        if let Some(warning) = warning {
            writeln!(f, "warning: {warning}")?;
        }
        write!(
            f,
            "Set it in the policy, so that no image is resumed that is not sealed:\n\n    [image]\n    \
             key = \"{kind}\"\n\nand build both initramfs again."
        )
    }
}

/// The keys of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Listed {
    /// The image.
    pub image: String,
    /// Its keys, by ascending number.
    pub keys: Vec<ListedKey>,
    /// Whether the image has what this system has put there; `false` where somebody has changed it.
    pub is_unchanged: bool,
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ListedKey {
    /// Its number.
    pub id: u32,
    /// Its kind.
    pub kind: &'static str,
    /// What it opens with, in words.
    pub details: String,
}

impl fmt::Display for Listed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.keys.is_empty() {
            write!(f, "the image {} has no keys: it is not sealed", self.image)?;
        }
        for (at, ListedKey { id, kind, details }) in self.keys.iter().enumerate() {
            write!(f, "{}key {id} ({kind}): {details}", if at == 0 { "" } else { "\n" })?;
        }
        if !self.is_unchanged {
            write!(
                f,
                "\nwarning: the image has other slots than this system has put there; the next hibernation puts them \
                 right"
            )?;
        }
        Ok(())
    }
}

/// A key that was taken away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Removed {
    /// Its number.
    pub id: u32,
    /// Its kind.
    pub kind: &'static str,
    /// How many are left.
    pub left: usize,
}

impl fmt::Display for Removed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "key {} ({}) is removed; {} left", self.id, self.kind, self.left)
    }
}

/// What the policy calls a kind of key.
pub(super) fn word(kind: KeyKind) -> &'static str {
    match kind {
        KeyKind::File => SealKey::File,
        KeyKind::Passphrase => SealKey::Passphrase,
        KeyKind::Tpm2 => SealKey::Tpm2,
    }
    .as_str()
}

/// An image whose keys are changed.
#[derive(Debug)]
pub struct Bunch<'a> {
    target: &'a Target,
    image: &'a Image,
    ring: Ring,
}

impl<'a> Bunch<'a> {
    /// The keys of `image`. With `is_reset`, those of another system are given up.
    ///
    /// # Errors
    /// A session waits in it; its keys are those of another system.
    pub fn open(target: &'a Target, image: &'a Image, is_reset: bool) -> Result<Bunch<'a>, KeyError> {
        if image.commit().state.is_waiting() {
            return Err(KeyError::Waiting);
        }
        let uuid = image.label().uuid;
        let ring = match Ring::load(uuid)? {
            Some(ring) => ring,
            None => {
                let has_some = !is_reset && read_keys(image)?.is_some_and(|keys| !keys.slots.is_empty());
                if has_some {
                    return Err(KeyError::Foreign(ring::path(uuid)));
                }
                Ring::empty(uuid)
            }
        };
        Ok(Bunch { target, image, ring })
    }

    fn uuid(&self) -> Uuid {
        self.image.label().uuid
    }

    /// There is one file and one TPM, and may be several who know a passphrase.
    fn next_id(&self, kind: KeyKind) -> Result<u32, KeyError> {
        let same = self.ring.keys.slots.iter().find(|slot| slot.source.kind() == kind);
        match same.filter(|_| kind != KeyKind::Passphrase) {
            Some(slot) => Err(KeyError::Twice(slot.id)),
            None if self.ring.keys.slots.len() >= KEYS_MAX => {
                Err(KeyError::Make(anyhow::anyhow!("an image has at most {KEYS_MAX} keys")))
            }
            None => Ok(self.ring.keys.free_id()),
        }
    }

    fn add(&mut self, id: u32, source: KeySource, entry: Entry, warning: Option<String>) -> Result<Added, KeyError> {
        let added = Added { id, kind: word(source.kind()), details: details(&source, Some(&entry)), warning };
        self.ring.add(KeySlot { id, source }, entry);
        self.ring.store(self.target, self.image)?;
        Ok(added)
    }

    /// Adds a secret in a new file.
    ///
    /// # Errors
    /// [`KeyError::File`], [`KeyError::Twice`].
    pub fn add_file(&mut self, path: &Path) -> Result<Added, KeyError> {
        let id = self.next_id(KeyKind::File)?;
        let failed = |error: std::io::Error| KeyError::File { path: path.to_owned(), source: error.into() };
        let path = std::path::absolute(path).map_err(failed)?;
        let (place, is_encrypted) = file::make(&path)?;
        let warning = (!is_encrypted).then(|| {
            format!("{} is not encrypted by dm-crypt: whoever reads its disk has the key of the image", path.display())
        });
        self.add(id, KeySource::File(place), Entry::File(path), warning)
    }

    /// Adds a passphrase. `memory_kib` is what trying one is to cost; `None` for what suits this machine.
    ///
    /// # Errors
    /// [`KeyError::Passphrase`], and those of making a key.
    pub fn add_passphrase(&mut self, passphrase: &[u8], memory_kib: Option<u32>) -> Result<Added, KeyError> {
        if passphrase.is_empty() {
            return Err(KeyError::Passphrase("a passphrase cannot be empty"));
        }
        let id = self.next_id(KeyKind::Passphrase)?;
        let memory_kib = memory_kib.unwrap_or_else(|| passphrase::memory_for(total_kib()));
        let (key, sender) = passphrase::make(passphrase, memory_kib, self.uuid(), id)?;
        self.add(id, KeySource::Passphrase(key), Entry::Sender(sender), None)
    }

    /// Adds the machine's TPM.
    ///
    /// # Errors
    /// [`KeyError::Tpm`].
    pub fn add_tpm(&mut self, pcrs: u32) -> Result<Added, KeyError> {
        let id = self.next_id(KeyKind::Tpm2)?;
        let (key, sender) = tpm::make(&mut Tpm::open()?, pcrs)?;
        let has_passphrase = self.ring.keys.slots.iter().any(|slot| slot.source.kind() == KeyKind::Passphrase);
        let warning = (!has_passphrase).then(|| {
            "after an update of firmware, boot loader, kernel or initramfs the TPM does not open the image: add a \
             passphrase too"
                .to_owned()
        });
        self.add(id, KeySource::Tpm2(key), Entry::Sender(sender), warning)
    }

    /// Makes the TPM's key again, for what this boot has measured. `None` where there is none.
    ///
    /// # Errors
    /// [`KeyError::Tpm`].
    pub fn renew_tpm(
        &mut self,
        tpm: &mut dyn FnMut() -> Result<Box<dyn Transport>, KeyError>,
    ) -> Result<Option<u32>, KeyError> {
        let slot = self.ring.keys.slots.iter().find_map(|slot| match &slot.source {
            KeySource::Tpm2(key) => Some((slot.id, key.pcrs)),
            _ => None,
        });
        let Some((id, pcrs)) = slot else { return Ok(None) };
        let (key, sender) = tpm::make(&mut *tpm()?, pcrs)?;
        self.ring.remove(id);
        self.ring.add(KeySlot { id, source: KeySource::Tpm2(key) }, Entry::Sender(sender));
        self.ring.store(self.target, self.image)?;
        Ok(Some(id))
    }

    /// Takes a key away. The file of a secret goes with it.
    ///
    /// # Errors
    /// [`KeyError::NoSlot`].
    pub fn remove(&mut self, id: u32) -> Result<Removed, KeyError> {
        let file = self.ring.file(id).ok().map(Path::to_owned);
        let slot = self.ring.remove(id).ok_or(KeyError::NoSlot(id))?;
        self.ring.store(self.target, self.image)?;
        if let Some(path) = file {
            file::destroy(&path)?;
        }
        Ok(Removed { id, kind: word(slot.source.kind()), left: self.ring.keys.slots.len() })
    }
}

/// The keys of an image.
///
/// # Errors
/// They cannot be read.
pub fn list(image: &Image) -> Result<Listed, KeyError> {
    let uuid = image.label().uuid;
    let (ring, there) = (Ring::load(uuid)?, read_keys(image)?);
    let own = ring.as_ref().map(|ring| &ring.keys);
    let is_unchanged = own.is_none() || own == there.as_ref();
    let mut slots: Vec<&KeySlot> = own.or(there.as_ref()).into_iter().flat_map(|keys| &keys.slots).collect();
    slots.sort_by_key(|slot| slot.id);
    let keys = slots.into_iter().map(|slot| {
        let entry = ring.as_ref().and_then(|ring| ring.file(slot.id).ok()).map(|path| Entry::File(path.to_owned()));
        ListedKey { id: slot.id, kind: word(slot.source.kind()), details: details(&slot.source, entry.as_ref()) }
    });
    Ok(Listed { image: image.name().to_string(), keys: keys.collect(), is_unchanged })
}

fn details(source: &KeySource, entry: Option<&Entry>) -> String {
    match (source, entry) {
        (KeySource::File(place), Some(Entry::File(path))) => {
            format!("the secret in {}, on {}", path.display(), place.device)
        }
        (KeySource::File(place), _) => format!("a secret on {}", place.device),
        (KeySource::Passphrase(key), _) => {
            format!("a passphrase; trying one takes {} MiB of memory", key.memory_kib / 1024)
        }
        (KeySource::Tpm2(key), _) => {
            format!("the TPM, where the registers {} are as at the last boot", list_of(key.pcrs))
        }
    }
}

/// The registers of a mask, as text.
fn list_of(pcrs: u32) -> String {
    let numbers = (0..32).filter(|number| pcrs & 1 << number != 0).map(|number: u32| number.to_string());
    numbers.collect::<Vec<_>>().join(", ")
}

/// The mask of a list of registers.
///
/// # Errors
/// It is no such list.
pub fn parse_pcrs(text: &str) -> Result<u32, String> {
    let mut pcrs = 0;
    for word in text.split(',') {
        let number: Option<u32> = word.trim().parse().ok().filter(|number| *number < 24);
        let number = number.ok_or_else(|| format!("`{text}` is no list of registers: write 0,2,4,7,8,9"))?;
        pcrs |= 1 << number;
    }
    Ok(pcrs)
}

/// The machine's memory, in KiB.
fn total_kib() -> u64 {
    let text = dormouse_linux::procfs::text("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").trim().parse().ok()).unwrap_or(0)
}

/// Where the file of a key is, where the image has one.
#[must_use]
pub fn file_of(ring: &Ring) -> Option<PathBuf> {
    ring.keys.slots.iter().find_map(|slot| ring.file(slot.id).ok()).map(Path::to_owned)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn registers_are_read_as_they_are_written() {
        assert_eq!(parse_pcrs("0,2,4,7,8,9"), Ok(dormouse_linux::tpm::PCRS));
        assert_eq!(list_of(dormouse_linux::tpm::PCRS), "0, 2, 4, 7, 8, 9");
        assert_eq!(parse_pcrs(" 23 "), Ok(1 << 23));
        for text in ["", "24", "x", "0,", "-1"] {
            assert!(parse_pcrs(text).is_err(), "{text}");
        }
    }

    #[test]
    fn keys_in_words() {
        let listed = |keys: Vec<ListedKey>, is_unchanged| Listed { image: "UUID=a".into(), keys, is_unchanged };
        let key = |id, kind| ListedKey { id, kind, details: "x".into() };
        assert_eq!(listed(vec![], true).to_string(), "the image UUID=a has no keys: it is not sealed");
        let text = listed(vec![key(1, "file"), key(2, "passphrase")], false).to_string();
        assert!(text.starts_with("key 1 (file): x\nkey 2 (passphrase): x\nwarning: "), "{text}");
    }
}
