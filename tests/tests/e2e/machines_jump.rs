//! What happens around the jump: drivers are told, events and randomness come back, and what cannot be frozen is named.

use anyhow::{Context, Result, ensure};
use dormouse::console::phase::Phase;
use dormouse::handoff::report::Before;
use dormouse_tests::cycle::{self, WentOn, unobserved};
use dormouse_tests::guest::Guest;
use dormouse_tests::machine::{Disk, DiskKind, GuestConfig, MIB};
use dormouse_tests::qemu::copy_sparse;
use serde_json::Value;

use crate::{TWO_BOOTS, demand_proofs, demand_refusal, demand_same_session, power_cycle, session, stay_on};

const RETURN: &str = "dormouse hibernate --then return --json";

/// The witness's counts of what drivers were told: of a beginning, of an end, of anything else.
fn told(guest: &mut Guest) -> Result<[u32; 3]> {
    let text = guest.succeed("cd /sys/module/pm_witness/parameters && cat prepared post other")?;
    let counts = text.lines().map(str::parse).collect::<Result<Vec<u32>, _>>()?;
    counts.try_into().map_err(|counts| anyhow::anyhow!("{counts:?}"))
}

/// The ACPI events that the hardware reports.
fn events(guest: &mut Guest) -> Result<String> {
    guest.succeed("cd /sys/firmware/acpi/interrupts && grep -ls EN ff_* gpe* || true")
}

/// Presses the power button, which the kernel must notice.
pub(crate) fn press_power_button(guest: &mut Guest) -> Result<()> {
    let count = "sed 's/^ *//;s/ .*//' /sys/firmware/acpi/interrupts/ff_pwr_btn";
    let before = guest.succeed(count)?;
    guest.monitor()?.press_power_button()?;
    guest
        .succeed(&format!(
            "for try in $(seq 50); do [ $({count}) != {} ] && exit 0; sleep 0.1; done; exit 1",
            before.trim()
        ))
        .context("the power button is dead")?;
    Ok(())
}

/// What A was like before the jump.
fn before(went_on: &WentOn) -> Result<Before> {
    went_on.report()?.before.context("the report says nothing of what was before the jump")
}

/// A hibernation that is refused or fails with this identifier and with these words in its message.
fn demand_failure(guest: &mut Guest, status: i32, id: &str, words: &[&str]) -> Result<()> {
    let output = guest.run("dormouse hibernate --then poweroff --json")?;
    let json: Value = serde_json::from_str(&output.stdout)?;
    let message = json["message"].as_str().unwrap_or_default();
    ensure!(output.status == status && json["id"] == id, "not {id}: {output:?}");
    ensure!(words.iter().all(|word| message.contains(word)), "not {words:?}: {message}");
    crate::demand_nothing_loaded(guest)
}

/// Each event in both directions, over a return, a freeze that is aborted, refusals and a power cycle; and the power
/// button works after each. A has the driver of the power button as a module, which B and D do not have.
pub(crate) fn drivers_are_told_and_the_power_button_works() -> Result<()> {
    let mut config = GuestConfig::new(2, "768M".parse()?);
    config.modules.extend(["pm_witness", "button", "fuse"].map(str::to_owned));
    config.disks.push(Disk { kind: DiskKind::Virtio, bytes: 768 * MIB });
    let mut guest = session(config)?;
    let session = cycle::check_workload(&mut guest)?;
    let on = events(&mut guest)?;
    ensure!(on.contains("ff_pwr_btn") && told(&mut guest)? == [0, 0, 0], "{on}");
    press_power_button(&mut guest)?;

    // With all of the free memory full of a disk's content, drivers have their reserve all the same.
    guest.succeed("(sleep 1000 </dev/vdb &) >/dev/null 2>&1; cat /dev/vdb >/dev/null")?;
    let snapshot = stay_on(&mut guest, RETURN)?;
    demand_proofs(&guest, &snapshot)?;
    let ready = before(&snapshot)?;
    ensure!(ready.drivers_told && ready.free_bytes > 32 * MIB && ready.reclaimed_bytes > 0, "{ready:?}");
    ensure!(told(&mut guest)? == [1, 1, 0]);
    ensure!(events(&mut guest)? == on, "{}", events(&mut guest)?);
    press_power_button(&mut guest)?;

    // What has refused is not told of an end (kernel/notifier.c, `notifier_call_chain_robust`).
    guest.succeed("echo Y >/sys/module/pm_witness/parameters/refuse")?;
    demand_failure(&mut guest, 3, "driver-refuses", &["a driver refuses"])?;
    guest.succeed("echo N >/sys/module/pm_witness/parameters/refuse")?;
    ensure!(told(&mut guest)? == [2, 1, 0]);

    // The lock is the kernel's own: whoever has it keeps everybody else off.
    guest.succeed("(sleep 1000 </dev/snapshot & echo $! >/run/holder) >/dev/null 2>&1; sleep 0.5")?;
    demand_refusal(&mut guest, "hibernating")?;
    let output = guest.run("echo disk >/sys/power/state")?;
    ensure!(output.stderr.contains("busy"), "{output:?}");
    guest.succeed("kill $(cat /run/holder); sleep 0.5")?;
    ensure!(told(&mut guest)? == [3, 2, 0]);

    a_process_that_does_not_freeze(&mut guest)?;
    ensure!(told(&mut guest)? == [4, 3, 0]);
    ensure!(events(&mut guest)? == on);
    press_power_button(&mut guest)?;
    a_kernel_that_waits(&mut guest)?;
    ensure!(told(&mut guest)? == [5, 4, 0]);
    demand_same_session(&mut guest, &session)?;

    let went_on = power_cycle(&mut guest)?;
    ensure!(before(&went_on)?.drivers_told && told(&mut guest)? == [6, 5, 0]);
    ensure!(events(&mut guest)? == on, "{}", events(&mut guest)?);
    press_power_button(&mut guest)
}

