//! This system's own record of an image's keys: the slots as they must be in the image, and for each what only the
//! system that saves needs. For root alone.
//!
//! ```text
//!   magic, the block of keys, then for each slot:  u32 number, u16 what, u16 length, content
//! ```

use std::path::{Path, PathBuf};
use std::{fs, io};

use anyhow::Context;
use dormouse_image::layout::KEYS_OFFSET;
use dormouse_image::{BLOCK, FormatError, KeySlot, Keys, Uuid};
use dormouse_linux::atomic_file::replace;
use zeroize::Zeroizing;

use crate::key::{KeyError, Secret};
use crate::store::Image;
use crate::target::Target;

const DIRECTORY: &str = "/var/lib/dormouse/keys";
const MAGIC: [u8; 8] = *b"DMRING\0\x01";
/// What an entry is: the sender's secret, or the path of a file with a secret.
const SENDER: u16 = 1;
const FILE: u16 = 2;
const ENTRY: usize = 8;

/// The record.
#[derive(Debug)]
pub struct Ring {
    /// The slots as they must be in the image.
    pub keys: Keys,
    entries: Vec<(u32, Entry)>,
}

#[derive(Debug)]
pub(super) enum Entry {
    Sender(Secret),
    File(PathBuf),
}

/// Where the record of this image's keys is.
pub(super) fn path(image: Uuid) -> PathBuf {
    Path::new(DIRECTORY).join(image.to_string())
}

