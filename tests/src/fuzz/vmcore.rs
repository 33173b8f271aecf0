//! The vmcore: an ELF core file whose headers may say anything.

use dormouse::memory::vmcore::Vmcore;
use dormouse::pipeline::seams::PageSource;
use dormouse_image::{BLOCK, PfnRange};
use dormouse_linux::vmcoreinfo::{NOTE, find_note};

use super::ascending;
use super::scratch::Scratch;

const PAGE: u64 = BLOCK as u64;
/// Pages of each file. The input is at its beginning; every other page begins with its own offset.
const PAGES: u64 = 32;
/// The longest notes.
const NOTES_MAX: usize = 1 << 20;

/// Reads any bytes as the beginning of a core file.
pub(super) fn run(input: &[u8]) {
    let mut bytes = input.to_vec();
    bytes.truncate(BLOCK);
    bytes.resize(BLOCK, 0);
    for page in 1..PAGES {
        bytes.extend((page * PAGE).to_le_bytes().repeat(BLOCK / 8));
    }
    let file = Scratch::new(PAGES * PAGE);
    file.write(0, &bytes);
    let vmcore = match Vmcore::open(&file.path()) {
        Ok(vmcore) => vmcore,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };

    assert!(vmcore.notes().len() <= NOTES_MAX);
    let _ = find_note(vmcore.notes(), NOTE);

    let frames = vmcore.frames();
    assert!(ascending(frames));
    let shown = |pfn| frames.iter().any(|range| (range.start..range.end).contains(&pfn));
    for range in frames {
        for pfn in [range.start, range.end - 1] {
            let read = vmcore.read(one(pfn), <[u8]>::to_vec).expect("a page that is shown can be read");
            let offset = offset_of(&bytes, pfn).and_then(|offset| usize::try_from(offset).ok());
            let expected = offset.and_then(|offset| bytes.get(offset..offset + BLOCK));
            assert_eq!(Some(&*read), expected, "page frame {pfn:#x}");
            let together = vmcore.together(PfnRange { start: pfn, end: range.end + 1 }).expect("it begins in memory");
            let whole = vmcore.read(together, <[u8]>::len).expect("what lies together can be read");
            assert_eq!(u64::try_from(whole), Ok(together.pages() * PAGE));
        }
        for pfn in [range.start.checked_sub(1), Some(range.end)].into_iter().flatten().filter(|pfn| !shown(*pfn)) {
            assert!(vmcore.read(one(pfn), |_| ()).is_err() && vmcore.together(one(pfn)).is_none());
        }
        assert!(vmcore.read(PfnRange { start: range.start, end: range.end + 1 }, |_| ()).is_err());
    }
}

fn one(pfn: u64) -> PfnRange {
    PfnRange { start: pfn, end: pfn + 1 }
}

/// Where the file has a page frame, by the offsets of elf(5).
fn offset_of(bytes: &[u8], pfn: u64) -> Option<u64> {
    let word = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?));
    let half = |at: usize| Some(u16::from_le_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?));
    let table = usize::try_from(word(32)?).ok()?;
    (0..usize::from(half(56)?)).find_map(|at| {
        let header = table + at * 56;
        // The upper half of the word is the flags.
        let is_load = word(header)? & 0xffff_ffff == 1;
        let (offset, start, size) = (word(header + 8)?, word(header + 24)?, word(header + 32)?);
        let within = (pfn * PAGE).checked_sub(start).filter(|within| is_load && *within < size)?;
        Some(offset + within)
    })
}
