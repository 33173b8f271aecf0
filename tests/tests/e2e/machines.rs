//! Machines as they are: memory maps of real firmware, boot loaders as people have set them up.

use anyhow::Result;
use dormouse_tests::machine::GuestConfig;

use crate::{demand_proofs, demand_refusal, power_cycle, session, stay_on};

fn machine(cpus: u32, argument: &str) -> Result<GuestConfig> {
    let mut config = GuestConfig::new(cpus, "768M".parse()?);
    config.kernel_arguments.push(argument.to_owned());
    Ok(config)
}

/// UEFI firmware for Intel's CPUs reserves the page at 0x58000 for itself. A's real-mode trampoline is in the piece
/// above it. Without that its second CPU does not come back, and that it does is one of the workload's proofs.
pub(crate) fn ram_below_640_kib_in_two_pieces() -> Result<()> {
    let mut guest = session(machine(2, "memmap=4K$0x58000")?)?;
    guest.succeed("grep -q '^00058000-00058fff : Reserved' /proc/iomem")?;
    guest.succeed("grep -q '^00059000-0009[0-9a-f]* : System RAM' /proc/iomem")?;
    power_cycle(&mut guest)?;
    Ok(())
}

/// What keeps this boot from resuming most likely keeps the next one from it too. A snapshot needs no next boot.
pub(crate) fn noresume_on_the_command_line() -> Result<()> {
    let mut guest = session(machine(1, "noresume")?)?;
    demand_refusal(&mut guest, "command-line")?;
    let snapshot = stay_on(&mut guest, "dormouse hibernate --then return --json")?;
    demand_proofs(&guest, &snapshot)
}

/// The boot starts one CPU, and user space the other, as on machines that bring CPUs up when they are needed. The next
/// boot starts one again, and has both all the same.
pub(crate) fn a_cpu_that_user_space_brings_up() -> Result<()> {
    let mut guest = session(machine(2, "maxcpus=1")?)?;
    guest.succeed("[ $(cat /sys/devices/system/cpu/online) = 0 ] && echo 1 >/sys/devices/system/cpu/cpu1/online")?;
    power_cycle(&mut guest)?;
    Ok(())
}
