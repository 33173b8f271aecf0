//! An image that is sealed for keys of each kind, and what opens it.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::Path;

use dormouse_image::layout::{DATA_OFFSET, DEVICE_MIN, HEADER_OFFSET, KEYS_OFFSET};
use dormouse_image::seal::Sealer;
use dormouse_image::{BLOCK, Block, Commit, FileKey, KeySlot, Keys, Locator, Slot, State, Totals};
use dormouse_linux::ask::AskError;
use dormouse_linux::tpm::{TpmError, Transport};

use super::file::Found;
use super::*;
use crate::store::{Access, Disk};

const IMAGE: Uuid = Uuid([3; 16]);
const SAVE: Uuid = Uuid([4; 16]);
const LEAST: u32 = 8 << 10;

/// A device with an image, and what A knows of its keys.
struct Device {
    file: tempfile::NamedTempFile,
    keys: Keys,
    senders: Vec<Secret>,
}

const PLACE: u64 = 4096;

/// What opens images here.
struct Hand {
    secret: Option<[u8; 32]>,
    expected: Uuid,
    answers: Vec<&'static str>,
    notes: Vec<Option<String>>,
}

impl Hand {
    fn empty() -> Hand {
        Hand { secret: None, expected: SAVE, answers: Vec::new(), notes: Vec::new() }
    }
}

impl Means for Hand {
    fn file(&mut self, place: &FileKey) -> anyhow::Result<Found> {
        assert_eq!(place.secret, PLACE);
        let secret = self.secret.ok_or_else(|| anyhow::anyhow!("the volume is locked"))?;
        Ok(Found { secret: Secret::new(secret), expected: self.expected })
    }

    fn tpm(&mut self) -> Result<Box<dyn Transport>, TpmError> {
        Err(TpmError::Policy)
    }

    fn passphrase(&mut self, note: Option<&str>) -> Result<Zeroizing<Vec<u8>>, AskError> {
        self.notes.push(note.map(str::to_owned));
        if self.answers.is_empty() {
            return Err(AskError::NoWay("nobody is there".into()));
        }
        Ok(Zeroizing::new(self.answers.remove(0).as_bytes().to_vec()))
    }
}

impl Device {
    /// With a secret in a file, of 32 times 9, as key 1, and a passphrase, "open", as key 2.
    fn new() -> Device {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(DEVICE_MIN).unwrap();
        let disk = Disk::open(file.path(), Access::Write).unwrap();
        let label = Label { uuid: IMAGE, created_unix: 1, ..no_extents() };
        Image::create(disk.clone(), label).unwrap();
        let (key, sender) = passphrase::make(b"open", LEAST, IMAGE, 2).unwrap();
        let place = FileKey { device: "dm:LVM-x".into(), secret: PLACE, expected: 2 * PLACE };
        let slots = vec![
            KeySlot { id: 1, source: KeySource::File(place) },
            KeySlot { id: 2, source: KeySource::Passphrase(key) },
        ];
        let keys = Keys { image: IMAGE, slots };
        disk.write_copy(KEYS_OFFSET, &keys.encode().unwrap()).unwrap();
        Device { file, keys, senders: vec![sender] }
    }

    fn disk(&self) -> Disk {
        Disk::open(self.file.path(), Access::Write).unwrap()
    }

    fn image(&self) -> Image {
        Image::open(self.disk()).unwrap()
    }

    /// Seals a save for the keys, as A and B do; its header and index are not looked at here.
    fn save(&self, save_id: Uuid, kinds: &[KeyKind]) {
        let nonce = Nonce([5; 16]);
        let (save, key) = (Save { image: IMAGE, save_id, nonce }, SaveKey::new(&[6; 32]));
        let slots = self.keys.slots.iter().filter(|slot| kinds.contains(&slot.source.kind()));
        let wraps = slots.map(|slot| {
            let (kek, ephemeral) = match &slot.source {
                KeySource::File(_) => (Secret::new([9; 32]), [0; 32]),
                KeySource::Passphrase(key) => recipient::to(&key.public, &self.senders[0], &nonce).unwrap(),
                KeySource::Tpm2(_) => panic!("no TPM here"),
            };
            wrap(kek.bytes(), &save, slot.id, slot.source.kind().number().into(), ephemeral, &key).unwrap()
        });
        let sealing = Sealing { key: key.clone(), nonce, suite: Suite::Aes256Gcm, wraps: wraps.collect() };
        let sealer = Sealer::new(&sealing, IMAGE, save_id).unwrap();
        let locator = |offset| Locator { offset, len: 4096, checksum: 1, tag: [2; 16] };
        let commit = Commit {
            seq: 9,
            state: State::Complete,
            save_id,
            header: locator(HEADER_OFFSET),
            last_index: locator(DATA_OFFSET),
            data_end: DATA_OFFSET + 4096,
            totals: Totals::default(),
            ..Commit::empty(IMAGE)
        };
        let bytes = sealer.commit(commit).unwrap().encode().unwrap();
        for slot in [Slot::First, Slot::Second] {
            self.disk().write_copy(slot.offset(), &bytes).unwrap();
        }
    }
}

