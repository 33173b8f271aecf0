//! Boots that do not resume, and say why.

use std::time::Duration;

use anyhow::{Result, anyhow, ensure};
use dormouse::phase::Phase;
use dormouse_image::State;
use dormouse_tests::guest::{Guest, READY_MARK};
use dormouse_tests::image;
use dormouse_tests::machine::GuestConfig;

use crate::{save, session};

/// Enough for D and the boot that follows it.
const TWO_BOOTS: Duration = Duration::from_secs(300);

#[test]
fn without_an_image_the_boot_goes_on_and_says_so_in_one_line() -> Result<()> {
    let mut guest = session(GuestConfig::new(1, "768M".parse()?))?;
    guest.succeed("sync")?;
    guest.cut_power();
    let lines = lines_of_boot(&mut guest)?;
    ensure!(reasons(&lines) == ["no image to resume: the one on /dev/vda is empty"], "{:?}", reasons(&lines));
    // The command itself, away from the hook that runs it and from the kernel log.
    let output = guest.run("dormouse resume")?;
    ensure!(output.status == 0 && output.stderr.is_empty() && output.stdout.lines().count() == 1, "{output:?}");
    Ok(())
}

#[test]
fn a_damaged_chunk_ends_in_an_ordinary_boot() -> Result<()> {
    let mut guest = session(GuestConfig::new(2, "768M".parse()?))?;
    let saved = save(&mut guest)?;
    let disk = guest.disk_file(0);
    let chunk = image::some_chunk(&disk)?;
    image::flip_byte(&disk, chunk.offset + u64::from(chunk.stored_len / 2))?;

    let lines = lines_of_boot(&mut guest)?;
    let said = |what: String| lines.iter().filter(|line| line.contains(&format!("dormouse: {what}"))).count();
    let demand = |holds: bool, what: &str| {
        if holds { Ok(()) } else { Err(guest.explain(anyhow!("{what}"))) }
    };
    let named = format!("the chunk at offset {} is damaged", chunk.offset);
    demand(said(Phase::RestoreVerify.to_string()) == 1, "D did not look at the image once")?;
    demand(said(format!("the session was not resumed: {named}")) == 1, "D does not name the chunk")?;
    demand(said(Phase::RestoreConsume.to_string()) == 0, "D consumed the image")?;
    demand(said(Phase::RestoreJump.to_string()) == 0, "D jumped")?;
    let reasons = reasons(&lines);
    let one_reason = reasons.len() == 1 && reasons[0].contains(&named);
    demand(one_reason, &format!("the boot after D says {reasons:?}"))?;

    let boot_id = guest.succeed("cat /proc/sys/kernel/random/boot_id")?;
    ensure!(boot_id.trim() != saved.before.boot_id, "the damaged session was resumed");
    ensure!(guest.run("workload check")?.status != 0, "the workload is there");
    guest.cut_power();
    let commit = image::commit(&disk)?;
    ensure!(commit.state == State::Discarded && commit.reason.contains(&named), "{commit:?}");
    Ok(())
}

/// Powers on and returns the console's lines until an ordinary boot is up.
fn lines_of_boot(guest: &mut Guest) -> Result<Vec<String>> {
    let mut cursor = guest.power_on()?;
    let mut lines = Vec::new();
    guest.follow(&mut cursor, TWO_BOOTS, "an ordinary boot", |line| {
        lines.push(line.text.clone());
        line.text.contains(READY_MARK).then_some(())
    })?;
    Ok(lines)
}

/// What `dormouse resume` printed in a boot that went on. The hook writes it to the console and to the kernel log, which
/// both are the serial line here.
fn reasons(lines: &[String]) -> Vec<&str> {
    let said = lines.iter().filter_map(|line| line.strip_prefix("dormouse: "));
    let mut reasons: Vec<&str> = said
        .filter(|text| ["no image to resume", "not resuming"].iter().any(|start| text.starts_with(start)))
        .collect();
    reasons.dedup();
    reasons
}
