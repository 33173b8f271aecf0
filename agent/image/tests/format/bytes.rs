//! Blocks as bytes: framing what the crate's encoders would never write.

use dormouse_image::{BLOCK, checksum};

/// Bytes before a block's body.
pub(crate) const PROLOGUE: usize = 24;

/// Where a block's checksum lies.
const CHECKSUM: std::ops::Range<usize> = 16..24;

/// Gives `block` the checksum that its content has.
pub(crate) fn with_checksum(mut block: Vec<u8>) -> Vec<u8> {
    block[CHECKSUM].fill(0);
    let sum = checksum(&block);
    block[CHECKSUM].copy_from_slice(&sum.to_le_bytes());
    block
}

/// `block` with `value` at `offset` and the right checksum.
pub(crate) fn with(block: &[u8], offset: usize, value: &[u8]) -> Vec<u8> {
    let mut block = block.to_vec();
    block[offset..offset + value.len()].copy_from_slice(value);
    with_checksum(block)
}

/// A block of version 1.0 with this body, padded to whole blocks.
pub(crate) fn framed(magic: [u8; 8], body: &[u8]) -> Vec<u8> {
    framed_by(0, magic, body)
}

/// The same of another minor version.
pub(crate) fn framed_by(minor: u8, magic: [u8; 8], body: &[u8]) -> Vec<u8> {
    let len = (PROLOGUE + body.len()).next_multiple_of(BLOCK);
    let mut block = magic.to_vec();
    block.extend([1, 0, minor, 0]);
    block.extend(u32::try_from(len).unwrap().to_le_bytes());
    block.extend([0; 8]);
    block.extend(body);
    block.resize(len, 0);
    with_checksum(block)
}
