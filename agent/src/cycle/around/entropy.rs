//! New randomness after the return.
//!
//! The state of the kernel's random number generator is in the image, as all of memory is. Whoever reads the image, and
//! each machine that resumes a copy of it, would go on from the same state until the generator draws from its pool
//! again, a minute later.
//!
//! What is mixed in here makes the numbers of two resumes differ from the first one on that a program asks for after
//! it: the time of day and since the boot, the report of the kernel that restored, and how long some instructions take.
//! Where the CPU has RDSEED or RDRAND, and these deliver, the numbers cannot be foretold from the image either; without
//! them somebody who has the image has only the times to guess. Programs that were thawed a moment earlier may have had
//! numbers of the old state, and so may those that keep a generator of their own. The kernel draws a new key for each
//! of its uses once it is asked to (Linux 6.12, drivers/char/random.c, `RNDRESEEDCRNG`).

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use dormouse_image::Uuid;
use dormouse_sys::hardware_random::hardware_random;
use dormouse_sys::random;

use crate::console::phase::Phase;

/// How many numbers are asked of the CPU, and how many durations are taken.
const NUMBERS: usize = 8;
const DURATIONS: usize = 64;

/// Reseeds the kernel's generator. A failure is logged: a session that goes on is worth more.
pub(super) fn reseed(save_id: &Uuid, left: &[u8]) {
    match random::reseed(&seed(save_id, left)) {
        Ok(()) => log::debug!("{}: the random number generator is reseeded", Phase::HibernateReturn),
        Err(error) => {
            log::warn!("{}: the random number generator is not reseeded: {error}", Phase::HibernateReturn);
        }
    }
}

/// What differs between two resumes of one image.
fn seed(save_id: &Uuid, left: &[u8]) -> Vec<u8> {
    let mut bytes = save_id.to_string().into_bytes();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    bytes.extend(now.as_nanos().to_le_bytes());
    bytes.extend(left);
    for number in (0..NUMBERS).filter_map(|_| hardware_random()) {
        bytes.extend(number.to_le_bytes());
    }
    for _ in 0..DURATIONS {
        let begin = Instant::now();
        std::thread::yield_now();
        bytes.extend(begin.elapsed().as_nanos().to_le_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_seeds_differ() {
        let id = Uuid::default();
        assert_ne!(seed(&id, b"left"), seed(&id, b"left"));
        assert!(seed(&id, b"left").windows(4).any(|part| part == b"left"));
    }
}
