//! Reading the `struct page` array: which pages are free.

use dormouse_image::PfnRange;
use dormouse_linux::error_chain::in_full;
use dormouse_sys::PAGE_SIZE;

use crate::memory::select::address_space::Virtual;
use crate::memory::select::{KernelLayout, Physical, SelectError, SwapMap};
use crate::pipeline::seams::{Fate, PageFilter};

/// Pages by which a count may be off: 16 MiB.
const COUNT_SLACK: u64 = 4096;
/// The section has a `struct page` array (include/linux/mmzone.h, `SECTION_MARKED_PRESENT`).
const SECTION_PRESENT: u64 = 1;
/// The section is online (`SECTION_IS_ONLINE`).
const SECTION_ONLINE: u64 = 1 << 2;
/// The flags in the low bits of `section_mem_map`: everything below the pointer, which is aligned to a page at least.
/// `SECTION_MAP_LAST_BIT` has been 5 to 6 (Linux 6.1 to 6.12).
const SECTION_FLAGS: u64 = 0xfff;

/// Which pages need not be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selection {
    /// What becomes of the free ones.
    free_fate: Fate,
    /// Page frames whose content nothing needs, by the frame that holds it now.
    free: Frames,
    /// Page frames that must be neither read nor written.
    untouchable: Frames,
    /// How many pages the kernel holds free, swapped ones included.
    free_pages: u64,
    /// How many it counts itself, where that was found.
    counted: Option<u64>,
}

impl Selection {
    /// Nothing is left out.
    #[must_use]
    pub fn everything() -> Selection {
        Selection::new(Fate::Store)
    }

    /// None found yet.
    fn new(free_fate: Fate) -> Selection {
        Selection { free_fate, free: Frames::default(), untouchable: Frames::default(), free_pages: 0, counted: None }
    }

    /// What becomes of the free pages.
    #[must_use]
    pub fn free_fate(&self) -> Fate {
        self.free_fate
    }

    /// Compares with what the kernel itself counts; where that was not found, with `stated`, which it reported before
    /// it froze, of `ram_pages` in all. Some pages come and go while it freezes; a larger difference means that its
    /// data were misread.
    ///
    /// # Errors
    /// [`SelectError::Count`].
    pub fn check(&self, stated: u64, ram_pages: u64) -> Result<(), SelectError> {
        let found = self.free_pages;
        let (expected, slack) = match self.counted {
            Some(counted) => (counted, COUNT_SLACK),
            None => (stated, ram_pages / 16 + COUNT_SLACK),
        };
        match found.abs_diff(expected) > slack {
            true => Err(SelectError::Count { found, expected }),
            false => Ok(()),
        }
    }

    /// How many pages the kernel holds free.
    #[must_use]
    pub fn free_pages(&self) -> u64 {
        self.free_pages
    }
}

impl PageFilter for Selection {
    fn fate(&self, pfn: u64) -> Fate {
        if self.untouchable.contains(pfn) {
            Fate::Leave
        } else if self.free.contains(pfn) {
            self.free_fate
        } else {
            Fate::Store
        }
    }
}

/// A set of page frames: a bit for each, from the first frame on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Frames {
    words: Vec<u64>,
}

impl Frames {
    fn contains(&self, pfn: u64) -> bool {
        let word = usize::try_from(pfn / 64).ok().and_then(|at| self.words.get(at));
        word.is_some_and(|word| word >> (pfn % 64) & 1 == 1)
    }

    fn add(&mut self, run: PfnRange) {
        let mut start = run.start;
        while start < run.end {
            let end = run.end.min((start / 64 + 1) * 64);
            let Ok(at) = usize::try_from(start / 64) else { return };
            if at >= self.words.len() {
                self.words.resize(at + 1, 0);
            }
            // 1 to 64 bits.
            self.words[at] |= u64::MAX >> (64 - (end - start)) << (start % 64);
            start = end;
        }
    }
}

/// Reads from the stopped kernel's own data which of its pages are free.
///
/// `ram` is all of its memory, the swapped ranges included. `memory` shows it as the kernel left it. `free_fate` is
/// what is to become of the free pages.
///
/// # Errors
/// [`SelectError`]: the kernel's data are not what they should be. Then nothing may be left out.
pub fn select(
    memory: &impl Physical,
    layout: &KernelLayout,
    ram: &[PfnRange],
    swapped: &SwapMap,
    free_fate: Fate,
) -> Result<Selection, SelectError> {
    // A list that leads anywhere else is not one, and a set of page frames is as long as its last frame demands.
    swapped.check(ram)?;
    let mut selection = Selection::new(free_fate);
    let kernel = Virtual::new(memory, layout);
    for range in ram {
        let mut start = range.start;
        while start < range.end {
            let section = start / layout.section_pages;
            let end = range.end.min((section + 1) * layout.section_pages);
            if let Some(array) = page_array(&kernel, layout, section)? {
                scan(&kernel, layout, array, PfnRange { start, end }, swapped, &mut selection)?;
            }
            start = end;
        }
    }
    // Whatever is wrong with these data: the count that was reported remains.
    selection.counted = layout.zones.as_ref().and_then(|zones| {
        let counted = zones.count(&kernel, layout.orders);
        counted
            .inspect_err(|error| log::warn!("no count of free pages in the kernel's own data: {}", in_full(error)))
            .ok()
    });
    Ok(selection)
}

