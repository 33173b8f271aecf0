//! The memory of a kernel that is to be restored, as D writes it.

use std::fs::{File, OpenOptions};
use std::io;

use dormouse_image::{PfnRange, PhysRange};
use dormouse_sys::PAGE_SIZE;
use dormouse_sys::module::oldmem_ranges;
use dormouse_sys::phys::WriteWindow;
use thiserror::Error;

use crate::machine::iomem::{Iomem, subtract};
use crate::pipeline::seams::PageSink;
use crate::pipeline::window::Windows;

/// Dormouse's own module's device: only what is named can be reached through it, and mapping it takes no time.
const OLDMEM: &str = "/dev/oldmem";
/// The kernel's, where its configuration has it.
const MEM: &str = "/dev/mem";

/// Why memory cannot be written.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PhysmemError {
    /// No device.
    #[error("{path}: cannot open it; the restore kernel needs CONFIG_DEVMEM, or Dormouse's module for its {OLDMEM}")]
    Open {
        /// The device.
        path: &'static str,
        /// What went wrong.
        source: io::Error,
    },
    /// Memory that this kernel runs in, or that is not RAM.
    #[error("page frames {start:#x} to {end:#x} are {what}; they cannot be restored")]
    NotRestorable {
        /// The first page frame.
        start: u64,
        /// The one after the last.
        end: u64,
        /// What they are.
        what: &'static str,
    },
}

/// Page frames that may be written: memory of the stopped kernel's, and none of the running one's.
///
/// Writing anything else would be no memory error in Rust's sense and would bring the machine down all the same, so
/// this type can only be made by the checks of [`Restorable::new`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restorable(Vec<PfnRange>);

impl Restorable {
    /// Checks that all of `frames` may be written by the kernel whose address space is `running`, and that none lies in
    /// `own`: the region and low memory, which the jump swaps.
    ///
    /// The loader has reserved the stopped kernel's memory in the running one's memory map, so what may be written is
    /// listed as reserved; whatever is not listed may be a device.
    ///
    /// # Errors
    /// [`PhysmemError::NotRestorable`] names the first range that may not.
    pub fn new(frames: &[PfnRange], own: &[PhysRange], running: &Iomem) -> Result<Restorable, PhysmemError> {
        let refuse =
            |range: &PfnRange, what| Err(PhysmemError::NotRestorable { start: range.start, end: range.end, what });
        for range in frames {
            if own.iter().any(|own| own.overlaps(&range.bytes())) {
                return refuse(range, "part of the region or of low memory");
            }
            if running.ram.iter().any(|ram| ram.overlaps(&range.bytes())) {
                return refuse(range, "used by the running kernel");
            }
        }
        let reserved: Vec<PfnRange> = running.reserved_frames();
        match subtract(frames, &reserved).first() {
            Some(range) => refuse(range, "not reserved in the running kernel's memory map"),
            None => Ok(Restorable(frames.to_vec())),
        }
    }
}

/// The memory, open for writing.
#[derive(Debug)]
pub struct PhysicalMemory {
    file: File,
    windows: Windows<WriteWindow>,
}

impl PhysicalMemory {
    /// Opens the memory of `frames`.
    ///
    /// # Errors
    /// [`PhysmemError::Open`].
    pub fn open(frames: &Restorable) -> Result<PhysicalMemory, PhysmemError> {
        // Without O_SYNC, or the mapping would be uncached.
        let open = |path| OpenOptions::new().read(true).write(true).open(path);
        let bytes = || frames.0.iter().map(|range| (range.start * PAGE_SIZE, range.end * PAGE_SIZE));
        let oldmem = open(OLDMEM).and_then(|file| oldmem_ranges(&file, bytes()).map(|()| file));
        let (path, file) = match oldmem {
            Ok(file) => (OLDMEM, file),
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    log::warn!("{OLDMEM}: {error}; going on with {MEM}");
                }
                (MEM, open(MEM).map_err(|source| PhysmemError::Open { path: MEM, source })?)
            }
        };
        log::info!("A's memory is reached through {path}");
        Ok(PhysicalMemory { file, windows: Windows::new(frames.0.clone()) })
    }
}

impl PageSink for PhysicalMemory {
    fn write<T>(&self, run: PfnRange, write: impl FnOnce(&mut [u8]) -> T) -> io::Result<T> {
        let byte_len = |pages: u64| usize::try_from(pages * PAGE_SIZE).map_err(io::Error::other);
        // Both devices map all of a window in mmap(2), and nothing at the first access.
        let map = |window: PfnRange| WriteWindow::map(&self.file, window.start * PAGE_SIZE, byte_len(window.pages())?);
        self.windows.with(run, map, |frames, window| {
            window.with(byte_len(run.start - frames.start)?..byte_len(run.end - frames.start)?, write)
        })?
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const RUNNING: &str = "\
00001000-0009efff : System RAM
00100000-00ffffff : Reserved
01000000-08feffff : System RAM
08ff0000-08ffffff : Reserved
09000000-2fffffff : Reserved
fe000000-feffffff : PCI Bus 0000:00
";

    fn check(start: u64, end: u64) -> Result<Restorable, PhysmemError> {
        let own = [PhysRange { start: 0x100_0000, end: 0x900_0000 }, PhysRange { start: 0x1000, end: 0x9f000 }];
        Restorable::new(&[PfnRange { start, end }], &own, &Iomem::parse(RUNNING).unwrap())
    }

    #[test]
    fn memory_that_the_loader_reserved_may_be_written() {
        assert!(check(0x100, 0x1000).is_ok());
        assert!(check(0x9000, 0x3_0000).is_ok());
    }

    #[test]
    fn refuses_memory_in_use_and_addresses_without_ram() {
        for (start, end, what) in [
            (0xfff, 0x1001, "part of the region"),
            (0x8ff0, 0x9000, "part of the region"),
            (0x9e, 0x9f, "part of the region or of low memory"),
            (0x9000, 0x3_0001, "not reserved"),
            (0xf_e000, 0xf_e001, "not reserved"),
        ] {
            let error = check(start, end).unwrap_err().to_string();
            assert!(error.contains(what), "{start:#x}: {error}");
        }
    }
}
