//! A save kernel that was started ahead of time and waits.

use anyhow::{Context, Result, ensure};
use dormouse::handoff::report::Outcome;
use dormouse_tests::guest::Guest;
use dormouse_tests::machine::GuestConfig;

use crate::{demand_proofs, power_cycle, session_with};

/// Each cycle enters a save kernel that the process which keeps it has started since the one before.
pub(crate) fn three_cycles() -> Result<()> {
    let mut guest = session_with(GuestConfig::new(2, "768M".parse()?), "[save]\nwarm = true\n")?;
    keep(&mut guest)?;
    for _ in 0..3 {
        wait_until_warm(&mut guest)?;
        let went_on = power_cycle(&mut guest)?;
        demand_proofs(&guest, &went_on)?;
        let report = went_on.report()?;
        ensure!(report.outcome == Outcome::Resumed, "{report:?}");
        ensure!(report.before.context("nothing of the jump")?.warm, "it was not entered: {report:?}");
    }
    Ok(())
}

/// Has a process keep it.
fn keep(guest: &mut Guest) -> Result<()> {
    guest.succeed("setsid dormouse warm --now </dev/null >/run/warm.log 2>&1 & echo").map(drop)
}

fn wait_until_warm(guest: &mut Guest) -> Result<()> {
    let waited = guest.succeed(
        "for try in $(seq 600); do [ -e /run/dormouse/warm ] && exit; sleep 0.1; done; cat /run/warm.log; exit 1",
    );
    waited.map(drop).map_err(|error| guest.explain(error))
}