/// Virtual address of the `struct page` of page frame 0 as this section counts, or `None` where it has no array.
fn page_array<M: Physical>(
    kernel: &Virtual<'_, M>,
    layout: &KernelLayout,
    section: u64,
) -> Result<Option<u64>, SelectError> {
    let per_root = PAGE_SIZE / layout.section_size;
    let root = section / per_root;
    if root >= layout.section_root_count {
        return Ok(None);
    }
    let sections = kernel.word(layout.section_roots.wrapping_add(root * 8))?;
    if sections == 0 {
        return Ok(None);
    }
    let at = sections.wrapping_add(section % per_root * layout.section_size + layout.section_mem_map);
    let coded = kernel.word(at)?;
    let usable = coded & SECTION_PRESENT != 0 && coded & SECTION_ONLINE != 0;
    Ok(usable.then_some(coded & !SECTION_FLAGS))
}

/// Reads the `struct page`s of `frames`, which lie in one section.
fn scan<M: Physical>(
    kernel: &Virtual<'_, M>,
    layout: &KernelLayout,
    array: u64,
    frames: PfnRange,
    swapped: &SwapMap,
    selection: &mut Selection,
) -> Result<(), SelectError> {
    let size = layout.page_size as u64;
    let mut scan = Scan { layout, frames, swapped, selection, next: frames.start };
    let mut mapped = Mapping::default();
    while scan.next < frames.end {
        let address = array.wrapping_add(scan.next.wrapping_mul(size));
        let (physical, len) = mapped.at(kernel, address)?;
        let first = scan.next;
        kernel.memory.look(physical, len.min((frames.end - first) * size), |bytes| scan.pages(bytes))?;
        if scan.next == first {
            // It crosses a boundary, after which memory may continue elsewhere.
            let mut page = vec![0; layout.page_size];
            read_across(kernel, &mut mapped, address, &mut page)?;
            scan.pages(&page);
        }
    }
    Ok(())
}

/// The way through the `struct page`s of a section.
struct Scan<'a> {
    layout: &'a KernelLayout,
    frames: PfnRange,
    swapped: &'a SwapMap,
    selection: &'a mut Selection,
    /// The page frame to look at next.
    next: u64,
}

impl Scan<'_> {
    /// Looks at the `struct page`s in `bytes`, the first of which is that of the next page frame.
    fn pages(&mut self, bytes: &[u8]) {
        let (size, first) = (self.layout.page_size, self.next);
        while self.next < self.frames.end {
            let at = usize::try_from(self.next - first).ok().and_then(|at| at.checked_mul(size));
            let Some(page) = at.and_then(|at| bytes.get(at..at.checked_add(size)?)) else { return };
            self.page(page);
        }
    }

    /// Looks at one `struct page`, and moves on to the next one of interest.
    fn page(&mut self, page: &[u8]) {
        let u32_at = |at: usize| page.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes);
        let u64_at = |at: usize| page.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes);
        let (layout, pfn) = (self.layout, self.next);
        let mapcount = u32_at(layout.page_mapcount);
        let poisoned = layout.hwpoison.is_some_and(|bit| u64_at(layout.page_flags) >> bit & 1 == 1);
        self.next = pfn + 1;
        if poisoned || layout.offline.is_some_and(|offline| offline.matches(mapcount)) {
            self.selection.untouchable.add(self.swapped.holders(PfnRange { start: pfn, end: pfn + 1 }));
            return;
        }
        let order = u64_at(layout.page_private);
        if layout.buddy.matches(mapcount) && order < layout.orders && pfn.is_multiple_of(1 << order) {
            let end = self.frames.end.min(pfn + (1 << order));
            let mut start = pfn;
            while start < end {
                let holders = self.swapped.holders(PfnRange { start, end });
                self.selection.free.add(holders);
                start += holders.pages();
            }
            self.selection.free_pages += end - pfn;
            self.next = end;
        }
    }
}

/// What the page table entry that was used last maps.
#[derive(Default)]
struct Mapping {
    start: u64,
    physical: u64,
    len: u64,
}

impl Mapping {
    /// The physical address of `address`, and how many bytes from there on are mapped by the same entry.
    fn at<M: Physical>(&mut self, kernel: &Virtual<'_, M>, address: u64) -> Result<(u64, u64), SelectError> {
        if address.wrapping_sub(self.start) >= self.len {
            let (physical, len) = kernel.translate(address)?;
            *self = Mapping { start: address, physical, len };
        }
        let within = address.wrapping_sub(self.start);
        Ok((self.physical + within, self.len - within))
    }
}

/// Fills `bytes` from virtual address `address` on, page by page.
fn read_across<M: Physical>(
    kernel: &Virtual<'_, M>,
    mapped: &mut Mapping,
    mut address: u64,
    mut bytes: &mut [u8],
) -> Result<(), SelectError> {
    while !bytes.is_empty() {
        let (physical, _) = mapped.at(kernel, address)?;
        // At most a page.
        let len = bytes.len().min(usize::try_from(PAGE_SIZE - physical % PAGE_SIZE).unwrap_or(0));
        let (now, later) = bytes.split_at_mut(len);
        kernel.memory.read(physical, now)?;
        (bytes, address) = (later, address.wrapping_add(len as u64));
    }
    Ok(())
}
