//! Boots that do not resume, and say why; and restores that are tried again.

use anyhow::{Result, anyhow, ensure};
use dormouse::console::phase::Phase;
use dormouse_image::State;
use dormouse_tests::cycle::{self, unobserved};
use dormouse_tests::image;
use dormouse_tests::machine::GuestConfig;

use crate::{
    TWO_BOOTS, begin_save_and_write, demand_proofs, ids, is_under_way, lines_of_boot, reasons, save, session, told,
};

pub(crate) fn without_an_image_the_boot_goes_on_and_says_so_in_one_line() -> Result<()> {
    let mut guest = session(GuestConfig::new(1, "768M".parse()?))?;
    guest.succeed("sync")?;
    guest.cut_power();
    let lines = lines_of_boot(&mut guest)?;
    ensure!(reasons(&lines) == ["no image to resume: the one on /dev/vda is empty"], "{:?}", told(&lines));
    // The command itself, away from the hook that runs it and from the kernel log.
    let output = guest.run("dormouse resume")?;
    ensure!(output.status == 0 && output.stderr.is_empty() && output.stdout.lines().count() == 1, "{output:?}");
    let json: serde_json::Value = serde_json::from_str(&guest.succeed("dormouse resume --json")?)?;
    ensure!(json["id"] == "no-image" && json["device"] == "/dev/vda", "{json}");
    Ok(())
}

pub(crate) fn a_damaged_chunk_ends_in_an_ordinary_boot() -> Result<()> {
    let mut guest = session(GuestConfig::new(2, "768M".parse()?))?;
    let saved = save(&mut guest)?;
    let disk = guest.disk_file(0);
    let chunk = image::some_chunk(&disk)?;
    image::flip_byte(&disk, chunk.offset + u64::from(chunk.stored_len / 2))?;

    let lines = lines_of_boot(&mut guest)?;
    let printed = |what: String| lines.iter().filter(|line| line.contains(&format!("dormouse: {what}"))).count();
    let demand = |holds: bool, what: &str| {
        if holds { Ok(()) } else { Err(guest.explain(anyhow!("{what}"))) }
    };
    let named = format!("the chunk at offset {} is damaged", chunk.offset);
    demand(printed(Phase::RestoreVerify.to_string()) == 1, "D did not look at the image once")?;
    demand(printed(format!("the session was not resumed: {named}")) == 1, "D does not name the chunk")?;
    demand(printed(Phase::RestoreConsume.to_string()) == 0, "D consumed the image")?;
    demand(printed(Phase::RestoreJump.to_string()) == 0, "D jumped")?;
    let reasons = reasons(&lines);
    let one_reason = ids(&lines) == ["restore-failed"] && reasons[0].contains(&named);
    demand(one_reason, &format!("the boot after D prints {reasons:?}"))?;

    let boot_id = guest.succeed("cat /proc/sys/kernel/random/boot_id")?;
    ensure!(boot_id.trim() != saved.before.boot_id, "the damaged session was resumed");
    ensure!(guest.run("workload check")?.status != 0, "the workload still runs");
    guest.cut_power();
    let commit = image::commit(&disk)?;
    ensure!(commit.state == State::Discarded && commit.reason.contains(&named), "{commit:?}");
    Ok(())
}

pub(crate) fn noresume_boots_afresh_and_discards_the_image() -> Result<()> {
    let mut guest = session(GuestConfig::new(1, "768M".parse()?))?;
    save(&mut guest)?;
    guest.add_kernel_argument("noresume");
    let lines = lines_of_boot(&mut guest)?;
    ensure!(ids(&lines) == ["boot-argument"], "{:?}", told(&lines));
    guest.cut_power();
    let commit = image::commit(&guest.disk_file(0))?;
    ensure!(commit.state == State::Discarded, "{commit:?}");
    Ok(())
}

pub(crate) fn a_save_that_loses_its_power_is_no_image() -> Result<()> {
    let mut guest = session(GuestConfig::new(2, "768M".parse()?))?;
    begin_save_and_write(&mut guest)?;
    guest.cut_power();
    let commit = image::commit(&guest.disk_file(0))?;
    ensure!(commit.state == State::Saving, "{commit:?}");

    let lines = lines_of_boot(&mut guest)?;
    ensure!(ids(&lines) == ["save-unfinished"], "{:?}", told(&lines));
    guest.cut_power();
    // Reported once.
    let lines = lines_of_boot(&mut guest)?;
    ensure!(reasons(&lines) == ["no image to resume: the one on /dev/vda is discarded"], "{:?}", told(&lines));
    Ok(())
}

pub(crate) fn a_restore_that_loses_its_power_is_tried_once_more() -> Result<()> {
    let mut guest = session(GuestConfig::new(2, "768M".parse()?))?;
    let saved = save(&mut guest)?;
    let mut cursor = guest.power_on()?;
    let phase = Phase::RestoreWrite;
    guest.follow(&mut cursor, TWO_BOOTS, &format!("progress of {phase}"), |line| is_under_way(line, phase))?;
    guest.cut_power();
    let commit = image::commit(&guest.disk_file(0))?;
    ensure!(commit.state == State::Restoring && commit.attempts == 1, "{commit:?}");

    let went_on = cycle::resume(&mut guest, saved, &mut unobserved)?;
    demand_proofs(&guest, &went_on)?;
    Ok(())
}

pub(crate) fn a_restore_that_dies_twice_is_given_up() -> Result<()> {
    let mut guest = session(GuestConfig::new(1, "768M".parse()?))?;
    save(&mut guest)?;
    for _ in 0..2 {
        let mut cursor = guest.power_on()?;
        guest.wait_for(&mut cursor, &format!("dormouse: {}", Phase::RestoreStart), TWO_BOOTS)?;
        guest.cut_power();
    }
    let lines = lines_of_boot(&mut guest)?;
    ensure!(ids(&lines) == ["too-many-attempts"], "{:?}", told(&lines));
    Ok(())
}
