//! What B and D must be able to do, and with how much memory: CPUs, memory that ACPI announces, the region's place.

use std::time::Duration;

use anyhow::{Result, ensure};
use dormouse_tests::artifacts::Artifacts;
use dormouse_tests::guest::Guest;
use dormouse_tests::machine::GuestConfig;
use dormouse_tests::userland::{GuestPolicy, Userland};
use dormouse_tests::{cycle, image};

use crate::{demand_proofs, demand_same_session, power_cycle, session, session_with, stay_on};

/// B is D's equal, so that what D would refuse ends in A, in D's words. And a region that is too small is refused
/// before anything is frozen, with the size that is enough.
pub(crate) fn a_restore_that_would_fail_brings_the_session_back() -> Result<()> {
    let config = GuestConfig::new(2, "768M".parse()?);
    let device = config.disk_path(0)?;
    let text = |more: &str| format!("[image]\ndevice = \"{device}\"\n{more}");
    let policies = vec![
        GuestPolicy::standard(text("[kernel]\narguments = \"nr_cpus=1\"\n")),
        GuestPolicy {
            path: "/etc/small.toml".to_owned(),
            text: text("[region]\nsize = \"64M\"\n[pipeline]\nmemory = \"40M\"\n"),
        },
    ];
    let mut guest = Guest::new(config, &Userland { policies, ..Userland::default() }, &Artifacts::from_environment()?)?;
    guest.boot()?;
    cycle::init_image(&mut guest, &device)?;
    cycle::start_workload(&mut guest)?;
    let before = cycle::check_workload(&mut guest)?;
    let output = guest.run("dormouse --config /etc/small.toml hibernate --json")?;
    ensure!(output.status == 3 && output.stdout.contains("\"region-too-small\""), "{output:?}");
    let enough = output.stdout.split_once("or to \\\"").and_then(|(_, rest)| rest.split_once('M'));
    let enough: u64 = enough.and_then(|(size, _)| size.parse().ok()).unwrap_or(0);
    ensure!((66..=128).contains(&enough), "{output:?}");

    let went_on = stay_on(&mut guest, "dormouse hibernate --then poweroff")?;
    let output = &went_on.output;
    ensure!(output.status == 1 && output.stderr.contains("1 of 2 CPUs run in this kernel"), "{output:?}");
    ensure!(output.stderr.contains("nr_cpus="), "{output:?}");
    demand_same_session(&mut guest, &before)?;
    guest.cut_power();
    let commit = image::commit(&guest.disk_file(0))?;
    ensure!(!commit.state.is_waiting(), "{commit:?}");
    Ok(())
}

/// Without KASLR, A's code lies where the region would begin, and one of its CPUs waits in it, in MWAIT, as Intel's do.
pub(crate) fn the_region_keeps_off_the_kernel() -> Result<()> {
    let mut config = GuestConfig::new(2, "768M".parse()?);
    config.kernel_arguments.push("nokaslr".to_owned());
    config.cpu_model = "max,vendor=GenuineIntel".to_owned();
    let mut guest = session(config)?;
    guest.succeed("grep -qw monitor /proc/cpuinfo")?;
    guest.succeed("grep -q '^ *01000000-.*: Kernel code' /proc/iomem")?;
    let doctor = guest.run("dormouse doctor --json")?;
    ensure!(!doctor.stdout.contains("lies over the running kernel"), "{doctor:?}");
    let snapshot = stay_on(&mut guest, "dormouse hibernate --then return --json")?;
    demand_proofs(&guest, &snapshot)?;
    ensure!(snapshot.report()?.stored_pages > 0, "{snapshot:?}");
    power_cycle(&mut guest)?;
    Ok(())
}

/// A DIMM that is there from power-on and that the kernel itself takes into use, as hypervisors with hot-plug and some
/// servers have them. ACPI announces memory above 4 GiB with it (SRAT), to B and D too, which must not prepare for it.
pub(crate) fn memory_on_a_dimm() -> Result<()> {
    let mut config = GuestConfig::new(2, "768M".parse()?);
    let dimm = "-m 768M,slots=2,maxmem=8G -object memory-backend-ram,id=m1,size=512M \
                -device pc-dimm,id=dimm1,memdev=m1";
    config.qemu_arguments.extend(dimm.split(' ').map(str::to_owned));
    config.kernel_arguments.push("memhp_default_state=online".to_owned());
    config.disks[0].bytes += 640 << 20;
    let mut guest = session(config)?;
    guest.succeed("[ $(grep MemTotal /proc/meminfo | tr -dc 0-9) -gt 1100000 ]")?;
    guest.succeed("dmesg | grep -q 'SRAT: Node 0 PXM 0 .mem 0x1.* hotplug'")?;
    // More than what is below 4 GiB holds.
    fill(&mut guest, 700)?;
    power_cycle(&mut guest)?;
    guest.succeed_within("md5sum -c /run/sum", FILLED)?;
    Ok(())
}

/// Writing hundreds of MiB and reading them takes its time under emulation.
const FILLED: Duration = Duration::from_secs(300);

/// Two nodes, with memory above 4 GiB: what every server with two sockets is.
pub(crate) fn two_nodes_and_memory_above_4_gib() -> Result<()> {
    let mut config = GuestConfig::new(2, "4608M".parse()?);
    let nodes = "-object memory-backend-ram,id=n0,size=2304M -object memory-backend-ram,id=n1,size=2304M \
                 -numa node,nodeid=0,cpus=0,memdev=n0 -numa node,nodeid=1,cpus=1,memdev=n1";
    config.qemu_arguments.extend(nodes.split(' ').map(str::to_owned));
    let mut guest = session(config)?;
    guest.succeed("[ -d /sys/devices/system/node/node1 ]")?;
    fill(&mut guest, 200)?;
    let went_on = power_cycle(&mut guest)?;
    guest.succeed_within("md5sum -c /run/sum", FILLED)?;
    let report = went_on.report()?;
    let least = report.restore.map_or(0, |half| half.least_available_kib).min(report.save.least_available_kib);
    ensure!(least > 16 << 10, "only {least} KiB were left: {report:?}");
    Ok(())
}

pub(crate) fn sixteen_cpus() -> Result<()> {
    many_cpus(16)
}

pub(crate) fn thirty_two_cpus() -> Result<()> {
    many_cpus(32)
}

/// The region is as large as it must be, and a good part of it is left at the worst moment.
fn many_cpus(cpus: u32) -> Result<()> {
    let mut guest = session_with(GuestConfig::new(cpus, "1G".parse()?), "[guard]\nstall = 600\n")?;
    let went_on = power_cycle(&mut guest)?;
    let report = went_on.report()?;
    let restore = report.restore.unwrap_or_default();
    for (half, what) in [(report.save, "save"), (restore, "restore")] {
        ensure!(half.least_available_kib > 8 << 10, "{what}: only {} KiB were left", half.least_available_kib);
    }
    let online = guest.succeed("cat /sys/devices/system/cpu/online")?;
    ensure!(online.trim() == format!("0-{}", cpus - 1), "{online}");
    Ok(())
}

/// Fills so many MiB with what does not compress, and keeps its sum.
fn fill(guest: &mut Guest, mib: u32) -> Result<()> {
    let copies = mib.div_ceil(32);
    let command = format!(
        "mkdir -p /run/t && mount -t tmpfs -o size=90% t /run/t && head -c 33554432 /dev/urandom >/run/noise && \
         for copy in $(seq {copies}); do cat /run/noise >>/run/t/noise || exit; done && md5sum /run/t/noise >/run/sum"
    );
    guest.succeed_within(&command, FILLED)?;
    Ok(())
}
