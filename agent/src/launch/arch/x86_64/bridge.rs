//! The bridge: the pages from which B or D enters A.
//!
//! The kernel that jumps maps only its own memory and its segments at their own addresses, and A's kexec control page
//! is neither. So the jump goes to code of ours in a segment of ours, which switches to page tables that map both that
//! segment and A's control page, and enters A from there.
//!
//! The tables use 2 MiB pages and nothing larger, so that they work on every x86-64 machine, and come with a root for 4
//! and one for 5 levels: the code takes the one that the CPU's mode calls for.

use std::io;

use dormouse_sys::{PAGE_SIZE, stub};

use crate::handoff::arguments::WayBack;

/// One page of code, two roots, two page directory pointer tables, two page directories; and one page to spare, so that
/// a bridge that is aligned to its size never crosses a 2 MiB boundary.
pub const SIZE: u64 = 8 * PAGE_SIZE;

const PML5: usize = 1;
const PML4: usize = 2;
/// The tables below the roots, in the order in which they are taken.
const FIRST_SPARE: usize = 3;
const LAST: usize = 6;

/// Present and writable, at every level.
const TABLE: u64 = 0b11;
/// A 2 MiB page: present, writable, page size bit.
const LARGE_PAGE: u64 = TABLE | 1 << 7;
const LARGE_PAGE_SIZE: u64 = 2 << 20;

/// Physical addresses have at most 52 bits, and a 4-level table walks 48 of the (identical) virtual address.
const LIMIT: u64 = 1 << 47;

/// The bytes of a bridge at `way.bridge` that enters A at `way.entry`.
pub fn build(way: WayBack) -> io::Result<Vec<u8>> {
    if !way.bridge.is_multiple_of(SIZE) || way.bridge >= LIMIT || way.entry >= LIMIT || way.entry == 0 {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("no bridge can lie at {:#x} and lead to {:#x}", way.bridge, way.entry),
        ));
    }
    let mut tables = Tables { base: way.bridge, pages: vec![[0; 512]; LAST + 1], next: FIRST_SPARE };
    for address in [way.bridge, way.entry] {
        tables.map(address)?;
    }
    // Five levels: all addresses are below the first entry's 256 TiB.
    tables.set(PML5, 0, tables.address(PML4) | TABLE);

    let mut bytes = stub::bridge(tables.address(PML4), tables.address(PML5), way.entry);
    bytes.extend(tables.pages[PML5..].iter().flatten().flat_map(|word| word.to_le_bytes()));
    Ok(bytes)
}

struct Tables {
    base: u64,
    /// Page 0 stands for the code, so that an index is a page of the bridge.
    pages: Vec<[u64; 512]>,
    next: usize,
}

impl Tables {
    /// Maps the 2 MiB around `address` at their own address.
    fn map(&mut self, address: u64) -> io::Result<()> {
        let pdpt = self.below(PML4, index(address, 39))?;
        let directory = self.below(pdpt, index(address, 30))?;
        self.set(directory, index(address, 21), address & !(LARGE_PAGE_SIZE - 1) | LARGE_PAGE);
        Ok(())
    }

    /// The table that entry `at` of `table` points to, taken from the spare pages where the entry is empty.
    fn below(&mut self, table: usize, at: usize) -> io::Result<usize> {
        let entry = self.pages[table][at];
        if entry != 0 {
            return usize::try_from(((entry & !TABLE) - self.base) / PAGE_SIZE).map_err(io::Error::other);
        }
        let page = self.next;
        if page > LAST {
            return Err(io::Error::other("the bridge has no page left for its tables"));
        }
        self.next += 1;
        self.set(table, at, self.address(page) | TABLE);
        Ok(page)
    }

    fn set(&mut self, table: usize, at: usize, entry: u64) {
        self.pages[table][at] = entry;
    }

    fn address(&self, page: usize) -> u64 {
        self.base + page as u64 * PAGE_SIZE
    }
}

/// The index that a table takes from a virtual address, of which it translates the bits from `shift` on.
fn index(address: u64, shift: u32) -> usize {
    // Nine bits always fit.
    ((address >> shift) & 511) as usize
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    /// Walks the tables as the CPU does.
    fn walk(bytes: &[u8], base: u64, levels: u32, address: u64) -> Option<u64> {
        let mut table = base + PAGE_SIZE * if levels == 5 { PML5 } else { PML4 } as u64;
        for level in (2..=levels).rev() {
            let shift = 12 + 9 * (level - 1);
            let at = usize::try_from(table - base).unwrap() + index(address, shift) * 8;
            let entry = u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().unwrap());
            if entry & 1 == 0 {
                return None;
            }
            if level == 2 {
                assert_eq!(entry & 0x80, 0x80);
                return Some((entry & !0xfff) + address % LARGE_PAGE_SIZE);
            }
            table = entry & !0xfff;
        }
        None
    }

    proptest! {
        #[test]
        fn both_roots_map_the_bridge_and_the_entry_at_their_own_addresses(
            bridge in (1_u64 << 24..LIMIT).prop_map(|at| at & !(SIZE - 1)),
            entry in 1..LIMIT,
        ) {
            let bytes = build(WayBack { entry, bridge }).unwrap();
            prop_assert!(bytes.len() as u64 <= SIZE);
            for levels in [4, 5] {
                for address in [bridge, bridge + SIZE - 1, entry, entry & !0xfff, entry | 0xfff] {
                    prop_assert_eq!(walk(&bytes, bridge, levels, address), Some(address));
                }
            }
        }
    }

    #[test]
    fn neighbours_share_tables() {
        let bytes = build(WayBack { entry: 0x180_1234, bridge: 0x180_0000 }).unwrap();
        assert_eq!(walk(&bytes, 0x180_0000, 4, 0x180_1234), Some(0x180_1234));
        assert_eq!(walk(&bytes, 0x180_0000, 4, 0x200_0000), None);
    }

    #[test]
    fn rejects_impossible_addresses() {
        for (entry, bridge) in [(0, 0x100_0000), (LIMIT, 0x100_0000), (0x1000, 0x100_1000), (0x1000, LIMIT)] {
            assert!(build(WayBack { entry, bridge }).is_err(), "{entry:#x} {bridge:#x}");
        }
    }
}
