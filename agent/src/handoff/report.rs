//! The report: what B and D bring back to A, and what `dormouse hibernate` prints when it returns.
//!
//! The command waits with a pinned page of its memory, the [mailbox](crate::handoff::mailbox), into which they write
//! it.

use std::fmt;
use std::time::Duration;

use dormouse_image::Commit;
use dormouse_linux::units::mib;
use serde::{Deserialize, Serialize};

use crate::handoff::spent::Spent;

/// How a hibernation ended, as seen from A.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// The machine was off, and this session was restored.
    Resumed,
    /// The image was written and A went on without a power-off.
    Returned,
    /// No image can be resumed; A went on as if nothing had happened.
    Failed,
    /// Nothing was to be written: the save kernel waits to be entered again.
    Waiting,
}

/// One half of a hibernation, in B or in D.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Half {
    /// From the agent's start to its last write, in seconds.
    pub seconds: f64,
    /// Threads that compressed or decompressed.
    pub threads: u32,
    /// The agent's peak resident memory, in KiB.
    pub peak_kib: u64,
    /// The least memory that was available while it ran, in KiB.
    pub least_available_kib: u64,
    /// What the threads spent their time on while memory was saved or restored.
    #[serde(default)]
    pub spent: Spent,
}

/// The report of both halves.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// How it ended.
    pub outcome: Outcome,
    /// Why it failed, as text for the user. Empty otherwise.
    #[serde(default)]
    pub reason: String,
    /// The image device as the kernel that wrote this names it.
    #[serde(default)]
    pub device: String,
    /// What the image takes on the device, in bytes, from its first to its last.
    #[serde(default)]
    pub image_bytes: u64,
    /// Pages of A's memory that the image accounts for.
    #[serde(default)]
    pub ram_pages: u64,
    /// Pages that are stored, compressed.
    #[serde(default)]
    pub stored_pages: u64,
    /// Pages that are restored as zeroes: they were all zero, or free in a kernel that expects its free pages to be
    /// zero.
    #[serde(default)]
    pub zero_pages: u64,
    /// Pages that are left out, and neither read nor restored: free, offline, or with a hardware error.
    #[serde(default)]
    pub omitted_pages: u64,
    /// The save, in B.
    #[serde(default)]
    pub save: Half,
    /// The restore, in D; only after a resume.
    #[serde(default)]
    pub restore: Option<Half>,
    /// Whether the boot loader has started D, with no other kernel before it.
    #[serde(default)]
    pub direct: bool,
    /// What A did before it jumped. B and D do not know it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Before>,
}

/// How A was when it jumped.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Before {
    /// Memory that was free, so that drivers could have it without waiting for a disk, in bytes.
    pub free_bytes: u64,
    /// What of it was reclaimed for that, in bytes.
    pub reclaimed_bytes: u64,
    /// Whether drivers were told of the hibernation, and of its end.
    pub drivers_told: bool,
    /// Whether Dormouse's module has jumped, in the kernel's place.
    #[serde(default)]
    pub by_module: bool,
    /// Whether the save kernel was running and waiting, so that none had to be loaded and started.
    #[serde(default)]
    pub warm: bool,
    /// CPUs that have not come back after the jump; see the kernel's log.
    #[serde(default)]
    pub lost_cpus: u32,
    /// What was given up so that the image is smaller, where the policy wants that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shrunk: Option<Shrunk>,
}

/// What A gave up of its memory before it was saved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Shrunk {
    /// How much less was in use afterwards, in bytes.
    pub given_up_bytes: u64,
    /// How much was in use then, in bytes.
    pub in_use_bytes: u64,
    /// How long that took, in seconds.
    pub seconds: f64,
}

const WAITING: &str = "the save kernel waits to be entered again";

/// The longest reason, in bytes; JSON may make it twice as long.
const REASON_MAX: usize = 1500;

impl Report {
    /// What an image's commit record states about its save. The image lies on `device`, as this kernel names it.
    #[must_use]
    pub fn of_image(commit: &Commit, device: String, outcome: Outcome) -> Report {
        let (totals, stats) = (&commit.totals, &commit.stats);
        Report {
            outcome,
            reason: String::new(),
            device,
            image_bytes: commit.data_end,
            ram_pages: totals.ram_pages,
            stored_pages: totals.stored_pages,
            zero_pages: totals.zero_pages,
            omitted_pages: totals.omitted_pages,
            save: Half {
                seconds: Duration::from_millis(stats.millis).as_secs_f64(),
                threads: stats.threads,
                peak_kib: stats.agent_peak_kib,
                least_available_kib: stats.least_available_kib,
                spent: Spent::from_values(stats.spent),
            },
            restore: None,
            direct: false,
            before: None,
        }
    }

