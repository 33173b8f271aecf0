//! The mailbox: a page of A's memory, in which B, and D after it, leave their report just before they jump back.
//!
//! A starts the page with its session's nonce and the version of the mailbox, and states in its last bytes what B needs
//! to know of free pages. FORMAT.md has the bytes.

use std::ops::Range;

use dormouse_image::Version;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::handoff::report::Report;
use crate::machine::free_content::FreeContent;

/// The version of the mailbox that this program starts, reads and writes.
pub const VERSION: Version = Version { major: 1, minor: 1 };

/// The mailbox's length in bytes: a page.
pub const SIZE: usize = 4096;

const NONCE: Range<usize> = 0..16;
const MAJOR: Range<usize> = 16..18;
const MINOR: Range<usize> = 18..20;
const LENGTH: Range<usize> = 20..24;
const REPORT: Range<usize> = 24..4072;
const WATCHDOG_SECONDS: Range<usize> = 4072..4076;
const WATCHDOG_IDENTITY: Range<usize> = 4076..4080;
const FREE_CONTENT: Range<usize> = 4080..4088;
const FREE_COUNT: Range<usize> = 4088..4096;

/// Where A writes [`FreePages`].
pub const FREE_PAGES: usize = FREE_CONTENT.start;

/// Where A writes [`ArmedWatchdog`].
pub const WATCHDOG: usize = WATCHDOG_SECONDS.start;

/// What the page starts with, for as long as it is the session's.
pub type Nonce = [u8; 16];

/// Why a mailbox could not be read or written.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum MailboxError {
    /// The page is not the one that A pinned; nothing was written.
    #[error("the page does not start with this session's nonce")]
    WrongNonce,
    /// The page is from a program with another major version; nothing was written.
    #[error(
        "the mailbox has version {found}, this program uses {}.x: run `dormouse update`, so that both kernels have the \
         same program",
        VERSION.major
    )]
    Version {
        /// The version found.
        found: Version,
    },
    /// No report has been written.
    #[error("the other kernel came back without a report")]
    Empty,
    /// The report does not fit the page.
    #[error("a report of {0} bytes does not fit the mailbox")]
    TooLong(usize),
    /// The report has an impossible length.
    #[error("the report cannot be read: it claims {0} bytes")]
    Length(u32),
    /// What the page holds is not a report, or what was to be written is not one.
    #[error("the report cannot be read or written")]
    Text(#[source] serde_json::Error),
}

/// What A states about its free pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FreePages {
    /// What it expects to find in them.
    pub content: FreeContent,
    /// How many there were when it jumped.
    pub count: u64,
}

impl FreePages {
    /// As the mailbox has it at [`FREE_PAGES`].
    #[must_use]
    pub fn to_bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.content.code().to_le_bytes());
        bytes[8..].copy_from_slice(&self.count.to_le_bytes());
        bytes
    }
}

/// The hardware watchdog that a program in A has started and will go on setting back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArmedWatchdog {
    /// After how many seconds it restarts the machine; not 0.
    pub seconds: u32,
    /// By what it is known, see [`ArmedWatchdog::is`].
    identity: u32,
}

impl ArmedWatchdog {
    /// The one that its driver calls `identity`, with this timeout. `None` without a timeout.
    #[must_use]
    pub fn new(identity: &str, seconds: u64) -> Option<ArmedWatchdog> {
        let seconds = u32::try_from(seconds).ok().filter(|seconds| *seconds > 0)?;
        Some(ArmedWatchdog { seconds, identity: identity_sum(identity) })
    }

    /// Whether this is the one that its driver calls `identity`.
    #[must_use]
    pub fn is(&self, identity: &str) -> bool {
        self.identity == identity_sum(identity)
    }

    /// As the mailbox has it at [`WATCHDOG`].
    #[must_use]
    pub fn to_bytes(self) -> [u8; 8] {
        let mut bytes = [0; 8];
        bytes[..4].copy_from_slice(&self.seconds.to_le_bytes());
        bytes[4..].copy_from_slice(&self.identity.to_le_bytes());
        bytes
    }
}

