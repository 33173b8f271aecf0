//! Bytes that are not those that were written: every flip and every cut of small blocks, and noise.

use dormouse_image::{
    Block, COMMIT_MAGIC, Commit, FormatError, HEADER_MAGIC, Header, INDEX_MAGIC, IndexBlock, IndexBuilder, LABEL_MAGIC,
    Label, SESSION_MAGIC, SessionRecord,
};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use crate::bytes::{PROLOGUE, framed, with, with_checksum};
use crate::values::{self, extent, stored};

const INDEX_AT: u64 = 2 << 20;

/// What a decoder makes of bytes, for comparison.
type Decode = fn(&[u8]) -> Result<String, FormatError>;

const DECODERS: [(Block, Decode); 5] = [
    (Block::Label, |bytes| Ok(format!("{:?}", Label::decode(bytes)?))),
    (Block::Commit, |bytes| Ok(format!("{:?}", Commit::decode(bytes)?))),
    (Block::Session, |bytes| Ok(format!("{:?}", SessionRecord::decode(bytes)?))),
    (Block::Header, |bytes| Ok(format!("{:?}", Header::decode(bytes)?))),
    (Block::Index, |bytes| Ok(format!("{:?}", IndexBlock::decode(bytes, INDEX_AT)?))),
];

fn blocks() -> [(Block, Decode, Vec<u8>); 5] {
    let mut index = IndexBuilder::new(values::commit().save_id);
    index.chunk(&stored(1 << 20, 3), &[extent(0x100, 1), extent(0x200, 2)]).unwrap();
    index.zero(extent(0x300, 64)).unwrap();
    let bytes = [
        values::label().encode().unwrap(),
        values::commit().encode().unwrap(),
        values::session().encode().unwrap(),
        values::header().encode().unwrap(),
        index.finish(INDEX_AT).unwrap().0,
    ];
    let mut bytes = bytes.into_iter();
    DECODERS.map(|(block, decode)| (block, decode, bytes.next().unwrap()))
}

#[test]
fn every_flipped_byte_is_noticed() {
    for (block, decode, bytes) in blocks() {
        assert!(decode(&bytes).is_ok(), "{block}");
        for at in 0..bytes.len() {
            // One bit, and all of them.
            for mask in [0x01, 0xff] {
                let mut damaged = bytes.clone();
                damaged[at] ^= mask;
                assert!(decode(&damaged).is_err(), "{block}: byte {at} xor {mask:#x}");
            }
        }
    }
}

#[test]
fn every_flipped_byte_under_a_right_checksum_is_an_error_or_a_value_that_encodes() {
    for (block, decode, bytes) in blocks() {
        for at in 0..content_end(&bytes) {
            for mask in [0x01, 0x80, 0xff] {
                let mut damaged = bytes.clone();
                damaged[at] ^= mask;
                let damaged = with_checksum(damaged);
                if decode(&damaged).is_ok() {
                    reencodes(block, &damaged);
                }
            }
        }
    }
}

#[test]
fn padding_that_is_not_zero_is_refused() {
    for (block, decode, bytes) in blocks() {
        for at in (content_end(&bytes)..bytes.len()).step_by(13).chain([bytes.len() - 1]) {
            let refused = decode(&with(&bytes, at, &[1]));
            assert!(matches!(refused, Err(FormatError::Newer { block: b, .. }) if b == block), "{at}: {refused:?}");
        }
    }
}

/// An offset in the block's padding: each of these blocks ends in at most eight zeroes that mean something.
fn content_end(bytes: &[u8]) -> usize {
    bytes.iter().rposition(|byte| *byte != 0).unwrap() + 9
}

/// Values that a decoder accepts are values that an encoder accepts, and they stay the same.
fn reencodes(block: Block, bytes: &[u8]) {
    match block {
        Block::Label => {
            let label = Label::decode(bytes).unwrap();
            assert_eq!(Label::decode(&label.encode().unwrap()), Ok(label));
        }
        Block::Commit => {
            let commit = Commit::decode(bytes).unwrap();
            assert_eq!(Commit::decode(&commit.encode().unwrap()), Ok(commit));
        }
        Block::Session => {
            let session = SessionRecord::decode(bytes).unwrap();
            assert_eq!(SessionRecord::decode(&session.encode().unwrap()), Ok(session));
        }
        Block::Header => {
            let header = Header::decode(bytes).unwrap();
            assert_eq!(Header::decode(&header.encode().unwrap()), Ok(header));
        }
        Block::Index => {
            let index = IndexBlock::decode(bytes, INDEX_AT).unwrap();
            let mut builder = IndexBuilder::new(index.save_id);
            for view in index.chunks() {
                builder.chunk(view.chunk, view.extents).unwrap();
            }
            for run in &index.zero {
                builder.zero(*run).unwrap();
            }
            builder.finish(INDEX_AT).unwrap();
        }
        other => panic!("no such block: {other}"),
    }
}

