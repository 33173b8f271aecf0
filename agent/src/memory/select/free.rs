//! Reading the `struct page` array: which pages are free.

use std::ops::Range;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::ScopedJoinHandle;

use dormouse_image::PfnRange;
use dormouse_linux::error_chain::in_full;
use dormouse_sys::PAGE_SIZE;

use crate::memory::select::address_space::Virtual;
use crate::memory::select::frames::Frames;
use crate::memory::select::{KernelLayout, Physical, SelectError, SwapMap};
use crate::pipeline::seams::{Fate, PageFilter};

/// Sections that a thread takes at once at most: the `struct page`s of 1 GiB fill a window of 16 MiB.
const GROUP: u64 = 8;
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
        Selection::new(Fate::Store, 0)
    }

    /// None of `pages` found yet.
    fn new(free_fate: Fate, pages: u64) -> Selection {
        // What must not be touched has to be exact; it is little, or a balloon, which is blocks as free pages are.
        let (free, untouchable) = (Frames::bounded(pages), Frames::default());
        Selection { free_fate, free, untouchable, free_pages: 0, counted: None }
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

    /// How many pages have the fate of free ones. Of very large memory these are fewer: see [`Frames::bounded`].
    #[must_use]
    pub fn spared_pages(&self) -> u64 {
        self.free.len()
    }

    /// Bytes of memory that this takes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.free.bytes() + self.untouchable.bytes()
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

    fn run(&self, frames: PfnRange) -> (Fate, u64) {
        let (is_untouchable, end) = self.untouchable.run(frames);
        if is_untouchable {
            return (Fate::Leave, end - frames.start);
        }
        let (is_free, end) = self.free.run(PfnRange { end, ..frames });
        (if is_free { self.free_fate } else { Fate::Store }, end - frames.start)
    }
}

/// Reads from the stopped kernel's own data which of its pages are free, on `threads` threads. What it finds does not
/// depend on their number.
///
/// `ram` is all of its memory, the swapped ranges included; it ascends. `memory` shows it as the kernel left it.
/// `free_fate` is what is to become of the free pages.
///
/// # Errors
/// [`SelectError`]: the kernel's data are not what they should be. Then nothing may be left out.
pub fn select(
    memory: &(impl Physical + Sync),
    layout: &KernelLayout,
    ram: &[PfnRange],
    swapped: &SwapMap,
    free_fate: Fate,
    threads: usize,
) -> Result<Selection, SelectError> {
    // A list that leads anywhere else is not one, and a set of page frames is as long as its last frame demands.
    swapped.check(ram)?;
    let mut selection = Selection::new(free_fate, ram.iter().map(PfnRange::pages).sum());
    let sections = Sections::new(layout, ram, threads);
    let work = || {
        let kernel = Virtual::new(memory, layout);
        let mut part = Part::new(&selection);
        while let Some(numbers) = sections.take() {
            for number in numbers {
                if let Err(error) = read_section(&kernel, layout, &sections, number, swapped, &mut part) {
                    sections.stop();
                    return Err((number, error));
                }
            }
        }
        Ok(part)
    };
    let results = on_threads(sections.threads, work);
    // Sections are taken in order, so the first one that failed was looked at whatever the others did.
    let first = |error: (u64, SelectError), other: (u64, SelectError)| if other.0 < error.0 { other } else { error };
    let (mut parts, mut failure) = (Vec::new(), None);
    for result in results {
        match result {
            Ok(part) => parts.push(part),
            Err(error) => {
                failure = Some(match failure {
                    Some(known) => first(known, error),
                    None => error,
                })
            }
        }
    }
    if let Some((_, error)) = failure {
        return Err(error);
    }
    selection.free_pages = parts.iter().map(|part| part.free_pages).sum();
    let (free, untouchable): (Vec<Frames>, Vec<Frames>) =
        parts.into_iter().map(|part| (part.free, part.untouchable)).unzip();
    selection.free.unite(free);
    selection.untouchable.unite(untouchable);
    // Whatever is wrong with these data: the count that was reported remains.
    selection.counted = layout.zones.as_ref().and_then(|zones| {
        let counted = zones.count(&Virtual::new(memory, layout), layout.orders);
        counted
            .inspect_err(|error| log::warn!("no count of free pages in the kernel's own data: {}", in_full(error)))
            .ok()
    });
    Ok(selection)
}

/// What `work` returns on this thread and on as many others as `threads` asks for and there can be.
fn on_threads<T: Send>(threads: usize, work: impl Fn() -> T + Sync) -> Vec<T> {
    std::thread::scope(|scope| {
        let start = |_| std::thread::Builder::new().name("select".into()).spawn_scoped(scope, &work).ok();
        // Those that do not start leave their share to the others.
        let others: Vec<_> = (1..threads).map_while(start).collect();
        let mut results = vec![work()];
        let join = |thread: ScopedJoinHandle<'_, T>| thread.join().unwrap_or_else(|panic| resume_unwind(panic));
        results.extend(others.into_iter().map(join));
        results
    })
}

/// The memory, cut at the boundaries of sections; threads take a few neighbours at a time, in order.
struct Sections<'a> {
    ram: &'a [PfnRange],
    section_pages: u64,
    count: u64,
    /// How many are taken at a time.
    group: u64,
    threads: usize,
    next: AtomicU64,
    is_stopped: AtomicBool,
}

