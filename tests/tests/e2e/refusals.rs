//! Boots that do not resume, and say why.

use std::time::Duration;

use anyhow::{Result, ensure};
use dormouse::phase::Phase;
use dormouse_image::State;
use dormouse_tests::guest::READY_MARK;
use dormouse_tests::image;
use dormouse_tests::machine::GuestConfig;

use crate::{save, session};

/// D and the boot that follows it.
const TWO_BOOTS: Duration = Duration::from_secs(300);

#[test]
fn without_an_image_the_boot_goes_on_and_says_so_in_one_line() -> Result<()> {
    let mut guest = session(GuestConfig::new(1, "768M".parse()?))?;
    guest.succeed("sync")?;
    guest.cut_power();
    let mut cursor = guest.power_on()?;
    let mut said = Vec::new();
    guest.follow(&mut cursor, TWO_BOOTS, "A", |line| {
        if line.text.contains("image") && line.text.contains("dormouse") {
            said.push(line.text.clone());
        }
        line.text.contains(READY_MARK).then_some(())
    })?;
    println!("{said:#?}");
    ensure!(!said.is_empty(), "nothing was said");
    Ok(())
}

#[test]
fn a_damaged_chunk_ends_in_an_ordinary_boot() -> Result<()> {
    let mut guest = session(GuestConfig::new(2, "768M".parse()?))?;
    let saved = save(&mut guest)?;
    let disk = guest.disk_file(0);
    let chunk = image::some_chunk(&disk)?;
    image::flip_byte(&disk, chunk.offset + u64::from(chunk.stored_len / 2))?;

    let mut cursor = guest.power_on()?;
    let mut lines = Vec::new();
    guest.follow(&mut cursor, TWO_BOOTS, "an ordinary boot", |line| {
        lines.push(line.text.clone());
        line.text.contains(READY_MARK).then_some(())
    })?;
    let said = |what: &str| {
        lines
            .iter()
            .filter(|line| line.contains("dormouse: ") && line.contains(what))
            .count()
    };
    let phase = |phase: Phase| said(&format!("dormouse: {phase}"));
    println!(
        "{:#?}",
        lines
            .iter()
            .filter(|line| line.contains("dormouse"))
            .collect::<Vec<_>>()
    );
    let explain = |what: &str| guest.explain(anyhow::anyhow!("{what}"));
    ensure!(
        phase(Phase::RestoreVerify) == 1,
        explain("D did not look at the image once")
    );
    ensure!(
        phase(Phase::RestoreJump) == 0 && phase(Phase::RestoreConsume) == 0,
        explain("D jumped")
    );
    ensure!(
        said(&chunk.offset.to_string()) > 0,
        explain(&format!("the chunk at {} is not named", chunk.offset))
    );

    let boot_id = guest.succeed("cat /proc/sys/kernel/random/boot_id")?;
    ensure!(
        boot_id.trim() != saved.before.boot_id,
        "the damaged session was resumed"
    );
    ensure!(guest.run("workload check")?.status != 0, "the workload is there");
    guest.cut_power();
    let commit = image::commit(&disk)?;
    ensure!(
        commit.state == State::Failed && commit.reason.contains(&chunk.offset.to_string()),
        "{commit:?}"
    );
    Ok(())
}
