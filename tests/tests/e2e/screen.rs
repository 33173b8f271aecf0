//! What a person at the console sees, where the policy does not change it: what begins, a bar, and how it ended.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use dormouse_tests::console::Line;
use dormouse_tests::cycle::{self, Saved};
use dormouse_tests::guest::{Ending, Guest, READY_MARK};
use dormouse_tests::image;
use dormouse_tests::machine::{GuestConfig, MIB};

use crate::{TWO_BOOTS, begin_save, demand_proofs};

/// A policy with the console as it is by default, and not as other cases need it.
const DEFAULT_CONSOLE: &str = "[console]\n";

/// How long the reason of a failure must stay.
const TO_READ: Duration = Duration::from_secs(4);

pub(crate) fn a_bar_and_nothing_else() -> Result<()> {
    let mut guest = crate::session_with(GuestConfig::new(2, "768M".parse()?), DEFAULT_CONSOLE)?;
    // So that there is something to see.
    guest.monitor()?.limit_writes("disk0", 32 * MIB)?;
    let before = cycle::check_workload(&mut guest)?;
    let begin = Instant::now();
    let (command, mut cursor) = begin_save(&mut guest)?;
    let mut lines = Vec::new();
    let ending = guest.follow_command(command, &mut cursor, TWO_BOOTS, &mut |line| lines.push(line.text.clone()))?;
    ensure!(ending == Ending::PoweredOff, "{ending:?}");
    let shown = between(&lines, "Hibernating to /dev/vda; press Esc to go back", "powering off");
    demand_bar(&shown, "Saving ").map_err(|error| guest.explain(error))?;

    let saved = Saved { before, command, to_power_off: begin.elapsed() };
    let mut lines = Vec::new();
    let went_on = cycle::resume(&mut guest, saved, &mut |line| lines.push(line.text.clone()))?;
    demand_proofs(&guest, &went_on)?;
    let shown = between(&lines, "Resuming from /dev/vda", " 100 %");
    demand_bar(&shown, "Resuming ").map_err(|error| guest.explain(error))
}

pub(crate) fn a_reason_that_can_be_read() -> Result<()> {
    let mut config = GuestConfig::new(2, "768M".parse()?);
    // The workload alone is more, and does not compress.
    config.disks[0].bytes = 64 * MIB;
    let mut guest = crate::session_with(config, DEFAULT_CONSOLE)?;
    let before = cycle::check_workload(&mut guest)?;
    let mut lines: Vec<Line> = Vec::new();
    let went_on = cycle::stay_on(&mut guest, before, "dormouse hibernate", &mut |line| lines.push(line.clone()))?;
    demand_proofs(&guest, &went_on)?;
    check_reason(&guest, &lines, &went_on.output.stderr).map_err(|error| guest.explain(error))
}

pub(crate) fn a_reason_that_can_be_read_before_the_reboot() -> Result<()> {
    let mut guest = crate::session_with(GuestConfig::new(2, "768M".parse()?), DEFAULT_CONSOLE)?;
    crate::save(&mut guest)?;
    let chunk = image::some_chunk(&guest.disk_file(0))?;
    image::flip_byte(&guest.disk_file(0), chunk.offset + u64::from(chunk.stored_len / 2))?;
    let (mut cursor, mut lines) = (guest.power_on()?, Vec::new());
    guest.follow(&mut cursor, TWO_BOOTS, "an ordinary boot", |line| {
        lines.push(line.clone());
        line.text.contains(READY_MARK).then_some(())
    })?;
    let named = format!("the chunk at offset {} is damaged", chunk.offset);
    let reason = format!("the session was not resumed: {named}");
    let printed: Vec<usize> = (0..lines.len()).filter(|at| lines[*at].text.starts_with(&reason)).collect();
    let [at] = printed[..] else { return Err(guest.explain(anyhow::anyhow!("not one reason: {printed:?}"))) };
    let next = lines.get(at + 1).map(|next| next.at.saturating_duration_since(lines[at].at));
    ensure!(next.is_some_and(|stayed| stayed >= TO_READ), "it stayed {next:?}");
    // And the boot after it repeats it.
    ensure!(lines[at + 1..].iter().any(|line| line.text.contains("not resuming") && line.text.contains(&named)));
    Ok(())
}

/// The reason is printed once, it is what the command reports, and it stays.
fn check_reason(guest: &Guest, lines: &[Line], stderr: &str) -> Result<()> {
    let at = |text: &str| lines.iter().position(|line| line.text.contains(text));
    let reasons: Vec<&Line> = lines.iter().filter(|line| line.text.starts_with("Not saved: ")).collect();
    let [reason] = reasons[..] else { anyhow::bail!("not one reason: {reasons:?}") };
    let printed = reason.text.trim_start_matches("Not saved: ");
    ensure!(stderr.contains(printed), "{printed:?} is not what the command reports: {stderr:?}");
    ensure!(printed.contains("64 MiB") && printed.contains("the session was not touched"), "{printed:?}");
    let back = at("hibernate/return").map(|at| lines[at].at);
    let stayed = back.map(|back| back.saturating_duration_since(reason.at));
    ensure!(stayed.is_some_and(|stayed| stayed >= TO_READ), "it stayed {stayed:?} on {}", guest.config().memory);
    Ok(())
}

/// The lines after the one that is `first` and before the one that ends with, or contains, `last`.
fn between(lines: &[String], first: &str, last: &str) -> Vec<String> {
    let behind = lines.iter().skip_while(|line| *line != first).skip(1);
    behind.take_while(|line| !line.contains(last)).cloned().collect()
}

/// Each line is the bar of this work, and it moves.
fn demand_bar(shown: &[String], work: &str) -> Result<()> {
    let percent = |line: &String| line.split_once(" %")?.0.rsplit(' ').next()?.parse::<u32>().ok();
    let other: Vec<&String> = shown.iter().filter(|line| !line.starts_with(work) || percent(line).is_none()).collect();
    ensure!(other.is_empty(), "there is more than the bar: {other:#?}");
    let halfway = shown.iter().filter_map(percent).filter(|percent| (1..100).contains(percent)).count();
    ensure!(halfway >= 2, "the bar does not move: {shown:#?}");
    ensure!(shown.iter().all(|line| line.contains('[') && line.contains(" MiB") && line.len() < 80), "{shown:#?}");
    Ok(())
}
