//! What only D needs, tried in B before the first byte is written: whatever D could fail at must fail while the session
//! can still go on.
//!
//! B is the same kernel with the same initramfs in the same region, so what it has D has too.

use std::io;

use anyhow::{Context, ensure};
use dormouse_image::{PfnRange, SessionRecord};
use dormouse_linux::procfs;
use dormouse_linux::units::mib;

use crate::console::phase::Phase;
use crate::cycle::budget::Budget;
use crate::machine;
use crate::machine::acpi::UnderTables;
use crate::machine::iomem::{Iomem, subtract};
use crate::memory::physmem::{PhysicalMemory, Restorable};
use crate::pipeline::Limits;
use crate::pipeline::seams::{Fate, PageFilter, PageSink, PageSource};

/// How far from each end of memory a page is looked for that may be read: a memory block of 128 MiB.
const SEARCH: usize = 1 << 15;

/// Tries it all. `vmcore` is the memory that D is to write, `filter` tells which of its pages may be read.
///
/// # Errors
/// What D would fail with, or too little memory for it. Nothing has been changed.
pub(super) fn run(
    session: &SessionRecord,
    vmcore: &impl PageSource,
    filter: &impl PageFilter,
    limits: Limits,
) -> anyhow::Result<()> {
    machine::demand_all_cpus(session.cpu.online).context("a restore would fail")?;
    memory_can_be_written(session, vmcore, filter).context("a restore would fail")?;
    let budget = Budget::measure(session, limits);
    log::info!("{}: {} are available, a restore needs {}", Phase::SaveWrite, mib(budget.available), mib(budget.needed));
    budget.check()?;
    Ok(())
}

/// Maps a page at each end of memory as D does, for writing, and compares it with what the vmcore has there.
fn memory_can_be_written(
    session: &SessionRecord,
    vmcore: &impl PageSource,
    filter: &impl PageFilter,
) -> anyhow::Result<()> {
    let running = Iomem::parse(&procfs::text("/proc/iomem")?)?;
    // What lies under ACPI's tables is not written so.
    let ram = subtract(&session.ram, &UnderTables::of(session, &running.firmware).all());
    let frames = Restorable::new(&ram, &session.swapped(), &running)?;
    let memory = PhysicalMemory::open(&frames)?;
    for pfn in ends(&ram, filter) {
        let page = PfnRange { start: pfn, end: pfn + 1 };
        compare(page, vmcore, &memory).with_context(|| format!("page frame {pfn:#x} cannot be written"))?;
    }
    Ok(())
}

fn compare(page: PfnRange, vmcore: &impl PageSource, memory: &impl PageSink) -> anyhow::Result<()> {
    let same = vmcore.read(page, |saved| memory.write(page, |bytes| bytes == saved))??;
    ensure!(same, io::Error::other("what is mapped is not what is there"));
    Ok(())
}

/// The first and the last page that is in use, near the ends of `ram`: one that is offline must not be touched.
fn ends(ram: &[PfnRange], filter: &impl PageFilter) -> impl Iterator<Item = u64> {
    let is_used = |pfn: &u64| filter.fate(*pfn) == Fate::Store;
    let first = ram.iter().flat_map(|range| range.start..range.end).take(SEARCH).find(is_used);
    let last = ram.iter().rev().flat_map(|range| (range.start..range.end).rev()).take(SEARCH).find(is_used);
    [first, last].into_iter().flatten()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::cell::RefCell;

    /// Pages that are each filled with their frame's number, from the first to before the second.
    struct Pages(u64, u64);

    impl PageSource for Pages {
        fn read<T>(&self, run: PfnRange, read: impl FnOnce(&[u8]) -> T) -> io::Result<T> {
            let fits = self.0 <= run.start && run.end <= self.1;
            fits.then(|| read(&run.start.to_le_bytes())).ok_or_else(|| io::ErrorKind::InvalidInput.into())
        }
    }

    struct Memory(RefCell<Vec<u8>>);
    // Tests have one thread.
    impl PageSink for std::sync::Mutex<Memory> {
        fn write<T>(&self, _: PfnRange, write: impl FnOnce(&mut [u8]) -> T) -> io::Result<T> {
            let memory = self.lock().map_err(|_| io::ErrorKind::Other)?;
            let mut bytes = memory.0.borrow_mut();
            Ok(write(&mut bytes))
        }
    }

    /// Frames that are in use.
    struct Used(&'static [u64]);

    impl PageFilter for Used {
        fn fate(&self, pfn: u64) -> Fate {
            if self.0.contains(&pfn) { Fate::Store } else { Fate::Leave }
        }
    }

    #[test]
    fn pages_at_both_ends() {
        let ram = [PfnRange { start: 0x100, end: 0x200 }, PfnRange { start: 0x1000, end: 0x1002 }];
        let of = |used| ends(&ram, &Used(used)).collect::<Vec<_>>();
        assert_eq!(of(&[0x100, 0x150, 0x1001]), [0x100, 0x1001]);
        assert_eq!(of(&[0x1ff, 0x300]), [0x1ff, 0x1ff]);
        assert_eq!(of(&[]), [0; 0]);
    }

    #[test]
    fn what_is_mapped_must_be_what_is_there() {
        let memory = |content: u64| std::sync::Mutex::new(Memory(RefCell::new(content.to_le_bytes().to_vec())));
        let page = PfnRange { start: 0x123, end: 0x124 };
        assert!(compare(page, &Pages(0x100, 0x200), &memory(0x123)).is_ok());
        let error = compare(page, &Pages(0x100, 0x200), &memory(0x124)).unwrap_err();
        assert_eq!(error.to_string(), "what is mapped is not what is there");
        assert!(compare(page, &Pages(0x200, 0x300), &memory(0x123)).is_err());
    }
}
