//! What happened last, for `dormouse status`: a file that lives as long as the running system.
//!
//! The image's commit record has the same for most ends, and outlives the system; but where the image device is what
//! failed, or where nothing was written to it yet, only this file knows.

use std::fs;
use std::path::Path;

use dormouse_linux::atomic_file::replace;
use dormouse_linux::procfs;
use serde::{Deserialize, Serialize};

use crate::cycle::evidence::Found;
use crate::handoff::report::Report;

/// Where files of the running system are.
pub(crate) const DIRECTORY: &str = "/run/dormouse";

/// What was tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Event {
    /// `dormouse hibernate` came back.
    Hibernate,
    /// `dormouse resume` let the boot go on.
    Resume,
}

/// What happened last.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Last {
    /// What was tried.
    pub event: Event,
    /// When it ended, in seconds since 1970.
    pub at_unix: u64,
    /// How it ended: the identifier of the outcome or of the reason.
    #[serde(default)]
    pub id: String,
    /// The same in words, in one line.
    pub text: String,
    /// The report of a hibernation that got as far as the save kernel.
    #[serde(default)]
    pub report: Option<Report>,
    /// What `dormouse resume` has found.
    #[serde(default)]
    pub found: Option<Found>,
}

impl Last {
    /// Records what has just ended. A system without a place for it has no record.
    pub fn record(event: Event, id: &str, text: &str, report: Option<&Report>) {
        Last::new(event, id, text, report.cloned(), None).write(&[LAST]);
    }

    /// Records how looking for an image has ended in the initramfs, and what was found.
    pub(crate) fn record_resume(id: &str, text: &str, found: Found) {
        Last::new(Event::Resume, id, text, None, Some(found)).write(&[LAST, RESUME]);
    }

    pub(super) fn new(event: Event, id: &str, text: &str, report: Option<Report>, found: Option<Found>) -> Last {
        Last { event, at_unix: procfs::now_unix(), id: id.to_owned(), text: text.to_owned(), report, found }
    }

    /// Puts this in the place of what `dormouse resume` reported.
    pub(crate) fn write_again(&self) {
        self.write(&[RESUME]);
    }

    fn write(&self, names: &[&str]) {
        for name in names {
            let write = |bytes: Vec<u8>| replace(&Path::new(DIRECTORY).join(name), &bytes, 0o644);
            let written = serde_json::to_vec(self).map_err(std::io::Error::other).and_then(write);
            if let Err(error) = written {
                log::debug!("{DIRECTORY}/{name}: {error}");
            }
        }
    }

    /// What was recorded, if anything was.
    #[must_use]
    pub fn read() -> Option<Last> {
        read(LAST)
    }

    /// What `dormouse resume` reported when this system booted, whatever happened since. `None` where the initramfs has
    /// not run it, or has not passed on its `/run`.
    #[must_use]
    pub fn resume_of_this_boot() -> Option<Last> {
        read(RESUME)
    }
}

/// What happened last.
const LAST: &str = "last.json";
/// What `dormouse resume` reported, which no hibernation writes over.
const RESUME: &str = "resume.json";

fn read(name: &str) -> Option<Last> {
    serde_json::from_slice(&fs::read(Path::new(DIRECTORY).join(name)).ok()?).ok()
}
