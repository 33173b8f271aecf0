//! What a machine has beside its image device: a watchdog that counts, disks with caches, memory of other kinds.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use dormouse_tests::artifacts::Artifacts;
use dormouse_tests::guest::{Guest, READY_MARK};
use dormouse_tests::machine::{Disk, DiskKind, GuestConfig, MIB};
use dormouse_tests::{cycle, filesystem};

use crate::{TWO_BOOTS, demand_proofs, demand_refusal, save, session_with};

/// ATA's FLUSH CACHE and FLUSH CACHE EXT, and STANDBY IMMEDIATE.
const FLUSHES: [&str; 2] = ["0xe7", "0xea"];
const STANDBY: &str = "0xe0";

/// A has a SATA disk beside its image device, and a watchdog that a program sets back. The save takes longer than the
/// watchdog waits, and ends with the disk's cache written and the disk stopped. The watchdog runs after it too: without
/// the program it restarts the machine.
pub(crate) fn a_watchdog_that_runs_and_a_disk_with_a_cache() -> Result<()> {
    let trace = tempfile::NamedTempFile::new()?;
    let mut config = GuestConfig::new(2, "768M".parse()?);
    config.watchdog = true;
    config.disks.push(Disk { kind: DiskKind::Ahci, bytes: 64 * MIB });
    config.qemu_arguments = ["-trace", "ide_exec_cmd", "-D"].map(String::from).to_vec();
    config.qemu_arguments.push(trace.path().display().to_string());
    let mut guest = Guest::standard(config, &Artifacts::from_environment()?)?;
    filesystem::make("ext4", &guest.disk_file(1))?;
    guest.boot()?;
    cycle::init_image(&mut guest, "/dev/vda")?;
    cycle::start_workload(&mut guest)?;
    guest.succeed("mkdir -p /run/files && mount -t ext4 /dev/sda /run/files")?;
    guest.succeed("busybox watchdog -t 2 -T 15 /dev/watchdog0")?;
    // Longer than 20 seconds, as slow as the image device is.
    guest.succeed("head -c 160000000 /dev/urandom >/run/noise; echo written >/run/files/word")?;
    guest.monitor()?.limit_writes("disk0", 8 * MIB)?;
    let mut cursor = guest.console().end();
    let saved = save(&mut guest)?;
    ensure!(saved.to_power_off > Duration::from_secs(18), "the save was too fast: {:?}", saved.to_power_off);
    let flushed = guest.wait_for(&mut cursor, "flushed /dev/sda of the session", TWO_BOOTS);
    flushed.context("B has not flushed the disk")?;
    ends_flushed_and_stopped(trace.path())?;

    let went_on = cycle::resume(&mut guest, saved, &mut cycle::unobserved)?;
    demand_proofs(&guest, &went_on)?;
    let word = guest.succeed("echo 3 >/proc/sys/vm/drop_caches; cat /run/files/word")?;
    ensure!(word == "written\n", "{word:?}");
    let state = guest.succeed("cd /sys/class/watchdog/watchdog0 && cat state timeout")?;
    ensure!(state == "active\n15\n", "{state:?}");

    let mut cursor = guest.console().end();
    // It would stop the watchdog if it could.
    guest.send("kill -9 $(ps | grep '[b]usybox watchdog' | sed 's/^ *//; s/ .*//')")?;
    guest.wait_for(&mut cursor, READY_MARK, TWO_BOOTS).context("the watchdog does not run in the resumed session")?;
    Ok(())
}

/// The host holds back memory by a balloon, whose driver gives it back as it freezes; part of memory is called
/// persistent by the command line, which is refused while a filesystem or a process uses it; and the power goes off by
/// ACPI's S4.
pub(crate) fn a_balloon_persistent_memory_and_s4() -> Result<()> {
    let mut config = GuestConfig::new(2, "1G".parse()?);
    config.kernel_arguments.push("memmap=64M!512M".to_owned());
    config.modules = ["virtio_balloon", "nd_e820", "nd_pmem"].map(String::from).to_vec();
    config.qemu_arguments = ["-device", "virtio-balloon-pci,id=balloon"].map(String::from).to_vec();
    config.qemu_arguments.extend(["-global", "PIIX4_PM.disable_s4=0"].map(String::from));
    let mut guest = session_with(config, "[save]\npower = \"platform\"\n")?;
    guest.succeed("grep -q '^20000000-23ffffff : Persistent Memory (legacy)' /proc/iomem")?;

    guest.succeed("busybox mke2fs /dev/pmem0 && mkdir -p /run/pmem && mount -t ext4 /dev/pmem0 /run/pmem")?;
    demand_refusal(&mut guest, "volatile-memory")?;
    guest.succeed(
        "umount /run/pmem; sleep 600 3</dev/pmem0 >/dev/null 2>&1 & echo $! >/run/sleeper; sleep 1; \
         grep -q sleep /proc/$(cat /run/sleeper)/comm",
    )?;
    demand_refusal(&mut guest, "volatile-memory")?;
    guest.succeed("kill $(cat /run/sleeper); sleep 0.2")?;

    let total = |guest: &mut Guest| -> Result<u64> {
        Ok(guest.succeed("grep MemTotal: /proc/meminfo | tr -cd 0-9")?.trim().parse::<u64>()? / 1024)
    };
    let whole = total(&mut guest)?;
    guest.monitor()?.leave_memory(700 * MIB)?;
    let inflated = settled(&mut guest, total)?;
    ensure!(inflated + 200 < whole, "the balloon holds {inflated} of {whole} MiB");

    let before = cycle::check_workload(&mut guest)?;
    let mut lines = Vec::new();
    let command = "dormouse hibernate --then poweroff --json";
    let saved = cycle::save(&mut guest, before, command, &mut |line| lines.push(line.text.clone()))?;
    let printed = |text: &str| lines.iter().any(|line| line.contains(text));
    ensure!(printed("pages are free and left out"), "free pages are stored");
    ensure!(printed("entering ACPI's sleep state S4") && !printed("S4 was not entered"), "S4 was not entered");
    let went_on = cycle::resume(&mut guest, saved, &mut cycle::unobserved)?;
    demand_proofs(&guest, &went_on)?;
    let report = went_on.report()?;
    // What the balloon held is free.
    ensure!(report.omitted_pages * 4 / 1024 > 200, "{report:?}");
    let again = settled(&mut guest, total)?;
    // The machine that is switched on has an empty one, and the session learns of it.
    ensure!(again.abs_diff(whole) < 16, "MemTotal was {whole} MiB before, {inflated} with the balloon, and is {again}");
    guest.succeed("workload fresh-memory --megabytes 100")?;
    Ok(())
}

/// A figure that has stopped to change.
fn settled(guest: &mut Guest, read: impl Fn(&mut Guest) -> Result<u64>) -> Result<u64> {
    let mut last = read(guest)?;
    loop {
        std::thread::sleep(Duration::from_secs(2));
        let now = read(guest)?;
        if now == last {
            return Ok(now);
        }
        last = now;
    }
}

/// What the disk was told last before the power went off.
fn ends_flushed_and_stopped(trace: &Path) -> Result<()> {
    let text = std::fs::read_to_string(trace)?;
    let commands: Vec<&str> = text.lines().filter_map(|line| line.rsplit_once("cmd ")).map(|(_, cmd)| cmd).collect();
    let last = commands.get(commands.len().saturating_sub(2)..).unwrap_or_default();
    let is_right = matches!(last, [flush, standby] if FLUSHES.contains(flush) && *standby == STANDBY);
    ensure!(is_right, "the disk was told last: {last:?} of {} commands", commands.len());
    Ok(())
}
