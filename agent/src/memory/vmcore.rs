//! `/proc/vmcore`: the memory of the stopped kernel, as an ELF core that B's kernel makes of the loader's header.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use dormouse_image::PfnRange;
use dormouse_sys::PAGE_SIZE;
use dormouse_sys::phys::ReadWindow;
use goblin::elf::header::ET_CORE;
use goblin::elf::program_header::{PT_LOAD, PT_NOTE};
use goblin::elf64::header::{Header, SIZEOF_EHDR};
use goblin::elf64::program_header::{ProgramHeader, SIZEOF_PHDR};
use thiserror::Error;

use crate::memory::arch::ELF_MACHINE;
use crate::pipeline::seams::PageSource;
use crate::pipeline::window::{Windows, pieces};

/// Where the kernel shows it.
pub const PATH: &str = "/proc/vmcore";

/// The longest notes that are read, in bytes.
const NOTES_MAX: u64 = 1 << 20;

/// Why it cannot be read.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum VmcoreError {
    /// It cannot be opened or read.
    #[error("{path}: cannot read it")]
    Io {
        /// The file.
        path: String,
        /// What went wrong.
        source: io::Error,
    },
    /// It is not an ELF core file of this architecture.
    #[error("{PATH} is not an x86-64 ELF core: {0}")]
    NotCore(String),
    /// A segment that is not made of whole pages, or that overlaps another.
    #[error("{PATH}: memory {start:#x}, {size:#x} bytes at offset {offset:#x}: {why}")]
    Segment {
        /// Physical address of its first byte.
        start: u64,
        /// Its length in bytes.
        size: u64,
        /// Its offset in the file.
        offset: u64,
        /// The rule that it breaks.
        why: &'static str,
    },
}

/// One PT_LOAD: page frames, and where they are in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Load {
    frames: PfnRange,
    offset: u64,
}

/// An open vmcore.
#[derive(Debug)]
pub struct Vmcore {
    file: File,
    loads: Vec<Load>,
    windows: Windows<ReadWindow>,
    notes: Vec<u8>,
}

impl Vmcore {
    /// Opens the vmcore at `path` and reads its headers.
    ///
    /// # Errors
    /// [`VmcoreError`].
    pub fn open(path: &Path) -> Result<Vmcore, VmcoreError> {
        let error = |source| VmcoreError::Io { path: path.display().to_string(), source };
        let file = File::open(path).map_err(error)?;
        let mut start = [0; SIZEOF_EHDR];
        file.read_exact_at(&mut start, 0).map_err(error)?;
        let header = goblin::elf::Elf::parse_header(&start).map_err(|error| VmcoreError::NotCore(error.to_string()))?;
        let header = Header::from(header);
        if header.e_type != ET_CORE || header.e_machine != ELF_MACHINE {
            let found = format!("type {}, machine {}", header.e_type, header.e_machine);
            return Err(VmcoreError::NotCore(found));
        }
        if usize::from(header.e_phentsize) != SIZEOF_PHDR {
            return Err(VmcoreError::NotCore(format!("program headers of {} bytes", header.e_phentsize)));
        }
        let count = usize::from(header.e_phnum);
        let mut table = vec![0; count * SIZEOF_PHDR];
        file.read_exact_at(&mut table, header.e_phoff).map_err(error)?;
        let headers = ProgramHeader::from_bytes(&table, count);
        let mut notes = Vec::new();
        if let Some(header) = headers.iter().find(|header| header.p_type == PT_NOTE) {
            // The kernel limits a note to a page or two; anything longer is not one.
            notes = vec![0; usize::try_from(header.p_filesz.min(NOTES_MAX)).unwrap_or(0)];
            file.read_exact_at(&mut notes, header.p_offset).map_err(error)?;
        }
        // The kernel reports how long it is (fs/proc/vmcore.c, `vmcore_init`, Linux 6.12); any other file does too.
        let loads = loads(&headers, file.metadata().map_err(error)?.len())?;
        let windows = Windows::new(loads.iter().map(|load| load.frames).collect());
        Ok(Vmcore { file, loads, windows, notes })
    }

