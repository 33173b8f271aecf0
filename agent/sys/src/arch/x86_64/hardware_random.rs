//! The CPU's random number generator.
#![allow(unsafe_code)]

use std::arch::is_x86_feature_detected;
use std::arch::x86_64::{_rdrand64_step, _rdseed64_step};

/// How often an instruction is tried that has nothing to give (Intel SDM volume 1, 7.3.17.1: ten times for RDRAND).
const TRIES: u32 = 10;

/// A number from the CPU, by RDSEED or else by RDRAND; nothing where it has neither, or neither delivers.
#[must_use]
pub fn hardware_random() -> Option<u64> {
    #[target_feature(enable = "rdseed")]
    fn seed() -> Option<u64> {
        let mut number = 0;
        (_rdseed64_step(&mut number) == 1).then_some(number)
    }
    #[target_feature(enable = "rdrand")]
    fn random() -> Option<u64> {
        let mut number = 0;
        (_rdrand64_step(&mut number) == 1).then_some(number)
    }
    let seeded = || {
        // SAFETY: only called where the CPU has the instruction.
        unsafe { seed() }
    };
    let drawn = || {
        // SAFETY: as above.
        unsafe { random() }
    };
    let by_seed = is_x86_feature_detected!("rdseed").then(|| (0..TRIES).find_map(|_| seeded())).flatten();
    by_seed.or_else(|| is_x86_feature_detected!("rdrand").then(|| (0..TRIES).find_map(|_| drawn())).flatten())
}

#[cfg(test)]
mod tests {
    use super::hardware_random;

    #[test]
    fn numbers_differ() {
        if let (Some(one), Some(other)) = (hardware_random(), hardware_random()) {
            assert_ne!(one, other);
        }
    }
}
