//! The version rule, at its boundaries, in each kind of block.

use dormouse_image::{Block, Commit, FormatError, Header, IndexBlock, IndexBuilder, Label, VERSION, Version};

use crate::bytes::with;
use crate::values;

const MAJOR: usize = 8;
const MINOR: usize = 10;

#[test]
fn a_reader_takes_its_own_major_version_and_no_newer_minor_one() {
    let version = |major, minor| Version { major, minor };
    let ours = version(2, 3);
    for refused in [(0, 0), (1, 0), (1, 3), (1, u16::MAX), (2, 4), (2, u16::MAX), (3, 0), (u16::MAX, 3)] {
        assert!(!ours.reads(version(refused.0, refused.1)), "{refused:?}");
    }
    for read in [(2, 0), (2, 2), (2, 3)] {
        assert!(ours.reads(version(read.0, read.1)), "{read:?}");
    }
}

#[test]
fn every_block_refuses_another_version_and_names_it() {
    let index = IndexBuilder::new(values::commit().save_id).finish(1 << 20).unwrap().0;
    type Decode = fn(&[u8]) -> Option<FormatError>;
    let blocks: [(Block, Vec<u8>, Decode); 4] = [
        (Block::Label, values::label().encode().unwrap(), |bytes| Label::decode(bytes).err()),
        (Block::Commit, values::commit().encode().unwrap(), |bytes| Commit::decode(bytes).err()),
        (Block::Header, values::header().encode().unwrap(), |bytes| Header::decode(bytes).err()),
        (Block::Index, index, |bytes| IndexBlock::decode(bytes, 1 << 20).err()),
    ];
    for (block, bytes, decode) in blocks {
        assert_eq!(decode(&bytes), None, "{block}");
        for (at, number, found) in [
            (MAJOR, VERSION.major - 1, Version { major: VERSION.major - 1, ..VERSION }),
            (MAJOR, VERSION.major + 1, Version { major: VERSION.major + 1, ..VERSION }),
            (MINOR, VERSION.minor + 1, Version { minor: VERSION.minor + 1, ..VERSION }),
        ] {
            let other = with(&bytes, at, &number.to_le_bytes());
            let error = decode(&other).unwrap();
            assert_eq!(error, FormatError::Version { block, found });
            let text = error.to_string();
            assert!(text.contains(&found.to_string()) && text.contains(&VERSION.to_string()), "{text}");
        }
    }
}
