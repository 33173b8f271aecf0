//! The block of keys, as anybody could have written it.
//!
//! The first byte of an input, modulo 2, says what the others are: a block as it is, or the body of one, which is given
//! the prologue and the checksum that fit.

use dormouse_image::{BLOCK, Block, KEYS_MAGIC, KEYS_MAX, Keys, block};

/// Reads any bytes as a block of keys.
pub(super) fn run(input: &[u8]) {
    match input.split_first() {
        Some((kind, bytes)) if kind % 2 == 0 => keys(bytes),
        Some((_, body)) => {
            if let Ok(bytes) = block::frame_since(1, Block::Keys, KEYS_MAGIC, body, BLOCK) {
                keys(&bytes);
            }
        }
        None => {}
    }
}

fn keys(bytes: &[u8]) {
    match Keys::decode(bytes) {
        Ok(keys) => {
            assert!(keys.slots.len() <= KEYS_MAX && keys.slots.iter().all(|slot| slot.id != 0));
            assert!(keys.slot(keys.free_id()).is_none());
            let written = keys.encode().expect("what was read can be written");
            assert_eq!(Keys::decode(&written), Ok(keys));
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}
