//! Images that are read back before the power goes off.

use anyhow::{Result, ensure};
use dormouse_image::State;
use dormouse_image::layout::DATA_OFFSET;
use dormouse_tests::cycle::{self, unobserved};
use dormouse_tests::guest::Guest;
use dormouse_tests::image;
use dormouse_tests::machine::{GuestConfig, MIB};

use crate::{begin_save_and_write, demand_proofs, demand_same_session, session_with};

pub(crate) fn an_image_read_back_matches_what_was_saved() -> Result<()> {
    for (verify, how) in [("checksum", "(checksum)"), ("memory", "(memory)")] {
        let mut guest = session(verify)?;
        let before = cycle::check_workload(&mut guest)?;
        let mut lines = Vec::new();
        let saved = cycle::save(&mut guest, before, "dormouse hibernate --json", &mut |line| {
            lines.push(line.text.clone());
        })?;
        let printed = |what: &str| lines.iter().any(|line| line.contains("save/verify") && line.contains(what));
        ensure!(printed(how) && printed("it is what was saved"), "{verify}: the console does not show it");
        let went_on = cycle::resume(&mut guest, saved, &mut unobserved)?;
        demand_proofs(&guest, &went_on)?;
    }
    Ok(())
}

pub(crate) fn a_device_that_keeps_something_else() -> Result<()> {
    for verify in ["checksum", "memory"] {
        let mut guest = session(verify)?;
        let before = cycle::check_workload(&mut guest)?;
        guest.monitor()?.limit_writes("disk0", 32 * MIB)?;
        let (command, _) = begin_save_and_write(&mut guest)?;
        // The first chunk has been written. Without the guest's knowledge, it changes on its way through the host.
        image::flip_byte(&guest.disk_file(0), DATA_OFFSET + 40)?;
        let output = guest.answer(command, crate::TWO_BOOTS)?;
        ensure!(output.status == 1, "{output:?}");
        for expected in ["what was read back from it is not what was saved", "/dev/vda", "the session was not touched"]
        {
            ensure!(output.stderr.contains(expected), "{expected:?} is not in {:?}", output.stderr);
        }
        demand_same_session(&mut guest, &before)?;
        guest.cut_power();
        let commit = image::commit(&guest.disk_file(0))?;
        ensure!(commit.state == State::Failed && commit.reason.contains("read back"), "{commit:?}");
    }
    Ok(())
}

fn session(verify: &str) -> Result<Guest> {
    let policy = format!("[save]\nverify = \"{verify}\"\n");
    session_with(GuestConfig::new(2, "768M".parse()?), &policy)
}
