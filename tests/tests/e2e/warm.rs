//! A save kernel that was started ahead of time and waits.

use anyhow::{Context, Result, anyhow, ensure};
use dormouse::handoff::report::Outcome;
use dormouse_tests::artifacts::{Artifacts, KernelName};
use dormouse_tests::cycle::{self, WentOn};
use dormouse_tests::guest::Guest;
use dormouse_tests::image;
use dormouse_tests::machine::{Fault, GuestConfig, MIB};
use dormouse_tests::userland::POLICY_PATH;
use serde_json::{Value, json};

use crate::{
    begin_save_and_write, demand_failed_save, demand_proofs, demand_same_session, power_cycle, stay_on, stock,
};

const POLICY: &str = "[save]\nwarm = true\n";

/// Each cycle enters a save kernel that the process which keeps it has started since the one before.
pub(crate) fn three_cycles() -> Result<()> {
    let mut guest = session(config()?)?;
    for _ in 0..3 {
        wait_until_warm(&mut guest)?;
        let went_on = power_cycle(&mut guest)?;
        demand_proofs(&guest, &went_on)?;
        ensure!(went_on.report()?.outcome == Outcome::Resumed, "{:?}", went_on.report());
        ensure!(was_warm(&went_on)?, "another one was loaded: {:?}", went_on.report());
    }
    demand_measured(&mut guest)
}

/// Where anything is not as it was when the save kernel was started, another one is loaded, and the log says why.
pub(crate) fn what_has_changed_is_not_entered() -> Result<()> {
    let mut config = config()?;
    config.modules.extend(["xhci_pci", "usb_storage", "sd_mod"].map(str::to_owned));
    let stick = tempfile::NamedTempFile::new()?;
    stick.as_file().set_len(64 * MIB)?;
    let drive = format!("if=none,id=stick,format=raw,file={}", stick.path().display());
    config.qemu_arguments.extend(["-device", "qemu-xhci,id=sticks", "-drive", &drive].map(str::to_owned));
    let mut guest = session(config)?;
    type Change = fn(&mut Guest) -> Result<()>;
    let changes: [(&str, Change); 4] = [
        ("the CPUs that are online changed", |guest| {
            guest.succeed("echo 0 >/sys/devices/system/cpu/cpu1/online").map(drop)
        }),
        ("the disks changed", |guest| {
            guest.monitor()?.plug(json!({ "driver": "usb-storage", "drive": "stick", "bus": "sticks.0" }))?;
            guest.succeed("for try in $(seq 600); do [ -b /dev/sda ] && exit; sleep 0.1; done; exit 1").map(drop)
        }),
        ("another kernel was loaded or unloaded", |guest| {
            guest.succeed("echo 2000000000 >/proc/sys/kernel/kexec_load_limit_reboot")?;
            // It could be anybody's.
            let refused = guest.run("dormouse hibernate --json")?;
            ensure!(refused.status == 3 && refused.stdout.contains("kexec-loaded"), "{refused:?}");
            Ok(())
        }),
        ("the process that kept the save kernel has ended", |guest| {
            guest.succeed("kill -9 $(cat /run/keeper)").map(drop)
        }),
    ];
    for (reason, change) in changes {
        wait_until_warm(&mut guest)?;
        // It would start another one by itself.
        guest.succeed("kill -STOP $(cat /run/keeper)")?;
        change(&mut guest)?;
        let went_on = stay_on(&mut guest, "dormouse hibernate --then return --force --json")?;
        demand_proofs(&guest, &went_on)?;
        ensure!(!was_warm(&went_on)?, "{reason}: it was entered");
        let logged = guest.succeed("dmesg")?;
        ensure!(logged.contains(reason), "{:#}", guest.explain(anyhow!("{reason}: not in the log")));
        guest.succeed("echo 1 >/sys/devices/system/cpu/cpu1/online; kill -CONT $(cat /run/keeper) || true")?;
    }
    Ok(())
}

