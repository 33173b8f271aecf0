//! From a stopped kernel's virtual addresses to physical ones, as the processor does it.

use std::collections::HashMap;

use super::{KernelLayout, Physical, SelectError};

const PRESENT: u64 = 1;
/// In a table's entry: a large page and no table.
const LARGE: u64 = 1 << 7;
/// The bits of an entry that are a physical address (Intel SDM volume 3, 4.5).
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

const PAGE: usize = 4096;
/// Pages that are kept, at most.
const KEPT: usize = 256;

/// A kernel's virtual memory.
///
/// The pages in which words were read are kept. Page tables, arrays of sections and `struct page`s lie far apart, and each
/// change from one to the other may cost a new window onto the memory (`crate::window`).
pub(super) struct Virtual<'a, M> {
    pub(super) memory: &'a M,
    layout: &'a KernelLayout,
    pages: HashMap<u64, Vec<u8>>,
}

impl<'a, M: Physical> Virtual<'a, M> {
    pub(super) fn new(memory: &'a M, layout: &'a KernelLayout) -> Virtual<'a, M> {
        Virtual { memory, layout, pages: HashMap::new() }
    }

    /// The physical address of `address`, and how many bytes from there on are mapped by the same entry.
    pub(super) fn translate(&mut self, address: u64) -> Result<(u64, u64), SelectError> {
        let mut table = self.layout.page_table & !0xfff;
        for level in (1..=self.layout.levels).rev() {
            let shift = 12 + 9 * (level - 1);
            let entry = self.physical_word(table + ((address >> shift) & 511) * 8)? & !self.layout.encryption_mask;
            if entry & PRESENT == 0 {
                return Err(SelectError::Unmapped(address));
            }
            if level == 1 || (level <= 3 && entry & LARGE != 0) {
                let size = 1 << shift;
                let within = address & (size - 1);
                // A large page's entry has attribute bits where a small one has address bits.
                return Ok(((entry & ADDRESS & !(size - 1)) + within, size - within));
            }
            table = entry & ADDRESS;
        }
        Err(SelectError::Unmapped(address))
    }

    /// Reads a little-endian word of 64 bits.
    pub(super) fn word(&mut self, address: u64) -> Result<u64, SelectError> {
        let (physical, _) = self.translate(address)?;
        self.physical_word(physical)
    }

    fn physical_word(&mut self, address: u64) -> Result<u64, SelectError> {
        let within = address % PAGE as u64;
        let start = address - within;
        if !self.pages.contains_key(&start) {
            if self.pages.len() >= KEPT {
                self.pages.clear();
            }
            let mut page = vec![0; PAGE];
            self.memory.read(start, &mut page)?;
            self.pages.insert(start, page);
        }
        let at = usize::try_from(within).unwrap_or(PAGE);
        let word =
            self.pages.get(&start).and_then(|page| page.get(at..at + 8)?.try_into().ok()).map(u64::from_le_bytes);
        // One that crosses a page is none of the kernel's.
        word.ok_or(SelectError::Unmapped(address))
    }
}
