//! Numbers that look random and are the same for the same seed.

use std::ops::RangeInclusive;

use crate::workload::pattern;

/// A sequence of numbers (SplitMix64).
#[derive(Debug, Clone)]
pub struct Random {
    seed: u64,
    place: u64,
}

impl Random {
    /// The sequence of a seed, from its beginning.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Random { seed, place: 0 }
    }

    /// The next number.
    pub fn word(&mut self) -> u64 {
        let word = pattern::word(self.seed, self.place);
        self.place = self.place.wrapping_add(1);
        word
    }

    /// A sequence of its own, which has as much of this one as it takes without changing what follows here.
    pub fn branch(&mut self) -> Random {
        Random::new(self.word())
    }

    /// A number of `range`, which is not empty.
    pub fn within(&mut self, range: RangeInclusive<u64>) -> u64 {
        let word = self.word();
        match range.end().wrapping_sub(*range.start()).wrapping_add(1) {
            // The range has every number.
            0 => word,
            count => range.start().wrapping_add(word % count),
        }
    }

    /// True once in `times` on average.
    pub fn one_in(&mut self, times: u64) -> bool {
        self.within(1..=times) == 1
    }

    /// A place in a list of `len`, which is not empty.
    pub fn place(&mut self, len: usize) -> usize {
        // A place in a list fits both types.
        let last = u64::try_from(len.saturating_sub(1)).unwrap_or(u64::MAX);
        usize::try_from(self.within(0..=last)).unwrap_or_default()
    }

    /// One of `choices`.
    pub fn choose<'a, T>(&mut self, choices: &'a [T]) -> Option<&'a T> {
        choices.get(self.place(choices.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_has_one_sequence_and_every_number_of_a_range_comes() {
        let draw = |seed| {
            let mut random = Random::new(seed);
            (0..200).map(|_| random.within(4..=7)).collect::<Vec<_>>()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
        for number in 4..=7 {
            assert!(draw(1).contains(&number));
        }
        assert!(draw(1).iter().all(|number| (4..=7).contains(number)));
        let mut random = Random::new(3);
        assert_ne!(random.within(0..=u64::MAX), random.within(0..=u64::MAX));
        assert_eq!((random.within(9..=9), random.place(1), random.choose::<u8>(&[])), (9, 0, None));
    }
}