    /// A failed save.
    #[must_use]
    pub fn failed(mut reason: String) -> Report {
        // It must fit the mailbox, however long an error is. JSON would make six bytes of most control characters.
        reason = reason.replace(|char: char| char.is_control() && char != '\n', " ");
        let end = (0..=REASON_MAX.min(reason.len())).rev().find(|at| reason.is_char_boundary(*at));
        reason.truncate(end.unwrap_or(0));
        Report {
            outcome: Outcome::Failed,
            reason,
            device: String::new(),
            image_bytes: 0,
            ram_pages: 0,
            stored_pages: 0,
            zero_pages: 0,
            omitted_pages: 0,
            save: Half::default(),
            restore: None,
            direct: false,
            before: None,
        }
    }

    /// A save kernel that waits, and was started so many seconds ago.
    #[must_use]
    pub fn waiting(seconds: f64) -> Report {
        let save = Half { seconds, ..Half::default() };
        Report { outcome: Outcome::Waiting, save, ..Report::failed(String::new()) }
    }

    /// The identifier of how it ended.
    #[must_use]
    pub fn id(&self) -> &'static str {
        match self.outcome {
            Outcome::Resumed => "resumed",
            Outcome::Returned => "returned",
            Outcome::Failed => "save-failed",
            Outcome::Waiting => "save-kernel-waits",
        }
    }

    /// The report in one line, for the log.
    #[must_use]
    pub fn summary(&self) -> String {
        let page = dormouse_sys::PAGE_SIZE;
        match self.outcome {
            Outcome::Failed => format!("failed: {}", self.reason),
            Outcome::Waiting => WAITING.to_owned(),
            Outcome::Resumed | Outcome::Returned => format!(
                "{} of memory in an image of {} on {}, saved in {:.2} s",
                mib(self.ram_pages * page),
                mib(self.image_bytes),
                self.device,
                self.save.seconds
            ),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let page = dormouse_sys::PAGE_SIZE;
        match self.outcome {
            Outcome::Resumed => writeln!(f, "resumed from {}", self.device)?,
            Outcome::Returned => writeln!(f, "saved to {}; this session went on", self.device)?,
            Outcome::Failed => return write!(f, "{}", self.reason),
            Outcome::Waiting => return f.write_str(WAITING),
        }
        writeln!(
            f,
            "image    {}: {} stored, {} zero, {} left out (free or offline), of {} of memory",
            mib(self.image_bytes),
            mib(self.stored_pages * page),
            mib(self.zero_pages * page),
            mib(self.omitted_pages * page),
            mib(self.ram_pages * page),
        )?;
        if let Some(before) = &self.before {
            writeln!(f, "before   {before}")?;
        }
        write!(f, "save     {}", self.save)?;
        if let Some(restore) = &self.restore {
            write!(f, "\nrestore  {restore}")?;
            if self.direct {
                f.write_str("; started by the boot loader")?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Before {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let not = if self.drivers_told { "" } else { "not " };
        let by = if self.by_module { "the module" } else { "the kernel" };
        let (free, reclaimed) = (mib(self.free_bytes), mib(self.reclaimed_bytes));
        write!(f, "{free} free, {reclaimed} of it reclaimed; drivers {not}told; jump by {by}")?;
        if self.warm {
            f.write_str(" into a save kernel that waited")?;
        }
        if let Some(Shrunk { given_up_bytes, seconds, .. }) = self.shrunk {
            write!(f, "; {} given up in {seconds:.2} s", mib(given_up_bytes))?;
        }
        match self.lost_cpus {
            0 => Ok(()),
            1 => f.write_str("; one CPU has not come back"),
            more => write!(f, "; {more} CPUs have not come back"),
        }
    }
}

impl fmt::Display for Half {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:.2} s with {} threads; the agent's peak {} KiB, least available {} KiB",
            self.seconds, self.threads, self.peak_kib, self.least_available_kib
        )?;
        if self.spent != Spent::default() {
            write!(f, "\n         {}", self.spent)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_was_given_up_is_told_where_the_policy_wants_it() {
        let before = Before { free_bytes: 300 << 20, drivers_told: true, ..Before::default() };
        let nothing = "300 MiB free, 0 MiB of it reclaimed; drivers told; jump by the kernel";
        assert_eq!(before.to_string(), nothing);
        assert!(serde_json::to_value(before).unwrap().get("shrunk").is_none());
        let shrunk = Shrunk { given_up_bytes: 1200 << 20, in_use_bytes: 2 << 30, seconds: 0.527 };
        let before = Before { shrunk: Some(shrunk), ..before };
        assert_eq!(before.to_string(), format!("{nothing}; 1,200 MiB given up in 0.53 s"));
        let json = serde_json::to_value(before).unwrap();
        assert_eq!(json["shrunk"]["given_up_bytes"], 1_258_291_200_u64);
        assert_eq!(serde_json::from_value::<Before>(json).unwrap(), before);
    }
}
