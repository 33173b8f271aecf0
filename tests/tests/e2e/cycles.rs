//! Power-off cycles and their variants in machines of several sizes.

use anyhow::{Result, ensure};
use dormouse::handoff::report::Outcome;
use dormouse_image::State;
use dormouse_tests::image;
use dormouse_tests::machine::GuestConfig;

use crate::{demand_proofs, power_cycle, session, stay_on};

/// A power-off cycle whose report fits the machine.
fn cycle_in(cpus: u32, memory: &str) -> Result<()> {
    let config = GuestConfig::new(cpus, memory.parse()?);
    let pages = config.memory.bytes() / 4096;
    let mut guest = session(config)?;
    let report = power_cycle(&mut guest)?.report()?;
    ensure!(report.outcome == Outcome::Resumed, "{report:?}");
    let accounted = report.stored_pages + report.zero_pages + report.omitted_pages;
    ensure!(report.ram_pages == accounted, "the pages do not add up: {report:?}");
    ensure!(report.omitted_pages > 0, "no free page was left out: {report:?}");
    // The firmware keeps some of the machine's memory, and the region's pages are saved where the jump put them.
    ensure!(report.ram_pages <= pages && report.ram_pages > pages / 10 * 7, "{pages} pages, but {report:?}");
    let restore = report.restore.ok_or_else(|| anyhow::anyhow!("no report of the restore: {report:?}"))?;
    ensure!(report.save.threads == cpus && restore.threads == cpus, "not every CPU was used: {report:?}");
    ensure!(report.save.least_available_kib > 0 && restore.least_available_kib > 0, "{report:?}");
    Ok(())
}

pub(crate) fn one_cpu_and_768_mib() -> Result<()> {
    cycle_in(1, "768M")
}

pub(crate) fn two_cpus_and_1_gib() -> Result<()> {
    cycle_in(2, "1G")
}

pub(crate) fn four_cpus_and_5_gib_with_ram_above_4_gib() -> Result<()> {
    cycle_in(4, "5G")
}

pub(crate) fn three_cycles_in_one_session() -> Result<()> {
    let mut guest = session(GuestConfig::new(2, "768M".parse()?))?;
    let first = power_cycle(&mut guest)?;
    power_cycle(&mut guest)?;
    let third = power_cycle(&mut guest)?;
    let proofs = third.after.proofs_since(&first.before);
    ensure!(proofs.iter().all(|proof| proof.holds), "from the first to the third: {proofs:?}");
    Ok(())
}

pub(crate) fn a_snapshot_goes_on_and_is_never_resumed() -> Result<()> {
    let mut guest = session(GuestConfig::new(2, "768M".parse()?))?;
    let boot_id = guest.succeed("cat /proc/sys/kernel/random/boot_id")?;
    let went_on = stay_on(&mut guest, "dormouse hibernate --then return --json")?;
    demand_proofs(&guest, &went_on)?;
    let report = went_on.report()?;
    ensure!(report.outcome == Outcome::Returned && report.restore.is_none(), "{report:?}");
    ensure!(report.image_bytes > 0 && report.stored_pages > 0, "{report:?}");

    guest.succeed("sync")?;
    guest.cut_power();
    ensure!(image::commit(&guest.disk_file(0))?.state == State::Snapshot, "{:?}", image::commit(&guest.disk_file(0))?);
    guest.boot()?;
    let boot_id_after = guest.succeed("cat /proc/sys/kernel/random/boot_id")?;
    ensure!(boot_id_after != boot_id, "the snapshot was resumed");
    Ok(())
}

pub(crate) fn a_save_that_ends_in_a_reboot_resumes() -> Result<()> {
    let mut guest = session(GuestConfig::new(2, "768M".parse()?))?;
    let went_on = stay_on(&mut guest, "dormouse hibernate --then reboot --json")?;
    demand_proofs(&guest, &went_on)?;
    ensure!(went_on.report()?.outcome == Outcome::Resumed, "{:?}", went_on.report());
    Ok(())
}