/// Somebody waits for a filesystem that does not answer. When its server is gone, the waiting is over.
fn a_process_that_does_not_freeze(guest: &mut Guest) -> Result<()> {
    guest.succeed(
        "mkdir /run/silent; echo 2000 >/sys/power/pm_freeze_timeout; \
         (workload silent-filesystem /run/silent & echo $! >/run/server) >/dev/null 2>&1; \
         until grep -q /run/silent /proc/mounts; do sleep 0.1; done; \
         (stat /run/silent/a & echo $! >/run/waiter) >/dev/null 2>&1; sleep 0.5",
    )?;
    let waiter = guest.succeed("cat /run/waiter")?;
    demand_failure(guest, 1, "not-frozen", &[&format!("stat (pid {})", waiter.trim())])?;
    guest.succeed(
        "echo 20000 >/sys/power/pm_freeze_timeout; kill -KILL $(cat /run/server); sleep 0.5; umount /run/silent",
    )?;
    Ok(())
}

/// A kernel that is loaded for a reboot is not thrown away unasked.
fn a_kernel_that_waits(guest: &mut Guest) -> Result<()> {
    guest.succeed("echo 1 >/run/loaded && mount --bind /run/loaded /sys/kernel/kexec_loaded")?;
    let output = guest.run("dormouse hibernate --then poweroff --json")?;
    let json: Value = serde_json::from_str(&output.stdout)?;
    ensure!(output.status == 3 && json["id"] == "kexec-loaded", "{output:?}");
    ensure!(json["remedy"].as_str().is_some_and(|remedy| remedy.contains("--force")), "{output:?}");
    let forced = stay_on(guest, &format!("{RETURN} --force"))?;
    guest.succeed("umount /sys/kernel/kexec_loaded")?;
    demand_proofs(guest, &forced)
}

/// Memory that is gone after a power-off: its driver refuses, and the doctor knows before.
pub(crate) fn virtio_mem_refuses() -> Result<()> {
    let mut config = GuestConfig::new(1, "512M".parse()?);
    config.modules.push("virtio_mem".to_owned());
    let arguments = [
        "-m",
        "512M,maxmem=1G",
        "-object",
        "memory-backend-ram,id=more,size=256M",
        "-device",
        "virtio-mem-pci,memdev=more,requested-size=0",
    ];
    config.qemu_arguments.extend(arguments.map(str::to_owned));
    let mut guest = session(config)?;
    let session = cycle::check_workload(&mut guest)?;
    let diagnosis: Value = serde_json::from_str(&guest.run("dormouse doctor --json")?.stdout)?;
    let checks = diagnosis["checks"].as_array().context("no checks")?;
    let check = checks.iter().find(|check| check["id"] == "virtio-mem").context("no such check")?;
    let found = check["found"].as_str().context("nothing found")?;
    let device = found.rsplit(' ').next().unwrap_or_default();
    ensure!(check["state"] == "failed" && device.starts_with("virtio"), "{check}");
    let line = format!("virtio_mem {device}: hibernation is not supported");
    demand_failure(&mut guest, 3, "driver-refuses", &[&line])?;
    demand_same_session(&mut guest, &session)
}

/// One image, resumed twice: what the session draws from the kernel first of all is not the same.
pub(crate) fn a_copy_of_an_image_draws_other_random_numbers() -> Result<()> {
    let mut guest = session(GuestConfig::new(1, "512M".parse()?))?;
    let before = cycle::check_workload(&mut guest)?;
    let command = "dormouse hibernate --then poweroff --json >/run/report && \
                   dd if=/dev/urandom of=/run/random bs=32 count=1 2>/dev/null; cat /run/report";
    let saved = cycle::save(&mut guest, before, command, &mut unobserved)?;
    let (disk, directory) = (guest.disk_file(0), tempfile::tempdir()?);
    let copy = directory.path().join("image");
    copy_sparse(&disk, &copy)?;
    let drawn =
        "for try in $(seq 300); do [ -s /run/random ] && break; sleep 0.1; done; busybox od -An -tx1 /run/random";

    let went_on = cycle::resume(&mut guest, saved, &mut unobserved)?;
    demand_proofs(&guest, &went_on)?;
    let first = guest.succeed(drawn)?;
    guest.cut_power();
    copy_sparse(&copy, &disk)?;
    let mut cursor = guest.power_on()?;
    guest.wait_for(&mut cursor, &format!("{}: this session goes on", Phase::HibernateReturn), TWO_BOOTS)?;
    let second = guest.succeed(drawn)?;
    ensure!(first.split_whitespace().count() == 32 && first != second, "{first} and {second}");
    Ok(())
}