    /// Its ELF notes, consecutive.
    #[must_use]
    pub fn notes(&self) -> &[u8] {
        &self.notes
    }

    /// The page frames that it shows, ascending.
    #[must_use]
    pub fn frames(&self) -> &[PfnRange] {
        self.windows.ranges()
    }

    /// The first pages of `run` that can be read at once; `None` where it does not begin in memory.
    #[must_use]
    pub fn together(&self, run: PfnRange) -> Option<PfnRange> {
        let frames = self.frames();
        let range = frames.get(frames.partition_point(|range| range.end <= run.start))?;
        let run = PfnRange { start: run.start, end: run.end.min(range.end) };
        pieces(run).next().filter(|_| range.start <= run.start)
    }

    fn map(&self, window: PfnRange) -> io::Result<ReadWindow> {
        let at = self.loads.partition_point(|load| load.frames.end <= window.start);
        let load = self.loads.get(at).ok_or(io::ErrorKind::InvalidInput)?;
        let offset = load.offset + (window.start - load.frames.start) * PAGE_SIZE;
        let len = usize::try_from(window.pages() * PAGE_SIZE).map_err(io::Error::other)?;
        ReadWindow::map(&self.file, offset, len)
    }
}

impl PageSource for Vmcore {
    fn read<T>(&self, run: PfnRange, read: impl FnOnce(&[u8]) -> T) -> io::Result<T> {
        self.windows.with(
            run,
            |window| self.map(window),
            |frames, window| {
                let byte = |pfn: u64| usize::try_from((pfn - frames.start) * PAGE_SIZE).map_err(io::Error::other);
                let bytes = window.bytes().get(byte(run.start)?..byte(run.end)?);
                Ok(read(bytes.ok_or(io::ErrorKind::InvalidInput)?))
            },
        )?
    }
}

