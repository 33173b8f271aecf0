//! Vmcores of machines that nobody here has: as large as wanted, with as much of the memory free as wanted.
//!
//! Such a file has what page selection reads, as Linux 6.12 leaves it: VMCOREINFO, page tables, the table of sections,
//! the node with its free lists, and the `struct page`s, each section's mapped by one large page. Everything else is a
//! hole, also the `struct page`s inside a free block, which nothing has touched since the machine was started.
//!
//! ```text
//!   0      64 MiB                    3 GiB    4 GiB                               end
//!   | kernel | runs in use, runs free | (none) | runs in use, runs free | struct pages |
//! ```

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use dormouse_image::{BLOCK, PfnRange};
use dormouse_linux::vmcoreinfo::NOTE;

use crate::random::Random;

const PAGE: u64 = BLOCK as u64;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Recorded from the test kernel. Lines before its own take precedence.
const RECORDED: &str = include_str!("../../agent/src/memory/select/testdata/vmcoreinfo-6.12.117.txt");

/// Where such a kernel has its memory, its `struct page`s and itself, without randomisation.
const DIRECT_MAP: u64 = 0xffff_8880_0000_0000;
const VMEMMAP: u64 = 0xffff_ea00_0000_0000;
const KERNEL_MAP: u64 = 0xffff_ffff_8000_0000;

/// Bits of page table entries: present, writable, accessed and dirty; and a large page.
const TABLE: u64 = 0x63;
const LARGE: u64 = 0x80;

/// The largest order of a free block, and the pages of one.
const MAX_ORDER: u32 = 10;
const BLOCK_PAGES: u64 = 1 << MAX_ORDER;
const PAGE_STRUCT: u64 = 64;
const SECTION_PAGES: u64 = 1 << 15;
/// Bytes of the `struct page`s of a section.
const SECTION_ARRAY: u64 = SECTION_PAGES * PAGE_STRUCT;
/// `struct mem_section`s in a page, and pointers to such pages.
const SECTIONS_PER_ROOT: u64 = PAGE / 16;
const ROOTS: u64 = 2048;
/// What the kernel and its tables take at the beginning of memory.
const KERNEL_PAGES: u64 = 64 * MIB / PAGE;

/// What `_mapcount` holds in a page in use, and in the first of a free block.
const IN_USE: u32 = u32::MAX;
const BUDDY: u32 = 0xf000_0000;

/// A machine to make up.
#[derive(Debug, Clone, Copy)]
pub struct Synthetic {
    /// Its memory.
    pub gib: u64,
    /// How much of it is in use beside the kernel and its `struct page`s.
    pub used_percent: u64,
    /// What its layout is made of.
    pub seed: u64,
}

impl Synthetic {
    /// Writes its vmcore to a new sparse file at `path`, and returns how many pages of it are free.
    ///
    /// # Errors
    /// Fails where the file cannot be written, or such a machine cannot be.
    pub fn write(self, path: &Path) -> Result<u64> {
        ensure!((4..=32 << 10).contains(&self.gib), "{} GiB are too few or too many", self.gib);
        ensure!(self.used_percent < 90, "{} % in use leave too little", self.used_percent);
        let file = File::options().read(true).write(true).create(true).truncate(true).open(path);
        let file = file.with_context(|| format!("{}: cannot be made", path.display()))?;
        let written = Writer::new(&file, self.gib).and_then(|writer| writer.run(self));
        written.with_context(|| format!("{}: cannot be written", path.display()))
    }
}

struct Writer<'a> {
    file: &'a File,
    ram: [PfnRange; 3],
    /// Physical address of the `struct page`s.
    array: u64,
    /// Physical address from which on pages for tables are given out.
    next_table: u64,
    top_table: u64,
    /// Free blocks by order.
    blocks: [u64; MAX_ORDER as usize + 1],
}

