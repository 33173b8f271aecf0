//! What becomes of the pages that A held free, in kernels that expect different things of them.

use anyhow::{Result, anyhow, ensure};
use dormouse::handoff::report::Report;
use dormouse_tests::cycle;
use dormouse_tests::guest::Guest;
use dormouse_tests::machine::GuestConfig;

use crate::{LITTER, NO_LITTER, demand_proofs, session};

pub(crate) fn a_kernel_that_zeroes_what_it_hands_out_does_not_see_what_was_left_alone() -> Result<()> {
    let mut guest = guest(&[])?;
    let (lines, report) = cycle_of(&mut guest, LITTER)?;
    demand(&guest, &lines, "are free and left out")?;
    ensure!(report.omitted_pages > report.ram_pages / 10, "{report:?}");
    demand_fresh_memory(&mut guest, 2)?;
    Ok(())
}

pub(crate) fn a_kernel_that_expects_zeroes_in_its_free_pages_finds_them() -> Result<()> {
    let mut guest = guest(&["init_on_free=1"])?;
    let (lines, report) = cycle_of(&mut guest, LITTER)?;
    demand(&guest, &lines, "are free and restored as zeroes")?;
    ensure!(report.omitted_pages == 0 && report.zero_pages > report.ram_pages / 10, "{report:?}");
    demand_fresh_memory(&mut guest, 2)?;
    Ok(())
}

pub(crate) fn a_kernel_that_checks_its_free_pages_finds_them_as_they_were() -> Result<()> {
    let mut guest = guest(&["page_poison=1"])?;
    let (lines, report) = cycle_of(&mut guest, NO_LITTER)?;
    demand(&guest, &lines, "storing every page: the kernel may check a pattern in its free pages")?;
    ensure!(report.omitted_pages == 0, "{report:?}");
    // Each page is compared with the pattern when it is handed out.
    demand_fresh_memory(&mut guest, 1)?;
    let words = guest.succeed("dmesg | grep -i -e pagealloc -e 'bad page' -e 'BUG:' || true")?;
    ensure!(words.is_empty(), "the kernel found its free pages changed: {words}");
    Ok(())
}

/// A guest with the workload, and with memory that was in use and is free again.
fn guest(kernel_arguments: &[&str]) -> Result<Guest> {
    let mut config = GuestConfig::new(2, "768M".parse()?);
    config.kernel_arguments.extend(kernel_arguments.iter().map(|argument| (*argument).to_owned()));
    let mut guest = session(config)?;
    guest.succeed("head -c 100000000 /dev/urandom >/run/freed && sync && rm /run/freed")?;
    Ok(guest)
}

/// One hibernation with a power-off, in which C has `argument` too. Returns the console's lines of the save, and the
/// report.
fn cycle_of(guest: &mut Guest, argument: &str) -> Result<(Vec<String>, Report)> {
    let mut lines = Vec::new();
    let before = cycle::check_workload(guest)?;
    let command = "dormouse hibernate --then poweroff --json";
    let saved = cycle::save(guest, before, command, &mut |line| lines.push(line.text.clone()))?;
    guest.add_kernel_argument(argument);
    let went_on = cycle::resume(guest, saved, &mut cycle::unobserved)?;
    demand_proofs(guest, &went_on)?;
    let report = went_on.report()?;
    Ok((lines, report))
}

fn demand(guest: &Guest, lines: &[String], what: &str) -> Result<()> {
    let printed = lines.iter().any(|line| line.contains(what));
    if printed { Ok(()) } else { Err(guest.explain(anyhow!("B does not print {what:?}"))) }
}

/// Takes one part in `parts` of the free memory, which must be zero; four fifths of that, so that something is left.
fn demand_fresh_memory(guest: &mut Guest, parts: u64) -> Result<()> {
    let free = guest.succeed("grep MemFree: /proc/meminfo | tr -cd 0-9")?;
    let megabytes = free.trim().parse::<u64>()? / 1024 * 4 / 5 / parts;
    ensure!(megabytes > 100, "only {megabytes} MB are free");
    guest.succeed(&format!("workload fresh-memory --megabytes {megabytes}"))?;
    Ok(())
}
