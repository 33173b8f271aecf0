//! PID 1 of B and D: becomes init, finds out which of the two it is, and ends in one of [`crate::pid1::ending`]'s ways.
//!
//! It never returns and never dies. The work is done by a child, the [`worker`]: what it cannot catch itself, a lack of memory or a
//! fault, ends it alone, and PID 1 goes the way back.

pub mod ending;
mod keys;
mod modules;
mod supervisor;
mod system;
mod worker;

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use dormouse_image::{PfnRange, SessionRecord};
use dormouse_linux::procfs;
use supervisor::{Aborted, Care};
use worker::Message;

use crate::console::phase::Phase;
use crate::console::screen;
use crate::handoff::arguments::Cmdline;
use crate::handoff::mailbox;
use crate::handoff::mode::{self, Decline, Evidence, Mode, RestorePlan, SavePlan};
use crate::handoff::report::Report;
use crate::launch::WayBack;
use crate::machine::iomem::Iomem;
use crate::memory::physmem::{PhysicalMemory, Restorable};
use crate::memory::vmcore;
use crate::pid1::ending::Ending;
use crate::pipeline::seams::PageSink;
use crate::policy::{DEFAULT_PATH, Policy, Then, Verbosity};
/// Where A's record of the session is in B's initramfs: an encoded [`SessionRecord`], put there by the loader.
pub const SESSION_FILE: &str = "dormouse-session";

/// How long an error stays on the screen before another kernel writes over it.
const READING_TIME: Duration = Duration::from_secs(5);

/// PID 1's whole life, or the worker's.
pub fn main() -> ExitCode {
    if std::process::id() != 1 {
        let is_worker =
            std::env::args().nth(1).as_deref() == Some(worker::ROLE) && std::os::unix::process::parent_id() == 1;
        if is_worker {
            return worker::main();
        }
        eprintln!("dormouse-init: this is PID 1 of the kernels that `dormouse` starts; run `dormouse` instead");
        return ExitCode::from(2);
    }
    let _ = caught(|| {
        system::begin();
        Ok(())
    });
    // The way back before all else: whatever goes wrong in B, A must come back.
    let line = procfs::text("/proc/cmdline").unwrap_or_default();
    let way = mode::way_back(&Cmdline::parse_way_back(&line));
    let ending = caught(|| Ok(live(&Cmdline::parse(line.trim())?)?));
    ending::end(ending.unwrap_or_else(|error| match way {
        Some(way) => {
            log::error!("{}: {error:#}; jumping back", Phase::SaveStart);
            std::thread::sleep(READING_TIME);
            Ending::JumpBack(way)
        }
        None => reboot(&error, Verbosity::Normal),
    }))
}

/// The place of A's record of the session.
fn session_path() -> PathBuf {
    Path::new("/").join(SESSION_FILE)
}

/// What this boot finds.
fn evidence() -> Evidence {
    Evidence { vmcore: Path::new(vmcore::PATH).exists(), session: session_path().exists() }
}

/// A's record of the session.
fn session_record() -> anyhow::Result<SessionRecord> {
    let record = procfs::read(session_path())?;
    Ok(SessionRecord::decode(&record)?)
}

/// B or D, whichever this is.
fn live(cmdline: &Cmdline) -> Result<Ending, Decline> {
    Ok(match mode::decide(cmdline, evidence())? {
        Mode::Save(plan) => save_session(&plan),
        Mode::Restore(plan) => restore_session(&plan),
    })
}

/// B, from the first word to the last.
fn save_session(plan: &SavePlan) -> Ending {
    log::info!("{}: kernel B is up", Phase::SaveStart);
    let policy = caught(|| Ok(Policy::load(Path::new(DEFAULT_PATH))?));
    let verbosity = verbosity(&policy);
    let saved = policy.and_then(|policy| {
        caught(|| match supervisor::run(&Care { escape: policy.save.escape, ..care(&policy) })? {
            Message::Saved(report) => Ok(report),
            other => bail!("the worker ended with {other:?}"),
        })
    });
    match saved {
        Ok(report) => {
            let (what_follows, ending) = match plan.then {
                Then::Return => ("jumping back", Ending::JumpBack(plan.way)),
                Then::PowerOff => ("powering off", Ending::PowerOff),
                Then::Reboot => ("rebooting", Ending::Reboot),
            };
            log::info!("{}: {}; {what_follows}", Phase::SaveEnd, report.summary());
            screen::tell(verbosity, &format!("{}; {what_follows}", report.summary()));
            if plan.then == Then::Return {
                leave_word(&report);
            }
            ending
        }
        Err(error) => {
            let reason = format!("{error:#}; the session was not touched");
            complain(
                verbosity,
                &format!("{}: {reason}; jumping back", Phase::SaveEnd),
                &format!("Not saved: {reason}"),
            );
            leave_word(&Report::failed(reason));
            // Who has pressed Esc knows why.
            if !error.is::<Aborted>() {
                std::thread::sleep(READING_TIME);
            }
            Ending::JumpBack(plan.way)
        }
    }
}

