//! Memory as the emulator sees it: when B has finished, and when D has.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use dormouse::console::phase::Phase;
use dormouse_image::{BLOCK, PfnRange};
use dormouse_tests::artifacts::Artifacts;
use dormouse_tests::guest::{Ending, Guest};
use dormouse_tests::machine::GuestConfig;
use dormouse_tests::memory::Memory;
use dormouse_tests::{cycle, image};

use crate::{LITTER, NO_LITTER};

/// Enough for a save, and for C and D.
const HALF_TIMEOUT: Duration = Duration::from_secs(600);
/// What D says of a commit record that counts other pages than its index.
const MISCOUNTED: &str = "dormouse: the session was not resumed: restored were ";
const STORE_ALL: &str = "[save]\nskip_free = false\n";

pub(crate) fn of_1_gib_all_but_the_free_pages_comes_back() -> Result<()> {
    let found = compare("1G", "", &["workload start --megabytes 128"], LITTER)?;
    // Three quarters of the file's 48,828 pages are taken again, for what the jump swaps out of the region.
    ensure!(found.omitted > 0 && found.freed > 4096, "a file was removed, but few pages were left out: {found:?}");
    Ok(())
}

pub(crate) fn of_1_gib_every_page_comes_back() -> Result<()> {
    let found = compare("1G", STORE_ALL, &["workload start --megabytes 128"], LITTER)?;
    ensure!(found.omitted == 0, "pages were left out: {found:?}");
    Ok(())
}

pub(crate) fn of_5_gib_all_but_the_free_pages_comes_back() -> Result<()> {
    // Filling 5 GiB with something takes a minute under emulation.
    let found = compare("5G", "", &[], NO_LITTER)?;
    ensure!(found.omitted > 0 && found.freed > 4096, "a file was removed, but few pages were left out: {found:?}");
    // There is nothing in this guest but its kernel, a shell, and the files in memory from which it was booted.
    let ram = found.stored + found.zero + found.omitted;
    ensure!(found.stored * 100 < ram * 15, "an idle guest stores 15 % of its memory or more: {found:?}");
    ensure!(found.above_4_gib > 0, "nothing of the memory above 4 GiB is stored: {found:?}");
    Ok(())
}

pub(crate) fn of_5_gib_every_page_comes_back() -> Result<()> {
    let found = compare("5G", STORE_ALL, &[], LITTER)?;
    ensure!(found.omitted == 0, "pages were left out: {found:?}");
    ensure!(found.above_4_gib > 0, "nothing of the memory above 4 GiB is stored: {found:?}");
    Ok(())
}

/// What became of A's pages.
#[derive(Debug, Default)]
struct Found {
    /// Stored, and the same after the restore.
    stored: u64,
    /// Of these, above 4 GiB.
    above_4_gib: u64,
    /// Zero before, not stored, and zero after.
    zero: u64,
    /// Left out.
    omitted: u64,
    /// Of these, with something in them before that was gone after.
    freed: u64,
}

