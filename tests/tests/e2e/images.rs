//! The image that a guest wrote, read on the host from the disk's file.

use anyhow::{Context, Result, ensure};
use dormouse_image::State;
use dormouse_tests::artifacts::Artifacts;
use dormouse_tests::cycle::{self, unobserved};
use dormouse_tests::guest::Guest;
use dormouse_tests::image;
use dormouse_tests::machine::GuestConfig;
use dormouse_tests::userland::{GuestPolicy, Userland};

use crate::{demand_proofs, save};

pub(crate) fn the_host_reads_what_the_guest_wrote_and_the_guest_finds_it_by_uuid() -> Result<()> {
    let artifacts = Artifacts::from_environment()?;
    // The policy names the image by its UUID, so the image exists before the guest.
    let blank = tempfile::NamedTempFile::new()?;
    let config = GuestConfig::new(2, "768M".parse()?);
    blank.as_file().set_len(config.disks[0].bytes)?;
    image::command(&artifacts, &["init"], blank.path())?;
    let uuid = image::commit(blank.path())?.image;
    let policy = GuestPolicy::standard(format!("[image]\ndevice = \"UUID={uuid}\"\n"));
    let mut guest = Guest::new(config, &Userland { policies: vec![policy], ..Userland::default() }, &artifacts)?;
    std::fs::copy(blank.path(), guest.disk_file(0))?;
    guest.boot()?;
    cycle::start_workload(&mut guest)?;

    let saved = save(&mut guest)?;
    let disk = guest.disk_file(0);
    let commit = image::commit(&disk)?;
    ensure!(commit.state == State::Complete, "{commit:?}");
    let info: serde_json::Value = serde_json::from_str(&image::command(&artifacts, &["info", "--json"], &disk)?)
        .context("dormouse image info --json")?;
    let text = info.to_string();
    ensure!(text.contains(&uuid.to_string()), "no UUID: {text}");
    image::command(&artifacts, &["info"], &disk)?;
    image::command(&artifacts, &["verify"], &disk)?;

    let went_on = cycle::resume(&mut guest, saved, &mut unobserved)?;
    demand_proofs(&guest, &went_on)?;
    let report = went_on.report()?;
    ensure!(report.stored_pages == commit.totals.stored_pages, "{report:?} and {commit:?}");
    ensure!(report.zero_pages == commit.totals.zero_pages, "{report:?} and {commit:?}");
    guest.cut_power();
    ensure!(image::commit(&disk)?.state == State::Consumed, "{:?}", image::commit(&disk)?);
    Ok(())
}
