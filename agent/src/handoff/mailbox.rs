//! The mailbox: nonce (16 bytes), length of the text (4 bytes, little-endian), the report as JSON; in its last 16 bytes, on the
//! way from A to B, what A says of its free pages: what it expects to find in them ([`FreeContent::code`]), and how many there
//! were when it jumped (8 bytes each, little-endian).
//!
//! [`FreeContent::code`]: crate::machine::free_content::FreeContent::code

use thiserror::Error;

use crate::handoff::report::Report;
use crate::machine::free_content::FreeContent;

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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::handoff::report::Half;

    #[test]
    fn a_report_comes_back_from_its_page() {
        let nonce = [7; 16];
        let mut page = vec![0; 4096];
        page[..16].copy_from_slice(&nonce);
        assert!(matches!(read(&page, &nonce), Err(MailboxError::Empty)));
        let report = Report { restore: Some(Half::default()), image_bytes: 9, ..Report::failed("why".into()) };
        write(&mut page, &nonce, &report).unwrap();
        assert_eq!(read(&page, &nonce).unwrap(), report);
    }

    #[test]
    fn what_is_said_of_free_pages_arrives_or_is_not_believed() {
        let nonce = [7; 16];
        let said = FreePages { content: FreeContent::Anything, count: 12 };
        let page = |nonce: &[u8; 16], said: [u8; 16]| {
            let mut page = vec![0; 4096];
            page[..16].copy_from_slice(nonce);
            page[FREE_PAGES..].copy_from_slice(&said);
            page
        };
        assert_eq!(free_pages(&page(&nonce, said.to_bytes()), &nonce), Some(said));
        assert_eq!(free_pages(&page(&[8; 16], said.to_bytes()), &nonce), None);
        assert_eq!(free_pages(&page(&nonce, [0; 16]), &nonce), None);
        let none = FreePages { count: 0, ..said };
        assert_eq!(free_pages(&page(&nonce, none.to_bytes()), &nonce), None);
        let mut unknown = said.to_bytes();
        unknown[0] = 9;
        assert_eq!(free_pages(&page(&nonce, unknown), &nonce), None);
        assert_eq!(free_pages(&page(&nonce, said.to_bytes())[..4095], &nonce), None);
    }

    #[test]
    fn a_strangers_page_is_left_alone() {
        let mut page = vec![3; 4096];
        let report = Report::failed("why".into());
        assert!(matches!(write(&mut page, &[7; 16], &report), Err(MailboxError::WrongNonce)));
        assert!(page.iter().all(|byte| *byte == 3));
    }

    #[test]
    fn a_reason_that_is_too_long_is_refused() {
        let mut page = vec![0; 4096];
        let mut report = Report::failed("é".repeat(5000));
        assert_eq!(report.reason.len(), 1500);
        write(&mut page, &[0; 16], &report).unwrap();
        report.reason = "x".repeat(5000);
        assert!(matches!(write(&mut page, &[0; 16], &report), Err(MailboxError::TooLong(_))));
    }
}
