//! Other kernels than the one that all other cases run: Linux 7.2, Debian's own, and one with all that distributions
//! switch on.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use dormouse::handoff::report::Outcome;
use dormouse_tests::artifacts::{Artifacts, KernelName};
use dormouse_tests::cycle::{self, unobserved};
use dormouse_tests::guest::Guest;
use dormouse_tests::machine::{Disk, DiskKind, Firmware, GuestConfig, MIB, MachineType};

use crate::{demand_proofs, power_cycle, save, stay_on};

/// A directory in which the VMCOREINFO of each kernel that is hibernated here is kept, as test data of the agent's.
const RECORD_VARIABLE: &str = "DORMOUSE_RECORD";

/// A guest that is up with an image device, swap in use, and the workload.
fn session(mut config: GuestConfig) -> Result<Guest> {
    config.disks.push(Disk { kind: DiskKind::Virtio, bytes: 64 * MIB });
    let swap = config.disk_path(config.disks.len() - 1)?;
    let mut guest = Guest::standard(config, &Artifacts::from_environment()?)?;
    guest.boot()?;
    let device = guest.config().disk_path(0)?;
    cycle::init_image(&mut guest, &device)?;
    guest.succeed(&format!("mkswap {swap} && swapon {swap}"))?;
    cycle::start_workload(&mut guest)?;
    record_vmcoreinfo(&mut guest)?;
    Ok(guest)
}

/// A snapshot, a save that ends in a reboot, and one that ends in a power-off, each with all proofs.
fn each_kind_of_cycle(guest: &mut Guest) -> Result<()> {
    for (then, outcome) in [("return", Outcome::Returned), ("reboot", Outcome::Resumed)] {
        let went_on = stay_on(guest, &format!("dormouse hibernate --then {then} --json"))?;
        demand_proofs(guest, &went_on)?;
        ensure!(went_on.report()?.outcome == outcome, "--then {then}: {:?}", went_on.report());
    }
    let went_on = power_cycle(guest)?;
    ensure!(went_on.report()?.omitted_pages > 0, "no free page was left out: {:?}", went_on.report());
    ensure!(went_on.proofs().iter().any(|proof| proof.claim.contains("swapped out")), "{:?}", went_on.proofs());
    Ok(())
}

/// In the second shape of machine, so that this is not the test kernel's first machine once more.
pub(crate) fn linux_7_2_through_each_kind_of_cycle() -> Result<()> {
    let mut config = GuestConfig::new(2, "1G".parse()?).disk(DiskKind::Nvme);
    (config.machine, config.firmware) = (MachineType::Q35, Firmware::Uefi);
    config.kernel = KernelName::Linux7_2;
    let mut guest = session(config)?;
    guest.succeed("uname -r | grep -q ^7")?;
    each_kind_of_cycle(&mut guest)
}

pub(crate) fn the_big_kernel_through_each_kind_of_cycle() -> Result<()> {
    let mut config = GuestConfig::new(2, "1G".parse()?);
    config.kernel = KernelName::Big;
    each_kind_of_cycle(&mut session(config)?)
}

/// A distribution's kernel as B and D, in the region that is the default.
fn saved_and_restored_by(kernel: KernelName, cpus: u32) -> Result<Guest> {
    let mut config = GuestConfig::new(cpus, "1G".parse()?);
    config.second_kernel = Some(kernel);
    let mut guest = session(config)?;
    let report = power_cycle(&mut guest)?.report()?;
    let restore = report.restore.context("no report of the restore")?;
    ensure!(report.save.threads == cpus && restore.threads == cpus, "not every CPU was used: {report:?}");
    let release = Artifacts::from_environment()?.kernel(kernel)?.release().to_owned();
    for half in [&report.save, &restore] {
        ensure!(half.least_available_kib > 0, "no room was left: {report:?}");
    }
    println!(
        "{release} with {cpus} CPUs: at least {} KiB available in B, {} KiB in D",
        report.save.least_available_kib, restore.least_available_kib
    );
    Ok(guest)
}

/// A session of this machine, whose next boot is another kernel.
pub(crate) fn found_by(kernel: KernelName, guest: &mut Guest) -> Result<()> {
    let saved = save(guest)?;
    guest.boot_with(kernel, &Artifacts::from_environment()?)?;
    let went_on = cycle::resume(guest, saved, &mut unobserved)?;
    demand_proofs(guest, &went_on)
}

pub(crate) fn the_kernel_of_debian_13_saves_and_restores() -> Result<()> {
    saved_and_restored_by(KernelName::Trixie, 2).map(drop)
}

pub(crate) fn the_kernel_of_debian_13_with_8_cpus_and_as_the_next_boot() -> Result<()> {
    found_by(KernelName::Trixie, &mut saved_and_restored_by(KernelName::Trixie, 8)?)
}

pub(crate) fn the_kernel_of_debian_12_saves_and_restores() -> Result<()> {
    saved_and_restored_by(KernelName::Bookworm, 8)?;
    found_by(KernelName::Bookworm, &mut saved_and_restored_by(KernelName::Bookworm, 2)?)
}

pub(crate) fn the_kernel_of_backports_saves_and_restores() -> Result<()> {
    saved_and_restored_by(KernelName::TrixieBackports, 8)?;
    found_by(KernelName::TrixieBackports, &mut saved_and_restored_by(KernelName::TrixieBackports, 2)?)
}

/// Keeps the VMCOREINFO of the guest's kernel where the caller of the test wants it. It is a note of `/proc/kcore`
/// (fs/proc/kcore.c, `append_kcore_note`).
fn record_vmcoreinfo(guest: &mut Guest) -> Result<()> {
    let Some(directory) = std::env::var_os(RECORD_VARIABLE) else { return Ok(()) };
    let text = guest.succeed("head -c 65536 /proc/kcore | tr '\\0' '\\n' | grep -a -E '^[A-Z-]+(\\(.*\\))?='")?;
    ensure!(text.starts_with("OSRELEASE="), "no VMCOREINFO: {text:?}");
    let release = guest.succeed("uname -r")?;
    let path = Path::new(&directory).join(format!("vmcoreinfo-{}.txt", release.trim()));
    std::fs::write(&path, text).with_context(|| format!("{}: cannot be written", path.display()))
}