fn no_extents() -> Label {
    Label::decode(&include_label()).unwrap()
}

/// A label of a whole device.
fn include_label() -> Vec<u8> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("device");
    std::fs::File::create(&path).unwrap().set_len(DEVICE_MIN).unwrap();
    crate::target::device::init(Path::new(&path), true).unwrap();
    std::fs::read(&path).unwrap()[..BLOCK].to_vec()
}

fn found(device: &Device, policy: SealKey, hand: &mut Hand) -> Result<SaveKey, KeyError> {
    Finder::new(policy, &device.image())?.find(hand)
}

const ALL: [KeyKind; 2] = [KeyKind::File, KeyKind::Passphrase];

#[test]
fn a_secret_opens_and_nobody_is_asked() {
    let device = Device::new();
    device.save(SAVE, &ALL);
    let mut hand = Hand { secret: Some([9; 32]), ..Hand::empty() };
    assert_eq!(found(&device, SealKey::File, &mut hand).unwrap().bytes(), &[6; 32]);
    assert!(hand.notes.is_empty());
}

#[test]
fn a_passphrase_opens_where_the_secret_is_not_there() {
    let device = Device::new();
    device.save(SAVE, &ALL);
    let mut hand = Hand { answers: vec!["wrong", "open"], ..Hand::empty() };
    assert_eq!(found(&device, SealKey::File, &mut hand).unwrap().bytes(), &[6; 32]);
    assert_eq!(hand.notes, [None, Some("That is not it.".to_owned())]);
    // The same where the secret is another one.
    let mut hand = Hand { secret: Some([8; 32]), answers: vec!["open"], ..Hand::empty() };
    assert!(found(&device, SealKey::Passphrase, &mut hand).is_ok());
}

#[test]
fn three_wrong_passphrases_open_nothing() {
    let device = Device::new();
    device.save(SAVE, &ALL);
    let mut hand = Hand { answers: vec!["a", "b", "c", "open"], ..Hand::empty() };
    let error = found(&device, SealKey::None, &mut hand).unwrap_err();
    assert_eq!(hand.answers, ["open"]);
    let text = error.to_string();
    assert!(text.contains("key 1 (file): the volume is locked; 3 passphrases, none of them right"), "{text}");
    let error = found(&device, SealKey::None, &mut Hand::empty()).unwrap_err();
    assert!(matches!(&error, KeyError::NotOpened(why) if why[1].contains("nobody is there")), "{error}");
}

#[test]
fn asks_for_no_passphrase_that_is_not_a_key_of_this_save() {
    let device = Device::new();
    device.save(SAVE, &[KeyKind::File]);
    let mut hand = Hand { answers: vec!["open"], ..Hand::empty() };
    let error = found(&device, SealKey::File, &mut hand).unwrap_err();
    assert!(matches!(error, KeyError::NotOpened(_)) && hand.notes.is_empty(), "{error}");
}

#[test]
fn rejects_a_save_that_is_not_the_expected_one() {
    let device = Device::new();
    device.save(SAVE, &ALL);
    for expected in [Uuid([5; 16]), Uuid::default()] {
        let mut hand = Hand { secret: Some([9; 32]), expected, answers: vec!["open"], ..Hand::empty() };
        let error = found(&device, SealKey::File, &mut hand).unwrap_err();
        // No other key makes up for it.
        assert!(matches!(error, KeyError::Replayed) && hand.notes.is_empty(), "{error}");
    }
}

