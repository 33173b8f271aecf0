//! The end-to-end cases: whole machines under QEMU, hibernated and brought back.
//!
//! `scripts/test` builds what they need and runs them; without it each case fails and names what is missing. `cases`
//! lists them with their tiers.

mod aborts;
mod anywhere_debian;
mod anywhere_nbd;
mod anywhere_nfs;
mod anywhere_removable;
mod cases;
mod cycles;
mod debian;
mod direct;
mod direct_debian;
mod direct_systemd_boot;
mod exactness;
mod export;
mod free_pages;
mod image_file;
mod images;
mod machines;
mod machines_boots;
mod machines_devices;
mod machines_identity;
mod machines_jump;
mod machines_kernels;
mod machines_layers;
mod machines_second_kernel;
mod power_cuts;
mod refusals;
mod refused_in_a;
mod resume_checks;
mod runner;
mod save_faults;
mod screen;
mod sealed_debian;
mod sealed_keys;
mod sealed_stacks;
mod sealed_tpm;
mod shapes;
mod shrink;
mod soak;
mod stock;
mod stock_debian;
mod stock_debug;
mod system;
mod verify;
mod warm;

use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use dormouse::console::phase::Phase;
use dormouse_tests::artifacts::Artifacts;
use dormouse_tests::channel::Output;
use dormouse_tests::channel::client::Request;
use dormouse_tests::console::{Cursor, Line};
use dormouse_tests::cycle::{self, Saved, WentOn, unobserved};
use dormouse_tests::guest::{Guest, READY_MARK};
use dormouse_tests::machine::GuestConfig;
use dormouse_tests::workload::report::Report;

fn main() -> ExitCode {
    runner::main(cases::CASES)
}

/// Enough for D and the boot that follows it.
const TWO_BOOTS: Duration = Duration::from_secs(300);

/// With this argument C fills its memory with 0xaa (mm/page_poison.c), so that what D does not write is neither what A
/// left nor zero.
const LITTER: &str = "page_poison=1";
/// With this one it does not.
const NO_LITTER: &str = "page_poison=0";

/// A guest that is up with an image device and the workload.
fn session(config: GuestConfig) -> Result<Guest> {
    session_with(config, "")
}

/// The same, whose policy goes on with `policy`.
fn session_with(config: GuestConfig, policy: &str) -> Result<Guest> {
    session_prepared(config, policy, |_| Ok(()))
}

/// The same, whose disks are prepared before the power is on.
fn session_prepared(config: GuestConfig, policy: &str, prepare: impl FnOnce(&Guest) -> Result<()>) -> Result<Guest> {
    let mut guest = Guest::with_policy(config, policy, &Artifacts::from_environment()?)?;
    prepare(&guest)?;
    guest.boot()?;
    let device = guest.config().disk_path(0)?;
    cycle::init_image(&mut guest, &device)?;
    cycle::start_workload(&mut guest)?;
    Ok(guest)
}

/// Saves and powers off.
fn save(guest: &mut Guest) -> Result<Saved> {
    let before = cycle::check_workload(guest)?;
    cycle::save(guest, before, "dormouse hibernate --then poweroff --json", &mut unobserved)
}

/// Runs a `dormouse hibernate` after which the power is still on.
fn stay_on(guest: &mut Guest, command: &str) -> Result<WentOn> {
    let before = cycle::check_workload(guest)?;
    cycle::stay_on(guest, before, command, &mut unobserved)
}

/// One hibernation with a power-off, all of whose proofs hold.
fn power_cycle(guest: &mut Guest) -> Result<WentOn> {
    let saved = save(guest)?;
    let went_on = cycle::resume(guest, saved, &mut unobserved)?;
    demand_proofs(guest, &went_on)?;
    Ok(went_on)
}

/// Demands that the workload is as it was, with all of its proofs.
fn demand_same_session(guest: &mut Guest, before: &Report) -> Result<()> {
    let after = cycle::check_workload(guest)?;
    let broken: Vec<_> = after.proofs_since(before).into_iter().filter(|proof| !proof.holds).collect();
    ensure!(broken.is_empty(), "{broken:?}");
    Ok(())
}

fn demand_proofs(guest: &Guest, went_on: &WentOn) -> Result<()> {
    went_on.demand_proofs().map_err(|error| guest.explain(error))
}

/// Gives the command that saves and powers off, and does not wait for its end.
fn begin_save(guest: &mut Guest) -> Result<(Request, Cursor)> {
    begin_save_with(guest, "")
}

