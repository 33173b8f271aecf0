//! Memory as the emulator sees it: when B has finished, and when D has.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use dormouse_image::{BLOCK, Extent};
use dormouse_tests::image;
use dormouse_tests::machine::GuestConfig;

use crate::{save, session};

/// Enough for C and D.
const RESTORE_TIMEOUT: Duration = Duration::from_secs(300);

/// D runs until just before its jump: the last chunk of the image is damaged, so that D writes everything else, finds that
/// one, says so, and waits for a few seconds before it reboots. In these it is frozen.
#[test]
fn what_b_saw_is_what_d_writes_page_by_page() -> Result<()> {
    let mut config = GuestConfig::new(2, "1G".parse()?);
    config.memory_is_a_file = true;
    let mut guest = session(config)?;
    // Memory that was in use and is free again: its content must not come back, and nothing else may go with it.
    guest.succeed("head -c 200000000 /dev/urandom >/run/freed && sync && rm /run/freed")?;
    save(&mut guest)?;
    let before = std::fs::read(guest.memory_file()).context("the memory that B left")?;

    let disk = guest.disk_file(0);
    let (zero, mut chunks) = image::pages(&disk)?;
    let totals = image::commit(&disk)?.totals;
    let damaged = chunks.pop().context("an image without chunks")?;
    image::flip_byte(&disk, damaged.offset + u64::from(damaged.stored_len / 2))?;

    let mut cursor = guest.power_on()?;
    guest.wait_for(&mut cursor, "dormouse: the session was not resumed", RESTORE_TIMEOUT)?;
    guest.freeze()?;
    let after = std::fs::read(guest.memory_file()).context("the memory that D left")?;

    let mut stored = 0;
    for extent in chunks.iter().flat_map(|chunk| &chunk.extents) {
        for pfn in extent.range().start..extent.range().end {
            ensure!(page(&before, pfn)? == page(&after, pfn)?, "page frame {pfn:#x} is not what it was");
            stored += 1;
        }
    }
    let (mut zeroes, mut freed) = (0, 0);
    for extent in &zero {
        for pfn in extent.range().start..extent.range().end {
            ensure!(page(&after, pfn)?.iter().all(|byte| *byte == 0), "page frame {pfn:#x} is not zero");
            zeroes += 1;
            freed += u64::from(page(&before, pfn)?.iter().any(|byte| *byte != 0));
        }
    }
    let in_damaged: u64 = damaged.extents.iter().map(|extent: &Extent| u64::from(extent.pages)).sum();
    ensure!(stored + in_damaged == totals.stored_pages && zeroes == totals.zero_pages, "{stored} {zeroes} {totals:?}");
    println!("{stored} pages are the same, {zeroes} are zero, {freed} of which were free and held something");
    // Three quarters of the file's 48,828 pages are taken again, for what the jump swaps out of the region.
    ensure!(freed > 4096, "a file was removed, but only {freed} pages were left out as free");
    Ok(())
}

fn page(memory: &[u8], pfn: u64) -> Result<&[u8]> {
    let start = usize::try_from(pfn)? * BLOCK;
    memory.get(start..start + BLOCK).with_context(|| format!("page frame {pfn:#x} is outside the memory's file"))
}