/// Saves a guest with this much memory in which `commands` ran, restores it up to the jump in a boot
/// that has the kernel argument `argument`, and compares.
///
/// D writes all of it, and no more: the commit record tells a zero page to be a stored one, which D finds when it has
/// counted what it wrote. It reports that, and waits for a few seconds before it reboots. In these it is frozen.
/// (Damage in a chunk would not do: whatever is still to be written then, by whichever thread, is not.)
fn compare(memory: &str, policy: &str, commands: &[&str], argument: &str) -> Result<Found> {
    let mut config = GuestConfig::new(2, memory.parse()?);
    config.memory_is_a_file = true;
    let mut guest = Guest::with_policy(config.clone(), policy, &Artifacts::from_environment()?)?;
    guest.boot()?;
    let device = guest.config().disk_path(0)?;
    cycle::init_image(&mut guest, &device)?;
    for command in commands {
        guest.succeed(command)?;
    }
    // Memory that was in use and is free again.
    guest.succeed("head -c 200000000 /dev/urandom >/run/freed && sync && rm /run/freed")?;
    power_off(&mut guest)?;
    let before = Memory::open(&guest.set_memory_aside()?, &config)?;

    let disk = guest.disk_file(0);
    let (zero, chunks) = image::pages(&disk)?;
    let (header, mut commit) = (image::header(&disk)?, image::commit(&disk)?);
    let totals = commit.totals;
    commit.totals.stored_pages += 1;
    commit.totals.zero_pages -= 1;
    image::write_commit(&disk, &commit)?;

    guest.add_kernel_argument(argument);
    let mut cursor = guest.power_on()?;
    guest.wait_for(&mut cursor, MISCOUNTED, HALF_TIMEOUT)?;
    guest.freeze()?;
    let after = Memory::open(&guest.memory_file(), &config)?;

    let mut found = Found::default();
    let mut listed = Listed::new(&header.session.ram);
    for extent in chunks.iter().flat_map(|chunk| &chunk.extents) {
        demand_same(&before, &after, extent.range())?;
        found.stored += listed.take(extent.range())?;
        if extent.pfn >= 1 << 20 {
            found.above_4_gib += u64::from(extent.pages);
        }
    }
    for extent in &zero {
        demand_same(&before, &after, extent.range())?;
        after.pages(extent.range(), |pfn, page| {
            ensure!(page == [0; BLOCK], "page frame {pfn:#x} is not zero");
            Ok(())
        })?;
        found.zero += listed.take(extent.range())?;
    }
    for run in listed.rest() {
        found.omitted += run.pages();
        let mut then = [0; BLOCK];
        after.pages(run, |pfn, now| {
            before.read(pfn, &mut then)?;
            found.freed += u64::from(then != [0; BLOCK] && then != now);
            Ok(())
        })?;
    }
    println!("{memory} {policy:?}: {found:?}");
    let sums = (totals.stored_pages, totals.zero_pages, totals.omitted_pages);
    ensure!((found.stored, found.zero, found.omitted) == sums, "{found:?}, but the record says {totals:?}");
    Ok(found)
}

/// Hibernates until the power is off.
fn power_off(guest: &mut Guest) -> Result<()> {
    let mut cursor = guest.console().end();
    let command = guest.send("dormouse hibernate --then poweroff --json")?;
    let ending = guest.follow_command(command, &mut cursor, HALF_TIMEOUT, &mut |_| ())?;
    ensure!(ending == Ending::PoweredOff, "{}: {ending:?}", Phase::HibernateReturn);
    Ok(())
}

fn demand_same(before: &Memory, after: &Memory, run: PfnRange) -> Result<()> {
    let mut then = [0; BLOCK];
    after.pages(run, |pfn, now| {
        before.read(pfn, &mut then)?;
        ensure!(then == now, "page frame {pfn:#x} is not what it was: {}", difference(&then, now));
        Ok(())
    })
}

/// Where two pages differ, and the first 32 bytes of each from there on.
fn difference(then: &[u8], now: &[u8]) -> String {
    let different = || then.iter().zip(now).enumerate().filter(|(_, (then, now))| then != now).map(|(at, _)| at);
    let (first, last) = (different().next().unwrap_or_default(), different().next_back().unwrap_or_default());
    let some = |page: &[u8]| page.iter().skip(first).take(32).map(|byte| format!("{byte:02x}")).collect::<String>();
    format!("{} bytes from {first:#x} to {last:#x}, {} then and {} now", different().count(), some(then), some(now))
}

/// The pages of the saved memory, each of which an image lists once at most.
struct Listed {
    /// Page frames, and whether the image lists them.
    pages: Vec<(u64, bool)>,
}

impl Listed {
    fn new(ram: &[PfnRange]) -> Listed {
        Listed { pages: ram.iter().flat_map(|range| range.start..range.end).map(|pfn| (pfn, false)).collect() }
    }

    /// Takes note that `run` is listed, and returns its pages.
    fn take(&mut self, run: PfnRange) -> Result<u64> {
        let first = self.pages.partition_point(|(pfn, _)| *pfn < run.start);
        let pages = self.pages.get_mut(first..first + usize::try_from(run.pages())?).context("no saved memory")?;
        for ((pfn, listed), expected) in pages.iter_mut().zip(run.start..run.end) {
            ensure!(*pfn == expected && !*listed, "page frame {expected:#x} is listed twice, or no saved memory");
            *listed = true;
        }
        Ok(run.pages())
    }

    /// Runs of what is not listed.
    fn rest(&self) -> Vec<PfnRange> {
        let mut runs: Vec<PfnRange> = Vec::new();
        for (pfn, _) in self.pages.iter().filter(|(_, listed)| !listed) {
            match runs.last_mut() {
                Some(run) if run.end == *pfn => run.end += 1,
                _ => runs.push(PfnRange { start: *pfn, end: pfn + 1 }),
            }
        }
        runs
    }
}
