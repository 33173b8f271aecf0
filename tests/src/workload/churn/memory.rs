//! Memory that is taken in random sizes, filled, compared after a while and given back.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use memmap2::MmapMut;

use crate::random::Random;
use crate::workload::pattern;

const REST: Duration = Duration::from_millis(5);

const LONGEST: u64 = 2 << 20;

/// Takes and gives back memory, for ever; at most `megabytes` of it are held.
///
/// # Errors
/// Fails where its socket cannot be made.
pub fn run(megabytes: u64, seed: u64) -> Result<()> {
    let mut memory = Memory { random: Random::new(seed), held: Vec::new(), bytes: 0, most: megabytes << 20 };
    super::run("memory", REST, move || memory.operation())
}

#[derive(Debug)]
struct Memory {
    random: Random,
    held: Vec<Held>,
    /// Their sum.
    bytes: u64,
    /// What it may be.
    most: u64,
}

/// A piece of memory and what is in it.
#[derive(Debug)]
struct Held {
    mapping: MmapMut,
    seed: u64,
}

impl Memory {
    /// Takes a piece, once there is room for it.
    fn operation(&mut self) -> Result<()> {
        let bytes = self.random.within(1..=LONGEST.min(self.most) / 8) * 8;
        while self.bytes + bytes > self.most && !self.held.is_empty() {
            self.give_back()?;
        }
        let mapping = MmapMut::map_anon(usize::try_from(bytes)?);
        let mut mapping = mapping.with_context(|| format!("{bytes} bytes cannot be mapped"))?;
        self.bytes += bytes;
        let fresh = mapping.iter().position(|byte| *byte != 0);
        let seed = self.random.word();
        pattern::fill(&mut mapping, seed, 0);
        self.held.push(Held { mapping, seed });
        // The process still has what it took, whatever was in it.
        ensure!(fresh.is_none(), "byte {fresh:?} of {bytes} fresh ones is not zero");
        Ok(())
    }

    /// Gives back one that is as it was left.
    fn give_back(&mut self) -> Result<()> {
        let place = self.random.place(self.held.len());
        let held = self.held.swap_remove(place);
        let bytes = u64::try_from(held.mapping.len())?;
        self.bytes -= bytes;
        match pattern::mismatch(&held.mapping, held.seed, 0) {
            None => Ok(()),
            Some(word) => bail!("the word {word} of {} is not the pattern's", bytes / 8),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn no_more_is_held_than_may_be_and_a_changed_byte_is_an_error() {
        let mut memory = Memory { random: Random::new(1), held: Vec::new(), bytes: 0, most: 4 << 20 };
        for _ in 0..50 {
            memory.operation().unwrap();
            assert!(memory.bytes <= memory.most);
        }
        assert_eq!(memory.bytes, memory.held.iter().map(|held| held.mapping.len() as u64).sum::<u64>());
        memory.held.truncate(1);
        memory.bytes = memory.held[0].mapping.len() as u64;
        memory.held[0].mapping[0] ^= 1;
        assert!(memory.give_back().is_err());
        assert_eq!((memory.bytes, memory.held.len()), (0, 0));
    }
}
