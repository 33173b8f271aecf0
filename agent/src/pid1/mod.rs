//! PID 1 of B and D: becomes init, takes its order, and ends in one of [`crate::pid1::ending`]'s ways.
//!
//! It never returns and never dies. The work is done by a child, the [`worker`]: what it cannot catch itself, a lack of
//! memory or a fault, ends it alone, and PID 1 takes the way back.

pub mod ending;
mod inbox;
mod keys;
mod modules;
mod supervisor;
mod system;
mod watchdogs;
mod worker;

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use dormouse_image::SessionRecord;
use dormouse_linux::{network, procfs};
use inbox::Inbox;
use supervisor::{Aborted, Guard};
use watchdogs::Watchdogs;
use worker::{Errand, Message};

use crate::console::phase::Phase;
use crate::console::screen;
use crate::handoff::arguments::WayBack;
use crate::handoff::report::Report;
use crate::handoff::task::{SaveTask, Task, WaitTask};
use crate::launch;
use crate::machine::iomem::Iomem;
use crate::memory::deliver;
use crate::pid1::ending::Ending;
use crate::policy::{DEFAULT_PATH, Policy, Power, Then, Verbosity};

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
    let mut inbox = Inbox::new(&procfs::text("/proc/cmdline").unwrap_or_default());
    serve(&mut inbox)
}

/// Takes orders and carries them out.
fn serve(inbox: &mut Inbox) -> ! {
    loop {
        match caught(|| carry_out_next(inbox)) {
            Ok(None) => {}
            Ok(Some(ending)) => ending::end(ending),
            Err(error) => ending::end(match inbox.arguments().way_back() {
                Some(way) => {
                    log::error!("{}: {error:#}; jumping back", Phase::SaveStart);
                    std::thread::sleep(READING_TIME);
                    Ending::JumpBack(way)
                }
                None => reboot(&error, Verbosity::Normal, BY_C.what_follows),
            }),
        }
    }
}

/// Takes the next order and carries it out. Nothing where another one follows.
fn carry_out_next(inbox: &mut Inbox) -> anyhow::Result<Option<Ending>> {
    let errand = Errand { order: inbox.next()?, arguments: inbox.arguments() };
    Ok(match errand.task()? {
        Task::Save(task) => Some(save_session(task, &errand)),
        Task::Restore(task) => Some(restore_session(task.bridge, &errand, &BY_C)),
        Task::Look(task) => Some(restore_session(task.bridge, &errand, &BY_LOADER)),
        Task::Wait(task) => {
            let ending = wait(task, &errand);
            if ending.is_none() {
                inbox.expect(task.order.session.as_ref().clone());
            }
            ending
        }
    })
}

/// B, long before a save: gets ready and goes back to A. Nothing when A has entered it again.
fn wait(task: WaitTask<'_>, errand: &Errand) -> Option<Ending> {
    let policy = caught(|| Ok(Policy::load(Path::new(DEFAULT_PATH))?));
    // A watchdog of A's goes on being set back by A, which is away for a moment.
    let mut watchdogs = Watchdogs::new(false, None);
    let waited = policy.and_then(|policy| {
        caught(|| match supervisor::run(errand, &guard(&policy), &mut watchdogs)? {
            Message::Ready => {
                modules::load_to_reach_memory();
                deliver::to_stopped(&task.order.session, &Report::waiting(procfs::uptime()))?;
                network::take_down_all();
                if task.order.by_module {
                    let ram = Iomem::parse(&procfs::text("/proc/iomem")?)?.whole_ram();
                    return launch::go_and_wait_by_module(task.way, &ram).context("Dormouse's module");
                }
                Ok(launch::go_and_wait(task.way)?)
            }
            other => bail!("the worker ended with {other:?}"),
        })
    });
    match waited {
        Ok(()) => None,
        Err(error) => {
            let reason = format!("{error:#}");
            log::error!("{}: the save kernel cannot wait: {reason}; jumping back", Phase::SaveStart);
            leave_report(&task.order.session, &Report::failed(reason));
            Some(Ending::JumpBack(task.way))
        }
    }
}

