//! Only the right image, on the right machine: clones of the image's disk, and boots that must never be a trap.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use dormouse::console::phase::Phase;
use dormouse_image::State;
use dormouse_tests::artifacts::Artifacts;
use dormouse_tests::cycle;
use dormouse_tests::guest::Guest;
use dormouse_tests::image;
use dormouse_tests::machine::{DiskKind, GuestConfig};
use dormouse_tests::qemu::copy_sparse;
use dormouse_tests::userland::{GuestPolicy, Userland};
use serde_json::json;

use crate::{LITTER, TWO_BOOTS, demand_proofs, ids, lines_of_boot, power_cycle, reasons, save, session, told};

/// What QEMU's USB disk reports of itself, with this serial number.
fn usb_disk(serial: &str) -> String {
    format!("usb serial=46f4:0001:{serial}:0")
}

/// A drive for QEMU, not plugged in.
fn drive(id: &str, file: &Path) -> [String; 2] {
    ["-drive".to_owned(), format!("if=none,id={id},format=raw,cache=writeback,file={}", file.display())]
}

/// The same, plugged in as a USB disk with this serial number.
fn stick(id: &str, file: &Path, serial: &str) -> Vec<String> {
    let device = format!("usb-storage,drive={id},bus=sticks.0,serial={serial}");
    drive(id, file).into_iter().chain(["-device".to_owned(), device]).collect()
}

fn plug_in(guest: &mut Guest, sticks: Vec<Vec<String>>) {
    let hub = ["-device".to_owned(), "qemu-xhci,id=sticks".to_owned()];
    guest.change(|config| config.qemu_arguments = hub.into_iter().chain(sticks.into_iter().flatten()).collect());
}

/// An exact copy of the image's disk is left alone, also where it is the only one; and the disk itself is waited for.
pub(crate) fn a_clone_that_is_there_first() -> Result<()> {
    let artifacts = Artifacts::from_environment()?;
    let config = GuestConfig::new(1, "512M".parse()?).disk(DiskKind::Usb);
    let blank = tempfile::NamedTempFile::new()?;
    blank.as_file().set_len(config.disks[0].bytes)?;
    image::command(&artifacts, &["init"], blank.path())?;
    let name = format!("[image]\ndevice = \"UUID={}\"\n", image::commit(blank.path())?.image);
    let bound = GuestPolicy::standard(format!("{name}disk = \"{}\"\n", usb_disk("OWN")));
    let unbound = GuestPolicy { path: "/etc/unbound.toml".to_owned(), text: name };
    let userland = Userland { policies: vec![bound, unbound], ..Userland::default() };
    let mut guest = Guest::new(config, &userland, &artifacts)?;
    let (own, clone) = (guest.disk_file(0), guest.disk_file(0).with_extension("clone"));
    copy_sparse(blank.path(), &own)?;
    guest.change(|config| config.disks.clear());

    plug_in(&mut guest, vec![stick("own", &own, "OWN")]);
    guest.boot()?;
    // What an initramfs records when it is built, and what the doctor shows.
    let carried = guest.succeed("dormouse --config /etc/unbound.toml config show --boot")?;
    ensure!(carried.contains(&format!("disk = \"{}\"", usb_disk("OWN"))), "{carried}");
    let doctor = guest.run("dormouse --config /etc/unbound.toml doctor --json")?.stdout;
    ensure!(doctor.contains(&format!("on the disk `{}`", usb_disk("OWN"))), "{doctor}");
    cycle::start_workload(&mut guest)?;
    let saved = save(&mut guest)?;
    copy_sparse(&own, &clone)?;

    plug_in(&mut guest, vec![stick("clone", &clone, "CLONE")]);
    let lines = lines_of_boot(&mut guest)?;
    let reason = reasons(&lines).join("; ");
    ensure!(ids(&lines) == ["other-disk"], "{reason}");
    ensure!(["CLONE", "OWN", "it is left as it is"].iter().all(|part| reason.contains(part)), "{reason}");
    // The policy of a running system need not name the disk.
    let prepare = guest.run("dormouse --config /etc/unbound.toml prepare")?;
    guest.succeed("sync")?;
    guest.cut_power();
    ensure!(image::commit(&clone)?.state == State::Complete, "it was touched: {prepare:?}");

    let late = [stick("clone", &clone, "CLONE"), drive("own", &own).to_vec()];
    plug_in(&mut guest, late.to_vec());
    let begin = Instant::now();
    let cursor = guest.power_on()?;
    guest.wait_for(&mut cursor.clone(), &format!("dormouse: {}: looking for", Phase::ResumeCheck), TWO_BOOTS)?;
    std::thread::sleep(Duration::from_secs(3));
    guest.monitor()?.plug(json!({ "driver": "usb-storage", "drive": "own", "bus": "sticks.0", "serial": "OWN" }))?;
    let mut named = 0;
    let went_on = cycle::follow_resume(&mut guest, saved, begin, cursor, &mut |line| {
        named += usize::from(line.text.contains("is another disk") && line.text.contains("CLONE"));
    })?;
    demand_proofs(&guest, &went_on)?;
    ensure!(named > 0, "the clone is not named");
    ensure!(image::commit(&clone)?.state == State::Complete, "the clone was touched");
    Ok(())
}

