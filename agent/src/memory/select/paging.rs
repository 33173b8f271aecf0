//! From a stopped kernel's virtual addresses to physical ones, as the processor does it.

use std::cell::RefCell;
use std::collections::HashMap;

use dormouse_linux::vmcoreinfo::VmcoreInfo;

use crate::memory::select::layout::START_KERNEL_MAP;
use crate::memory::select::{KernelLayout, Physical, SelectError, word};

const PRESENT: u64 = 1;
/// In a table's entry: a large page and no table.
const LARGE: u64 = 1 << 7;
/// The bits of an entry that are a physical address (Intel SDM volume 3, 4.5).
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

const PAGE: usize = 4096;
/// Pages that [`Kept`] keeps, at most.
const KEPT: usize = 256;

/// A kernel's page tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Paging {
    /// Physical address of the topmost table.
    pub page_table: u64,
    /// Levels: 4 or 5.
    pub levels: u32,
    /// The bit in entries that stands for encryption, or 0.
    pub encryption_mask: u64,
}

impl Paging {
    /// Where VMCOREINFO says that they are.
    ///
    /// # Errors
    /// [`SelectError::Missing`] names what it does not say.
    pub fn new(info: &VmcoreInfo) -> Result<Paging, SelectError> {
        let number = |name| info.number(name).ok_or(SelectError::Missing(name));
        let root = info.symbol("init_top_pgt").ok_or(SelectError::Missing("init_top_pgt"))?;
        Ok(Paging {
            page_table: root.wrapping_sub(START_KERNEL_MAP).wrapping_add(number("phys_base")?),
            levels: if number("pgtable_l5_enabled")? == 0 { 4 } else { 5 },
            encryption_mask: info.number("sme_mask").unwrap_or(0),
        })
    }

    /// The physical address of `address`, and how many bytes from there on are mapped by the same entry.
    ///
    /// # Errors
    /// [`SelectError::Unmapped`]; [`SelectError::Memory`] where a table cannot be read.
    pub fn translate(&self, memory: &impl Physical, address: u64) -> Result<(u64, u64), SelectError> {
        let mut table = self.page_table & !0xfff;
        for level in (1..=self.levels).rev() {
            let shift = 12 + 9 * (level - 1);
            let entry = word(memory, table + ((address >> shift) & 511) * 8)? & !self.encryption_mask;
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
}

/// A kernel's virtual memory.
pub(super) struct Virtual<'a, M> {
    pub(super) memory: &'a M,
    paging: Paging,
    words: Kept<'a, M>,
}

impl<'a, M: Physical> Virtual<'a, M> {
    pub(super) fn new(memory: &'a M, layout: &KernelLayout) -> Virtual<'a, M> {
        Virtual { memory, paging: layout.paging(), words: Kept { memory, pages: RefCell::default() } }
    }

    /// The physical address of `address`, and how many bytes from there on are mapped by the same entry.
    pub(super) fn translate(&self, address: u64) -> Result<(u64, u64), SelectError> {
        self.paging.translate(&self.words, address)
    }

    /// Reads a little-endian word of 64 bits.
    pub(super) fn word(&self, address: u64) -> Result<u64, SelectError> {
        word(&self.words, self.translate(address)?.0)
    }
}

/// Memory of which the pages that were read are kept.
///
/// Page tables, arrays of sections and `struct page`s lie far apart, and each change from one to the other may cost a new
/// window onto the memory (`crate::pipeline::window`).
struct Kept<'a, M> {
    memory: &'a M,
    pages: RefCell<HashMap<u64, Vec<u8>>>,
}

impl<M: Physical> Physical for Kept<'_, M> {
    fn look<T>(&self, address: u64, len: u64, look: impl FnOnce(&[u8]) -> T) -> Result<T, SelectError> {
        let within = address % PAGE as u64;
        let start = address - within;
        let mut pages = self.pages.borrow_mut();
        if !pages.contains_key(&start) {
            if pages.len() >= KEPT {
                pages.clear();
            }
            let mut page = vec![0; PAGE];
            self.memory.read(start, &mut page)?;
            pages.insert(start, page);
        }
        let end = PAGE.min(usize::try_from(within.saturating_add(len)).unwrap_or(PAGE));
        let at = usize::try_from(within).unwrap_or(PAGE);
        let found = pages.get(&start).and_then(|page| page.get(at..end));
        Ok(look(found.unwrap_or_default()))
    }
}
