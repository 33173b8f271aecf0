//! A machine's memory in a sparse file, every page at the place of its page frame.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::{Mutex, PoisonError};

use dormouse_image::layout::CHUNK_MAX;
use dormouse_image::{BLOCK, PfnRange};
use dormouse_linux::vmcoreinfo;
use dormouse_sys::PAGE_SIZE;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};

use crate::memory::select::{Physical, SelectError, SwapMap, Swapped};
use crate::pipeline::seams::PageSink;

const ZERO: [u8; BLOCK] = [0; BLOCK];

/// Pages that may be the start of VMCOREINFO are remembered, up to this number. A kernel has one, and a few copies of
/// it may lie about.
const NOTES_MAX: usize = 1024;

/// A stretch of memory, and where the file has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment {
    /// Its page frames.
    pub(super) frames: PfnRange,
    /// The offset of the first in bytes.
    pub(super) offset: u64,
}

/// The file. What is not written to it is a hole, and reads as zeroes.
#[derive(Debug)]
pub(super) struct MemoryFile {
    file: File,
    segments: Vec<Segment>,
    /// Page frames whose content begins as VMCOREINFO's note does.
    notes: Mutex<Vec<u64>>,
    /// Buffers of chunks' pages, used again.
    scratch: Mutex<Vec<Vec<u8>>>,
}

impl MemoryFile {
    /// Lays out `ranges`, which must not overlap, in an empty file from `offset` on. Ranges that touch become one.
    ///
    /// # Errors
    /// The file cannot be given its size.
    pub(super) fn new(file: File, offset: u64, ranges: &[PfnRange]) -> io::Result<MemoryFile> {
        let mut sorted = ranges.to_vec();
        sorted.sort_by_key(|range| range.start);
        let mut next = offset;
        let segments = PfnRange::merge(sorted)
            .into_iter()
            .map(|frames| {
                let segment = Segment { frames, offset: next };
                next += frames.pages() * PAGE_SIZE;
                segment
            })
            .collect();
        file.set_len(next)?;
        Ok(MemoryFile { file, segments, notes: Mutex::default(), scratch: Mutex::default() })
    }

    /// The memory, ascending.
    #[must_use]
    pub(super) fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// The page frames that may begin with VMCOREINFO's note, ascending.
    #[must_use]
    pub(super) fn notes(&self) -> Vec<u64> {
        let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner).clone();
        notes.sort_unstable();
        notes
    }

    /// Where the file has `run`, which must lie in one segment.
    #[must_use]
    pub(super) fn offset(&self, run: PfnRange) -> Option<u64> {
        let at = self.segments.partition_point(|segment| segment.frames.end <= run.start);
        let segment = self.segments.get(at).filter(|segment| segment.frames.contains(&run))?;
        Some(segment.offset + (run.start - segment.frames.start) * PAGE_SIZE)
    }

    /// Brings the content of swapped pages from the pages that hold it to where it belongs, and makes holes of those.
    ///
    /// # Errors
    /// The file cannot be written, or the map names a page that is not in it. Some pages may have been moved then.
    pub(super) fn unswap(&self, map: &SwapMap, swapped: Swapped<'_>) -> io::Result<()> {
        let ranges = swapped.ranges();
        let frames = || ranges.iter().copied().flat_map(frames_of);
        let is_swapped = |pfn| ranges.iter().any(|range| contains(range, pfn));
        let mut moves: Vec<Move> = Vec::new();
        for pfn in frames() {
            let holder = map.holder(pfn);
            if holder == pfn {
                // The kernel had this very page for the purpose: it was free, and there is nothing to bring back.
                continue;
            }
            if is_swapped(holder) {
                return Err(outside(PfnRange { start: holder, end: holder + 1 }));
            }
            match moves.last_mut() {
                Some(last) if last.to.end == pfn && last.from.end == holder && last.to.pages() < MOVE_MAX => {
                    last.to.end += 1;
                    last.from.end += 1;
                }
                _ => moves.push(Move {
                    to: PfnRange { start: pfn, end: pfn + 1 },
                    from: PfnRange { start: holder, end: holder + 1 },
                }),
            }
        }
        let mut pages = Vec::new();
        for Move { from, to } in &moves {
            let (source, target) = (self.place(*from)?, self.place(*to)?);
            pages.resize(byte_len(*from)?, 0);
            self.file.read_exact_at(&mut pages, source)?;
            self.put(target, &pages)?;
        }
        // All copies first: a list that names a page twice would otherwise give the second one nothing.
        moves.iter().try_for_each(|one| self.punch(one.from))?;
        self.rename_notes(&moves);
        Ok(())
    }

    /// The pages that may begin with VMCOREINFO's note have moved too.
    fn rename_notes(&self, moves: &[Move]) {
        let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted: Vec<u64> = notes.clone();
        let moved: HashMap<u64, u64> = moves
            .iter()
            .flat_map(|one| frames_of(one.from).zip(frames_of(one.to)))
            .filter(|(from, _)| wanted.contains(from))
            .collect();
        for pfn in notes.iter_mut() {
            *pfn = moved.get(pfn).copied().unwrap_or(*pfn);
        }
    }

    /// Writes bytes before the memory.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(super) fn write_front(&self, front: &[u8]) -> io::Result<()> {
        self.file.write_all_at(front, 0)
    }

    /// Makes the file durable, and returns how many bytes it takes on its disk.
    ///
    /// # Errors
    /// The filesystem has failed; some report it only now.
    pub(super) fn finish(&self) -> io::Result<u64> {
        self.file.sync_all()?;
        // stat(2): blocks of 512 bytes, whatever the filesystem's are.
        Ok(self.file.metadata()?.blocks() * 512)
    }

    fn place(&self, run: PfnRange) -> io::Result<u64> {
        self.offset(run).ok_or_else(|| outside(run))
    }

    /// Writes whole pages to `offset`, all but those that are zero.
    fn put(&self, offset: u64, pages: &[u8]) -> io::Result<()> {
        let is_zero = |at: usize| pages.get(at..at + BLOCK) == Some(&ZERO[..]);
        let mut start = 0;
        while start < pages.len() {
            if is_zero(start) {
                start += BLOCK;
                continue;
            }
            let mut end = start + BLOCK;
            while end < pages.len() && !is_zero(end) {
                end += BLOCK;
            }
            self.file.write_all_at(&pages[start..end], offset + start as u64)?;
            start = end;
        }
        Ok(())
    }

    /// Makes a run zero, and a hole where the filesystem can.
    fn punch(&self, run: PfnRange) -> io::Result<()> {
        let (offset, len) = (self.place(run)?, byte_len(run)?);
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let signed = |value: u64| i64::try_from(value).map_err(io::Error::other);
        match fallocate(&self.file, flags, signed(offset)?, signed(len as u64)?) {
            Ok(()) => Ok(()),
            // EOPNOTSUPP is the same number.
            Err(Errno::ENOTSUP | Errno::ENOSYS) => self.file.write_all_at(&vec![0; len], offset),
            Err(error) => Err(error.into()),
        }
    }
}

