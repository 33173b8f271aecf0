//! `dormouse doctor`: each requirement with its state, why it matters, and the exact remedy.
//!
//! ```text
//!   the machine ──facts──> Facts ──judge──> checks ──> Diagnosis
//! ```
//!
//! Facts are read without a judgement, and judged without looking at the machine, so that what is found on a machine
//! can be tested with what was recorded on others. What `dormouse hibernate` refuses is judged by the same code
//! ([`crate::cycle::refusal`]).

mod boot_loader;
mod devices;
mod drivers;
mod facts;
mod judge;
mod mounted;
mod next_boot;
mod sealed;
mod sealing;
mod speed;

use std::fmt;
use std::path::Path;

use facts::Facts;
use serde::Serialize;

/// How it is with one requirement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It is met, or does not apply.
    Ok,
    /// It is met as things are, or may turn out not to be.
    Warning,
    /// It is not met: a hibernation or its resume will be refused or lost.
    Failed,
    /// It could not be found out.
    Unknown,
}

/// One requirement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// Its name, which stays the same from version to version.
    pub id: &'static str,
    /// How it is with it.
    pub state: State,
    /// What was found.
    pub found: String,
    /// Why it matters, in one sentence.
    pub why: &'static str,
    /// A command or a setting that helps, unless it is met.
    pub remedy: Option<String>,
}

/// All of them.
#[derive(Debug, Clone, Serialize)]
pub struct Diagnosis {
    /// Whether nothing has failed.
    pub ready: bool,
    /// The checks, in the order in which it is sensible to mend what they find.
    pub checks: Vec<Check>,
}

impl Diagnosis {
    /// Looks at this machine, with the policy at `config`.
    #[must_use]
    pub fn of_this_machine(config: &Path) -> Diagnosis {
        Diagnosis::new(judge::judge(&Facts::read(config)))
    }

    /// Also starts the save kernel, to see how long that takes.
    pub fn measure(&mut self, config: &Path) {
        self.checks.push(speed::check(speed::measure(config)));
    }

    fn new(checks: Vec<Check>) -> Diagnosis {
        Diagnosis { ready: checks.iter().all(|check| check.state != State::Failed), checks }
    }

    /// The result in one line.
    #[must_use]
    pub fn verdict(&self) -> String {
        let ids = |state: State| {
            let ids: Vec<&str> =
                self.checks.iter().filter(|check| check.state == state).map(|check| check.id).collect();
            (ids.len(), ids.join(", "))
        };
        let (failed, warned, unknown) = (ids(State::Failed), ids(State::Warning), ids(State::Unknown));
        let mut text = match failed.0 {
            0 => "this machine can be hibernated".to_owned(),
            _ => format!("this machine cannot be hibernated yet: {}", failed.1),
        };
        for (what, (count, ids)) in [("to look at", warned), ("not known", unknown)] {
            if count > 0 {
                text.push_str(&format!("; {what}: {ids}"));
            }
        }
        text
    }

    /// A line for each check that is not as it should be.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let bad = self.checks.iter().filter(|check| matches!(check.state, State::Warning | State::Failed));
        bad.map(|check| format!("{}: {}: {}", check.id, label(check.state), check.found)).collect()
    }
}

fn label(state: State) -> &'static str {
    match state {
        State::Ok => "ok",
        State::Warning => "warning",
        State::Failed => "failed",
        State::Unknown => "unknown",
    }
}

impl fmt::Display for Diagnosis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for check in &self.checks {
            let mark = match check.state {
                State::Ok => "[ ok ]",
                State::Warning => "[warn]",
                State::Failed => "[FAIL]",
                State::Unknown => "[ ?? ]",
            };
            writeln!(f, "{mark} {:<18} {}", check.id, check.found)?;
            if let Some(remedy) = &check.remedy {
                writeln!(f, "       why:    {}", check.why)?;
                writeln!(f, "       remedy: {}", remedy.replace('\n', "\n               "))?;
            }
        }
        write!(f, "{}", self.verdict())
    }
}

#[cfg(test)]
mod tests;