/// The keys that an image's own block has; `None` where it has no such block.
///
/// # Errors
/// The block cannot be read.
pub fn read_keys(image: &Image) -> Result<Option<Keys>, KeyError> {
    let bytes = image.disk().read(KEYS_OFFSET, BLOCK)?;
    match Keys::decode(&bytes) {
        Ok(keys) if keys.image == image.label().uuid => Ok(Some(keys)),
        // Whatever was on the device before it became an image's; or another image's, of which this one was made.
        Ok(_) | Err(FormatError::Magic(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

impl Ring {
    /// An image without keys.
    pub(super) fn empty(image: Uuid) -> Ring {
        Ring { keys: Keys::none(image), entries: Vec::new() }
    }

    /// The record of this image's keys, if there is one.
    ///
    /// # Errors
    /// [`KeyError::Ring`].
    pub fn load(image: Uuid) -> Result<Option<Ring>, KeyError> {
        Ring::load_from(&path(image), image)
    }

    fn load_from(path: &Path, image: Uuid) -> Result<Option<Ring>, KeyError> {
        let failed = |source| KeyError::Ring { path: path.to_owned(), source };
        let bytes = match fs::read(path) {
            Ok(bytes) => Zeroizing::new(bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error.into())),
        };
        let ring = Ring::decode(&bytes).map_err(failed)?;
        if ring.keys.image != image {
            return Err(failed(anyhow::anyhow!("it is that of image {}", ring.keys.image)));
        }
        Ok(Some(ring))
    }

    fn decode(bytes: &[u8]) -> anyhow::Result<Ring> {
        const SHORT: &str = "it is damaged";
        let rest = bytes.strip_prefix(&MAGIC).context("it is something else")?;
        let (block, mut rest) = rest.split_at_checked(BLOCK).context(SHORT)?;
        let keys = Keys::decode(block)?;
        let mut entries = Vec::new();
        while let Some(([n0, n1, n2, n3, w0, w1, l0, l1], after)) = rest.split_first_chunk::<ENTRY>() {
            let id = u32::from_le_bytes([*n0, *n1, *n2, *n3]);
            let len = usize::from(u16::from_le_bytes([*l0, *l1]));
            let (content, after) = after.split_at_checked(len).context(SHORT)?;
            let entry = match u16::from_le_bytes([*w0, *w1]) {
                SENDER => Entry::Sender(Secret::new(content.try_into().context(SHORT)?)),
                FILE => Entry::File(std::str::from_utf8(content).context(SHORT)?.into()),
                _ => anyhow::bail!("it was written by a newer Dormouse"),
            };
            entries.push((id, entry));
            rest = after;
        }
        anyhow::ensure!(rest.is_empty() && keys.slots.len() == entries.len(), SHORT);
        Ok(Ring { keys, entries })
    }

    fn encode(&self) -> anyhow::Result<Zeroizing<Vec<u8>>> {
        // Without a second allocation, which would leave a copy.
        let mut bytes = Zeroizing::new(Vec::with_capacity(64 << 10));
        bytes.extend(MAGIC);
        bytes.extend(self.keys.encode()?);
        for (id, entry) in &self.entries {
            let (what, content) = match entry {
                Entry::Sender(secret) => (SENDER, &secret.bytes()[..]),
                Entry::File(path) => (FILE, path.as_os_str().as_encoded_bytes()),
            };
            bytes.extend(id.to_le_bytes());
            bytes.extend(what.to_le_bytes());
            bytes.extend(u16::try_from(content.len())?.to_le_bytes());
            bytes.extend(content);
        }
        Ok(bytes)
    }

    /// Makes the record durable, then the slots in the image.
    ///
    /// # Errors
    /// [`KeyError::Ring`], and those of writing to the image.
    pub(super) fn store(&self, target: &Target, image: &Image) -> Result<(), KeyError> {
        let path = path(self.keys.image);
        let written = self.encode().and_then(|bytes| Ok(replace(&path, &bytes, 0o600)?));
        written.map_err(|source| KeyError::Ring { path, source })?;
        self.write(target, image)
    }

    /// Puts the slots in the image right, if they are not those of this record.
    ///
    /// # Errors
    /// The image cannot be read or written.
    pub(super) fn restore(&self, target: &Target, image: &Image) -> Result<(), KeyError> {
        if matches!(read_keys(image), Ok(Some(keys)) if keys == self.keys) {
            return Ok(());
        }
        log::warn!("the keys in {target} are not those that this system has put there; they are put right");
        self.write(target, image)
    }

    fn write(&self, target: &Target, image: &Image) -> Result<(), KeyError> {
        image.disk().write_copy(KEYS_OFFSET, &self.keys.encode()?)?;
        image.disk().flush()?;
        target.confirm(image).map_err(|source| KeyError::Make(anyhow::Error::new(source)))
    }

    /// Adds a slot.
    pub(super) fn add(&mut self, slot: KeySlot, entry: Entry) {
        self.entries.push((slot.id, entry));
        self.keys.slots.push(slot);
    }

    /// Takes a slot away.
    pub(super) fn remove(&mut self, id: u32) -> Option<KeySlot> {
        self.entries.retain(|(other, _)| *other != id);
        let at = self.keys.slots.iter().position(|slot| slot.id == id)?;
        Some(self.keys.slots.remove(at))
    }

    /// The sender's secret for a slot.
    pub(super) fn sender(&self, id: u32) -> Result<&Secret, KeyError> {
        match self.entry(id) {
            Some(Entry::Sender(secret)) => Ok(secret),
            _ => Err(self.incomplete(id)),
        }
    }

    /// The path of the file of a slot.
    pub(super) fn file(&self, id: u32) -> Result<&Path, KeyError> {
        match self.entry(id) {
            Some(Entry::File(path)) => Ok(path),
            _ => Err(self.incomplete(id)),
        }
    }

    fn entry(&self, id: u32) -> Option<&Entry> {
        self.entries.iter().find(|(other, _)| *other == id).map(|(_, entry)| entry)
    }

    fn incomplete(&self, id: u32) -> KeyError {
        let source = anyhow::anyhow!("it does not have what belongs to key {id}");
        KeyError::Ring { path: path(self.keys.image), source }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use dormouse_image::{FileKey, KeySource, TpmKey};

    use super::*;

    const IMAGE: Uuid = Uuid([3; 16]);

    fn ring() -> Ring {
        let mut ring = Ring::empty(IMAGE);
        let file = FileKey { device: "dm:LVM-x".into(), secret: 4096, expected: 8192 };
        ring.add(KeySlot { id: 1, source: KeySource::File(file) }, Entry::File("/var/lib/dormouse/key".into()));
        let tpm = TpmKey { public: [1; 32], pcrs: 1, blob: vec![5; 240] };
        ring.add(KeySlot { id: 4, source: KeySource::Tpm2(tpm) }, Entry::Sender(Secret::new([9; 32])));
        ring
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let read = Ring::decode(&ring().encode().unwrap()).unwrap();
        assert_eq!(read.keys, ring().keys);
        assert_eq!(read.file(1).unwrap(), Path::new("/var/lib/dormouse/key"));
        assert_eq!(read.sender(4).unwrap().bytes(), &[9; 32]);
        assert!(read.sender(1).is_err() && read.file(4).is_err() && read.file(2).is_err());
        assert!(!format!("{read:?}").contains("9, 9"));
    }

    #[test]
    fn a_slot_that_is_removed_leaves_nothing() {
        let mut ring = ring();
        assert!(ring.remove(2).is_none());
        assert_eq!(ring.remove(4).unwrap().id, 4);
        assert!(!ring.encode().unwrap().windows(32).any(|bytes| bytes == [9; 32]));
        assert_eq!(Ring::decode(&ring.encode().unwrap()).unwrap().keys.slots.len(), 1);
    }

    #[test]
    fn rejects_what_is_no_record() {
        let bytes = ring().encode().unwrap();
        for len in [0, 7, 8, 100, 8 + BLOCK, bytes.len() - 1] {
            assert!(Ring::decode(&bytes[..len]).is_err(), "{len}");
        }
        for at in [0, 7, 8, 40, 8 + BLOCK + 4, 8 + BLOCK + 6] {
            let mut changed = bytes.clone();
            changed[at] ^= 0x40;
            assert!(Ring::decode(&changed).is_err(), "{at}");
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ring");
        assert!(Ring::load_from(&path, IMAGE).unwrap().is_none());
        fs::write(&path, &bytes[..]).unwrap();
        assert!(Ring::load_from(&path, IMAGE).unwrap().is_some());
        let error = Ring::load_from(&path, Uuid([4; 16])).unwrap_err();
        assert!(matches!(error, KeyError::Ring { .. }), "{error}");
    }
}