/// The loadable segments of a file of `len` bytes, ascending and checked.
fn loads(headers: &[ProgramHeader], len: u64) -> Result<Vec<Load>, VmcoreError> {
    let mut loads = Vec::new();
    for header in headers.iter().filter(|header| header.p_type == PT_LOAD && header.p_filesz > 0) {
        let (start, size, offset) = (header.p_paddr, header.p_filesz, header.p_offset);
        let broken = |why| VmcoreError::Segment { start, size, offset, why };
        if !start.is_multiple_of(PAGE_SIZE) || !size.is_multiple_of(PAGE_SIZE) || !offset.is_multiple_of(PAGE_SIZE) {
            return Err(broken("it is not made of whole pages"));
        }
        if start.checked_add(size).is_none_or(|end| end > 1 << 52) {
            return Err(broken("it is longer than an address space"));
        }
        // What is mapped beyond the end of a file cannot be read.
        if offset.checked_add(size).is_none_or(|end| end > len) {
            return Err(broken("it ends beyond the end of the file"));
        }
        loads.push(Load { frames: PfnRange { start: start / PAGE_SIZE, end: (start + size) / PAGE_SIZE }, offset });
    }
    loads.sort_by_key(|load| load.frames.start);
    for pair in loads.windows(2) {
        if pair[1].frames.start < pair[0].frames.end {
            let (start, size) = (pair[1].frames.start * PAGE_SIZE, pair[1].frames.pages() * PAGE_SIZE);
            return Err(VmcoreError::Segment { start, size, offset: pair[1].offset, why: "it overlaps another" });
        }
    }
    Ok(loads)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::io::Write;

    /// A core file as B's kernel shows it: headers with file offsets, of a note and of each range, then the memory.
    fn sample(ranges: &[PfnRange]) -> tempfile::NamedTempFile {
        // Each of `bytes` bytes.
        let numbers = |bytes: usize, numbers: &[u64]| -> Vec<u8> {
            numbers.iter().flat_map(|number| number.to_le_bytes().into_iter().take(bytes)).collect()
        };
        let mut bytes = b"\x7fELF\x02\x01\x01".to_vec();
        bytes.resize(16, 0);
        bytes.extend(numbers(2, &[ET_CORE.into(), ELF_MACHINE.into(), 1, 0]));
        bytes.extend(numbers(8, &[0, SIZEOF_EHDR as u64, 0]));
        bytes.extend(numbers(4, &[0]));
        bytes.extend(numbers(2, &[SIZEOF_EHDR as u64, SIZEOF_PHDR as u64, ranges.len() as u64 + 1, 0, 0, 0]));
        let mut program_header = |kind: u32, offset: u64, address: u64, size: u64| {
            bytes.extend(numbers(4, &[kind.into(), 0]));
            bytes.extend(numbers(8, &[offset, 0, address, size, size, 0]));
        };
        program_header(PT_NOTE, PAGE_SIZE, 0, 16);
        let mut offset = PAGE_SIZE;
        for range in ranges {
            program_header(PT_LOAD, offset, range.start * PAGE_SIZE, range.pages() * PAGE_SIZE);
            offset += range.pages() * PAGE_SIZE;
        }
        bytes.resize(4096, 0);
        for range in ranges {
            for pfn in range.start..range.end {
                bytes.extend(pfn.to_le_bytes().repeat(512));
            }
        }
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&bytes).unwrap();
        file
    }

    #[test]
    fn pages_are_where_the_headers_say() {
        let ranges = [PfnRange { start: 0x10, end: 0x20 }, PfnRange { start: 0x1_0000, end: 0x1_0004 }];
        let file = sample(&ranges);
        let vmcore = Vmcore::open(file.path()).unwrap();
        assert_eq!(vmcore.frames(), ranges);
        for (start, end) in [(0x10, 0x11), (0x1f, 0x20), (0x1_0002, 0x1_0004)] {
            let first = vmcore.read(PfnRange { start, end }, |bytes| {
                assert_eq!(bytes.len() as u64, (end - start) * 4096);
                u64::from_le_bytes(bytes[..8].try_into().unwrap())
            });
            assert_eq!(first.unwrap(), start);
        }
        assert!(vmcore.read(PfnRange { start: 0x1f, end: 0x21 }, |_| ()).is_err());
        let together = |start, end| vmcore.together(PfnRange { start, end }).map(|run| (run.start, run.end));
        assert_eq!(together(0x12, 0x14), Some((0x12, 0x14)));
        assert_eq!(together(0x1f, 0x21), Some((0x1f, 0x20)));
        assert_eq!(together(0x1_0002, 0x1_0009), Some((0x1_0002, 0x1_0004)));
        assert_eq!([together(0xf, 0x12), together(0x20, 0x21), together(0x1_0004, 0x1_0005)], [None; 3]);
    }

    #[test]
    fn rejects_files_that_are_not_cores() {
        let file = sample(&[PfnRange { start: 0x10, end: 0x20 }]);
        let good = std::fs::read(file.path()).unwrap();
        let segment = 64 + 56;
        let cases: [(usize, u8, &str); 8] = [
            (0, 0, "not an x86-64 ELF core"),
            (16, 2, "type 2"),
            (18, 3, "machine 3"),
            (54, 57, "57 bytes"),
            (segment + 24, 1, "whole pages"),
            (segment + 39, 0xff, "longer than an address space"),
            (segment + 9, 0x20, "beyond the end of the file"),
            (segment + 15, 0xff, "beyond the end of the file"),
        ];
        for (at, value, expected) in cases {
            let mut bad = good.clone();
            bad[at] = value;
            let mut file = tempfile::NamedTempFile::new().unwrap();
            file.write_all(&bad).unwrap();
            let error = Vmcore::open(file.path()).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        let overlapping = [PfnRange { start: 0x10, end: 0x20 }, PfnRange { start: 0x1f, end: 0x24 }];
        let error = Vmcore::open(sample(&overlapping).path()).unwrap_err().to_string();
        assert!(error.contains("overlaps"), "{error}");
    }
}
