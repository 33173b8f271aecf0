//! Bytes that look random and can be made again from a seed and a place.

use std::fs::File;
use std::io::Read;

use anyhow::{Context, Result};

/// The word of a sequence at a place (SplitMix64's output function over its counter).
#[must_use]
pub fn word(seed: u64, place: u64) -> u64 {
    let mut word = seed.wrapping_add(place.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// Fills `bytes` with the sequence from word `first` on. A length that is not a multiple of 8 leaves the rest as it is.
pub fn fill(bytes: &mut [u8], seed: u64, first: u64) {
    for (place, bytes) in (first..).zip(bytes.chunks_exact_mut(8)) {
        bytes.copy_from_slice(&word(seed, place).to_le_bytes());
    }
}

/// The place of the first word of `bytes` that is not the sequence's, which begins at word `first`.
#[must_use]
pub fn mismatch(bytes: &[u8], seed: u64, first: u64) -> Option<u64> {
    (first..)
        .zip(bytes.chunks_exact(8))
        .find(|(place, bytes)| *bytes != word(seed, *place).to_le_bytes())
        .map(|(at, _)| at)
}

/// A seed that no two boots share.
///
/// # Errors
/// Fails where the kernel's random numbers cannot be read.
pub fn random_seed() -> Result<u64> {
    let mut seed = [0; 8];
    File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut seed)).context("/dev/urandom")?;
    Ok(u64::from_le_bytes(seed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_byte_is_found_and_the_place_counts() {
        let mut bytes = [0; 64];
        fill(&mut bytes, 1, 100);
        assert_eq!(mismatch(&bytes, 1, 100), None);
        assert_eq!(mismatch(&bytes, 2, 100), Some(100));
        assert_eq!(mismatch(&bytes, 1, 101), Some(101));
        bytes[40] ^= 1;
        assert_eq!(mismatch(&bytes, 1, 100), Some(105));
    }

    #[test]
    fn the_sequence_is_splitmix64() {
        // The first outputs of the reference implementation with seed 1234567.
        let expected = [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423];
        assert_eq!([0, 1, 2].map(|place| word(1_234_567, place)), expected);
    }
}
