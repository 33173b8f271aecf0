//! From a stopped kernel's virtual addresses to physical ones, as the CPU does it.

use dormouse_linux::vmcoreinfo::VmcoreInfo;

use crate::memory::arch::KERNEL_MAP;
use crate::memory::select::{Physical, SelectError, word};

const PRESENT: u64 = 1;
/// In a table's entry: a large page and no table.
const LARGE: u64 = 1 << 7;
/// The bits of an entry that are a physical address (Intel SDM volume 3, 4.5).
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

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
            page_table: root.wrapping_sub(KERNEL_MAP).wrapping_add(number("phys_base")?),
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