/// The lower half of the text's checksum.
fn identity_sum(identity: &str) -> u32 {
    let [a, b, c, d, ..] = dormouse_image::checksum(identity.as_bytes()).to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

/// The watchdog that A states, where the page is the one with `nonce` and can be read.
#[must_use]
pub fn armed_watchdog(page: &[u8], nonce: &Nonce) -> Option<ArmedWatchdog> {
    check(page, nonce).ok()?;
    let seconds = u32::from_le_bytes(field(page, WATCHDOG_SECONDS)?);
    let identity = u32::from_le_bytes(field(page, WATCHDOG_IDENTITY)?);
    (seconds > 0).then_some(ArmedWatchdog { seconds, identity })
}

/// What A writes first: a mailbox without a report begins so, and the rest of it is zero.
#[must_use]
pub fn start(nonce: &Nonce) -> Vec<u8> {
    let mut bytes = nonce.to_vec();
    bytes.extend(VERSION.major.to_le_bytes());
    bytes.extend(VERSION.minor.to_le_bytes());
    bytes
}

/// What A states about its free pages, where the page is the one with `nonce`, can be read, and states it.
#[must_use]
pub fn free_pages(page: &[u8], nonce: &Nonce) -> Option<FreePages> {
    check(page, nonce).ok()?;
    let content = FreeContent::from_code(u64::from_le_bytes(field(page, FREE_CONTENT)?))?;
    let count = u64::from_le_bytes(field(page, FREE_COUNT)?);
    (count > 0).then_some(FreePages { content, count })
}

/// Writes `report` into a page that starts with `nonce`.
///
/// # Errors
/// [`MailboxError::WrongNonce`], [`MailboxError::Version`] and [`MailboxError::TooLong`], with the page unchanged.
pub fn write(page: &mut [u8], nonce: &Nonce, report: &Report) -> Result<(), MailboxError> {
    check(page, nonce)?;
    let text = serde_json::to_vec(report).map_err(MailboxError::Text)?;
    let too_long = || MailboxError::TooLong(text.len());
    let len = u32::try_from(text.len()).map_err(|_| too_long())?;
    let place = page.get_mut(REPORT).and_then(|place| place.get_mut(..text.len())).ok_or_else(too_long)?;
    place.copy_from_slice(&text);
    page[LENGTH].copy_from_slice(&len.to_le_bytes());
    Ok(())
}

/// Reads the report from a page that starts with `nonce`.
///
/// # Errors
/// [`MailboxError`] says what is wrong with it.
pub fn read(page: &[u8], nonce: &Nonce) -> Result<Report, MailboxError> {
    check(page, nonce)?;
    let len = field(page, LENGTH).map_or(0, u32::from_le_bytes);
    if len == 0 {
        return Err(MailboxError::Empty);
    }
    let text = usize::try_from(len).ok().and_then(|len| page.get(REPORT)?.get(..len));
    serde_json::from_slice(text.ok_or(MailboxError::Length(len))?).map_err(MailboxError::Text)
}

/// Whether the page is the session's, and of a version that this program knows.
fn check(page: &[u8], nonce: &Nonce) -> Result<(), MailboxError> {
    if page.get(NONCE) != Some(nonce) {
        return Err(MailboxError::WrongNonce);
    }
    let [major, minor] = [MAJOR, MINOR].map(|place| field(page, place).map_or(0, u16::from_le_bytes));
    let found = Version { major, minor };
    if VERSION.reads(found) { Ok(()) } else { Err(MailboxError::Version { found }) }
}

fn field<const N: usize>(page: &[u8], place: Range<usize>) -> Option<[u8; N]> {
    page.get(place)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::handoff::report::Half;

    const OURS: Nonce = [7; 16];

    /// As A starts it.
    fn page() -> Vec<u8> {
        let mut page = start(&OURS);
        page.resize(SIZE, 0);
        page
    }

    #[test]
    fn report_is_read_back() {
        let mut page = page();
        assert!(matches!(read(&page, &OURS), Err(MailboxError::Empty)));
        let report = Report { restore: Some(Half::default()), image_bytes: 9, ..Report::failed("why".into()) };
        write(&mut page, &OURS, &report).unwrap();
        assert_eq!(read(&page, &OURS).unwrap(), report);
        // D writes over what B wrote.
        let second = Report::failed(String::new());
        write(&mut page, &OURS, &second).unwrap();
        assert_eq!(read(&page, &OURS).unwrap(), second);
    }

    #[test]
    fn free_pages_are_read_back_or_not_believed() {
        let stated = FreePages { content: FreeContent::Anything, count: 12 };
        let with = |bytes: [u8; 16]| {
            let mut page = page();
            page[FREE_PAGES..].copy_from_slice(&bytes);
            page
        };
        let good = with(stated.to_bytes());
        assert_eq!(free_pages(&good, &OURS), Some(stated));
        assert_eq!(free_pages(&good, &[8; 16]), None);
        assert_eq!(free_pages(&good[..4095], &OURS), None);
        assert_eq!(free_pages(&with([0; 16]), &OURS), None);
        assert_eq!(free_pages(&with(FreePages { count: 0, ..stated }.to_bytes()), &OURS), None);
        let mut unknown = stated.to_bytes();
        unknown[0] = 9;
        assert_eq!(free_pages(&with(unknown), &OURS), None);
        let mut other = good;
        other[MAJOR].copy_from_slice(&2_u16.to_le_bytes());
        assert_eq!(free_pages(&other, &OURS), None);
    }

    #[test]
    fn armed_watchdog_is_read_back_and_known_by_its_name() {
        let stated = ArmedWatchdog::new("i6300ESB timer", 10).unwrap();
        let mut page = page();
        assert_eq!(armed_watchdog(&page, &OURS), None);
        page[WATCHDOG..FREE_PAGES].copy_from_slice(&stated.to_bytes());
        assert_eq!(armed_watchdog(&page, &OURS), Some(stated));
        assert_eq!(armed_watchdog(&page, &[8; 16]), None);
        assert!(stated.is("i6300ESB timer") && !stated.is("iTCO_wdt"));
        assert_eq!(ArmedWatchdog::new("iTCO_wdt", 0), None);
        assert_eq!(ArmedWatchdog::new("iTCO_wdt", 1 << 32), None);
    }

    #[test]
    fn report_leaves_what_a_states_alone() {
        let mut page = page();
        let armed = ArmedWatchdog::new("iTCO_wdt", 30).unwrap();
        page[WATCHDOG..FREE_PAGES].copy_from_slice(&armed.to_bytes());
        let stated = FreePages { content: FreeContent::Zero, count: 1 };
        page[FREE_PAGES..].copy_from_slice(&stated.to_bytes());
        let mut report = Report::failed(String::new());
        report.reason = "x".repeat(REPORT.len() - serde_json::to_vec(&report).unwrap().len());
        write(&mut page, &OURS, &report).unwrap();
        assert_eq!(free_pages(&page, &OURS), Some(stated));
        assert_eq!(armed_watchdog(&page, &OURS), Some(armed));
        assert_eq!(read(&page, &OURS).unwrap(), report);
    }

    #[test]
    fn other_pages_are_left_alone() {
        let report = Report::failed("why".into());
        let mut foreign = vec![3; SIZE];
        assert!(matches!(write(&mut foreign, &OURS, &report), Err(MailboxError::WrongNonce)));
        assert!(foreign.iter().all(|byte| *byte == 3));
        assert!(matches!(write(&mut [7; 10], &OURS, &report), Err(MailboxError::WrongNonce)));
        for major in [0_u16, 2, u16::MAX] {
            let mut page = page();
            page[MAJOR].copy_from_slice(&major.to_le_bytes());
            let before = page.clone();
            let found = |result| matches!(result, Err(MailboxError::Version { found }) if found.major == major);
            assert!(found(write(&mut page, &OURS, &report)) && found(read(&page, &OURS).map(drop)), "{major}");
            assert_eq!(page, before);
        }
    }

    #[test]
    fn newer_minor_version_is_used() {
        let mut page = page();
        page[MINOR].copy_from_slice(&9_u16.to_le_bytes());
        let report = Report::failed("why".into());
        write(&mut page, &OURS, &report).unwrap();
        assert_eq!(read(&page, &OURS).unwrap(), report);
    }

    #[test]
    fn long_reasons_are_cut_or_refused() {
        let mut page = page();
        let mut report = Report::failed("é".repeat(5000));
        assert_eq!(report.reason.len(), 1500);
        write(&mut page, &OURS, &report).unwrap();
        report.reason = "x".repeat(5000);
        assert!(matches!(write(&mut page, &OURS, &report), Err(MailboxError::TooLong(_))));
    }

    #[test]
    fn rejects_impossible_reports() {
        let mut page = page();
        page[LENGTH].copy_from_slice(&4049_u32.to_le_bytes());
        assert!(matches!(read(&page, &OURS), Err(MailboxError::Length(4049))));
        page[LENGTH].copy_from_slice(&2_u32.to_le_bytes());
        assert!(matches!(read(&page, &OURS), Err(MailboxError::Text(_))));
    }
}
