//! Debian's own kernels as A, B, C and D, which have no `CONFIG_KEXEC_JUMP`: Dormouse's module jumps, and D writes
//! memory through its `/dev/oldmem`.

use anyhow::{Context, Result, ensure};
use dormouse::handoff::report::Outcome;
use dormouse_tests::artifacts::{Artifacts, KernelName};
use dormouse_tests::cycle::{WentOn, unobserved};
use dormouse_tests::guest::Guest;
use dormouse_tests::machine::{DiskKind, Firmware, GuestConfig, MachineType};
use dormouse_tests::soak::{Options, Soak};

use crate::{demand_proofs, machines_kernels, power_cycle, save_faults, stay_on};

/// How the kernel's log is searched for what must not be in it.
pub(crate) const COMPLAINTS: &str = "dmesg | grep -E 'WARNING:|BUG:|Oops|Call Trace|has not come back' || true";

/// A guest that is up with the module, an image device and the workload.
fn session(config: GuestConfig, kernel: KernelName) -> Result<Guest> {
    session_with(config, kernel, "")
}

/// The same, whose policy goes on with `policy`.
pub(crate) fn session_with(mut config: GuestConfig, kernel: KernelName, policy: &str) -> Result<Guest> {
    (config.kernel, config.has_module) = (kernel, true);
    let mut guest = crate::session_with(config, policy)?;
    ensure!(guest.succeed("ls /dev/dormouse; ls /dev/oldmem 2>/dev/null || true")?.trim() == "/dev/dormouse");
    Ok(guest)
}

/// All proofs, the module as what has jumped, and a kernel without complaints.
pub(crate) fn demand(guest: &mut Guest, went_on: &WentOn, outcome: Outcome) -> Result<()> {
    demand_proofs(guest, went_on)?;
    let report = went_on.report()?;
    ensure!(report.outcome == outcome, "{report:?}");
    ensure!(report.before.as_ref().context("nothing of the jump")?.by_module, "the kernel has jumped: {report:?}");
    // B finds its way through the module's list as through the kernel's.
    ensure!(report.omitted_pages > 0, "no free page was left out: {report:?}");
    let complaints = guest.succeed(COMPLAINTS)?;
    ensure!(complaints.is_empty(), "{complaints}");
    Ok(())
}

/// Twice a snapshot, a reboot, and a power cycle.
fn each_kind_of_cycle(guest: &mut Guest) -> Result<()> {
    for (then, outcome) in [("return", Outcome::Returned), ("return", Outcome::Returned), ("reboot", Outcome::Resumed)]
    {
        let went_on = stay_on(guest, &format!("dormouse hibernate --then {then} --json"))?;
        demand(guest, &went_on, outcome)?;
    }
    let went_on = power_cycle(guest)?;
    demand(guest, &went_on, Outcome::Resumed)
}

/// What is refused without the module, and with it when processes run; then each kind of cycle. An interrupt keeps to
/// its CPU.
pub(crate) fn debian_12_through_each_kind_of_cycle() -> Result<()> {
    let mut guest = session(GuestConfig::new(2, "1G".parse()?), KernelName::Bookworm)?;
    guest.succeed("uname -r | grep -q ^6.1")?;
    let affinity = "cat /proc/irq/4/smp_affinity";
    guest.succeed("echo 2 >/proc/irq/4/smp_affinity")?;
    let bound = guest.succeed(affinity)?;
    each_kind_of_cycle(&mut guest)?;
    let after = guest.succeed(affinity)?;
    ensure!(after == bound, "an interrupt is bound to {after} in place of {bound}");
    Ok(())
}

/// UEFI, NVMe, one CPU, four levels of page tables of 2 MiB pages.
pub(crate) fn debian_12_on_another_machine() -> Result<()> {
    let mut config = GuestConfig::new(1, "1G".parse()?).disk(DiskKind::Nvme);
    (config.machine, config.firmware) = (MachineType::Q35, Firmware::Uefi);
    config.cpu_model = "qemu64".to_owned();
    each_kind_of_cycle(&mut session(config, KernelName::Bookworm)?)
}

/// An Intel processor, for which this kernel keeps page tables of user space and of its own. Its control flow
/// enforcement (CET) is not emulated.
pub(crate) fn debian_13_through_each_kind_of_cycle() -> Result<()> {
    let mut config = GuestConfig::new(2, "1G".parse()?);
    config.machine = MachineType::Q35;
    config.cpu_model = "Icelake-Server".to_owned();
    config.kernel_arguments.push("pti=on".to_owned());
    let mut guest = session(config, KernelName::Trixie)?;
    guest.succeed("grep -q GenuineIntel /proc/cpuinfo && dmesg | grep -q 'page tables isolation: enabled'")?;
    each_kind_of_cycle(&mut guest)
}

pub(crate) fn backports_through_each_kind_of_cycle() -> Result<()> {
    each_kind_of_cycle(&mut session(GuestConfig::new(8, "1536M".parse()?), KernelName::TrixieBackports)?)
}

/// A disk that does not take it all, a user who has changed their mind, and another kernel at the next boot.
pub(crate) fn debian_12_whose_save_fails_and_that_13_finds() -> Result<()> {
    let config = || -> Result<GuestConfig> {
        let mut config = GuestConfig::new(2, "768M".parse()?);
        (config.kernel, config.has_module) = (KernelName::Bookworm, true);
        Ok(config)
    };
    save_faults::of_data(config()?)?;
    save_faults::by_escape(config()?)?;
    machines_kernels::found_by(KernelName::Trixie, &mut session(config()?, KernelName::Bookworm)?)
}

pub(crate) fn debian_12_under_load_by_random_policies() -> Result<()> {
    let options = Options { seed: 14, cycles: 5, memory: "768M".parse()?, cpus: 2 };
    let artifacts = Artifacts::from_environment()?;
    let kernel = artifacts.kernel(KernelName::Bookworm)?;
    let mut soak = Soak::start(options, &artifacts.with_kernel(kernel))?;
    for _ in 0..options.cycles {
        let row = soak.cycle(&mut unobserved)?;
        let before = row.report.before.as_ref().context("nothing of the jump")?;
        ensure!(before.by_module, "the kernel has jumped: {row:?}");
    }
    soak.finish().map(drop)
}
