#![allow(clippy::unwrap_used, clippy::panic)]
use proptest::prelude::*;

use super::*;
use crate::layout::DATA_OFFSET;
use crate::{Block, Chunk, Codec, Commit, Locator, State};

const IMAGE: Uuid = Uuid([0x11; 16]);
const SAVE_ID: Uuid = Uuid([0x22; 16]);
const KEK: [u8; KEY] = [0x33; KEY];

fn key() -> SaveKey {
    SaveKey::new(&std::array::from_fn(|at| u8::try_from(at).unwrap()))
}

fn save() -> Save {
    Save { image: IMAGE, save_id: SAVE_ID, nonce: Nonce(*b"@ABCDEFGHIJKLMNO") }
}

fn sealing(suite: Suite) -> Sealing {
    let wraps = vec![wrap(&KEK, &save(), 5, 2, [0x44; 32], &key()).unwrap()];
    Sealing { key: key(), nonce: save().nonce, suite, wraps }
}

fn sealer(suite: Suite) -> Sealer {
    Sealer::new(&sealing(suite), IMAGE, SAVE_ID).unwrap()
}

fn commit() -> Commit {
    let locator = |offset| Locator { offset, len: 4096, checksum: 1, tag: [7; 16] };
    Commit {
        state: State::Complete,
        save_id: SAVE_ID,
        header: locator(crate::layout::HEADER_OFFSET),
        last_index: locator(DATA_OFFSET),
        data_end: DATA_OFFSET + 4096,
        ..Commit::empty(IMAGE)
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn hmac_and_hkdf_are_those_of_the_rfcs() {
    // A key or salt that is shorter is padded with zeroes in any case.
    let mut key = [0; KEY];
    key[..20].fill(0x0b);
    let found = hmac(&key, &[b"Hi ", b"There"]);
    assert_eq!(hex(&found[..]), "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7");
    let salt: [u8; 16] = std::array::from_fn(|at| if at < 13 { u8::try_from(at).unwrap() } else { 0 });
    let info: Vec<u8> = (0xf0..0xfa).collect();
    let found = hkdf(&salt, &[0x0b; 22], &[&info[..3], &info[3..]]);
    assert_eq!(hex(&found[..]), "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf");
}

/// Computed by another implementation of all of it, from FORMAT.md.
#[test]
fn chunks_blocks_and_wraps_have_the_bytes_of_the_format() {
    let expected = [
        (
            Suite::Aes256Gcm,
            ["bb136f51713c50d1a5001403b2fe8ac5", "ea9e2374675c206084c37131a561b823"],
            ["c7ce77fb2c34531e19610be74ad9a316", "36bcd7392726eb42d7fedd9766f5a915"],
        ),
        (
            Suite::ChaCha20Poly1305,
            ["f043649259f2d45490b43c9e47a1532e", "ac36347bedd4b5d767955dba0d18dae7"],
            ["d98dd0147ced593d3a0995c207a958c4", "a6e38db2aa020430e1ab8dd1807a5a2f"],
        ),
    ];
    for (suite, chunk_bytes, block_bytes) in expected {
        let sealer = sealer(suite);
        let mut bytes: Vec<u8> = (0..4096_usize).map(|at| (at * 7).to_le_bytes()[0]).collect();
        let mut chunk = Chunk { stored_len: 4096, ..Chunk::default() };
        sealer.chunk(&mut chunk, 1, &mut bytes).unwrap();
        assert_eq!([hex(&bytes[..16]), hex(&chunk.tag)], chunk_bytes, "{suite}");
        assert_eq!(chunk.counter, 1);
        let mut bytes = vec![0x5a; 4096];
        let locator = sealer.block(Block::Index, 0x10_2000, &mut bytes).unwrap();
        assert_eq!([hex(&bytes[..16]), hex(&locator.tag)], block_bytes, "{suite}");
        assert_eq!(locator.checksum, crate::checksum(&bytes));
    }
    let wrap = wrap(&KEK, &save(), 5, 2, [0x44; 32], &key()).unwrap();
    let sealed = "feae27b0f99423194c9258c2ba5496ce803bed8329bcd2a5e8ed952c3215dea97cdd1e8170efac822da42d6671ffe9f2";
    assert_eq!(hex(&wrap.sealed), sealed);
}

#[test]
fn a_wrap_opens_for_its_slots_key_and_save_only() {
    let made = wrap(&KEK, &save(), 5, 2, [0x44; 32], &key()).unwrap();
    assert_eq!(unwrap(&KEK, &save(), &made), Some(key()));
    assert_eq!(Wrap::decode(&made.encode()), Some(made));
    for other in [
        Save { image: SAVE_ID, ..save() },
        Save { save_id: IMAGE, ..save() },
        Save { nonce: Nonce::default(), ..save() },
    ] {
        assert_eq!(unwrap(&KEK, &other, &made), None);
    }
    assert_eq!(unwrap(&[0x34; KEY], &save(), &made), None);
    for at in 0..WRAP - 8 {
        let mut bytes = made.encode();
        bytes[at] ^= 1;
        assert_eq!(unwrap(&KEK, &save(), &Wrap::decode(&bytes).unwrap()), None, "{at}");
    }
    let mut reserved = made.encode();
    reserved[WRAP - 1] = 1;
    assert_eq!((Wrap::decode(&reserved), Wrap::decode(&reserved[1..])), (None, None));
}

#[test]
fn a_sealing_comes_back_from_its_bytes_and_from_no_others() {
    let sealing = sealing(Suite::ChaCha20Poly1305);
    let bytes = sealing.encode().unwrap();
    assert_eq!(Sealing::decode(&bytes), Some(sealing.clone()));
    assert_eq!(Sealing::decode(&[]), None);
    for len in [1, 31, 55, 56, bytes.len() - 1] {
        assert_eq!(Sealing::decode(&bytes[..len]), None, "{len}");
    }
    // An unknown suite, more wraps than there are, reserved bytes.
    for (at, value) in [(48, 3), (50, 2), (50, 9), (52, 1), (bytes.len() - 1, 1)] {
        let mut bytes = bytes.to_vec();
        bytes[at] = value;
        assert_eq!(Sealing::decode(&bytes), None, "{at}");
    }
    let many = Sealing { wraps: vec![sealing.wraps[0]; WRAPS_MAX + 1], ..sealing };
    assert!(many.encode().is_err() && Sealer::new(&many, IMAGE, SAVE_ID).is_err());
    let most = Sealing { wraps: vec![many.wraps[0]; WRAPS_MAX], ..many };
    assert_eq!(Sealing::decode(&most.encode().unwrap()), Some(most));
}

#[test]
fn keys_are_not_printed() {
    let sealing = sealing(Suite::Aes256Gcm);
    let sealer = Sealer::new(&sealing, IMAGE, SAVE_ID).unwrap();
    let opener = Opener::new(&sealer.commit(commit()).unwrap(), &key()).unwrap();
    for text in [format!("{sealing:?}"), format!("{sealer:?}"), format!("{opener:?}")] {
        assert!(!text.contains("1, 2, 3") && !text.contains("010203"), "{text}");
    }
    assert_ne!(key(), SaveKey::new(&[0; KEY]));
}

#[test]
fn a_commit_record_opens_with_its_key_in_every_state_that_holds_a_session() {
    for suite in [Suite::Aes256Gcm, Suite::ChaCha20Poly1305] {
        let complete = sealer(suite).commit(commit()).unwrap();
        let restoring = complete.transition(State::Restoring, "a reason").unwrap();
        let tried = Commit { attempts: 2, kept: 3, changed_unix: 9, ..restoring.clone() };
        for commit in [&complete, &restoring, &tried] {
            let decoded = Commit::decode(&commit.encode().unwrap()).unwrap();
            assert_eq!(Opener::new(&decoded, &key()).unwrap().suite(), suite);
        }
        let consumed = tried.transition(State::Consumed, "").unwrap();
        let failed = tried.transition(State::Failed, "why").unwrap();
        for wiped in [consumed, failed, complete.transition(State::Discarded, "").unwrap()] {
            assert_eq!(Opener::new(&wiped, &key()).unwrap_err(), crate::FormatError::KeyWiped(wiped.state));
            let bytes = wiped.encode().unwrap();
            // Suite alone; then everything up to the reason, and the wraps, which are the end.
            assert!(bytes[238..320].iter().chain(&bytes[1344..]).all(|byte| *byte == 0), "{}", wiped.state);
            assert_eq!(Commit::decode(&bytes).unwrap().seal.unwrap().suite, suite);
            // By hand, as who can write the disk may do it.
            let forged = Commit { state: State::Complete, ..wiped };
            assert!(Opener::new(&Commit::decode(&forged.encode().unwrap()).unwrap(), &key()).is_err());
        }
    }
}

#[test]
fn rejects_a_commit_record_of_another_key_save_or_content() {
    use crate::FormatError::Forged;
    let good = sealer(Suite::Aes256Gcm).commit(commit()).unwrap();
    let error = |commit: &Commit, key: &SaveKey| Opener::new(commit, key).unwrap_err();
    assert_eq!(error(&good, &SaveKey::new(&[9; KEY])), Forged(Block::Commit));
    assert_eq!(error(&commit(), &key()), crate::FormatError::NotSealed);
    let with_seal = |change: fn(&mut Seal)| {
        let mut commit = good.clone();
        change(commit.seal.as_mut().unwrap());
        commit
    };
    for other in [
        Commit { image: SAVE_ID, ..good.clone() },
        Commit { save_id: IMAGE, ..good.clone() },
        Commit { header: Locator { tag: [8; 16], ..good.header }, ..good.clone() },
        Commit { header: Locator { checksum: 2, ..good.header }, ..good.clone() },
        Commit { header: Locator { len: 8192, ..good.header }, ..good.clone() },
        Commit { last_index: Locator { tag: [8; 16], ..good.last_index }, ..good.clone() },
        Commit { last_index: Locator { checksum: 2, ..good.last_index }, ..good.clone() },
        Commit { stats: crate::SaveStats { threads: 9, ..good.stats }, ..good.clone() },
        Commit { totals: crate::Totals { chunks: 9, ..good.totals }, ..good.clone() },
        with_seal(|seal| seal.suite = Suite::ChaCha20Poly1305),
        with_seal(|seal| seal.nonce.0[0] ^= 1),
        with_seal(|seal| seal.mac[31] ^= 1),
        with_seal(|seal| seal.wraps.clear()),
        with_seal(|seal| seal.wraps[0].slot = 6),
    ] {
        assert_eq!(error(&other, &key()), Forged(Block::Commit), "{other:?}");
    }
}

#[test]
fn a_record_that_holds_no_session_has_no_key() {
    let complete = sealer(Suite::Aes256Gcm).commit(commit()).unwrap();
    for state in State::ALL.into_iter().filter(|state| !state.holds_a_session()) {
        let kept = Commit { state, ..complete.clone() };
        assert!(matches!(kept.encode(), Err(crate::FormatError::Field { field: "number of wraps", .. })), "{state}");
        // Nor is it read where somebody else has written it.
        let mut bytes = complete.encode().unwrap();
        bytes[32..40].copy_from_slice(&state.marker());
        let sum = {
            bytes[16..24].fill(0);
            crate::checksum(&bytes)
        };
        bytes[16..24].copy_from_slice(&sum.to_le_bytes());
        assert!(Commit::decode(&bytes).is_err(), "{state}");
    }
}

proptest! {
    #[test]
    fn what_is_sealed_opens_and_nothing_else_does(
        suite in prop::sample::select(vec![Suite::Aes256Gcm, Suite::ChaCha20Poly1305]),
        content in prop::collection::vec(any::<u8>(), 1..9000),
        at in any::<prop::sample::Index>(),
        flip in 1_u8..,
    ) {
        let sealer = sealer(suite);
        let opener = Opener::new(&sealer.commit(commit()).unwrap(), &key()).unwrap();
        let stored_len = u32::try_from(content.len()).unwrap();
        let mut chunk = Chunk { stored_len, codec: Codec::Zstd, ..Chunk::default() };
        let mut sealed = content.clone();
        sealer.chunk(&mut chunk, 3, &mut sealed).unwrap();
        let mut bytes = sealed.clone();
        prop_assert_eq!(opener.chunk(&chunk, 3, &mut bytes), Ok(()));
        prop_assert_eq!(&bytes, &content);

        let mut damaged = sealed.clone();
        damaged[at.index(sealed.len())] ^= flip;
        prop_assert!(opener.chunk(&chunk, 3, &mut damaged).is_err());
        let mut tag = chunk.tag;
        tag[at.index(16)] ^= flip;
        for other in [
            Chunk { tag, ..chunk },
            Chunk { counter: chunk.counter + 1, ..chunk },
            Chunk { codec: Codec::Store, ..chunk },
        ] {
            prop_assert!(opener.chunk(&other, 3, &mut sealed.clone()).is_err());
        }
        prop_assert!(opener.chunk(&chunk, 2, &mut sealed.clone()).is_err());
        // The next chunk of the same content has another number and other bytes.
        let (mut next, mut again) = (chunk, content.clone());
        sealer.chunk(&mut next, 3, &mut again).unwrap();
        prop_assert!(next.counter == chunk.counter + 1 && (content.len() < 8 || again != sealed));
        prop_assert!(opener.chunk(&next, 3, &mut sealed).is_err());
    }
}
