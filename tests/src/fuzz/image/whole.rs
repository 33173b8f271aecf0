//! The image as the agent reads it: opened, verified, restored, and given another state.

use std::io;
use std::sync::{Mutex, PoisonError};

use dormouse::pipeline::seams::PageSink;
use dormouse::pipeline::{self, Limits, window};
use dormouse::store::{Access, Disk, Image, Reader, StoreError};
use dormouse_image::layout::CHUNK_MAX;
use dormouse_image::seal::SaveKey;
use dormouse_image::{BLOCK, Header, PfnRange, State};

use crate::fuzz::scratch::Scratch;

/// Images with more pages than this are not restored: that takes time in proportion to what a header claims.
const ZERO_PAGES_MAX: u64 = 1 << 22;

/// Pages stored, of zeroes, and left out.
type Pages = (u64, u64, u64);

/// Restores all of it to memory that watches what is written to it; returns what was restored, if it could be.
pub(super) fn restore(file: &Scratch) -> Option<Pages> {
    restore_with(file, None)
}

/// The same with the key of a sealed image, or an image that is not sealed.
pub(in crate::fuzz) fn restore_with(file: &Scratch, key: Option<&SaveKey>) -> Option<Pages> {
    let mut image = Image::open(disk(file, Access::Read)).map_err(|error| check_text(&error)).ok()?;
    image.unlock(key).map_err(|error| check_text(&error)).ok()?;
    let header = image.header().map_err(|error| check_text(&error)).ok()?;
    let open = || Reader::open(&image, &header);
    let mut reader = open().map_err(|error| check_text(&error)).ok()?;
    let totals = image.commit().totals;
    assert_eq!(totals.ram_pages, header.session.ram_pages());
    if totals.zero_pages > ZERO_PAGES_MAX {
        return None;
    }

    let memory = Memory::new(&header);
    let restored = pipeline::restore(&mut reader, &memory, Limits::of_threads(1), |_| ());
    let mut again = open().expect("it was opened before");
    let verified = pipeline::discard(&mut again, Limits::of_threads(1), |_| ());
    assert_eq!(restored.is_ok(), verified.is_ok(), "{restored:?} {verified:?}");
    let written = memory.written();
    match (restored, verified) {
        (Ok(counts), Ok(verified)) => {
            assert_eq!(counts.pages(), verified.pages());
            assert_eq!((counts.stored, counts.zero), (totals.stored_pages, totals.zero_pages));
            assert_eq!(written, counts.stored + counts.zero);
            Some(counts.pages())
        }
        (Err(error), _) | (_, Err(error)) => {
            assert!(!error.to_string().is_empty());
            None
        }
    }
}

/// Opens what has a label at `offset` by the map in it, where that is not the device's beginning, and reads all of it.
pub(super) fn mapped(file: &Scratch, offset: u64) {
    let (device, mapped) = (disk(file, Access::Read), Disk::open_at(&file.path(), offset, Access::Read));
    match mapped {
        Ok(mapped) => {
            // Pieces of the device, none of them twice.
            assert!(mapped.size() <= device.size());
            let len = usize::try_from(mapped.size()).expect("a device of some MiB");
            assert!(mapped.read(0, len).is_ok() && mapped.read(mapped.size(), BLOCK).is_err());
            let first = |disk: &Disk, at| disk.read(at, BLOCK).expect("it was read before").to_vec();
            assert!(mapped.size() == 0 || first(&mapped, 0) == first(&device, offset));
        }
        Err(error) => check_text(&error),
    }
}

/// Gives it the state `next`, and finds it so, or as it was.
pub(super) fn change(file: &Scratch, next: State) {
    let Ok(mut image) = Image::open(disk(file, Access::Write)) else { return };
    let before = image.commit().clone();
    let result = image.transition(next, "a reason");
    let now = image.commit();
    match result {
        Ok(()) => assert!(before.state.may_become(next) && now.state == next && now.seq >= before.seq),
        Err(error) => {
            check_text(&error);
            assert_eq!(*now, before);
        }
    }
    let found = Image::open(disk(file, Access::Read)).expect("it was opened before");
    assert_eq!(found.commit(), now);
}

fn disk(file: &Scratch, access: Access) -> Disk {
    Disk::open(&file.path(), access).expect("a file can be opened")
}

/// An error can be shown, and names the device.
fn check_text(error: &StoreError) {
    assert!(error.to_string().starts_with("image device /"), "{error}");
}

/// The saved memory, of which nothing is kept but what was written.
struct Memory {
    ram: Vec<PfnRange>,
    written: Mutex<Vec<PfnRange>>,
}

impl Memory {
    fn new(header: &Header) -> Memory {
        Memory { ram: PfnRange::merge(header.session.ram.iter().copied()), written: Mutex::default() }
    }

    /// How many pages were written; none of them twice.
    fn written(&self) -> u64 {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        written.sort_by_key(|run| run.start);
        assert!(super::super::ascending(&written), "a page was written twice");
        written.iter().map(PfnRange::pages).sum()
    }
}

impl PageSink for Memory {
    fn write<T>(&self, run: PfnRange, write: impl FnOnce(&mut [u8]) -> T) -> io::Result<T> {
        assert!(self.ram.iter().any(|range| range.contains(&run)), "{run:?} is not in the saved memory");
        assert_eq!(window::pieces(run).count(), 1, "{run:?} crosses a window");
        self.written.lock().unwrap_or_else(PoisonError::into_inner).push(run);
        // Only a run of zeroes is longer than a chunk; a page of it does.
        let chunk = usize::try_from(run.pages()).ok().filter(|pages| pages * BLOCK <= CHUNK_MAX);
        Ok(write(&mut vec![0xa5; chunk.unwrap_or(1) * BLOCK]))
    }
}
