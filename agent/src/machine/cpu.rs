//! Which CPU this machine has, and how many of them run.

use dormouse_image::Cpu;
use dormouse_linux::procfs;

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

fn list(name: &str) -> anyhow::Result<String> {
    procfs::text(format!("{LISTS}/{name}"))
}

fn count(name: &str) -> anyhow::Result<u32> {
    Ok(u32::try_from(cpu_list(&list(name)?).len())?)
}

/// The CPUs that are present and do not run, as a list such as `2,3`; empty if all run.
///
/// They wait in a loop in the memory of the kernel that started this one, and that loop must not be overwritten. A CPU
/// that was started here waits in this kernel's own.
///
/// # Errors
/// The kernel's lists cannot be read.
pub fn idle_cpus() -> anyhow::Result<String> {
    Ok(idle_among(&list("present")?, &list("offline")?, &list("possible")?))
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
}