/// Two restores die of a power cut. Whatever follows is an ordinary boot: also where the disk takes no writes, so that
/// the image cannot even be given up. What is mistyped on the command line changes nothing.
pub(crate) fn restores_that_die_and_a_disk_that_takes_no_writes() -> Result<()> {
    let mut config = GuestConfig::new(1, "512M".parse()?);
    config.kernel_arguments.push("dormouse.resme=1".to_owned());
    let mut guest = session(config)?;
    save(&mut guest)?;
    for _ in 0..2 {
        let mut cursor = guest.power_on()?;
        guest.wait_for(&mut cursor, "dormouse.resme=1`: Dormouse has no such argument", TWO_BOOTS)?;
        guest.wait_for(&mut cursor, &format!("dormouse: {}", Phase::RestoreStart), TWO_BOOTS)?;
        guest.cut_power();
    }
    let read_only = ["-set", "drive.disk0.read-only=on"].map(str::to_owned);
    guest.change(|config| config.qemu_arguments.extend(read_only));
    for _ in 0..2 {
        let lines = lines_of_boot(&mut guest)?;
        ensure!(!lines.iter().any(|line| line.contains(&Phase::RestoreStart.to_string())), "D was started");
        guest.cut_power();
    }
    guest.change(|config| config.qemu_arguments.clear());
    let commit = image::commit(&guest.disk_file(0))?;
    ensure!(commit.state == State::Restoring && commit.attempts == 2, "{commit:?}");
    let lines = lines_of_boot(&mut guest)?;
    ensure!(ids(&lines) == ["too-many-attempts"], "{:?}", told(&lines));
    guest.cut_power();
    ensure!(image::commit(&guest.disk_file(0))?.state == State::Discarded, "it was not given up");
    Ok(())
}

/// At the next power-on the firmware has its ACPI data three pages further down, and everything else where it was. What
/// A had in the old pages comes back, although ten of them hold D's tables until the jump.
pub(crate) fn acpi_data_that_slide_by_pages() -> Result<()> {
    let (start, len) = (0x2ff0_0000_u64, 52 << 10);
    let tables = |start: u64| vec![format!("memmap=52K#{start:#x}")];
    let mut config = GuestConfig::new(2, "768M".parse()?);
    config.memory_is_a_file = true;
    config.kernel_arguments = tables(start);
    let mut guest = session(config)?;
    let iomem = guest.succeed("grep ACPI /proc/iomem")?;
    ensure!(iomem.trim() == "2ff00000-2ff0cfff : ACPI Tables", "{iomem}");
    // Below 4 GiB, memory is where it is in the file.
    // 251 is prime: no two pages are the same.
    let pattern: Vec<u8> = (1..=251).cycle().take(len).collect();
    File::options().write(true).open(guest.memory_file())?.write_all_at(&pattern, start)?;
    let saved = save(&mut guest)?;

    let mut moved = tables(start - 0x3000);
    moved.push(LITTER.to_owned());
    guest.set_kernel_arguments(moved);
    let mut by_jump = 0;
    let went_on = cycle::resume(&mut guest, saved, &mut |line| {
        by_jump += usize::from(line.text.contains("53248 bytes under ACPI tables that have moved come with the jump"));
    })?;
    demand_proofs(&guest, &went_on)?;
    ensure!(by_jump == 1, "nothing came with the jump");
    let mut found = vec![0; pattern.len()];
    File::open(guest.memory_file())?.read_exact_at(&mut found, start)?;
    let differs = found.iter().zip(&pattern).position(|(found, expected)| found != expected);
    ensure!(differs.is_none(), "the tables differ from byte {differs:?} on");
    // The session saves itself once more, and comes back to the map that it knows.
    guest.set_kernel_arguments(tables(start));
    power_cycle(&mut guest)?;
    Ok(())
}