/// A save that its user stops, and one to a disk that fails. Neither is the last.
pub(crate) fn saves_that_end_early() -> Result<()> {
    let mut guest = session(config()?)?;
    wait_until_warm(&mut guest)?;
    guest.monitor()?.limit_writes("disk0", 8 * MIB)?;
    let before = cycle::check_workload(&mut guest)?;
    let (command, _) = begin_save_and_write(&mut guest)?;
    guest.send_keys(b"\x1b")?;
    let output = guest.answer(command, crate::TWO_BOOTS).context("dormouse hibernate")?;
    ensure!(output.status == 1 && output.stderr.contains("aborted by user"), "{output:?}");
    demand_same_session(&mut guest, &before)?;
    guest.monitor()?.limit_writes("disk0", 0)?;
    wait_until_warm(&mut guest)?;
    let went_on = power_cycle(&mut guest)?;
    demand_proofs(&guest, &went_on)?;
    ensure!(was_warm(&went_on)?, "another one was loaded: {:?}", went_on.report());

    let mut config = config()?;
    config.faults.push((0, Fault::Write(dormouse_image::layout::DATA_OFFSET + 20 * MIB)));
    let artifacts = Artifacts::from_environment()?;
    let mut guest = Guest::with_policy(config, POLICY, &artifacts)?;
    image::command(&artifacts, &["init"], &guest.disk_file(0))?;
    guest.boot()?;
    cycle::start_workload(&mut guest)?;
    wait_until_warm(&mut guest)?;
    let went_on = stay_on(&mut guest, "dormouse hibernate --json")?;
    demand_proofs(&guest, &went_on)?;
    demand_failed_save(&mut guest, &went_on.output, &["writing", "Input/output error"])
}

/// Debian's own kernel, which cannot jump: the module enters the save kernel, and the save kernel goes back by it.
pub(crate) fn debian_12_by_the_module() -> Result<()> {
    let mut guest = stock::session_with(GuestConfig::new(2, "1G".parse()?), KernelName::Bookworm, POLICY)?;
    wait_until_warm(&mut guest)?;
    let went_on = power_cycle(&mut guest)?;
    stock::demand(&mut guest, &went_on, Outcome::Resumed)?;
    ensure!(was_warm(&went_on)?, "another one was loaded: {:?}", went_on.report());

    // The process that keeps it has the device open: what is loaded in its place goes the same way.
    wait_until_warm(&mut guest)?;
    guest.succeed("kill -STOP $(cat /run/keeper); echo 0 >/sys/devices/system/cpu/cpu1/online")?;
    for _ in 0..2 {
        let went_on = stay_on(&mut guest, "dormouse hibernate --then return --json")?;
        stock::demand(&mut guest, &went_on, Outcome::Returned)?;
        ensure!(!was_warm(&went_on)?, "it was entered: {:?}", went_on.report());
    }
    guest.succeed("echo 1 >/sys/devices/system/cpu/cpu1/online; kill -CONT $(cat /run/keeper)")?;

    wait_until_warm(&mut guest)?;
    let went_on = stay_on(&mut guest, "dormouse hibernate --then return --json")?;
    stock::demand(&mut guest, &went_on, Outcome::Returned)?;
    ensure!(was_warm(&went_on)?, "another one was loaded: {:?}", went_on.report());
    // It came back for good.
    wait_until_warm(&mut guest)?;
    let went_on = power_cycle(&mut guest)?;
    stock::demand(&mut guest, &went_on, Outcome::Resumed)?;
    ensure!(was_warm(&went_on)?, "another one was loaded: {:?}", went_on.report());
    Ok(())
}

fn config() -> Result<GuestConfig> {
    Ok(GuestConfig::new(2, "768M".parse()?))
}

/// A session with the workload.
fn session(config: GuestConfig) -> Result<Guest> {
    crate::session_with(config, POLICY)
}

/// Until a save kernel waits that fits the machine as it is.
fn wait_until_warm(guest: &mut Guest) -> Result<()> {
    cycle::warm(guest, POLICY_PATH)?;
    let status: Value = serde_json::from_str(&guest.succeed("dormouse status --json")?)?;
    ensure!(status["waiting"]["bytes"].as_u64().is_some_and(|bytes| bytes > 64 * MIB), "{status}");
    Ok(())
}

/// The doctor starts one of its own, twice, and leaves nothing of it; the one that waited is started again.
fn demand_measured(guest: &mut Guest) -> Result<()> {
    wait_until_warm(guest)?;
    let before = cycle::check_workload(guest)?;
    let diagnosis: Value = serde_json::from_str(&guest.run("dormouse doctor --measure --json")?.stdout)?;
    let checks = diagnosis["checks"].as_array().context("no checks")?;
    let check = checks.iter().find(|check| check["id"] == "save-kernel-start").context("nothing was measured")?;
    ensure!(check["state"] == "ok", "{:#}", guest.explain(anyhow!("{check}")));
    demand_same_session(guest, &before)?;
    ensure!(guest.succeed("cat /sys/kernel/kexec_loaded")?.trim() == "0", "it is still loaded");
    wait_until_warm(guest)
}

fn was_warm(went_on: &WentOn) -> Result<bool> {
    Ok(went_on.report()?.before.context("nothing of the jump")?.warm)
}
