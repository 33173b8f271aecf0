//! A process with an anonymous mapping that holds a pattern.

use std::path::Path;

use anyhow::{Context, Result};
use memmap2::MmapMut;

use super::report::Mapping;
use super::role::{self, Answer};
use super::{DIRECTORY, pattern};

/// Fills the mapping and keeps it, for ever.
///
/// # Errors
/// Fails where there is no memory for it.
pub fn run(megabytes: u64, seed: u64) -> Result<()> {
    let bytes = megabytes << 20;
    let mut mapping =
        MmapMut::map_anon(usize::try_from(bytes)?).with_context(|| format!("{bytes} bytes cannot be mapped"))?;
    pattern::fill(&mut mapping, seed, 0);
    // The address is evidence only; nothing is read through it.
    let address = u64::try_from(mapping.as_ptr().addr())?;
    role::serve(Path::new(DIRECTORY), "mapping", || Answer {
        evidence: Mapping { bytes, address },
        fault: pattern::mismatch(&mapping, seed, 0)
            .map(|place| format!("the word {place} of {} is not the pattern's", bytes / 8)),
    })
}