/// B, from its first line to its last.
fn save_session(task: SaveTask<'_>, errand: &Errand) -> Ending {
    log::info!("{}: kernel B is up", Phase::SaveStart);
    let policy = caught(|| Ok(Policy::load(Path::new(DEFAULT_PATH))?));
    let verbosity = verbosity(&policy);
    let power = policy.as_ref().map_or(Power::Shutdown, |policy| policy.save.power);
    // One that A has started goes on counting, whatever the policy wants.
    let armed = caught(|| {
        modules::load_to_reach_memory();
        deliver::armed_watchdog(&task.order.session)
    });
    let armed = armed.unwrap_or_else(|error| {
        log::warn!("{}: whether a watchdog of the session runs is not known: {error:#}", Phase::SaveStart);
        None
    });
    let mut watchdogs = Watchdogs::new(policy.as_ref().is_ok_and(|policy| policy.guard.watchdog), armed);
    let saved = policy.and_then(|policy| {
        let guard = Guard { escape: policy.save.escape, ..guard(&policy) };
        caught(|| match supervisor::run(errand, &guard, &mut watchdogs)? {
            Message::Saved(report) => Ok(*report),
            other => bail!("the worker ended with {other:?}"),
        })
    });
    match saved {
        Ok(report) => {
            let (what_follows, ending) = match task.order.then {
                Then::Return => ("jumping back", Ending::JumpBack(task.way)),
                Then::PowerOff => ("powering off", Ending::PowerOff(power)),
                Then::Reboot => ("rebooting", Ending::Reboot),
            };
            log::info!("{}: {}; {what_follows}", Phase::SaveEnd, report.summary());
            screen::show(verbosity, &format!("{}; {what_follows}", report.summary()));
            match task.order.then {
                Then::Return => {
                    leave_report(&task.order.session, &report);
                    watchdogs.leave_to_session();
                }
                Then::PowerOff | Then::Reboot => watchdogs.stop(),
            }
            ending
        }
        Err(error) => {
            let reason = format!("{error:#}; the session was not touched");
            report_failure(
                verbosity,
                &format!("{}: {reason}; jumping back", Phase::SaveEnd),
                &format!("Not saved: {reason}"),
            );
            leave_report(&task.order.session, &Report::failed(reason));
            // Whoever pressed Esc knows why.
            if !error.is::<Aborted>() {
                std::thread::sleep(READING_TIME);
            }
            watchdogs.leave_to_session();
            Ending::JumpBack(task.way)
        }
    }
}

/// Who has started D: its first line, and what follows where it fails.
struct Started {
    first_line: &'static str,
    what_follows: &'static str,
}

const BY_C: Started = Started { first_line: "kernel D is up", what_follows: "rebooting" };
const BY_LOADER: Started = Started {
    first_line: "kernel D is up, started by the boot loader",
    what_follows: "rebooting; an ordinary boot follows, and decides",
};

/// D, from its first line to its last. Its way into A is a bridge at this address.
fn restore_session(bridge: u64, errand: &Errand, started: &Started) -> Ending {
    log::info!("{}: {}", Phase::RestoreStart, started.first_line);
    let policy = caught(|| Ok(Policy::load(Path::new(DEFAULT_PATH))?));
    let verbosity = verbosity(&policy);
    let mut watchdogs = Watchdogs::new(policy.as_ref().is_ok_and(|policy| policy.guard.watchdog), None);
    let restored = policy.and_then(|policy| {
        // Memory is a mixture of two systems from the first page on: there is nothing that a key could go back to.
        caught(|| match supervisor::run(errand, &guard(&policy), &mut watchdogs)? {
            Message::Restored { entry, is_loaded: true, watchdog } => Ok((entry, Ending::JumpLoaded, watchdog)),
            Message::Restored { entry, is_loaded: false, watchdog } => {
                Ok((entry, Ending::JumpBack(WayBack { entry, bridge }), watchdog))
            }
            other => bail!("the worker ended with {other:?}"),
        })
    });
    match restored {
        Ok((entry, ending, armed)) => {
            // A goes on setting back a watchdog that the power-off has stopped.
            watchdogs.armed = armed;
            watchdogs.tick();
            watchdogs.leave_to_session();
            log::info!("{}: entering the saved kernel at {entry:#x}", Phase::RestoreJump);
            ending
        }
        Err(error) => reboot(&error.context("the session was not resumed"), verbosity, started.what_follows),
    }
}

/// What both need; keys are listened to in B alone.
fn guard(policy: &Policy) -> Guard {
    let Policy { guard, image, .. } = policy;
    Guard { escape: false, stall: guard.stall, wait: image.wait }
}

fn reboot(error: &anyhow::Error, verbosity: Verbosity, what_follows: &str) -> Ending {
    let text = format!("{error:#}; {what_follows}");
    report_failure(verbosity, &text, &text);
    std::thread::sleep(READING_TIME);
    Ending::Reboot
}

/// What the consoles show. Without a policy they show what the kernel log has.
fn verbosity(policy: &anyhow::Result<Policy>) -> Verbosity {
    policy.as_ref().map_or(Verbosity::Normal, |policy| policy.console.verbosity)
}

/// Shows why it failed, once on each console: in the kernel log, or to a person, for whom the worker may have left its
/// bar as it was.
fn report_failure(verbosity: Verbosity, log: &str, person: &str) {
    if verbosity == Verbosity::Quiet {
        log::info!("{log}");
        screen::show(verbosity, &format!("\n{person}"));
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
fn leave_report(session: &SessionRecord, report: &Report) {
    if let Err(error) = caught(|| deliver::to_stopped(session, report)) {
        log::error!("{}: the report could not be delivered: {error:#}", Phase::SaveEnd);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;

    #[test]
    fn panic_is_an_error_with_its_message() {
        let text = |work: fn() -> anyhow::Result<()>| caught(work).unwrap_err().to_string();
        assert_eq!(text(|| panic!("page {}", 7)), "the agent panicked: page 7");
        assert_eq!(text(|| panic!("here")), "the agent panicked: here");
        assert_eq!(text(|| std::panic::panic_any(5)), "the agent panicked: without a message");
        assert_eq!(text(|| bail!("no panic")), "no panic");
    }
}