/// Pages that are moved at once: 1 MiB.
const MOVE_MAX: u64 = 256;

/// Swapped pages that lie together, and so do those that hold them.
#[derive(Debug, Clone, Copy)]
struct Move {
    from: PfnRange,
    to: PfnRange,
}

impl PageSink for MemoryFile {
    fn write<T>(&self, run: PfnRange, write: impl FnOnce(&mut [u8]) -> T) -> io::Result<T> {
        let (offset, len) = (self.place(run)?, byte_len(run)?);
        let mut pages = self.scratch.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default();
        pages.resize(len, 0);
        let result = write(&mut pages);
        for (pfn, page) in (run.start..).zip(pages.chunks_exact(BLOCK)) {
            if vmcoreinfo::begins_note(page) {
                let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
                if notes.len() < NOTES_MAX {
                    notes.push(pfn);
                }
            }
        }
        self.put(offset, &pages)?;
        // Long runs are zero runs, and few; their buffers are not kept.
        if len <= CHUNK_MAX {
            self.scratch.lock().unwrap_or_else(PoisonError::into_inner).push(pages);
        }
        Ok(result)
    }
}

impl Physical for MemoryFile {
    fn look<T>(&self, address: u64, len: u64, look: impl FnOnce(&[u8]) -> T) -> Result<T, SelectError> {
        let failed = |source| SelectError::Memory { address, source };
        let (pfn, within) = (address / PAGE_SIZE, address % PAGE_SIZE);
        let offset = self.place(PfnRange { start: pfn, end: pfn + 1 }).map_err(failed)? + within;
        let len = usize::try_from(len.min(PAGE_SIZE - within)).unwrap_or(0);
        let mut bytes = vec![0; len];
        self.file.read_exact_at(&mut bytes, offset).map_err(failed)?;
        Ok(look(&bytes))
    }
}

fn frames_of(range: PfnRange) -> std::ops::Range<u64> {
    range.start..range.end
}

fn contains(range: &PfnRange, pfn: u64) -> bool {
    frames_of(*range).contains(&pfn)
}

fn byte_len(run: PfnRange) -> io::Result<usize> {
    usize::try_from(run.pages() * PAGE_SIZE).map_err(io::Error::other)
}

fn outside(run: PfnRange) -> io::Error {
    let text = format!("page frames {:#x} to {:#x} are not in the saved memory", run.start, run.end);
    io::Error::new(io::ErrorKind::InvalidInput, text)
}
