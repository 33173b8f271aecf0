//! What can go wrong while B saves. The session comes back with the reason, and no boot resumes what was left on the
//! device.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use dormouse_image::layout::{DATA_OFFSET, HEADER_OFFSET};
use dormouse_tests::artifacts::Artifacts;
use dormouse_tests::channel::Output;
use dormouse_tests::guest::{Ending, Guest, READY_MARK};
use dormouse_tests::machine::{Disk, DiskKind, Fault, GuestConfig, MIB, MemorySize};
use dormouse_tests::{cycle, filesystem, image};

use crate::{TWO_BOOTS, begin_save_and_write, ids, lines_of_boot, reasons, told};

/// The machine of these cases.
fn usual() -> GuestConfig {
    GuestConfig::new(2, MemorySize { mib: 768 })
}

pub(crate) fn a_header_that_cannot_be_written() -> Result<()> {
    let offset = HEADER_OFFSET;
    fails_with(usual(), Fault::Write(offset), &["writing", &format!("offset {offset}"), "Input/output error"])
}

pub(crate) fn data_that_cannot_be_written() -> Result<()> {
    of_data(usual())
}

pub(crate) fn a_commit_record_that_cannot_be_written() -> Result<()> {
    // Two flushes begin the save and one ends its data.
    fails_with(usual(), Fault::WriteAfterFlushes(3), &["writing 4096 bytes at offset", "Input/output error"])
}

pub(crate) fn data_that_cannot_be_flushed() -> Result<()> {
    fails_with(usual(), Fault::FlushAfterFlushes(2), &["flushing it failed", "Input/output error"])
}

pub(crate) fn a_commit_record_that_cannot_be_flushed() -> Result<()> {
    // The fourth and the fifth flush are those of the record's two slots: by then one of them is `complete`.
    fails_with(usual(), Fault::FlushAfterFlushes(4), &["flushing it failed", "Input/output error"])
}

/// A save of this machine to a disk that cannot write all data.
pub(crate) fn of_data(config: GuestConfig) -> Result<()> {
    let bad = DATA_OFFSET + 20 * MIB;
    fails_with(config, Fault::Write(bad), &["writing", "offset", "Input/output error"])
}

/// A save to a disk that fails this way.
fn fails_with(mut config: GuestConfig, fault: Fault, expected: &[&str]) -> Result<()> {
    config.faults.push((0, fault));
    let mut guest = session_on_a_bad_disk(config)?;
    let output = save_that_fails(&mut guest, expected)?;
    ensure!(output.stderr.contains("/dev/vda"), "the device is not named: {}", output.stderr);
    guest.change(|config| config.faults.clear());
    no_boot_resumes(&mut guest)
}

pub(crate) fn a_device_that_is_pulled_out() -> Result<()> {
    let mut config = usual().disk(DiskKind::Usb);
    config.machine = dormouse_tests::machine::MachineType::Q35;
    let mut guest = crate::session(config)?;
    let (command, _) = begin_save_and_write(&mut guest)?;
    guest.monitor()?.unplug("disk0-device")?;
    let output = answer(&mut guest, command)?;
    // A cannot look at what is on it.
    ensure!(output.status == 4 && output.stderr.contains("/dev/sda"), "{output:?}");
    demand_status(&mut guest, &output, "image-not-invalidated")?;
    // What was written of it is on the stick.
    guest.cut_power();
    no_boot_resumes(&mut guest)
}

pub(crate) fn memory_that_runs_out() -> Result<()> {
    // Twenty contexts of the slowest level need more than the region. A restore would not.
    let policy = "[region]\nsize = \"128M\"\n[save]\ncompression = \"zstd\"\nlevel = 19\n\
                  [pipeline]\nthreads = 64\nmemory = \"24M\"\n";
    let mut guest = session_with(policy)?;
    save_that_fails(&mut guest, &["memory has run out", "region.size"])?;
    no_boot_resumes(&mut guest)
}