/// D, from the first word to the last.
fn restore_session(plan: &RestorePlan) -> Ending {
    log::info!("{}: kernel D is up", Phase::RestoreStart);
    let policy = caught(|| Ok(Policy::load(Path::new(DEFAULT_PATH))?));
    let verbosity = verbosity(&policy);
    let restored = policy.and_then(|policy| {
        // Memory is a mixture of two systems from the first page on: there is nothing that a key could go back to.
        caught(|| match supervisor::run(&care(&policy))? {
            Message::Restored(entry) => Ok(WayBack { entry, bridge: plan.bridge }),
            other => bail!("the worker ended with {other:?}"),
        })
    });
    match restored {
        Ok(way) => {
            log::info!("{}: entering the saved kernel at {:#x}", Phase::RestoreJump, way.entry);
            Ending::JumpBack(way)
        }
        Err(error) => reboot(&error.context("the session was not resumed"), verbosity),
    }
}

/// What both need; keys are listened to in B alone.
fn care(policy: &Policy) -> Care {
    let guard = &policy.guard;
    Care { escape: false, stall: guard.stall, wait: policy.image.wait, watchdog: guard.watchdog }
}

fn reboot(error: &anyhow::Error, verbosity: Verbosity) -> Ending {
    let text = format!("{error:#}; rebooting");
    complain(verbosity, &text, &text);
    std::thread::sleep(READING_TIME);
    Ending::Reboot
}

/// What the consoles show. Where there is no policy that says so, they show what the kernel log has.
fn verbosity(policy: &anyhow::Result<Policy>) -> Verbosity {
    policy.as_ref().map_or(Verbosity::Normal, |policy| policy.console.verbosity)
}

/// Says why it failed, once on each console: in the kernel log, or to a person, for whom the worker may have left its bar as
/// it was.
fn complain(verbosity: Verbosity, log: &str, person: &str) {
    if verbosity == Verbosity::Quiet {
        log::info!("{log}");
        screen::tell(verbosity, &format!("\n{person}"));
    } else {
        log::error!("{log}");
    }
}

/// Runs `work`, with a panic as an error.
fn caught<T>(work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|panic| Err(anyhow!("the agent panicked: {}", panic_text(panic.as_ref()))))
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("without a message")
}

/// Puts B's report into A's mailbox. Nothing more can be done where that fails: A goes on without it.
fn leave_word(report: &Report) {
    let delivered = caught(|| {
        let header = session_record()?;
        let Some(mailbox) = &header.mailbox else { return Ok(()) };
        let page = PfnRange { start: mailbox.pfn, end: mailbox.pfn + 1 };
        let running = Iomem::parse(&procfs::text("/proc/iomem")?)?;
        let own: Vec<_> = header.low.iter().copied().chain([header.region]).collect();
        let frames = Restorable::new(&[page], &own, &running)?;
        deliver(&header, &PhysicalMemory::open(&frames)?, report)
    });
    if let Err(error) = delivered {
        log::error!("{}: the report could not be delivered: {error:#}", Phase::SaveEnd);
    }
}

/// Writes `report` into the mailbox that `header` names, in `memory`.
///
/// # Errors
/// The page cannot be reached, or it is not the one that A pinned.
pub fn deliver(header: &SessionRecord, memory: &PhysicalMemory, report: &Report) -> anyhow::Result<()> {
    let Some(mailbox) = &header.mailbox else { return Ok(()) };
    let page = PfnRange { start: mailbox.pfn, end: mailbox.pfn + 1 };
    memory
        .write(page, |bytes| mailbox::write(bytes, &mailbox.nonce, report))
        .with_context(|| format!("the mailbox at page frame {:#x}", mailbox.pfn))??;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;

    #[test]
    fn a_panic_is_an_error_with_its_words() {
        let said = |work: fn() -> anyhow::Result<()>| caught(work).unwrap_err().to_string();
        assert_eq!(said(|| panic!("page {}", 7)), "the agent panicked: page 7");
        assert_eq!(said(|| panic!("here")), "the agent panicked: here");
        assert_eq!(said(|| std::panic::panic_any(5)), "the agent panicked: without a message");
        assert_eq!(said(|| bail!("no panic")), "no panic");
    }
}
