//! From a stopped kernel's virtual addresses to physical ones, as the processor does it.

use super::{KernelLayout, Physical, SelectError, word};

const PRESENT: u64 = 1;
/// In a table's entry: a large page and no table.
const LARGE: u64 = 1 << 7;
/// The bits of an entry that are a physical address (Intel SDM volume 3, 4.5).
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// The physical address of `address`, and how many bytes from there on are mapped by the same entry.
pub(super) fn translate(
    memory: &impl Physical,
    layout: &KernelLayout,
    address: u64,
) -> Result<(u64, u64), SelectError> {
    let mut table = layout.page_table & !0xfff;
    for level in (1..=layout.levels).rev() {
        let shift = 12 + 9 * (level - 1);
        let entry = word(memory, table + ((address >> shift) & 511) * 8)? & !layout.encryption_mask;
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

/// Reads a word at a virtual address.
pub(super) fn virtual_word(memory: &impl Physical, layout: &KernelLayout, address: u64) -> Result<u64, SelectError> {
    word(memory, translate(memory, layout, address)?.0)
}