impl<'a> Writer<'a> {
    fn new(file: &'a File, gib: u64) -> Result<Writer<'a>> {
        let pages = |start: u64, end: u64| PfnRange { start: start / PAGE, end: end / PAGE };
        let end = 4 * GIB + (gib - 3) * GIB;
        let ram = [pages(PAGE, 0x9_f000), pages(MIB, 3 * GIB), pages(4 * GIB, end)];
        file.set_len(PAGE + end)?;
        let array = (end - end / PAGE * PAGE_STRUCT) / SECTION_ARRAY * SECTION_ARRAY;
        let (next_table, top_table) = (17 * MIB, 16 * MIB);
        Ok(Writer { file, ram, array, next_table, top_table, blocks: [0; MAX_ORDER as usize + 1] })
    }

    fn run(mut self, machine: Synthetic) -> Result<u64> {
        // The kernel and the direct map, of which only the beginning is needed, by a page of 1 GiB each.
        for map in [KERNEL_MAP, DIRECT_MAP] {
            let table = self.table(map, 3)?;
            self.word(table + (map >> 30 & 511) * 8, TABLE | LARGE)?;
        }
        let roots = self.tables(ROOTS * 8)?;
        let node = self.tables(2 * PAGE)?;
        self.sections(roots)?;
        self.layout(machine)?;
        // One zone, with a list for each order.
        self.word(node + 3712, 1)?;
        let mut free = 0;
        for (order, blocks) in (0_u64..).zip(self.blocks) {
            self.word(node + 192 + (order + 1) * 72 - 8, blocks)?;
            free += blocks << order;
        }
        self.headers(roots, node)?;
        Ok(free)
    }

    /// Writes at a physical address, which the file has a page further on.
    fn bytes(&self, address: u64, bytes: &[u8]) -> Result<()> {
        Ok(self.file.write_all_at(bytes, PAGE + address)?)
    }

    fn word(&self, address: u64, word: u64) -> Result<()> {
        self.bytes(address, &word.to_le_bytes())
    }

    /// Whole pages for tables, which hold zeroes.
    fn tables(&mut self, len: u64) -> Result<u64> {
        let at = self.next_table;
        self.next_table += len.next_multiple_of(PAGE);
        ensure!(self.next_table <= KERNEL_PAGES * PAGE, "too little room for tables");
        Ok(at)
    }

    /// The page table of `level` that maps `address`, made with those above it where it is missing.
    fn table(&mut self, address: u64, level: u32) -> Result<u64> {
        let mut table = self.top_table;
        for above in (level + 1..=4).rev() {
            let slot = table + (address >> (12 + 9 * (above - 1)) & 511) * 8;
            let mut entry = [0; 8];
            self.file.read_exact_at(&mut entry, PAGE + slot)?;
            table = match u64::from_le_bytes(entry) {
                0 => {
                    let made = self.tables(PAGE)?;
                    self.word(slot, made | TABLE)?;
                    made
                }
                entry => entry & !(PAGE - 1),
            };
        }
        Ok(table)
    }

    /// The sections that have memory, and their `struct page`s in the kernel's address space.
    fn sections(&mut self, roots: u64) -> Result<()> {
        let ranges = self.ram;
        let (mut last, mut root, mut sections) = (None, None, 0);
        for range in ranges {
            for section in range.start / SECTION_PAGES..range.end.div_ceil(SECTION_PAGES) {
                if last == Some(section) {
                    continue;
                }
                last = Some(section);
                if root != Some(section / SECTIONS_PER_ROOT) {
                    root = Some(section / SECTIONS_PER_ROOT);
                    sections = self.tables(PAGE)?;
                    self.word(roots + section / SECTIONS_PER_ROOT * 8, DIRECT_MAP + sections)?;
                }
                // Present, with an array, online, and there from the beginning.
                self.word(sections + section % SECTIONS_PER_ROOT * 16, VMEMMAP | 0xf)?;
                let mapped = VMEMMAP + section * SECTION_ARRAY;
                let table = self.table(mapped, 2)?;
                let to = self.array + section * SECTION_ARRAY;
                self.word(table + (mapped >> 21 & 511) * 8, to | TABLE | LARGE)?;
            }
        }
        Ok(())
    }

    /// Fills memory with runs in use and runs that are free, with a block in pieces between them.
    fn layout(&mut self, machine: Synthetic) -> Result<()> {
        let mut random = Random::new(machine.seed);
        let array = self.array / PAGE / BLOCK_PAGES;
        // Blocks left of the run, and whether it is in use.
        let (mut left, mut used) = (0, false);
        for range in self.ram {
            for block in range.start / BLOCK_PAGES..range.end.div_ceil(BLOCK_PAGES) {
                let (start, end) = (block * BLOCK_PAGES, (block + 1) * BLOCK_PAGES);
                if start < KERNEL_PAGES || block >= array || range.end < end {
                    self.used(PfnRange { start: start.max(range.start), end: end.min(range.end) })?;
                    continue;
                }
                if left == 0 {
                    used = !used;
                    // 64 MiB in use on average, and as much free as that takes.
                    let mean = if used { 16 } else { 16 * (100 - machine.used_percent) / machine.used_percent.max(1) };
                    left = random.within(1..=2 * mean.max(1) - 1);
                    if used && machine.used_percent > 0 {
                        self.pieces(PfnRange { start, end }, MAX_ORDER, &mut random)?;
                        left -= 1;
                        continue;
                    }
                }
                left = left.saturating_sub(1);
                if used && machine.used_percent > 0 {
                    self.used(PfnRange { start, end })?;
                } else {
                    self.free(start, MAX_ORDER)?;
                }
            }
        }
        Ok(())
    }

    /// A block of which parts are in use and parts free.
    fn pieces(&mut self, block: PfnRange, order: u32, random: &mut Random) -> Result<()> {
        match random.within(0..=7) {
            0 | 1 if order < MAX_ORDER => self.free(block.start, order),
            2 | 3 if order < MAX_ORDER => self.used(block),
            _ if order == 0 => self.used(block),
            _ => {
                let middle = block.start + block.pages() / 2;
                self.pieces(PfnRange { end: middle, ..block }, order - 1, random)?;
                self.pieces(PfnRange { start: middle, ..block }, order - 1, random)
            }
        }
    }

    fn used(&self, run: PfnRange) -> Result<()> {
        let page = page_struct(IN_USE, 0).repeat(usize::try_from(run.pages())?);
        self.bytes(self.array + run.start * PAGE_STRUCT, &page)
    }

    fn free(&mut self, pfn: u64, order: u32) -> Result<()> {
        self.blocks[order as usize] += 1;
        self.bytes(self.array + pfn * PAGE_STRUCT, &page_struct(BUDDY, order.into()))
    }

    /// The headers of an ELF core file, with the note.
    fn headers(&self, roots: u64, node: u64) -> Result<()> {
        let (first, others) = RECORDED.split_once('\n').context("a recorded VMCOREINFO has lines")?;
        let text = format!(
            "{first}\nSYMBOL(mem_section)={:x}\nLENGTH(mem_section)={ROOTS}\nSYMBOL(contig_page_data)={:x}\n\
             SYMBOL(init_top_pgt)={:x}\nNUMBER(phys_base)=0\nNUMBER(pgtable_l5_enabled)=0\nNUMBER(PG_hwpoison)=22\n\
             {others}",
            DIRECT_MAP + roots,
            KERNEL_MAP + node,
            KERNEL_MAP + self.top_table,
        );
        let mut note = Vec::new();
        for number in [NOTE.len(), text.len(), 0] {
            note.extend(u32::try_from(number)?.to_le_bytes());
        }
        for part in [NOTE, text.as_bytes()] {
            note.extend(part);
            note.resize(note.len().next_multiple_of(4), 0);
        }
        // Type 4, a core, of machine 62, x86-64; program headers behind this header.
        let mut head = b"\x7fELF\x02\x01\x01".to_vec();
        head.resize(16, 0);
        head.extend([4, 0, 62, 0, 1, 0, 0, 0]);
        head.extend([0, 64, 0].into_iter().flat_map(u64::to_le_bytes));
        head.extend([0; 4]);
        let count = u16::try_from(self.ram.len() + 1)?;
        head.extend([64, 56, count, 64, 0, 0].into_iter().flat_map(u16::to_le_bytes));
        let note_at = head.len() as u64 + 56 * u64::from(count);
        let load = |range: &PfnRange| (1, PAGE + range.start * PAGE, range.start * PAGE, range.pages() * PAGE);
        let parts = std::iter::once((4, note_at, 0, note.len() as u64)).chain(self.ram.iter().map(load));
        for (kind, offset, address, len) in parts {
            head.extend([kind, offset, 0, address, len, len, 0].into_iter().flat_map(u64::to_le_bytes));
        }
        head.extend(note);
        ensure!(head.len() as u64 <= 2 * PAGE, "the headers reach into memory");
        Ok(self.file.write_all_at(&head, 0)?)
    }
}

/// A `struct page` of the recorded kernel, with what differs between pages in use and free ones.
fn page_struct(mapcount: u32, private: u64) -> Vec<u8> {
    let mut page = vec![0; 64];
    // Flags of a page of the normal zone, and a count of references of those in use.
    page[..8].copy_from_slice(&0x0017_ffff_c000_0000_u64.to_le_bytes());
    page[40..48].copy_from_slice(&private.to_le_bytes());
    page[48..52].copy_from_slice(&mapcount.to_le_bytes());
    page[52..56].copy_from_slice(&u32::from(mapcount == IN_USE).to_le_bytes());
    page
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use dormouse::cycle::save::select_in;
    use dormouse::memory::select::SwapMap;
    use dormouse::memory::vmcore::Vmcore;
    use dormouse::pipeline::seams::{Fate, PageFilter};

    use super::*;

    #[test]
    fn what_was_made_free_is_found_free_on_any_number_of_threads() {
        for (gib, used_percent) in [(4, 30), (6, 5), (5, 0)] {
            let file = tempfile::NamedTempFile::new().unwrap();
            let free = Synthetic { gib, used_percent, seed: gib }.write(file.path()).unwrap();
            let vmcore = Vmcore::open(file.path()).unwrap();
            let ram = vmcore.frames();
            let pages: u64 = ram.iter().map(PfnRange::pages).sum();
            let select = |threads| select_in(&vmcore, ram, &SwapMap::nothing(), Fate::Leave, threads).unwrap();
            let selection = select(1);
            assert_eq!((selection.free_pages(), selection.spared_pages()), (free, free));
            // The zones' own count.
            selection.check(0, pages).unwrap();
            let share = free * 100 / pages;
            assert!(share.abs_diff(98 - used_percent) <= 12, "{share} % are free of {gib} GiB");
            // Run by run, in the holes and behind the end of memory too.
            let (mut frames, mut left) = (PfnRange { start: 0, end: ram[2].end + 1000 }, 0);
            while frames.start < frames.end {
                let (fate, pages) = selection.run(frames);
                assert!(pages > 0 && selection.fate(frames.start + pages - 1) == fate);
                left += if fate == Fate::Leave { pages } else { 0 };
                frames.start += pages;
            }
            assert_eq!(left, free);
            assert_eq!([2, 5, 64].map(select), [1, 1, 1].map(select));
        }
    }
}
