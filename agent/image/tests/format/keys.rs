//! The block of keys: what is written is read, byte for byte as it was once, and what breaks a rule is refused.

use dormouse_image::{
    Block, FileKey, FormatError, KEYS_MAGIC, KeySlot, KeySource, Keys, PassphraseKey, SEALED, TpmKey, Uuid, VERSION,
    Version, checksum,
};

use crate::bytes::{framed, with};

/// Offsets in the block, as FORMAT.md has them.
const COUNT: usize = 40;
const RESERVED: usize = 44;
const FIRST: usize = 64;

fn file() -> FileKey {
    FileKey { device: "dm:LVM-0123".into(), secret: 0x10_0000, expected: 0x20_3000 }
}

fn passphrase() -> PassphraseKey {
    PassphraseKey {
        salt: [1; 16],
        memory_kib: 256 << 10,
        passes: 3,
        lanes: 1,
        public: [2; 32],
        private: std::array::from_fn(|at| u8::try_from(at).unwrap()),
    }
}

fn tpm() -> TpmKey {
    TpmKey { public: [4; 32], pcrs: 0x395, blob: vec![5; 241] }
}

fn keys() -> Keys {
    let sources = [(1, KeySource::File(file())), (7, KeySource::Passphrase(passphrase())), (2, KeySource::Tpm2(tpm()))];
    Keys { image: Uuid([9; 16]), slots: sources.map(|(id, source)| KeySlot { id, source }).into() }
}

/// One slot with this content.
fn slot(kind: u16, content: &[u8]) -> Vec<u8> {
    let len = u16::try_from(content.len()).unwrap();
    let body = [&[9; 16][..], &1_u32.to_le_bytes(), &[0; 20], &kind.to_le_bytes(), &len.to_le_bytes(), &[1, 0, 0, 0]];
    framed(KEYS_MAGIC, &[&body.concat(), content].concat())
}

