//! The report, put into the mailbox of a kernel that is stopped or has just been restored.

use anyhow::Context;
use dormouse_image::{Mailbox, PfnRange, SessionRecord};
use dormouse_linux::procfs;

use crate::handoff::mailbox::{self, ArmedWatchdog};
use crate::handoff::report::Report;
use crate::machine::iomem::Iomem;
use crate::memory::physmem::{PhysicalMemory, Restorable};
use crate::pipeline::seams::PageSink;

/// Writes `report` into the mailbox of `session`, which is stopped. Of its memory that page alone is opened.
///
/// # Errors
/// The page cannot be reached, or is not the one that the session pinned.
pub fn to_stopped(session: &SessionRecord, report: &Report) -> anyhow::Result<()> {
    let Some(mailbox) = &session.mailbox else { return Ok(()) };
    to_memory(session, &open(session, &[page(mailbox)])?, report)
}

/// The watchdog that `session`, which is stopped, believes runs.
///
/// # Errors
/// As [`to_stopped`].
pub fn armed_watchdog(session: &SessionRecord) -> anyhow::Result<Option<ArmedWatchdog>> {
    let Some(mailbox) = &session.mailbox else { return Ok(None) };
    armed_watchdog_in(session, &open(session, &[page(mailbox)])?)
}

/// The same, of a session that lies in `memory`.
///
/// # Errors
/// The page cannot be reached.
pub fn armed_watchdog_in(session: &SessionRecord, memory: &impl PageSink) -> anyhow::Result<Option<ArmedWatchdog>> {
    let Some(mailbox) = &session.mailbox else { return Ok(None) };
    let about = || format!("the mailbox at page frame {:#x}", mailbox.pfn);
    memory.write(page(mailbox), |bytes| mailbox::armed_watchdog(bytes, &mailbox.nonce)).with_context(about)
}

/// These pages of `session`, which is stopped, and no others.
pub(super) fn open(session: &SessionRecord, frames: &[PfnRange]) -> anyhow::Result<PhysicalMemory> {
    let running = Iomem::parse(&procfs::text("/proc/iomem")?)?;
    let frames = Restorable::new(frames, &session.swapped(), &running)?;
    Ok(PhysicalMemory::open(&frames)?)
}

/// Writes `report` into the mailbox of `session`, which lies in `memory`.
///
/// # Errors
/// The page cannot be reached, or is not the one that the session pinned.
pub fn to_memory(session: &SessionRecord, memory: &impl PageSink, report: &Report) -> anyhow::Result<()> {
    let Some(mailbox) = &session.mailbox else { return Ok(()) };
    let about = || format!("the mailbox at page frame {:#x}", mailbox.pfn);
    let written = memory.write(page(mailbox), |bytes| mailbox::write(bytes, &mailbox.nonce, report));
    written.with_context(about)?.with_context(about)
}

fn page(mailbox: &Mailbox) -> PfnRange {
    PfnRange { start: mailbox.pfn, end: mailbox.pfn + 1 }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Mutex;

    use super::*;

    /// One page of memory.
    struct Page(u64, Mutex<Vec<u8>>);

    impl PageSink for Page {
        fn write<T>(&self, run: PfnRange, write: impl FnOnce(&mut [u8]) -> T) -> std::io::Result<T> {
            assert_eq!((run.start, run.pages()), (self.0, 1));
            Ok(write(&mut self.1.lock().unwrap()))
        }
    }

    #[test]
    fn report_reaches_the_page_of_the_session_alone() {
        let nonce = [7; 16];
        let session = SessionRecord { mailbox: Some(Mailbox { pfn: 5, nonce }), ..SessionRecord::default() };
        let mut page = mailbox::start(&nonce);
        page.resize(mailbox::SIZE, 0);
        let memory = Page(5, Mutex::new(page));
        let report = Report::failed("why".into());
        to_memory(&session, &memory, &report).unwrap();
        assert_eq!(mailbox::read(&memory.1.lock().unwrap(), &nonce).unwrap(), report);

        let before = memory.1.lock().unwrap().clone();
        let other = SessionRecord { mailbox: Some(Mailbox { pfn: 5, nonce: [8; 16] }), ..session };
        let error = to_memory(&other, &memory, &Report::failed("other".into())).unwrap_err();
        assert!(matches!(error.downcast_ref(), Some(mailbox::MailboxError::WrongNonce)), "{error:?}");
        assert_eq!(*memory.1.lock().unwrap(), before);
        // A session without a mailbox gets none.
        to_memory(&SessionRecord::default(), &memory, &report).unwrap();
    }
}
