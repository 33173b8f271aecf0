//! What A does around the jump, beside jumping: before it, drivers are told, memory is made free, and what must be the
//! same afterwards is noted; after it, that is compared and mended.
//!
//! The kernel's own hibernation does these things itself. The jump by kexec does none of them (Linux 6.12,
//! kernel/kexec_core.c, `kernel_kexec`).

mod entropy;

use std::io;
use std::time::Duration;

use dormouse_image::Uuid;
use dormouse_linux::error_chain::in_full;
use dormouse_linux::free_memory::Free;
use dormouse_linux::hibernation_events::{Announced, Unannounced};
use dormouse_linux::kernel_log::Mark;
use dormouse_linux::not_frozen::NotFrozen;
use dormouse_linux::units::mib;
use dormouse_linux::{acpi_events, free_memory, hibernation_events, memory_watch};

use crate::console::phase::Phase;
use crate::cycle::refusal::{self, JumpError, Obstacle};
use crate::handoff::report::Before;
use crate::launch::Jumped;

/// Where the kernel shows that a kernel is loaded for `kexec -e`.
const LOADED: &str = "/sys/kernel/kexec_loaded";
/// How long kswapd may take until memory is free; the clean page cache is dropped then.
const RECLAIM_LIMIT: Duration = Duration::from_secs(10);
/// How many of the kernel's lines a refusal shows: the last ones.
const LINES_SHOWN: usize = 4;

/// Refuses where another kernel is loaded, which loading kernel B would replace.
///
/// # Errors
/// The obstacle.
pub(crate) fn refuse_loaded(force: bool) -> Result<(), Obstacle> {
    refusal::refuse(loaded().filter(|_| !force))
}

/// The kernel that is loaded, as what is in the way.
pub(crate) fn loaded() -> Option<Obstacle> {
    refusal::in_loaded(&std::fs::read_to_string(LOADED).unwrap_or_default())
}

/// A machine that is about to jump. Where it is dropped without a jump, all is as before.
#[derive(Debug)]
#[must_use]
pub(crate) struct Around {
    /// Nothing on a kernel that cannot tell its drivers.
    announced: Option<Announced>,
    events: acpi_events::Enabled,
    log: Mark,
    free: Free,
}

impl Around {
    /// Makes it ready.
    ///
    /// # Errors
    /// A driver refuses, something else hibernates, or too little memory can be made free.
    pub(crate) fn begin() -> anyhow::Result<Around> {
        let events = acpi_events::Enabled::now();
        log::debug!("{}: ACPI events that are on: {}", Phase::HibernateJump, events.names().join(" "));
        let mut log = Mark::now();
        let announced = match hibernation_events::announce() {
            Ok(announced) => Some(announced),
            Err(error @ (Unannounced::Unsupported | Unannounced::NoNode(_))) => {
                let why = in_full(&error);
                log::warn!("{}: drivers are not told of the hibernation, which some need: {why}", Phase::HibernateJump);
                None
            }
            Err(error) => {
                let modes = std::fs::read_to_string("/sys/power/disk").unwrap_or_default();
                return Err(refusal::in_announcement(&error, &modes, last(log.lines())).into());
            }
        };
        // Drivers have taken what they need to prepare themselves.
        let total = memory_watch::field("/proc/meminfo", "MemTotal:").unwrap_or(0).saturating_mul(1024);
        let free = free_memory::make(reserve(total), RECLAIM_LIMIT)?;
        refusal::refuse(refusal::in_free_memory(free))?;
        log::info!("{}: {} of memory are free, {} are needed", Phase::HibernateJump, mib(free.now), mib(free.wanted));
        Ok(Around { announced, events, log, free })
    }

    /// What has told drivers of the hibernation.
    pub(crate) fn announced(&self) -> Option<&Announced> {
        self.announced.as_ref()
    }

    /// Ends it after the jump, which has returned `jumped`: mends what the other kernels have changed, and tells
    /// drivers that it is over. `left` is what they have left in the mailbox.
    ///
    /// # Errors
    /// The jump failed.
    pub(crate) fn end(mut self, jumped: io::Result<Jumped>, save_id: &Uuid, left: &[u8]) -> Result<Before, JumpError> {
        let mended = self.events.enable_again();
        if !mended.on.is_empty() {
            log::info!("{}: ACPI events that were off: {}", Phase::HibernateReturn, mended.on.join(" "));
        }
        if !mended.off.is_empty() {
            log::warn!("{}: ACPI events that stay off: {}", Phase::HibernateReturn, mended.off.join(", "));
        }
        entropy::reseed(save_id, left);
        let are_drivers_told = self.announced.is_some();
        drop(self.announced);
        let Jumped { by_module, warm, lost_cpus } = jumped.map_err(|error| jump_error(error, &self.log.lines()))?;
        let Free { before, now, .. } = self.free;
        let (free_bytes, reclaimed_bytes) = (now, now.saturating_sub(before));
        let drivers_told = are_drivers_told;
        Ok(Before { free_bytes, reclaimed_bytes, drivers_told, by_module, warm, lost_cpus, shrunk: None })
    }
}

/// How much must be free above the watermarks on a machine with so much memory: what the drivers of a small machine
/// allocate in freezing, and more on one that has more devices. The kernel's own hibernation keeps 4 MiB for that
/// (`PAGES_FOR_IO`, kernel/power/power.h), where waiting for a disk is forbidden as well.
fn reserve(total: u64) -> u64 {
    (total / 50).clamp(32 << 20, 256 << 20)
}

/// Why there was no jump, in an error and what the kernel has logged since before it.
fn jump_error(error: io::Error, lines: &[String]) -> JumpError {
    match NotFrozen::find(lines) {
        // Devices return errors of their own.
        NotFrozen::Unknown if error.raw_os_error() != Some(nix::errno::Errno::EBUSY as i32) => JumpError::Jump(error),
        found => JumpError::Freeze(found),
    }
}

/// The last lines.
fn last(mut lines: Vec<String>) -> Vec<String> {
    lines.split_off(lines.len().saturating_sub(LINES_SHOWN))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reserve_grows_with_memory_within_bounds() {
        let mib = |mib: u64| mib << 20;
        assert_eq!(reserve(mib(512)), mib(32));
        assert_eq!(reserve(mib(4000)), mib(80));
        assert_eq!(reserve(mib(1 << 20)), mib(256));
    }

    #[test]
    fn the_log_decides_between_a_freeze_and_a_jump_that_failed() {
        let error = |errno: nix::errno::Errno| io::Error::from(errno);
        let line = "usb 1-1: PM: failed to freeze: error -110".to_owned();
        let lines = std::slice::from_ref(&line);
        assert!(matches!(jump_error(error(nix::errno::Errno::ETIMEDOUT), lines), JumpError::Freeze(_)));
        assert!(matches!(jump_error(error(nix::errno::Errno::EBUSY), &[]), JumpError::Freeze(NotFrozen::Unknown)));
        assert!(matches!(jump_error(error(nix::errno::Errno::EINVAL), &[]), JumpError::Jump(_)));
    }

    #[test]
    fn the_last_lines_are_shown() {
        let lines: Vec<String> = (0..9).map(|number: u32| number.to_string()).collect();
        assert_eq!(last(lines), ["5", "6", "7", "8"]);
        assert!(last(Vec::new()).is_empty());
    }
}
