//! What `dormouse hibernate` tells its user when it returns, and how B and D bring it back.
//!
//! The command waits with a pinned page of its memory, the mailbox. B, and D after it, write a [`Report`] there just
//! before they jump back. The page starts with a nonce that they compare first, so that nothing else is ever written to.

use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;

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

/// MiB with a thousands separator, for people.
#[must_use]
pub fn mib(bytes: u64) -> String {
    thousands(bytes.div_ceil(1 << 20)) + " MiB"
}

/// A number with thousands separators.
#[must_use]
pub fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
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

/// Why a mailbox could not be read or written.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum MailboxError {
    /// The page is not the one that A pinned; nothing was written.
    #[error("the page does not carry this session's nonce; the report was not delivered")]
    WrongNonce,
    /// No report has been written.
    #[error("the other kernel came back without a report")]
    Empty,
    /// The report does not fit the page.
    #[error("a report of {0} bytes does not fit the mailbox")]
    TooLong(usize),
    /// What is there is no report.
    #[error("the report cannot be read: {0}")]
    Unreadable(String),
}

/// The mailbox: nonce (16 bytes), length of the text (4 bytes, little-endian), the report as JSON; in its last 16 bytes, on the
/// way from A to B, what A says of its free pages: what it expects to find in them ([`FreeContent::code`]), and how many there
/// were when it jumped (8 bytes each, little-endian).
///
/// [`FreeContent::code`]: crate::free_content::FreeContent::code
pub mod mailbox {
    use super::{MailboxError, Report};
    use crate::free_content::FreeContent;

    /// Bytes of the nonce at the page's start.
    pub const NONCE: usize = 16;
    const TEXT: usize = NONCE + 4;
    /// Where A writes what it says of its free pages.
    pub const FREE_PAGES: usize = 4096 - 16;

    /// What A says of its free pages.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct FreePages {
        /// What it expects to find in them.
        pub content: FreeContent,
        /// How many there were when it jumped.
        pub count: u64,
    }

    impl FreePages {
        /// As the mailbox has it.
        #[must_use]
        pub fn to_bytes(self) -> [u8; 16] {
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&self.content.code().to_le_bytes());
            bytes[8..].copy_from_slice(&self.count.to_le_bytes());
            bytes
        }
    }

    /// What A says of its free pages, where the page is the one with `nonce` and says so.
    #[must_use]
    pub fn free_pages(page: &[u8], nonce: &[u8; NONCE]) -> Option<FreePages> {
        let word = |at: usize| page.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes);
        let content = FreeContent::from_code(word(FREE_PAGES)?)?;
        let count = word(FREE_PAGES + 8)?;
        (page.get(..NONCE)? == nonce && count > 0).then_some(FreePages { content, count })
    }

    /// Writes `report` into a page that starts with `nonce`.
    ///
    /// # Errors
    /// [`MailboxError::WrongNonce`], with the page unchanged, and [`MailboxError::TooLong`].
    pub fn write(page: &mut [u8], nonce: &[u8; NONCE], report: &Report) -> Result<(), MailboxError> {
        if page.get(..NONCE) != Some(nonce) {
            return Err(MailboxError::WrongNonce);
        }
        let text = serde_json::to_vec(report).map_err(|error| MailboxError::Unreadable(error.to_string()))?;
        let too_long = MailboxError::TooLong(text.len());
        let Ok(len) = u32::try_from(text.len()) else {
            return Err(too_long);
        };
        let Some(place) = page.get_mut(TEXT..TEXT + text.len()) else {
            return Err(too_long);
        };
        place.copy_from_slice(&text);
        page[NONCE..TEXT].copy_from_slice(&len.to_le_bytes());
        Ok(())
    }

    /// Reads the report from a page that starts with `nonce`.
    ///
    /// # Errors
    /// [`MailboxError`] says what is wrong with it.
    pub fn read(page: &[u8], nonce: &[u8; NONCE]) -> Result<Report, MailboxError> {
        if page.get(..NONCE) != Some(nonce) {
            return Err(MailboxError::WrongNonce);
        }
        let len = page.get(NONCE..TEXT).and_then(|len| len.try_into().ok()).map_or(0, u32::from_le_bytes);
        if len == 0 {
            return Err(MailboxError::Empty);
        }
        let text = usize::try_from(len).ok().and_then(|len| page.get(TEXT..TEXT.checked_add(len)?));
        let text = text.ok_or_else(|| MailboxError::Unreadable(format!("{len} bytes")))?;
        serde_json::from_slice(text).map_err(|error| MailboxError::Unreadable(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::free_content::FreeContent;

    #[test]
    fn a_report_comes_back_from_its_page() {
        let nonce = [7; 16];
        let mut page = vec![0; 4096];
        page[..16].copy_from_slice(&nonce);
        assert!(matches!(mailbox::read(&page, &nonce), Err(MailboxError::Empty)));
        let report = Report { restore: Some(Half::default()), image_bytes: 9, ..Report::failed("why".into()) };
        mailbox::write(&mut page, &nonce, &report).unwrap();
        assert_eq!(mailbox::read(&page, &nonce).unwrap(), report);
    }

    #[test]
    fn what_is_said_of_free_pages_arrives_or_is_not_believed() {
        let nonce = [7; 16];
        let said = mailbox::FreePages { content: FreeContent::Anything, count: 12 };
        let page = |nonce: &[u8; 16], said: [u8; 16]| {
            let mut page = vec![0; 4096];
            page[..16].copy_from_slice(nonce);
            page[mailbox::FREE_PAGES..].copy_from_slice(&said);
            page
        };
        assert_eq!(mailbox::free_pages(&page(&nonce, said.to_bytes()), &nonce), Some(said));
        assert_eq!(mailbox::free_pages(&page(&[8; 16], said.to_bytes()), &nonce), None);
        assert_eq!(mailbox::free_pages(&page(&nonce, [0; 16]), &nonce), None);
        let none = mailbox::FreePages { count: 0, ..said };
        assert_eq!(mailbox::free_pages(&page(&nonce, none.to_bytes()), &nonce), None);
        let mut unknown = said.to_bytes();
        unknown[0] = 9;
        assert_eq!(mailbox::free_pages(&page(&nonce, unknown), &nonce), None);
        assert_eq!(mailbox::free_pages(&page(&nonce, said.to_bytes())[..4095], &nonce), None);
    }

    #[test]
    fn a_strangers_page_is_left_alone() {
        let mut page = vec![3; 4096];
        let report = Report::failed("why".into());
        assert!(matches!(mailbox::write(&mut page, &[7; 16], &report), Err(MailboxError::WrongNonce)));
        assert!(page.iter().all(|byte| *byte == 3));
    }

    #[test]
    fn a_reason_that_is_too_long_is_refused() {
        let mut page = vec![0; 4096];
        let mut report = Report::failed("é".repeat(5000));
        assert_eq!(report.reason.len(), 1500);
        mailbox::write(&mut page, &[0; 16], &report).unwrap();
        report.reason = "x".repeat(5000);
        assert!(matches!(mailbox::write(&mut page, &[0; 16], &report), Err(MailboxError::TooLong(_))));
    }

    #[test]
    fn sizes_are_readable() {
        assert_eq!(
            [mib(0), mib(1), mib(512 << 20), mib(1204 << 20), mib(5 << 50)].join("; "),
            "0 MiB; 1 MiB; 512 MiB; 1,204 MiB; 5,368,709,120 MiB"
        );
    }
}
