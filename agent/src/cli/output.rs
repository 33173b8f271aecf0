//! What the command prints: text for people, or one JSON object for programs.

use std::fmt::Display;
use std::io::{self, Write};

use anyhow::Context;
use serde::Serialize;
use serde_json::json;

use crate::cycle::refusal::Complaint;

/// Where the results of a command go.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    /// Whether stdout is for programs.
    pub(crate) json: bool,
}

impl Output {
    /// Prints a result.
    pub(crate) fn show(self, value: &(impl Display + Serialize)) -> anyhow::Result<()> {
        if self.json {
            print(&serde_json::to_string(value).context("writing JSON")?)
        } else {
            print(&value.to_string())
        }
    }

    /// Prints a result that is a text; `name` is its key.
    pub(crate) fn text(self, name: &str, text: &str) -> anyhow::Result<()> {
        if self.json { print(&json!({ name: text }).to_string()) } else { print(text) }
    }

    /// Prints a result that is a list, a line each; `name` is its key.
    pub(crate) fn list(self, name: &str, items: impl IntoIterator<Item = impl Display>) -> anyhow::Result<()> {
        let mut items = items.into_iter().map(|item| item.to_string());
        if self.json {
            return print(&json!({ name: items.collect::<Vec<_>>() }).to_string());
        }
        items.try_for_each(|item| print(&item))
    }

    /// Prints a line that is no result, which programs do not get.
    pub(crate) fn say(self, line: &str) -> anyhow::Result<()> {
        if self.json { writeln!(io::stderr(), "{line}").context("cannot write to stderr") } else { print(line) }
    }

    /// Prints an error: one line on stderr, and for programs an object on stdout as well.
    pub(crate) fn complain(self, complaint: &Complaint) {
        say_error(complaint);
        if self.json
            && let Ok(text) = serde_json::to_string(complaint)
        {
            let _ = print(&text);
        }
    }
}

/// The one line of an error. Where stderr is closed, only the exit status is left to tell.
pub(crate) fn say_error(error: impl Display) {
    let _ = writeln!(io::stderr(), "dormouse: {error}");
}

fn print(text: &str) -> anyhow::Result<()> {
    writeln!(io::stdout(), "{text}").context("cannot write to stdout")
}
