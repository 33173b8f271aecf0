//! Reading the `struct page` array: which pages are free.

use dormouse_image::PfnRange;

use super::walk::virtual_word;
use super::{KernelLayout, Physical, SelectError, SwapMap};
use crate::stage::{Fate, PageFilter};

const PAGE: u64 = 4096;
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
    /// Page frames whose content nobody needs, by the frame that holds it now: bits of 64 frames by their number.
    free: Vec<u64>,
    /// Page frames that must be neither read nor written.
    untouchable: Vec<u64>,
    /// How many pages the kernel holds free, swapped ones included.
    free_pages: u64,
}

impl Selection {
    /// Nothing is left out.
    #[must_use]
    pub fn everything() -> Selection {
        Selection::new(Fate::Store)
    }

    /// None found yet.
    fn new(free_fate: Fate) -> Selection {
        Selection { free_fate, free: Vec::new(), untouchable: Vec::new(), free_pages: 0 }
    }

    /// Whether free pages are left alone in the restore.
    #[must_use]
    pub fn leaves_free(&self) -> bool {
        self.free_fate == Fate::Leave
    }

    /// Compares with `expected`, what the kernel counted itself, of `ram_pages` in all. Some pages come and go while it freezes;
    /// more than that means that its data were misread.
    ///
    /// # Errors
    /// [`SelectError::Count`].
    pub fn check(&self, expected: u64, ram_pages: u64) -> Result<(), SelectError> {
        let found = self.free_pages;
        match found.abs_diff(expected) > ram_pages / 16 + 4096 {
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
        if is_set(&self.untouchable, pfn) {
            Fate::Leave
        } else if is_set(&self.free, pfn) {
            self.free_fate
        } else {
            Fate::Store
        }
    }
}

fn is_set(bits: &[u64], pfn: u64) -> bool {
    let word = usize::try_from(pfn / 64).ok().and_then(|at| bits.get(at));
    word.is_some_and(|word| word >> (pfn % 64) & 1 == 1)
}

fn set(bits: &mut Vec<u64>, pfn: u64) {
    let Ok(at) = usize::try_from(pfn / 64) else { return };
    if at >= bits.len() {
        bits.resize(at + 1, 0);
    }
    bits[at] |= 1 << (pfn % 64);
}

/// Reads from the stopped kernel's own data which of its pages are free.
///
/// `ram` is all of its memory, the swapped ranges included. `memory` shows it as the kernel left it. `free_fate` is what is to
/// become of the free pages.
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
    let mut selection = Selection::new(free_fate);
    for range in ram {
        let mut start = range.start;
        while start < range.end {
            let section = start / layout.section_pages;
            let end = range.end.min((section + 1) * layout.section_pages);
            if let Some(array) = page_array(memory, layout, section)? {
                scan(memory, layout, array, PfnRange { start, end }, swapped, &mut selection)?;
            }
            start = end;
        }
    }
    Ok(selection)
}

/// Virtual address of the `struct page` of page frame 0 as this section counts, or `None` where it has no array.
fn page_array(memory: &impl Physical, layout: &KernelLayout, section: u64) -> Result<Option<u64>, SelectError> {
    let per_root = PAGE / layout.section_size;
    let root = section / per_root;
    if root >= layout.section_root_count {
        return Ok(None);
    }
    let sections = virtual_word(memory, layout, layout.section_roots.wrapping_add(root * 8))?;
    if sections == 0 {
        return Ok(None);
    }
    let at = sections.wrapping_add(section % per_root * layout.section_size + layout.section_mem_map);
    let coded = virtual_word(memory, layout, at)?;
    let usable = coded & SECTION_PRESENT != 0 && coded & SECTION_ONLINE != 0;
    Ok(usable.then_some(coded & !SECTION_FLAGS))
}

/// Reads the `struct page`s of `frames`, which lie in one section.
fn scan(
    memory: &impl Physical,
    layout: &KernelLayout,
    array: u64,
    frames: PfnRange,
    swapped: &SwapMap,
    selection: &mut Selection,
) -> Result<(), SelectError> {
    let size = layout.page_size as u64;
    let mut page = vec![0; layout.page_size];
    let mut reader = PageReader::new(memory, layout);
    let mut pfn = frames.start;
    while pfn < frames.end {
        reader.read(array.wrapping_add(pfn.wrapping_mul(size)), &mut page)?;
        let u32_at = |at: usize| page.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes);
        let u64_at = |at: usize| page.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes);
        let mapcount = u32_at(layout.page_mapcount);
        let flags = u64_at(layout.page_flags);

        let poisoned = layout.hwpoison.is_some_and(|bit| flags >> bit & 1 == 1);
        if poisoned || layout.offline.is_some_and(|offline| offline.matches(mapcount)) {
            set(&mut selection.untouchable, swapped.holder(pfn));
            pfn += 1;
            continue;
        }
        let order = u64_at(layout.page_private);
        if layout.buddy.matches(mapcount) && order < layout.orders && pfn.is_multiple_of(1 << order) {
            let end = pfn + (1 << order);
            for free in pfn..end.min(frames.end) {
                set(&mut selection.free, swapped.holder(free));
                selection.free_pages += 1;
            }
            pfn = end;
            continue;
        }
        pfn += 1;
    }
    Ok(())
}

/// Reads virtual memory in order, a page at a time.
struct PageReader<'a, M> {
    memory: &'a M,
    layout: &'a KernelLayout,
    /// What the last page table entry maps: virtual address, physical address, bytes.
    mapped: (u64, u64, u64),
    /// The page that was read last, and its virtual address.
    page: Vec<u8>,
    at: Option<u64>,
}

impl<'a, M: Physical> PageReader<'a, M> {
    fn new(memory: &'a M, layout: &'a KernelLayout) -> PageReader<'a, M> {
        PageReader { memory, layout, mapped: (0, 0, 0), page: vec![0; 4096], at: None }
    }

    /// Fills `bytes` from `address` on; both pages where they cross from one into the next.
    fn read(&mut self, mut address: u64, mut bytes: &mut [u8]) -> Result<(), SelectError> {
        while !bytes.is_empty() {
            let page = address / PAGE * PAGE;
            if self.at != Some(page) {
                self.fill(page)?;
            }
            // Less than a page.
            let within = usize::try_from(address - page).unwrap_or(0);
            let len = bytes.len().min(self.page.len() - within);
            let (now, later) = bytes.split_at_mut(len);
            now.copy_from_slice(&self.page[within..within + len]);
            bytes = later;
            address = page.wrapping_add(PAGE);
        }
        Ok(())
    }

    fn fill(&mut self, page: u64) -> Result<(), SelectError> {
        let (start, _, len) = self.mapped;
        if page.wrapping_sub(start) >= len {
            let (physical, bytes) = self.layout.paging().translate(self.memory, page)?;
            self.mapped = (page, physical, bytes);
        }
        self.at = None;
        self.memory.read(self.mapped.1 + page.wrapping_sub(self.mapped.0), &mut self.page)?;
        self.at = Some(page);
        Ok(())
    }
}
