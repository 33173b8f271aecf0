//! Power cuts at random moments of a save.

use std::time::Duration;

use anyhow::{Result, ensure};
use dormouse::console::phase::Phase;
use dormouse_image::State;
use dormouse_tests::artifacts::Artifacts;
use dormouse_tests::cycle::{self, unobserved};
use dormouse_tests::guest::{Ending, Guest};
use dormouse_tests::image;
use dormouse_tests::machine::GuestConfig;
use dormouse_tests::qemu::copy_sparse;

use crate::{TWO_BOOTS, begin_save, begin_save_with, demand_proofs, ids, lines_of_boot, told};

pub(crate) fn at_ten_moments_of_a_save() -> Result<()> {
    at_moments_of_a_save(10)
}

pub(crate) fn at_twenty_moments_of_a_save() -> Result<()> {
    at_moments_of_a_save(20)
}

/// Whenever the power goes, what is on the device is either no image, and the next boot says so, or a whole one, and
/// the next boot resumes it.
fn at_moments_of_a_save(cuts: u32) -> Result<()> {
    let mut guest = Guest::standard(GuestConfig::new(2, "512M".parse()?), &Artifacts::from_environment()?)?;
    let disk = guest.disk_file(0);
    let up = format!("dormouse: {}", Phase::SaveStart);
    guest.boot()?;
    cycle::init_image(&mut guest, "/dev/vda")?;
    // A whole image, of which no later save may leave a half.
    guest.succeed("workload start --megabytes 32")?;
    let (command, mut cursor) = begin_save(&mut guest)?;
    let ending = guest.follow_command(command, &mut cursor, TWO_BOOTS, &mut |_| ())?;
    ensure!(ending == Ending::PoweredOff, "{ending:?}");
    let complete = guest.disk_file(0).with_extension("complete");
    copy_sparse(&disk, &complete)?;

    let (mut none, mut unfinished, mut resumed) = (0, 0, 0);
    for cut in 0..cuts {
        // The image of the first session is still there when a session of another boot begins to save: nothing has run
        // `dormouse resume`, as from a boot without the hook.
        copy_sparse(&complete, &disk)?;
        guest.add_kernel_argument("rescue");
        guest.boot()?;
        guest.change(|config| config.kernel_arguments.clear());
        guest.succeed("workload start --megabytes 32")?;
        let before = cycle::check_workload(&mut guest)?;
        let old = image::commit(&disk)?;
        // A boot that nothing shows to have looked for an image is not hibernated unasked, nor an image written over.
        let (command, mut cursor) = begin_save_with(&mut guest, "--trust-boot --force")?;
        guest.follow_during(command, &mut cursor, TWO_BOOTS, &up, |line| line.text.contains(&up).then_some(()))?;
        let percent = cut * 7 % cuts * (100 / cuts);
        // Gone before it was that far: past the commit point.
        let _ = guest.follow(&mut cursor, TWO_BOOTS, "progress of the save", |line| {
            let done = line.text.split_once("save/write: ").and_then(|(_, rest)| rest.split_once(" %"));
            let done = done.and_then(|(number, _)| number.parse::<u32>().ok());
            let is_so_far = percent == 0 || done.is_some_and(|done| done >= percent);
            (is_so_far || line.text.contains(&Phase::SaveCommit.to_string())).then_some(())
        });
        // Nothing in a save takes a multiple of this.
        std::thread::sleep(Duration::from_millis(u64::from(cut * 13 % 97)));
        guest.cut_power();

        let commit = image::commit(&disk)?;
        match commit.state {
            State::Complete if commit.save_id == old.save_id => {
                // Nothing of the new save has been written; the old image is as it was.
                ensure!(commit == old, "{commit:?} was {old:?}");
                ensure!(same_file_content(&disk, &complete)?, "the old image is believed and was written to");
                none += 1;
            }
            State::Saving => {
                let lines = lines_of_boot(&mut guest)?;
                ensure!(ids(&lines) == ["save-unfinished"], "at {percent} %: {:?}", told(&lines));
                guest.cut_power();
                unfinished += 1;
            }
            State::Complete => {
                let saved = cycle::Saved { before, command, to_power_off: Duration::ZERO };
                let went_on = cycle::resume(&mut guest, saved, &mut unobserved)?;
                demand_proofs(&guest, &went_on)?;
                guest.cut_power();
                resumed += 1;
            }
            _ => anyhow::bail!("at {percent} %: {commit:?}"),
        }
    }
    println!("{cuts} cuts: {none} before the save, {unfinished} during it, {resumed} past its commit point");
    ensure!(unfinished >= cuts / 2, "hardly any cut hit the save itself");
    Ok(())
}

/// Whether two disks' files hold the same.
fn same_file_content(a: &std::path::Path, b: &std::path::Path) -> Result<bool> {
    let output = std::process::Command::new("cmp").arg("-s").args([a, b]).status()?;
    Ok(output.success())
}
