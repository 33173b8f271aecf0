//! Memory that a process has just been given, which must be zero.

use anyhow::{Context, Result, bail};
use memmap2::MmapMut;

const PAGE: usize = 4096;

/// Takes `megabytes` of memory, demands that each page of it is zero, and gives it back.
///
/// # Errors
/// Fails where there is not that much memory, and where a page holds something.
pub fn check(megabytes: u64) -> Result<()> {
    let bytes = megabytes << 20;
    let mut mapping =
        MmapMut::map_anon(usize::try_from(bytes)?).with_context(|| format!("{bytes} bytes cannot be mapped"))?;
    for (number, page) in mapping.chunks_exact_mut(PAGE).enumerate() {
        // A page that is only read is the kernel's one page of zeroes, and none of its own.
        page[0] |= 1;
        if page[0] != 1 || page[1..].iter().any(|byte| *byte != 0) {
            let begins = page.get(..16).unwrap_or_default();
            bail!("page {number} of {} is not fresh: it begins with {begins:02x?}", bytes / PAGE as u64);
        }
    }
    Ok(())
}
