//! The conductor in D: the image to memory, and the way into A.

use std::time::Instant;

use anyhow::{Context, bail};
use dormouse_image::{Commit, FormatError, State};
use dormouse_linux::error_chain::in_full;
use dormouse_linux::memory_watch::Watch;
use dormouse_linux::procfs;

use crate::console::phase::Phase;
use crate::console::progress::{Progress, Work};
use crate::console::screen;
use crate::cycle::verdict::ATTEMPTS;
use crate::handoff::arguments::WayBack;
use crate::handoff::mailbox::ArmedWatchdog;
use crate::handoff::report::{Half, Outcome, Report};
use crate::handoff::task::RestoreTask;
use crate::machine::acpi::UnderTables;
use crate::machine::iomem::{Iomem, subtract};
use crate::memory::deliver;
use crate::memory::physmem::{PhysicalMemory, Restorable};
use crate::memory::under_tables::KeptAside;
use crate::pipeline::PipelineError;
use crate::policy::Policy;
use crate::store::{Access, Image, Reader};
use crate::target::{self, IfFile, Opened, Opening};
use crate::{launch, machine, pipeline};

/// A session that is back in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Restored {
    /// Where it goes on.
    pub way: WayBack,
    /// Whether the way is loaded together with memory that only the jump may write: no other jump will do.
    pub is_loaded: bool,
    /// The watchdog that A believes runs.
    pub watchdog: Option<ArmedWatchdog>,
}

/// Restores the session in the image. When this returns `Ok`, memory is A's, the image is consumed, and nothing is left
/// but to jump. `alive` is called whenever something got done.
///
/// # Errors
/// Anything that keeps memory from being exactly A's. Where another try cannot do better, or none is left, the image is
/// marked as failed with the reason, so that the next boot is an ordinary one and reports why. Otherwise the next boot
/// tries again.
pub fn run(task: RestoreTask<'_>, policy: &Policy, alive: &dyn Fn()) -> anyhow::Result<Restored> {
    let how = Opening { access: Access::Write, wait: policy.image.wait, if_file: IfFile::Refuse };
    let Opened { target: place, mut image } = target::open_again(&task.order.image, policy.image.disk.as_ref(), how)?;
    alive();
    screen::show(policy.console.verbosity, &format!("Resuming from {place}"));
    let result = restore(task, policy, &mut image, alive);
    if let Err(error) = &result {
        let next = after(error, image.commit());
        if image.commit().state.may_become(next)
            && let Err(second) = image.transition(next, &format!("the restore failed: {error:#}"))
        {
            log::warn!("the image's state could not be changed: {}", in_full(&second));
        }
    }
    result
}

/// What an image becomes whose restore has failed. Nothing mends what is damaged; a device that could not be read, or a
/// CPU that did not come up, may do better in the tries that are left.
fn after(error: &anyhow::Error, commit: &Commit) -> State {
    let is_damage = error.chain().any(|cause| {
        let chunk = |error| matches!(error, &PipelineError::Chunk { .. } | &PipelineError::Batch(_));
        // What is sealed is whole, for all that this kernel knows.
        let format = |error: &FormatError| *error != FormatError::Sealed;
        cause.downcast_ref().is_some_and(format) || cause.downcast_ref().is_some_and(chunk)
    });
    if is_damage || commit.attempts >= ATTEMPTS { State::Failed } else { State::Restoring }
}