/// The field for which keys are refused, which must be so when they are read too.
fn refused(source: KeySource) -> &'static str {
    let keys = Keys { image: Uuid::default(), slots: vec![KeySlot { id: 1, source }] };
    match keys.encode() {
        Err(FormatError::Field { block: Block::Keys, field, .. }) => field,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_written_is_read() {
    for keys in [keys(), Keys::none(Uuid([1; 16]))] {
        assert_eq!(Keys::decode(&keys.encode().unwrap()), Ok(keys));
    }
    assert_eq!([keys().free_id(), Keys::none(Uuid::default()).free_id()], [3, 1]);
    assert_eq!(keys().slot(7).map(|slot| slot.source.kind().number()), Some(2));
    assert!(keys().slot(3).is_none());
}

/// What was written once is written the same for ever.
#[test]
fn the_bytes_are_those_of_version_1_1() {
    let bytes = keys().encode().unwrap();
    assert_eq!(&bytes[..12], b"DMKEYS\0\0\x01\0\x01\0");
    assert_eq!(bytes[12..16], 4096_u32.to_le_bytes());
    // The first slot: kind, length, number; both places, and the device's name.
    assert_eq!(bytes[FIRST..FIRST + 8], [1, 0, 40, 0, 1, 0, 0, 0]);
    assert_eq!(&bytes[FIRST + 32..FIRST + 48], b"dm:LVM-0123\0\0\0\0\0");
    assert_eq!(bytes[FIRST + 48..FIRST + 56], [2, 0, 112, 0, 7, 0, 0, 0]);
    assert_eq!(checksum(&bytes), 0xbdfd_fb32_587d_cd04);
}

#[test]
fn every_flipped_byte_is_noticed() {
    let bytes = keys().encode().unwrap();
    for at in 0..bytes.len() {
        for mask in [0x01, 0xff] {
            let mut damaged = bytes.clone();
            damaged[at] ^= mask;
            assert!(Keys::decode(&damaged).is_err(), "byte {at} xor {mask:#x}");
        }
    }
}

#[test]
fn every_flipped_byte_under_a_right_checksum_is_an_error_or_keys_that_encode() {
    let bytes = keys().encode().unwrap();
    for at in 0..1024 {
        for mask in [0x01, 0x80, 0xff] {
            if let Ok(keys) = Keys::decode(&with(&bytes, at, &[bytes[at] ^ mask])) {
                assert_eq!(Keys::decode(&keys.encode().unwrap()), Ok(keys), "byte {at} xor {mask:#x}");
            }
        }
    }
}

#[test]
fn a_block_that_ends_early_is_refused() {
    let bytes = keys().encode().unwrap();
    for len in [0, 23, 24, 63, 100, 4095] {
        let expected = if len < 24 { 24 } else { 4096 };
        let short = FormatError::Truncated { block: Block::Keys, needed: expected, got: len };
        assert_eq!(Keys::decode(&bytes[..len]), Err(short));
    }
    assert_eq!(Keys::decode(&[0; 4096]), Err(FormatError::Magic(Block::Keys)));
}

#[test]
fn slots_that_lie_elsewhere_than_in_the_block_are_refused() {
    let bytes = keys().encode().unwrap();
    let count = |count: u32| Keys::decode(&with(&bytes, COUNT, &count.to_le_bytes()));
    assert!(matches!(count(9), Err(FormatError::Field { field: "number of slots", .. })));
    assert!(matches!(count(u32::MAX), Err(FormatError::Field { .. })));
    // Fewer leave bytes that mean nothing, more are slots of kind 0.
    let written = Version { minor: SEALED, ..VERSION };
    let newer = |what| Err(FormatError::Newer { block: Block::Keys, what, written });
    assert_eq!(count(2), newer("padding that is not zero"));
    assert_eq!(count(4), newer("a kind of key"));
    for len in [1_u16, 7, 4] {
        let found = Keys::decode(&with(&bytes, FIRST + 2, &len.to_le_bytes()));
        assert!(matches!(found, Err(FormatError::Field { field: "slot's length", .. })), "{found:?}");
    }
    for len in [0_u16, 16, 4096, 0xfff8] {
        let found = Keys::decode(&with(&bytes, FIRST + 2, &len.to_le_bytes()));
        assert!(matches!(found, Err(FormatError::Truncated { .. })), "{len}: {found:?}");
    }
}

#[test]
fn what_a_newer_version_may_have_put_there_is_refused_as_such() {
    let bytes = keys().encode().unwrap();
    for at in [RESERVED, FIRST - 1, FIRST + 8 + 18, FIRST + 8 + 23, 4095] {
        let found = Keys::decode(&with(&bytes, at, &[1]));
        assert!(matches!(found, Err(FormatError::Newer { block: Block::Keys, .. })), "{at}: {found:?}");
    }
    for kind in [0, 4, u16::MAX] {
        let found = Keys::decode(&slot(kind, &[0; 16]));
        assert!(matches!(found, Err(FormatError::Newer { what: "a kind of key", .. })), "{found:?}");
    }
    let found = Keys::decode(&slot(2, &[&[0; 112][..], &[1; 8]].concat()));
    assert!(matches!(found, Err(FormatError::Newer { what: "more than a passphrase's key", .. })), "{found:?}");
}

#[test]
fn numbers_that_name_no_slot_or_two_are_refused() {
    for ids in [[0, 1, 2], [1, 2, 1], [3, 3, 3]] {
        let mut keys = keys();
        keys.slots.iter_mut().zip(ids).for_each(|(slot, id)| slot.id = id);
        let found = keys.encode();
        assert!(matches!(found, Err(FormatError::Field { field: "slot's number", .. })), "{ids:?}: {found:?}");
    }
}

#[test]
fn rejects_places_that_no_file_has() {
    let place = |secret, expected| refused(KeySource::File(FileKey { secret, expected, ..file() }));
    for offset in [1, 4095, 1 << 62, u64::MAX] {
        assert_eq!(place(offset, 0), "secret's offset");
        assert_eq!(place(0, offset), "expected save's offset");
    }
    assert_eq!(place(8192, 8192), "expected save's offset");
    for device in ["", "a\nb", &"x".repeat(257)] {
        assert_eq!(refused(KeySource::File(FileKey { device: device.into(), ..file() })), "device name's length");
    }
    let found = Keys::decode(&with(&keys().encode().unwrap(), FIRST + 32, &[0xff]));
    assert_eq!(found, Err(FormatError::Text { block: Block::Keys, field: "device name" }));
}

/// A slot must not make a boot take all memory, or hours.
#[test]
fn rejects_what_no_passphrase_may_cost() {
    let cost = |memory_kib, passes, lanes| {
        refused(KeySource::Passphrase(PassphraseKey { memory_kib, passes, lanes, ..passphrase() }))
    };
    for memory in [0, 8191, (4 << 20) + 1, u32::MAX] {
        assert_eq!(cost(memory, 3, 1), "memory for a passphrase");
    }
    for passes in [0, 65, u32::MAX] {
        assert_eq!(cost(8192, passes, 1), "passes for a passphrase");
    }
    for lanes in [0, 17, u32::MAX] {
        assert_eq!(cost(8192, 1, lanes), "lanes for a passphrase");
    }
}

#[test]
fn rejects_registers_and_blobs_that_no_tpm_has() {
    for pcrs in [0, 1 << 24, u32::MAX] {
        assert_eq!(refused(KeySource::Tpm2(TpmKey { pcrs, ..tpm() })), "registers of the TPM");
    }
    for len in [0, 1025] {
        assert_eq!(refused(KeySource::Tpm2(TpmKey { blob: vec![1; len], ..tpm() })), "length of the TPM's blob");
    }
}

#[test]
fn more_than_a_block_holds_is_refused() {
    let slots = |len, count: u32| {
        let source = KeySource::Tpm2(TpmKey { blob: vec![1; len], ..tpm() });
        let slots = (1..=count).map(|id| KeySlot { id, source: source.clone() }).collect();
        Keys { image: Uuid::default(), slots }.encode()
    };
    assert!(slots(240, 8).is_ok());
    assert!(matches!(slots(240, 9), Err(FormatError::Field { field: "number of slots", .. })));
    assert!(matches!(slots(1024, 4), Err(FormatError::TooLarge { block: Block::Keys, .. })));
}