pub(crate) fn a_device_that_takes_nothing_any_more() -> Result<()> {
    let mut guest = session_with("[guard]\nstall = 10\n")?;
    let (command, mut cursor) = begin_save_and_write(&mut guest)?;
    let mut monitor = guest.monitor()?;
    monitor.limit_writes("disk0", 1)?;
    guest.wait_for(&mut cursor, "no progress for 10 s", TWO_BOOTS)?;
    // A writes to the device too, that this is no image.
    monitor.limit_writes("disk0", 0)?;
    let output = answer(&mut guest, command)?;
    ensure!(output.status == 1 && output.stderr.contains("no progress for 10 s"), "{output:?}");
    demand_status(&mut guest, &output, "save-failed")?;
    guest.cut_power();
    no_boot_resumes(&mut guest)
}

pub(crate) fn a_user_who_presses_escape_on_a_serial_line() -> Result<()> {
    by_escape(usual())
}

/// A save of this machine that its user stops on a serial line.
pub(crate) fn by_escape(config: GuestConfig) -> Result<()> {
    aborted(config, |guest| {
        // An arrow is none.
        guest.send_keys(b"\x1b[A")?;
        std::thread::sleep(Duration::from_millis(200));
        guest.send_keys(b"\x1b")
    })
}

pub(crate) fn a_user_who_presses_escape_on_the_keyboard() -> Result<()> {
    let mut config = usual();
    config.screen = true;
    aborted(config, |guest| guest.monitor()?.press_key("esc"))
}

fn aborted(config: GuestConfig, press: impl FnOnce(&mut Guest) -> Result<()>) -> Result<()> {
    let mut guest = crate::session(config)?;
    // Long enough to be stopped.
    guest.monitor()?.limit_writes("disk0", 8 * MIB)?;
    let before = cycle::check_workload(&mut guest)?;
    let (command, mut cursor) = begin_save_and_write(&mut guest)?;
    press(&mut guest)?;
    let pressed = Instant::now();
    let printed = guest.wait_for(&mut cursor, "aborted by user", TWO_BOOTS)?;
    let took = printed.at.saturating_duration_since(pressed);
    ensure!(took < Duration::from_secs(1), "it took {took:?}");
    let output = answer(&mut guest, command)?;
    ensure!(output.status == 1 && output.stderr.contains("aborted by user"), "{output:?}");
    crate::demand_same_session(&mut guest, &before)?;
    demand_status(&mut guest, &output, "save-failed")?;
    guest.cut_power();
    no_boot_resumes(&mut guest)
}

pub(crate) fn a_policy_without_escape_does_not_listen() -> Result<()> {
    let mut guest = session_with("[save]\nescape = false\n")?;
    guest.monitor()?.limit_writes("disk0", 16 * MIB)?;
    let (command, mut cursor) = begin_save_and_write(&mut guest)?;
    guest.send_keys(b"\x1b")?;
    match guest.follow_command(command, &mut cursor, TWO_BOOTS, &mut |_| ())? {
        Ending::PoweredOff => Ok(()),
        Ending::Answered(output) => Err(guest.explain(anyhow!("it was stopped: {output:?}"))),
    }
}

/// B's kernel panics, and restarts the machine.
pub(crate) fn a_kernel_that_panics() -> Result<()> {
    dies(usual(), "", &["Kernel panic"])
}

/// B's kernel hangs: it stays where it has panicked. The watchdog restarts the machine.
pub(crate) fn a_kernel_that_hangs() -> Result<()> {
    let mut config = usual();
    config.watchdog = true;
    dies(config, "[kernel]\narguments = \"panic=0\"\n", &["Kernel panic", "end Kernel panic"])
}