#[test]
fn a_block_that_is_cut_anywhere_is_refused() {
    for (block, decode, bytes) in blocks() {
        for len in 0..bytes.len() {
            let needed = if len < PROLOGUE { PROLOGUE } else { bytes.len() };
            assert_eq!(decode(&bytes[..len]), Err(FormatError::Truncated { block, needed, got: len }));
        }
    }
}

#[test]
fn a_torn_block_is_refused() {
    // Sectors of 512 bytes from a new block, the others from an old one.
    let old = values::commit().transition(dormouse_image::State::Restoring, &"x".repeat(1000)).unwrap();
    let old = old.encode().unwrap();
    let new = values::commit().encode().unwrap();
    for sectors in 1..8 {
        let cut = sectors * 512;
        let torn = [&new[..cut], &old[cut..]].concat();
        // Past the end of the text both are zero, and the block is whole.
        let whole = torn == new;
        assert_eq!(Commit::decode(&torn).is_ok(), whole, "{sectors} sectors");
        assert_eq!(whole, cut >= 320 + 1000);
    }
}

#[test]
fn one_kind_of_block_is_not_taken_for_another() {
    for (block, _, bytes) in blocks() {
        for (other, decode) in DECODERS {
            let expected = (block != other).then_some(FormatError::Magic(other));
            assert_eq!(decode(&bytes).err(), expected, "{block} as {other}");
        }
    }
}

#[test]
fn bytes_after_a_block_do_not_matter() {
    for (block, decode, bytes) in blocks() {
        let longer = [&bytes[..], &[0xa5; 100]].concat();
        assert_eq!(decode(&longer), decode(&bytes), "{block}");
    }
}

#[test]
fn the_length_of_a_block_is_held_to_its_limit() {
    let limits = [1_u32, 1, 239, 240, 256];
    for ((block, decode, bytes), most) in blocks().into_iter().zip(limits) {
        let length = |len: u32| {
            let mut bytes = bytes.clone();
            bytes[12..16].copy_from_slice(&len.to_le_bytes());
            bytes.resize(bytes.len().max(len.min(2 << 20) as usize), 0);
            bytes
        };
        for len in [0, 1, 512, 4095, 4097, (most + 1) * 4096, 1 << 31, u32::MAX] {
            let refused = decode(&length(len));
            assert!(
                matches!(refused, Err(FormatError::Field { field: "length", value, .. }) if value == u64::from(len)),
                "{block} of {len}: {refused:?}"
            );
        }
        // The most that is allowed is read, padding and all.
        assert_eq!(decode(&with_checksum(length(most * 4096))), decode(&bytes), "{block}");
    }
}

proptest! {
    #[test]
    fn noise_is_never_taken_for_a_block(bytes in vec(any::<u8>(), 0..9000)) {
        for (block, decode) in DECODERS {
            prop_assert!(decode(&bytes).is_err(), "{}", block);
        }
    }

    #[test]
    fn noise_under_a_right_checksum_never_panics(
        magic in select(vec![LABEL_MAGIC, COMMIT_MAGIC, SESSION_MAGIC, HEADER_MAGIC, INDEX_MAGIC]),
        body in vec(prop_oneof![3 => Just(0_u8), 1 => any::<u8>()], 0..4000),
    ) {
        let bytes = framed(magic, &body);
        for (block, decode) in DECODERS {
            if decode(&bytes).is_ok() {
                reencodes(block, &bytes);
            }
        }
    }

    #[test]
    fn several_changed_bytes_under_a_right_checksum_never_panic(
        which in 0_usize..5,
        changes in vec((PROLOGUE..600, any::<u8>()), 1..8),
    ) {
        let (block, decode, mut bytes) = blocks()[which].clone();
        for (at, value) in changes {
            bytes[at] = value;
        }
        let bytes = with_checksum(bytes);
        if decode(&bytes).is_ok() {
            reencodes(block, &bytes);
        }
    }
}
