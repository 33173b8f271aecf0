//! The process that does the work, a child of PID 1's: whatever ends it, PID 1 is still there to see to A.
//!
//! It says what it does by lines of JSON on its standard output, which is a pipe.

use std::cell::Cell;
use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use dormouse_linux::procfs;
use serde::{Deserialize, Serialize};

use crate::cycle::{restore, save};
use crate::handoff::arguments::Cmdline;
use crate::handoff::mode::{self, Mode};
use crate::handoff::report::Report;
use crate::pid1::{caught, modules, system};
use crate::policy::{DEFAULT_PATH, Policy};

/// Its argument.
pub(super) const ROLE: &str = "work";

/// How often it says that it is alive, at most.
const PERIOD: Duration = Duration::from_millis(250);

/// What it says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) enum Message {
    /// Something got done.
    Alive,
    /// B: the image is complete.
    Saved(Report),
    /// D: memory is A's, and the image is used up. What is left is the jump to this entry.
    Restored(u64),
    /// It failed, for this reason.
    Failed(String),
}

/// Its whole life.
pub(super) fn main() -> ExitCode {
    system::begin_worker();
    let Ok(pipe) = std::io::stdout().as_fd().try_clone_to_owned() else { return ExitCode::FAILURE };
    let pipe = File::from(pipe);
    let said_at = Cell::new(None::<Instant>);
    let alive = || {
        if said_at.get().is_none_or(|at| at.elapsed() >= PERIOD) {
            said_at.set(Some(Instant::now()));
            say(&pipe, &Message::Alive);
        }
    };
    let end = caught(|| work(&alive)).unwrap_or_else(|error| Message::Failed(format!("{error:#}")));
    say(&pipe, &end);
    ExitCode::SUCCESS
}

/// B or D, whichever this is.
fn work(alive: &dyn Fn()) -> anyhow::Result<Message> {
    let cmdline = Cmdline::parse(procfs::text("/proc/cmdline")?.trim())?;
    let mode = mode::decide(&cmdline, super::evidence())?;
    let policy = Policy::load(Path::new(DEFAULT_PATH))?;
    modules::load()?;
    Ok(match mode {
        Mode::Save(plan) => {
            let header = super::session_record().context("the session record")?;
            Message::Saved(save::run(&plan, header, &policy, alive)?)
        }
        Mode::Restore(plan) => Message::Restored(restore::run(&plan, &policy, alive)?.entry),
    })
}

/// Who does not listen any more is about to end this process.
fn say(mut pipe: &File, message: &Message) {
    if let Ok(mut line) = serde_json::to_string(message) {
        line.push('\n');
        let _ = pipe.write_all(line.as_bytes());
    }
}
