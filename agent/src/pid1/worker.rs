//! The process that does the work, a child of PID 1: whatever ends it, PID 1 remains and sees to A.
//!
//! PID 1 gives it the order on its standard input and what the loader wrote beside it as an argument. It reports by
//! lines of JSON on its standard output, which is a pipe.

use std::cell::Cell;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::cycle::restore::{self, Restored};
use crate::cycle::{direct, save};
use crate::handoff::arguments::LoaderArguments;
use crate::handoff::mailbox::ArmedWatchdog;
use crate::handoff::order::{self, Order};
use crate::handoff::places::{DISK_MODULES_LIST, MEMORY_MODULES_LIST, WATCHDOG_MODULES_LIST};
use crate::handoff::report::Report;
use crate::handoff::task::{Decline, Task};
use crate::pid1::{caught, modules, system};
use crate::policy::{DEFAULT_PATH, Policy};
use crate::target;

/// Its first argument.
pub(super) const ROLE: &str = "work";

/// How often it reports that it is alive, at most.
const PERIOD: Duration = Duration::from_millis(250);

/// What it is sent for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Errand {
    /// The order that PID 1 has taken.
    pub(super) order: Order,
    /// What the loader wrote beside it.
    pub(super) arguments: LoaderArguments,
}

impl Errand {
    /// What is to be done.
    pub(super) fn task(&self) -> Result<Task<'_>, Decline> {
        Task::new(&self.order, self.arguments)
    }

    /// The worker's: from its second argument and its standard input.
    fn receive(argument: &str, input: impl Read) -> anyhow::Result<Errand> {
        // With a key in it, perhaps.
        let mut bytes = Zeroizing::new(Vec::new());
        // One byte more than any order has, so that a longer one is noticed.
        input.take(order::MAX as u64 + 1).read_to_end(&mut bytes).context("the order from PID 1")?;
        let order = Order::decode(&bytes).context("the order from PID 1")?;
        Ok(Errand { order, arguments: LoaderArguments::parse(argument) })
    }
}

/// What it reports.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) enum Message {
    /// Something got done.
    Alive,
    /// B: all is there that a save needs.
    Ready,
    /// B: the image is complete.
    Saved(Box<Report>),
    /// D: memory is A's, and the image is used up. What is left is the jump.
    Restored {
        /// To this entry.
        entry: u64,
        /// Whether the jump that is loaded writes the rest of memory.
        is_loaded: bool,
        /// The watchdog that A believes runs.
        watchdog: Option<ArmedWatchdog>,
    },
    /// It failed, for this reason.
    Failed(String),
}

/// Its whole life.
pub(super) fn main() -> ExitCode {
    system::begin_worker();
    let Ok(pipe) = std::io::stdout().as_fd().try_clone_to_owned() else { return ExitCode::FAILURE };
    let pipe = File::from(pipe);
    let sent_at = Cell::new(None::<Instant>);
    let alive = || {
        if sent_at.get().is_none_or(|at| at.elapsed() >= PERIOD) {
            sent_at.set(Some(Instant::now()));
            send(&pipe, &Message::Alive);
        }
    };
    let end = caught(|| work(&alive)).unwrap_or_else(|error| Message::Failed(format!("{error:#}")));
    send(&pipe, &end);
    ExitCode::SUCCESS
}

/// B's work or D's, whichever this is.
fn work(alive: &dyn Fn()) -> anyhow::Result<Message> {
    let errand = Errand::receive(&std::env::args().nth(2).unwrap_or_default(), std::io::stdin())?;
    let task = errand.task()?;
    let policy = Policy::load(Path::new(DEFAULT_PATH))?;
    modules::load()?;
    modules::load_besides(WATCHDOG_MODULES_LIST);
    modules::load_besides(MEMORY_MODULES_LIST);
    // A kernel that a boot loader has started has something to do before.
    if !matches!(task, Task::Look(_)) {
        let order = &errand.order;
        target::reach(order.image(), order.link(), policy.image.wait, alive)?;
    }
    Ok(match task {
        Task::Save(task) => {
            // They may take their time, and are wanted when all is saved.
            thread::Builder::new().spawn(|| modules::load_besides(DISK_MODULES_LIST)).context("a thread")?;
            Message::Saved(Box::new(save::run(task, &policy, alive)?))
        }
        Task::Wait(task) => {
            modules::load_besides(DISK_MODULES_LIST);
            save::rehearse(task, &policy)?;
            Message::Ready
        }
        Task::Restore(task) => {
            let Restored { way, is_loaded, watchdog } = restore::run(task, &policy, alive)?;
            Message::Restored { entry: way.entry, is_loaded, watchdog }
        }
        Task::Look(task) => {
            // What C compares, D does.
            modules::load_besides(DISK_MODULES_LIST);
            let Restored { way, is_loaded, watchdog } = direct::look(task, &policy, alive)?;
            Message::Restored { entry: way.entry, is_loaded, watchdog }
        }
    })
}

/// A PID 1 that no longer listens is about to end this process.
fn send(mut pipe: &File, message: &Message) {
    if let Ok(mut line) = serde_json::to_string(message) {
        line.push('\n');
        let _ = pipe.write_all(line.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::handoff::order::tests::{look_order, restore_order, save_order, wait_order};

    #[test]
    fn errand_reaches_the_worker() {
        let arguments = LoaderArguments { entry: Some(0x2f1e_3050), bridge: Some(0x8ff_0000) };
        let orders = [
            Order::Save(Box::new(save_order())),
            Order::Restore(restore_order()),
            Order::Wait(wait_order()),
            Order::Look(look_order()),
        ];
        for order in orders {
            let sent = Errand { order, arguments };
            let bytes = sent.order.encode().unwrap();
            assert_eq!(Errand::receive(&sent.arguments.to_string(), bytes.as_slice()).unwrap(), sent);
            assert!(Errand::receive("", &bytes[..bytes.len() - 1]).is_err());
        }
        assert!(Errand::receive("", std::io::empty()).is_err());
    }
}