#[test]
fn rejects_a_commit_record_that_somebody_else_wrote() {
    let device = Device::new();
    device.save(SAVE, &ALL);
    let image = device.image();
    let commit = image.commit().clone();
    let write = |commit: &Commit| {
        let bytes = commit.encode().unwrap();
        for slot in [Slot::First, Slot::Second] {
            device.disk().write_copy(slot.offset(), &bytes).unwrap();
        }
    };
    let hand = || Hand { secret: Some([9; 32]), ..Hand::empty() };
    write(&Commit {
        data_end: commit.data_end + 4096,
        last_index: Locator { offset: DATA_OFFSET + 4096, ..commit.last_index },
        ..commit.clone()
    });
    let error = found(&device, SealKey::File, &mut hand()).unwrap_err();
    assert!(matches!(error, KeyError::Format(FormatError::Forged(Block::Commit))), "{error}");
    // A state that came later is not the holder's to say.
    write(&Commit { seq: 20, state: State::Restoring, attempts: 1, ..commit.clone() });
    assert!(found(&device, SealKey::File, &mut hand()).is_ok());
    write(&Commit { seal: None, ..commit.without_key() });
    let error = found(&device, SealKey::File, &mut hand()).unwrap_err();
    assert!(matches!(error, KeyError::Format(FormatError::NotSealed)), "{error}");
}

/// The block of keys is open to everybody who can write to the device.
#[test]
fn exchanged_slots_open_nothing() {
    let mut device = Device::new();
    device.save(SAVE, &ALL);
    let (other, _) = passphrase::make(b"mine", LEAST, IMAGE, 2).unwrap();
    device.keys.slots[1].source = KeySource::Passphrase(other);
    device.disk().write_copy(KEYS_OFFSET, &device.keys.encode().unwrap()).unwrap();
    for answer in ["open", "mine"] {
        let mut hand = Hand { answers: vec![answer; 3], ..Hand::empty() };
        let error = found(&device, SealKey::Passphrase, &mut hand).unwrap_err();
        assert!(matches!(error, KeyError::NotOpened(_)), "{error}");
    }
    device.disk().write_copy(KEYS_OFFSET, &[0; BLOCK]).unwrap();
    let error = found(&device, SealKey::Passphrase, &mut Hand::empty()).unwrap_err();
    assert_eq!(error.to_string(), "no key opens the image: it has no slot for the key of this save");
}

/// Somebody with the image's disk and its public key, who puts a save of his own there.
#[test]
fn rejects_a_save_for_the_public_key_by_somebody_without_the_senders_secret() {
    let mut device = Device::new();
    device.senders = vec![Secret::new([1; 32])];
    device.save(SAVE, &[KeyKind::Passphrase]);
    let mut hand = Hand { answers: vec!["open"; 3], ..Hand::empty() };
    assert!(matches!(found(&device, SealKey::Passphrase, &mut hand), Err(KeyError::NotOpened(_))));
}

#[test]
fn a_policy_that_demands_a_kind_says_so() {
    let error = demanded_on_a_disk(SealKey::File, &no_extents()).unwrap();
    assert_eq!(error.to_string(), "the image must be sealed (image.key = \"file\"), and it has no key for that");
    assert!(demanded_on_a_disk(SealKey::None, &no_extents()).is_none());
    for (policy, kind, expected) in [
        (SealKey::None, KeyKind::Tpm2, true),
        (SealKey::File, KeyKind::File, true),
        (SealKey::File, KeyKind::Passphrase, false),
        (SealKey::Tpm2, KeyKind::Tpm2, true),
        (SealKey::Passphrase, KeyKind::File, false),
    ] {
        assert_eq!(is_of(policy, kind), expected, "{policy} {kind:?}");
    }
}

#[test]
fn a_key_in_a_volume_is_left_to_the_second_look() {
    let device = Device::new();
    let policy =
        |key: &str| Policy::parse("a policy", &format!("[image]\ndevice = \"/dev/vda\"\nkey = \"{key}\"\n")).unwrap();
    // Nothing waits: what the next save will need.
    assert!(is_in_a_volume(&policy("none"), &device.image()) && is_in_a_volume(&policy("file"), &device.image()));
    device.save(SAVE, &[KeyKind::Passphrase]);
    assert!(!is_in_a_volume(&policy("file"), &device.image()));
    device.save(SAVE, &ALL);
    assert!(is_in_a_volume(&policy("none"), &device.image()));
    let error = missing_secret(&device.image(), Duration::ZERO).unwrap();
    assert!(error.contains("(dm:LVM-x) is not there"), "{error}");
}
