//! A few cycles of what `scripts/soak` does for hours.

use anyhow::{Result, ensure};
use dormouse::handoff::report::Outcome;
use dormouse_tests::artifacts::Artifacts;
use dormouse_tests::cycle::unobserved;
use dormouse_tests::soak::{Options, Soak};

/// Its first three cycles are a snapshot of every page, a power-off with a power cut in the restore, and a reboot; one
/// of them for each kind of compression.
const SEED: u64 = 555_047;

pub(crate) fn three_cycles_under_load_by_random_policies() -> Result<()> {
    let options = Options { seed: SEED, cycles: 3, memory: "768M".parse()?, cpus: 2 };
    let mut soak = Soak::start(options, &Artifacts::from_environment()?)?;
    let mut rows = Vec::new();
    for _ in 0..options.cycles {
        rows.push(soak.cycle(&mut unobserved)?);
    }
    soak.finish()?;
    let count = |outcome| rows.iter().filter(|row| row.report.outcome == outcome).count();
    ensure!(count(Outcome::Resumed) == 2 && count(Outcome::Returned) == 1, "{rows:?}");
    ensure!(rows.iter().filter(|row| row.cut.is_some()).count() == 1, "{rows:?}");
    Ok(())
}
