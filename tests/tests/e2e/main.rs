//! The end-to-end cases: whole machines under QEMU, hibernated and brought back.
//!
//! `scripts/test` builds what they need and runs them. Without it each of them fails and says so.

mod aborts;
mod cycles;
mod exactness;
mod export;
mod free_pages;
mod images;
mod refusals;
mod shapes;
mod soak;

use anyhow::Result;
use dormouse_tests::artifacts::Artifacts;
use dormouse_tests::cycle::{self, Saved, WentOn, unobserved};
use dormouse_tests::guest::Guest;
use dormouse_tests::machine::GuestConfig;

/// With this argument C fills its memory with 0xaa (mm/page_poison.c), so that what D does not write is neither what A left
/// nor zero.
const LITTER: &str = "page_poison=1";
/// With this one it does not.
const NO_LITTER: &str = "page_poison=0";

/// A guest that is up with an image device and the workload.
fn session(config: GuestConfig) -> Result<Guest> {
    let mut guest = Guest::standard(config, &Artifacts::from_environment()?)?;
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

fn demand_proofs(guest: &Guest, went_on: &WentOn) -> Result<()> {
    went_on.demand_proofs().map_err(|error| guest.explain(error))
}
