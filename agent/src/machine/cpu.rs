//! Which CPU this machine has, and how many of them run.

use dormouse_image::Cpu;
use dormouse_linux::procfs;
use thiserror::Error;

use crate::machine::arch;

/// Where the kernel lists its CPUs.
const LISTS: &str = "/sys/devices/system/cpu";

/// The CPU, with what distinguishes it from others, and how many of them are online: whether this process may run on
/// them (`isolcpus=`, cpusets) does not matter.
///
/// # Errors
/// The kernel's description of it cannot be read.
pub(super) fn read() -> anyhow::Result<Cpu> {
    Ok(Cpu { online: count("online")?, ..arch::identify(&procfs::text("/proc/cpuinfo")?) })
}

/// How many CPUs the machine has, whether or not this kernel has started them (`maxcpus=`): the restore kernel starts
/// all of them.
///
/// # Errors
/// The kernel's list cannot be read.
pub(super) fn present() -> anyhow::Result<u32> {
    count("present")
}

/// How many CPUs a kernel finds that is started on this machine without any limit, and how many it makes room for:
/// those and the ones that could be plugged in.
#[must_use]
pub fn of_second_kernel() -> (u32, u32) {
    let of_firmware = procfs::read(MADT).map_or(0, |table| arch::cpus_of_firmware(&table));
    let cpus = count("present").unwrap_or(1).max(of_firmware);
    (cpus, count("possible").unwrap_or(1).max(cpus))
}

fn list(name: &str) -> anyhow::Result<String> {
    procfs::text(format!("{LISTS}/{name}"))
}

fn count(name: &str) -> anyhow::Result<u32> {
    Ok(u32::try_from(cpu_list(&list(name)?).len())?)
}

/// ACPI's table of CPUs.
const MADT: &str = "/sys/firmware/acpi/tables/APIC";

/// Why memory must not be written by this kernel: a CPU waits in a loop in it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum IdleCpus {
    /// The kernel lists CPUs that do not run.
    #[error(
        "CPUs {0} do not run in this kernel: they would be overwritten where they wait. Take maxcpus=, nr_cpus=, \
         possible_cpus= and nosmt off its command line (kernel.arguments), and check that its CONFIG_NR_CPUS is large \
         enough"
    )]
    Listed(String),
    /// It does not even list them.
    #[error(
        "{runs} of {needed} CPUs run in this kernel: the others would be overwritten where they wait. Take maxcpus=, \
         nr_cpus=, possible_cpus= and nosmt off its command line (kernel.arguments), and check that its \
         CONFIG_NR_CPUS is large enough"
    )]
    Missing {
        /// How many run.
        runs: u32,
        /// How many there are.
        needed: u32,
    },
}

/// Demands that every CPU runs in this kernel: those that it lists, those that ACPI does (a kernel with `nr_cpus=` does
/// not list the others), and as many as ran in the session, `of_session`.
///
/// The others wait in a loop in the memory of the kernel that started this one, and that loop must not be overwritten.
/// A CPU that was started here waits in this kernel's own.
///
/// # Errors
/// [`IdleCpus`], or the kernel's lists cannot be read.
pub fn demand_all_cpus(of_session: u32) -> anyhow::Result<()> {
    let idle = idle_among(&list("present")?, &list("offline")?, &list("possible")?);
    // A machine without ACPI has no such table.
    let of_firmware = procfs::read(MADT).map_or(0, |table| arch::cpus_of_firmware(&table));
    Ok(all_run(idle, count("online")?, of_firmware.max(of_session))?)
}

fn all_run(idle: String, runs: u32, needed: u32) -> Result<(), IdleCpus> {
    match (idle.is_empty(), runs < needed) {
        (false, _) => Err(IdleCpus::Listed(idle)),
        (true, true) => Err(IdleCpus::Missing { runs, needed }),
        (true, false) => Ok(()),
    }
}

/// Those that are offline, but for places where one could be plugged in. One that is offline and not even possible did
/// not fit into the kernel's configuration (drivers/base/cpu.c, `print_cpus_offline`).
fn idle_among(present: &str, offline: &str, possible: &str) -> String {
    let (present, possible) = (cpu_list(present), cpu_list(possible));
    let idle = cpu_list(offline).into_iter().filter(|cpu| present.contains(cpu) || !possible.contains(cpu));
    idle.map(|cpu| cpu.to_string()).collect::<Vec<_>>().join(",")
}

/// A list such as `0-3,8`.
fn cpu_list(text: &str) -> Vec<u32> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse::<u32>().ok()?..=last.parse().ok()?)
    };
    text.trim().split(',').filter_map(range).flatten().take(1 << 16).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn finds_cpus_that_do_not_run() {
        assert_eq!(idle_among("0-3\n", "\n", "0-3\n"), "");
        assert_eq!(idle_among("0-3", "2-3", "0-3"), "2,3");
        // Places for more.
        assert_eq!(idle_among("0-1", "2-7", "0-7"), "");
        // More than the kernel has room for.
        assert_eq!(idle_among("0-1", "2-3", "0-1"), "2,3");
    }

    #[test]
    fn demands_every_cpu_that_there_is() {
        assert_eq!(all_run(String::new(), 4, 4), Ok(()));
        // One was plugged in since.
        assert_eq!(all_run(String::new(), 4, 2), Ok(()));
        assert_eq!(all_run("3".to_owned(), 4, 4), Err(IdleCpus::Listed("3".to_owned())));
        let missing = all_run(String::new(), 1, 2).unwrap_err();
        assert_eq!(missing, IdleCpus::Missing { runs: 1, needed: 2 });
        assert!(missing.to_string().starts_with("1 of 2 CPUs run in this kernel"), "{missing}");
    }
}
