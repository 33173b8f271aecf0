//! Machines with systemd-boot, which starts the restore kernel itself: kernel D, and no kernel C before it.

use anyhow::{Result, anyhow, ensure};
use dormouse::console::phase::Phase;
use dormouse::handoff::report::Outcome;
use dormouse_tests::artifacts::Artifacts;
use dormouse_tests::cycle::{self, WentOn};
use dormouse_tests::guest::Guest;
use dormouse_tests::machine::{BootLoader, Firmware, GuestConfig, MachineType};
use dormouse_tests::systemd_boot::boot_file;

use crate::direct::boot_beside_the_region;
use crate::{TWO_BOOTS, begin_save_and_write, demand_proofs, lines_of_boot, save, stay_on};

const POLICY: &str = "[resume]\ndirect = true\n";
/// What the command line of an ordinary boot has, and D's has not.
const ORDINARY: &str = "guest.boot=/dev/";
/// Where Dormouse puts the entry for D, from `/boot`.
const ENTRY: &str = "loader/entries/a-dormouse.conf";
/// The variable that has it booted once.
const VARIABLE: &str = "/sys/firmware/efi/efivars/LoaderEntryOneShot-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f";

/// A snapshot leaves nothing behind; then two cycles with no kernel C. When the power goes in D, the next boot is an
/// ordinary one, and resumes.
pub(crate) fn goes_on_and_survives_a_power_cut() -> Result<()> {
    let mut guest = session()?;
    let went_on = stay_on(&mut guest, "dormouse hibernate --then return --json")?;
    demand_proofs(&guest, &went_on)?;
    demand_nothing_left(&mut guest)?;

    direct_cycle(&mut guest)?;
    let doctor = guest.run("dormouse doctor")?;
    ensure!(doctor.stdout.contains("systemd-boot starts the restore kernel"), "{doctor:?}");
    direct_cycle(&mut guest)?;

    let saved = save(&mut guest)?;
    power_cut_in(&mut guest, Phase::RestoreStart)?;
    let mut lines = Vec::new();
    let went_on = cycle::resume(&mut guest, saved, &mut |line| lines.push(line.text.clone()))?;
    demand_resumed(&guest, &went_on)?;
    demand(&guest, has(&lines, ORDINARY), "no ordinary boot")?;
    demand(&guest, has(&lines, &format!("dormouse: {}", Phase::ResumeJump)), "not by C")?;
    demand_nothing_left(&mut guest)
}

/// The variable is set before the save, not by B after it: D is tried once, and finds an image that is not complete.
pub(crate) fn a_power_cut_in_the_save_costs_one_try() -> Result<()> {
    let mut guest = session()?;
    begin_save_and_write(&mut guest)?;
    guest.cut_power();
    let lines = lines_of_boot(&mut guest)?;
    let position = |text: &str| lines.iter().position(|line| line.contains(text));
    let (direct, ordinary) = (position(&format!("dormouse: {}", Phase::RestoreStart)), position(ORDINARY));
    let in_order = direct.zip(ordinary).is_some_and(|(direct, ordinary)| direct < ordinary);
    demand(&guest, in_order, "D was not tried, and then an ordinary boot")?;
    demand(&guest, has(&lines, "an ordinary boot follows"), "D does not say what follows")?;
    demand(&guest, !has(&lines, &format!("dormouse: {}", Phase::RestoreWrite)), "D wrote to memory")?;
    guest.cut_power();
    let lines = lines_of_boot(&mut guest)?;
    demand(&guest, !has(&lines, &format!("dormouse: {}", Phase::RestoreStart)), "D was tried twice")?;
    // Nobody is left with an entry that leads nowhere.
    guest.succeed("mount -t efivarfs none /sys/firmware/efi/efivars; dormouse prepare")?;
    demand_nothing_left(&mut guest)
}

/// A session with the workload on a machine whose boot loader is set up for it.
fn session() -> Result<Guest> {
    let mut config = GuestConfig::new(2, "768M".parse()?);
    (config.machine, config.firmware) = (MachineType::Q35, Firmware::Uefi);
    (config.boot_loader, config.menu_seconds) = (Some(BootLoader::SystemdBoot), Some(0));
    let mut guest = Guest::with_policy(config, POLICY, &Artifacts::from_environment()?)?;
    boot_beside_the_region(&mut guest)?;
    let device = guest.config().disk_path(0)?;
    cycle::init_image(&mut guest, &device)?;
    guest.succeed("mount -t efivarfs none /sys/firmware/efi/efivars")?;
    guest.succeed("dormouse setup --direct")?;
    cycle::start_workload(&mut guest)?;
    Ok(guest)
}

/// A hibernation with all of its proofs, whose resume is D's alone.
fn direct_cycle(guest: &mut Guest) -> Result<()> {
    let saved = save(guest)?;
    ensure!(boot_file(&guest.boot_disk_file(), ENTRY)?.is_some(), "there is no entry for D");
    let mut lines = Vec::new();
    let went_on = cycle::resume(guest, saved, &mut |line| lines.push(line.text.clone()))?;
    demand_resumed(guest, &went_on)?;
    demand(guest, !has(&lines, ORDINARY) && !has(&lines, "dormouse: resume/"), "an ordinary boot")?;
    let kernels = lines.iter().filter(|line| line.contains("Linux version ")).count();
    demand(guest, kernels <= 1, "more than one kernel was booted")?;
    demand(guest, has(&lines, &format!("dormouse: {}", Phase::RestoreStart)), "D was not started")?;
    demand_nothing_left(guest)
}

/// Switches on and cuts the power when the machine is so far. No ordinary boot comes before.
fn power_cut_in(guest: &mut Guest, phase: Phase) -> Result<()> {
    let mut cursor = guest.power_on()?;
    let mut lines = Vec::new();
    let reached = format!("dormouse: {phase}");
    guest.follow(&mut cursor, TWO_BOOTS, &reached, |line| {
        lines.push(line.text.clone());
        line.text.contains(&reached).then_some(())
    })?;
    demand(guest, !has(&lines, ORDINARY), "an ordinary boot")?;
    guest.cut_power();
    Ok(())
}

fn demand_resumed(guest: &Guest, went_on: &WentOn) -> Result<()> {
    demand_proofs(guest, went_on)?;
    ensure!(went_on.report()?.outcome == Outcome::Resumed, "{:?}", went_on.report());
    Ok(())
}

/// The session goes on: neither the entry nor the variable is there.
fn demand_nothing_left(guest: &mut Guest) -> Result<()> {
    guest.succeed(&format!("! test -e {VARIABLE}"))?;
    guest.succeed(&format!("! test -e /boot/{ENTRY}"))?;
    Ok(())
}

fn has(lines: &[String], text: &str) -> bool {
    lines.iter().any(|line| line.contains(text))
}

fn demand(guest: &Guest, holds: bool, what: &str) -> Result<()> {
    if holds { Ok(()) } else { Err(guest.explain(anyhow!("{what}"))) }
}