/// The same, with more of the command's options.
fn begin_save_with(guest: &mut Guest, options: &str) -> Result<(Request, Cursor)> {
    let cursor = guest.console().end();
    Ok((guest.send(&format!("dormouse hibernate --then poweroff --json {options}"))?, cursor))
}

/// No kernel waits to be jumped into.
fn demand_nothing_loaded(guest: &mut Guest) -> Result<()> {
    ensure!(guest.succeed("cat /sys/kernel/kexec_loaded")?.trim() == "0", "kernel B is still loaded");
    Ok(())
}

/// A save that came back with exit status 1 and these words; nothing stays loaded.
fn demand_failed_save(guest: &mut Guest, output: &Output, words: &[&str]) -> Result<()> {
    let json: serde_json::Value = serde_json::from_str(&output.stdout).with_context(|| format!("{output:?}"))?;
    ensure!(output.status == 1 && json["outcome"] == "failed" && json["id"] == "save-failed", "{output:?}");
    for word in words.iter().chain(&["the session was not touched"]) {
        ensure!(output.stderr.contains(word), "{word:?} is not in {:?}", output.stderr);
    }
    demand_nothing_loaded(guest)
}

/// A hibernation that is refused with this identifier, with nothing changed.
fn demand_refusal(guest: &mut Guest, id: &str) -> Result<()> {
    let output = guest.run("dormouse hibernate --then poweroff --json")?;
    let json: serde_json::Value = serde_json::from_str(&output.stdout)?;
    ensure!(output.status == 3 && json["outcome"] == "refused" && json["id"] == id, "not {id}: {output:?}");
    demand_nothing_loaded(guest)
}

/// Whether a word is in a file. Zeroes end grep's lines, so that none is longer than what lies between two of them.
fn contains(file: &Path, word: &str) -> Result<bool> {
    let mut grep = Command::new("grep");
    let status = grep.env("LC_ALL", "C").args(["-qzaF", "-e", word]).arg(file).status().context("grep")?;
    match status.code() {
        Some(0) => Ok(true),
        Some(1) => Ok(false),
        _ => bail!("grep {word} {}: {status}", file.display()),
    }
}

/// Powers on and returns the console's lines until an ordinary boot is up.
fn lines_of_boot(guest: &mut Guest) -> Result<Vec<String>> {
    let mut cursor = guest.power_on()?;
    lines_until_ready(guest, &mut cursor)
}

/// The console's lines from `cursor` on until an ordinary boot is up.
fn lines_until_ready(guest: &mut Guest, cursor: &mut Cursor) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    guest.follow(cursor, TWO_BOOTS, "an ordinary boot", |line| {
        lines.push(line.text.clone());
        line.text.contains(READY_MARK).then_some(())
    })?;
    Ok(lines)
}

/// What `dormouse resume` printed in a boot that went on. The hook writes it to the console and to the kernel log,
/// which both are the serial line here.
fn reasons(lines: &[String]) -> Vec<&str> {
    let printed = lines.iter().filter_map(|line| line.strip_prefix("dormouse: "));
    let mut reasons: Vec<&str> = printed
        .filter(|text| ["no image to resume", "not resuming"].iter().any(|start| text.starts_with(start)))
        .collect();
    reasons.dedup();
    reasons
}

/// All that Dormouse said in these lines, for a case that did not find what it expected.
fn told(lines: &[String]) -> Vec<&String> {
    lines.iter().filter(|line| line.contains("dormouse: ")).collect()
}

/// The identifiers of the reasons for which `dormouse resume` let a boot go on without its session.
fn ids(lines: &[String]) -> Vec<&str> {
    let refused = reasons(lines).into_iter().filter(|reason| reason.starts_with("not resuming"));
    // The name of a device may have parentheses too.
    refused.filter_map(|reason| Some(reason.split_once("): ")?.0.rsplit_once('(')?.1)).collect()
}

/// Gives the command that saves and powers off, and waits until a tenth or more is written.
fn begin_save_and_write(guest: &mut Guest) -> Result<(Request, Cursor)> {
    let (command, mut cursor) = begin_save(guest)?;
    let phase = Phase::SaveWrite;
    guest.follow_during(command, &mut cursor, TWO_BOOTS, &format!("progress of {phase}"), |line| {
        is_under_way(line, phase)
    })?;
    Ok((command, cursor))
}

/// Something, where a line shows that a tenth or more of `phase` is done.
fn is_under_way(line: &Line, phase: Phase) -> Option<()> {
    let (_, rest) = line.text.split_once(&format!("dormouse: {phase}: "))?;
    let percent: u32 = rest.split_once(" %")?.0.parse().ok()?;
    (10..100).contains(&percent).then_some(())
}
