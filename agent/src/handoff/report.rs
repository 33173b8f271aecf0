//! What `dormouse hibernate` tells its user when it returns, and how B and D bring it back.
//!
//! The command waits with a pinned page of its memory, the mailbox. B, and D after it, write a [`Report`] there just
//! before they jump back. The page starts with a nonce that they compare first, so that nothing else is ever written to.

use std::fmt;

use dormouse_linux::units::mib;
use serde::{Deserialize, Serialize};

/// How a hibernation ended, as seen from A.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// The machine was off, and this session was restored.
    Resumed,
    /// The image was written and A went on without a power-off.
    Returned,
    /// There is no image that could be resumed; A went on as if nothing had happened.
    Failed,
}

/// One half of the way, in B or in D.
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
}

/// The report of both halves.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// How it ended.
    pub outcome: Outcome,
    /// Why it failed, in words for the user. Empty otherwise.
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
    /// Pages that are restored as zeroes: they were all zero, or free in a kernel that expects its free pages to be zero.
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
}

/// The longest reason, in bytes; JSON may make it twice as long.
const REASON_MAX: usize = 1500;

impl Report {
    /// A failed save.
    #[must_use]
    pub fn failed(mut reason: String) -> Report {
        // It must fit the mailbox, whatever an error has to say.
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
        }
    }
}

impl Report {
    /// The identifier of how it ended.
    #[must_use]
    pub fn id(&self) -> &'static str {
        match self.outcome {
            Outcome::Resumed => "resumed",
            Outcome::Returned => "returned",
            Outcome::Failed => "save-failed",
        }
    }

    /// The report in one line, for the log.
    #[must_use]
    pub fn summary(&self) -> String {
        let page = dormouse_sys::PAGE_SIZE;
        match self.outcome {
            Outcome::Failed => format!("failed: {}", self.reason),
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
        write!(f, "save     {}", self.save)?;
        if let Some(restore) = &self.restore {
            write!(f, "\nrestore  {restore}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Half {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:.2} s with {} threads; the agent's peak {} KiB, least available {} KiB",
            self.seconds, self.threads, self.peak_kib, self.least_available_kib
        )
    }
}