impl<'a> Sections<'a> {
    fn new(layout: &KernelLayout, ram: &'a [PfnRange], threads: usize) -> Sections<'a> {
        let section_pages = layout.section_pages;
        let mut sections = Sections {
            ram,
            section_pages,
            count: 0,
            group: 1,
            threads: 1,
            next: AtomicU64::new(0),
            is_stopped: AtomicBool::new(false),
        };
        sections.count = ram.iter().map(|range| sections.of(range).1).sum();
        // The `struct page`s of this many sections share a window onto memory; but all threads need their share.
        sections.group = (sections.count / (threads.max(1) as u64 * 4)).clamp(1, GROUP);
        let groups = usize::try_from(sections.count / sections.group).unwrap_or(usize::MAX);
        sections.threads = threads.min(groups).max(1);
        sections
    }

    /// The number of the section in which `range` begins, and in how many it lies.
    fn of(&self, range: &PfnRange) -> (u64, u64) {
        let first = range.start / self.section_pages;
        (first, range.end.div_ceil(self.section_pages).saturating_sub(first))
    }

    /// The next ones, counted from the beginning of memory.
    fn take(&self) -> Option<Range<u64>> {
        if self.is_stopped.load(Ordering::Relaxed) {
            return None;
        }
        let start = self.next.fetch_add(self.group, Ordering::Relaxed);
        (start < self.count).then(|| start..self.count.min(start + self.group))
    }

    /// Lets no more be taken.
    fn stop(&self) {
        self.is_stopped.store(true, Ordering::Relaxed);
    }

    /// The section in which the one that is counted `at` lies, and its page frames.
    fn get(&self, mut at: u64) -> Option<(u64, PfnRange)> {
        for range in self.ram {
            let (first, count) = self.of(range);
            if at < count {
                let (section, pages) = (first + at, self.section_pages);
                let (start, end) = (range.start.max(section * pages), range.end.min((section + 1) * pages));
                return Some((section, PfnRange { start, end }));
            }
            at -= count;
        }
        None
    }
}

/// What one thread has found.
struct Part {
    free: Frames,
    untouchable: Frames,
    free_pages: u64,
}

impl Part {
    fn new(of: &Selection) -> Part {
        Part { free: of.free.like(), untouchable: of.untouchable.like(), free_pages: 0 }
    }
}

/// Reads the section that is counted `at`.
fn read_section<M: Physical>(
    kernel: &Virtual<'_, M>,
    layout: &KernelLayout,
    sections: &Sections<'_>,
    at: u64,
    swapped: &SwapMap,
    part: &mut Part,
) -> Result<(), SelectError> {
    let Some((section, frames)) = sections.get(at) else { return Ok(()) };
    match page_array(kernel, layout, section)? {
        Some(array) => scan(kernel, layout, array, frames, swapped, part),
        None => Ok(()),
    }
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
    part: &mut Part,
) -> Result<(), SelectError> {
    let size = layout.page_size as u64;
    let free = PfnRange { start: frames.start, end: frames.start };
    let mut scan = Scan { layout, frames, swapped, part, next: frames.start, free };
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
    scan.add_free();
    Ok(())
}

/// The way through the `struct page`s of a section.
struct Scan<'a> {
    layout: &'a KernelLayout,
    frames: PfnRange,
    swapped: &'a SwapMap,
    part: &'a mut Part,
    /// The page frame to look at next.
    next: u64,
    /// Free blocks up to there, one behind the other, which are not in the set yet.
    free: PfnRange,
}

impl Scan<'_> {
    /// Looks at the `struct page`s in `bytes`, the first of which is that of the next page frame.
    fn pages(&mut self, bytes: &[u8]) {
        let (size, first) = (self.layout.page_size, self.next);
        while self.next < self.frames.end {
            let at = usize::try_from(self.next - first).ok().and_then(|at| at.checked_mul(size));
            let Some(rest) = at.and_then(|at| bytes.get(at..)) else { return };
            let in_use = self.in_use(rest);
            self.next = self.frames.end.min(self.next + in_use as u64);
            let page = in_use.checked_mul(size).and_then(|at| rest.get(at..at.checked_add(size)?));
            let Some(page) = page.filter(|_| self.next < self.frames.end) else { return };
            self.page(page);
        }
    }

    /// How many `struct page`s at the beginning of `bytes` are of pages in use. They are most of those that are read.
    fn in_use(&self, bytes: &[u8]) -> usize {
        let KernelLayout { page_size, page_mapcount, page_flags, buddy, offline, hwpoison, .. } = *self.layout;
        let (offline, poison) = (offline.unwrap_or(buddy), hwpoison.map_or(0, |bit| 1 << bit));
        let is_in_use = |page: &&[u8]| {
            let mapcount =
                page.get(page_mapcount..).and_then(<[u8]>::first_chunk).map_or(0, |bytes| u32::from_le_bytes(*bytes));
            let flags =
                page.get(page_flags..).and_then(<[u8]>::first_chunk).map_or(0, |bytes| u64::from_le_bytes(*bytes));
            !buddy.matches(mapcount) && !offline.matches(mapcount) && flags & poison == 0
        };
        bytes.chunks_exact(page_size).take_while(is_in_use).count()
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
            self.part.untouchable.add(self.swapped.holders(PfnRange { start: pfn, end: pfn + 1 }));
            return;
        }
        if !layout.buddy.matches(mapcount) {
            return;
        }
        let order = u64_at(layout.page_private);
        if order < layout.orders && pfn.is_multiple_of(1 << order) {
            let end = self.frames.end.min(pfn + (1 << order));
            if self.free.end != pfn {
                self.add_free();
                self.free.start = pfn;
            }
            (self.free.end, self.next) = (end, end);
        }
    }

    /// Adds the free blocks that lie one behind the other.
    fn add_free(&mut self) {
        let PfnRange { mut start, end } = self.free;
        self.part.free_pages += end - start;
        while start < end {
            let holders = self.swapped.holders(PfnRange { start, end });
            self.part.free.add(holders);
            start += holders.pages();
        }
        self.free.start = end;
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