fn restore(task: RestoreTask<'_>, policy: &Policy, image: &mut Image, alive: &dyn Fn()) -> anyhow::Result<Restored> {
    let (began, watch) = (Instant::now(), Watch::start());
    log::info!("{}: verifying header and index on {}", Phase::RestoreVerify, image.disk());
    let state = image.commit().state;
    if state != State::Restoring {
        bail!("the image is {state}, and not one that `dormouse resume` has just begun to restore");
    }
    // A sealed image, if C has seen one; and no other, if it has not.
    image.unlock(task.order.key.as_ref())?;
    let header = image.header()?;
    let (found, ordered) = (header.session.save_id, task.order.save_id);
    if found != ordered {
        bail!("the image holds the session {found}, this kernel was started for {ordered}");
    }
    machine::demand_all_cpus(header.session.cpu.online)?;
    machine::microcode::demand(&header.session.cpu)?;
    let mut reader = Reader::open(image, &header)?;
    let own = header.session.swapped();
    let running = Iomem::parse(&procfs::text("/proc/iomem")?)?;
    let under = UnderTables::of(&header.session, &running.firmware);
    let frames = Restorable::new(&subtract(&header.session.ram, &under.all()), &own, &running)?;
    let memory = PhysicalMemory::open(&frames)?;
    let memory = KeptAside::new(memory, &under);

    // Header, index and commit record are verified: memory may be written.
    let totals = image.commit().totals;
    let (stored, zero) = (totals.stored_pages, totals.zero_pages);
    let pages = stored + zero;
    let limits = pipeline::Limits::of_policy(&policy.pipeline);
    log::info!("{}: {pages} pages, {} threads", Phase::RestoreWrite, limits.threads);
    let mut progress = Progress::new(Work::Resuming, pages, policy.console.verbosity);
    let counts = pipeline::restore(&mut reader, &memory, limits, |step| {
        progress.at(step.into());
        alive();
    })?;
    drop(progress);
    if (counts.stored, counts.zero) != (stored, zero) {
        let (restored, zeroed) = (counts.stored, counts.zero);
        bail!(
            "restored were {restored} stored pages and {zeroed} zero ones, the commit record has {stored} and {zero}"
        );
    }

    let way = WayBack { entry: header.entry, bridge: task.bridge };
    let by_jump = memory.take_by_jump();
    let is_loaded = !by_jump.is_empty();
    if is_loaded {
        let bytes: u64 = by_jump.iter().map(|segment| segment.size).sum();
        log::info!("{}: {bytes} bytes under ACPI tables that have moved come with the jump", Phase::RestoreWrite);
    }
    launch::load_bridge(way, by_jump).context("the bridge into the saved kernel could not be loaded")?;

    log::info!("{}: the image is used up", Phase::RestoreConsume);
    let vitals = watch.stop();
    let mut report = Report::of_image(image.commit(), image.disk().name().to_owned(), Outcome::Resumed);
    report.direct = task.is_direct;
    report.restore = Some(Half {
        seconds: began.elapsed().as_secs_f64(),
        threads: u32::try_from(limits.threads)?,
        peak_kib: vitals.peak_kib,
        least_available_kib: vitals.least_available_kib,
        spent: counts.spent,
    });
    // The point of no return: an image is resumed at most once, whatever happens after this line.
    if let Some(error) = image.consume().context("the image could not be marked as consumed")? {
        log::warn!(
            "{}: the second copy of the image's state was not written: {}",
            Phase::RestoreConsume,
            in_full(&error)
        );
    }
    if let Err(error) = deliver::to_memory(&header.session, &memory, &report) {
        log::warn!("{error:#}");
    }
    let watchdog = deliver::armed_watchdog_in(&header.session, &memory).unwrap_or_else(|error| {
        log::warn!("{error:#}");
        None
    });
    Ok(Restored { way, is_loaded, watchdog })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::machine::IdleCpus;
    use crate::store::StoreError;
    use anyhow::anyhow;
    use dormouse_image::{Block, Uuid};

    fn commit(attempts: u16) -> Commit {
        Commit { attempts, ..Commit::empty(Uuid([1; 16])) }
    }

    #[test]
    fn gives_up_what_is_damaged_at_once() {
        let damage = || FormatError::Checksum { block: Block::Index, found: 1, computed: 2 };
        let store = || StoreError::Format { name: "/dev/vda".to_owned(), source: damage() };
        for error in [
            anyhow!(damage()),
            anyhow!(store()),
            anyhow!(store()).context("the index"),
            anyhow!(PipelineError::Store(store().into())),
            anyhow!(PipelineError::Chunk { offset: 4096, why: "its checksum differs".to_owned() }),
        ] {
            assert_eq!(after(&error, &commit(1)), State::Failed, "{error:?}");
        }
    }

    #[test]
    fn tries_again_what_may_do_better() {
        let io = || std::io::Error::from_raw_os_error(5);
        for error in [
            anyhow!(IdleCpus::Missing { runs: 1, needed: 2 }),
            anyhow!(PipelineError::Memory { pfn: 1, source: io() }),
            anyhow!(PipelineError::Store(io().into())),
            anyhow!(io()).context("the bridge"),
        ] {
            assert_eq!(after(&error, &commit(1)), State::Restoring, "{error:?}");
            assert_eq!(after(&error, &commit(ATTEMPTS)), State::Failed, "{error:?}");
        }
    }
}
