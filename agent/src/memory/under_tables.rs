//! Memory under the ACPI tables of the kernel that restores it: kept aside, for the jump to write.

use std::io;
use std::sync::{Mutex, PoisonError};

use dormouse_image::{BLOCK, PfnRange};
use dormouse_sys::kexec::Segment;

use crate::machine::acpi::UnderTables;
use crate::machine::iomem::subtract;
use crate::pipeline::seams::PageSink;

/// Memory to be written, part of which only the jump may write, and part nobody.
#[derive(Debug)]
pub struct KeptAside<S> {
    memory: S,
    /// What is not written now, ascending.
    aside: Vec<PfnRange>,
    by_jump: Mutex<Vec<Segment>>,
}

impl<S: PageSink> KeptAside<S> {
    /// Around `memory`, which has all but what lies under the tables.
    #[must_use]
    pub fn new(memory: S, under: &UnderTables) -> KeptAside<S> {
        let segment = |frames: &PfnRange| {
            let bytes = frames.bytes();
            let data = vec![0; usize::try_from(bytes.len()).unwrap_or(0)];
            Segment { start: bytes.start, size: bytes.len(), data }
        };
        let by_jump = Mutex::new(under.by_jump.iter().map(segment).collect());
        KeptAside { memory, aside: under.all(), by_jump }
    }

    /// Hands out what the jump is to write, when all of it is there.
    #[must_use]
    pub fn take_by_jump(&self) -> Vec<Segment> {
        std::mem::take(&mut self.by_jump.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn keep(&self, run: PfnRange, bytes: &[u8]) {
        let mut segments = self.by_jump.lock().unwrap_or_else(PoisonError::into_inner);
        for segment in segments.iter_mut() {
            let frames =
                PfnRange { start: segment.start / BLOCK as u64, end: (segment.start + segment.size) / BLOCK as u64 };
            let common = PfnRange { start: run.start.max(frames.start), end: run.end.min(frames.end) };
            let from = part(run, common).and_then(|part| bytes.get(part));
            if let (Some(from), Some(to)) = (from, part(frames, common).and_then(|part| segment.data.get_mut(part))) {
                to.copy_from_slice(from);
            }
        }
    }
}

/// Where `common` is among the bytes of `whole`; `None` where it is empty.
fn part(whole: PfnRange, common: PfnRange) -> Option<std::ops::Range<usize>> {
    let at = |pfn: u64| usize::try_from(pfn.checked_sub(whole.start)?).ok()?.checked_mul(BLOCK);
    (common.start < common.end).then_some(())?;
    Some(at(common.start)?..at(common.end)?)
}

impl<S: PageSink> PageSink for KeptAside<S> {
    fn write<T>(&self, run: PfnRange, write: impl FnOnce(&mut [u8]) -> T) -> io::Result<T> {
        let now = subtract(&[run], &self.aside);
        if now == [run] {
            return self.memory.write(run, write);
        }
        let len = usize::try_from(run.pages()).ok().and_then(|pages| pages.checked_mul(BLOCK));
        let mut bytes = vec![0; len.ok_or_else(|| io::Error::other("a run of more pages than fit into memory"))?];
        let result = write(&mut bytes);
        self.keep(run, &bytes);
        for piece in now {
            let from = part(run, piece).and_then(|part| bytes.get(part)).unwrap_or_default();
            self.memory.write(piece, |to| to.copy_from_slice(from))?;
        }
        Ok(result)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use dormouse_image::{FirmwareKind, FirmwareRange, PhysRange, SessionRecord};

    use super::*;

    /// A few pages, of which page 3 to 6 may not be written.
    struct Pages(Mutex<Vec<u8>>);

    impl PageSink for Pages {
        fn write<T>(&self, run: PfnRange, write: impl FnOnce(&mut [u8]) -> T) -> io::Result<T> {
            assert!(run.end <= 0x1003 || run.start >= 0x1006, "{run:?}");
            let at = |pfn: u64| usize::try_from(pfn - 0x1000).unwrap() * BLOCK;
            Ok(write(&mut self.0.lock().unwrap()[at(run.start)..at(run.end)]))
        }
    }

    fn tables(start: u64, end: u64) -> FirmwareRange {
        FirmwareRange { start: start << 12, end: end << 12, kind: FirmwareKind::AcpiTables }
    }

    #[test]
    fn each_page_is_written_now_by_the_jump_or_not_at_all() {
        let ram = vec![PfnRange { start: 0x1000, end: 0x1008 }];
        let region = PhysRange::default();
        let session = SessionRecord { ram, region, firmware: vec![tables(0x1005, 0x1006)], ..SessionRecord::default() };
        let under = UnderTables::of(&session, &[tables(0x1003, 0x1006)]);
        assert_eq!(under.left, [PfnRange { start: 0x1005, end: 0x1006 }]);
        let memory = KeptAside::new(Pages(Mutex::new(vec![0xaa; 8 * BLOCK])), &under);
        let run = |start, end| PfnRange { start, end };
        let numbered = |bytes: &mut [u8], first: u8| {
            for (page, number) in bytes.chunks_mut(BLOCK).zip(first..) {
                page.fill(number);
            }
        };
        memory.write(run(0x1000, 0x1002), |bytes| numbered(bytes, 0)).unwrap();
        memory.write(run(0x1002, 0x1004), |bytes| numbered(bytes, 2)).unwrap();
        memory.write(run(0x1004, 0x1008), |bytes| numbered(bytes, 4)).unwrap();
        let written: Vec<u8> = memory.memory.0.lock().unwrap().chunks(BLOCK).map(|page| page[7]).collect();
        assert_eq!(written, [0, 1, 2, 0xaa, 0xaa, 0xaa, 6, 7]);
        let [segment] = memory.take_by_jump().try_into().unwrap();
        assert_eq!((segment.start, segment.size), (0x100_3000, 0x2000));
        assert_eq!(segment.data.chunks(BLOCK).map(|page| page[7]).collect::<Vec<_>>(), [3, 4]);
    }
}