/// B dies with these messages, and the next boot is an ordinary one.
fn dies(mut config: GuestConfig, policy: &str, words: &[&str]) -> Result<()> {
    config.disks.push(Disk { kind: DiskKind::Virtio, bytes: 64 * MIB });
    let mut guest = Guest::with_policy(config, policy, &Artifacts::from_environment()?)?;
    filesystem::make("ext4", &guest.disk_file(1))?;
    guest.boot()?;
    cycle::init_image(&mut guest, "/dev/vda")?;
    guest.succeed("mkdir -p /run/files && mount -t ext4 /dev/vdb /run/files")?;
    guest.monitor()?.limit_writes("disk0", 8 * MIB)?;
    guest.succeed("head -c 100000000 /dev/urandom >/run/data; echo 'not flushed' >/run/files/word")?;
    let (_, mut cursor) = begin_save_and_write(&mut guest)?;
    guest.send_sysrq(b'c')?;
    for words in words {
        guest.wait_for(&mut cursor, words, TWO_BOOTS)?;
    }

    let mut lines = Vec::new();
    guest.follow(&mut cursor, TWO_BOOTS, "the boot after it", |line| {
        lines.push(line.text.clone());
        (line.text.contains(READY_MARK) || line.text.contains("resume/load")).then_some(())
    })?;
    ensure!(ids(&lines) == ["save-unfinished"], "{:?}", told(&lines));
    guest.forget_requests()?;
    let status: serde_json::Value = serde_json::from_str(&guest.succeed("dormouse status --json")?)?;
    ensure!(status["last"]["id"] == "save-unfinished", "{status}");
    // Filesystems were synced before the jump.
    let word = guest.succeed("mkdir -p /run/files && mount -t ext4 /dev/vdb /run/files && cat /run/files/word")?;
    ensure!(word == "not flushed\n", "{word:?}");
    Ok(())
}

/// A session with the workload, and this policy.
fn session_with(policy: &str) -> Result<Guest> {
    crate::session_with(usual(), policy)
}

/// A session with the workload, whose image device was prepared elsewhere.
fn session_on_a_bad_disk(config: GuestConfig) -> Result<Guest> {
    let artifacts = Artifacts::from_environment()?;
    let mut guest = Guest::standard(config, &artifacts)?;
    image::command(&artifacts, &["init"], &guest.disk_file(0))?;
    guest.boot()?;
    cycle::start_workload(&mut guest)?;
    Ok(guest)
}

/// A save that must come back with all proofs, exit status 1, and these messages. The power is off afterwards.
fn save_that_fails(guest: &mut Guest, expected: &[&str]) -> Result<Output> {
    let went_on = crate::stay_on(guest, "dormouse hibernate --json")?;
    crate::demand_proofs(guest, &went_on)?;
    let output = went_on.output;
    crate::demand_failed_save(guest, &output, expected)?;
    demand_status(guest, &output, "save-failed")?;
    guest.cut_power();
    Ok(output)
}

fn answer(guest: &mut Guest, command: dormouse_tests::channel::client::Request) -> Result<Output> {
    guest.answer(command, TWO_BOOTS).context("dormouse hibernate")
}

/// What the command reported is what `dormouse status` reports.
fn demand_status(guest: &mut Guest, output: &Output, id: &str) -> Result<()> {
    let status: serde_json::Value = serde_json::from_str(&guest.succeed("dormouse status --json")?)?;
    ensure!(status["last"]["id"] == id, "{status}");
    let text = status["last"]["text"].as_str().unwrap_or_default();
    ensure!(!text.is_empty() && output.stderr.contains(text), "{status} and {}", output.stderr);
    Ok(())
}

/// What the failed save has left is no image.
fn no_boot_resumes(guest: &mut Guest) -> Result<()> {
    let commit = image::commit(&guest.disk_file(0))?;
    ensure!(!commit.state.is_waiting(), "{commit:?}");
    let lines = lines_of_boot(guest)?;
    ensure!(reasons(&lines).len() == 1, "{:?}", told(&lines));
    ensure!(guest.run("workload check")?.status != 0, "the workload still runs");
    Ok(())
}
