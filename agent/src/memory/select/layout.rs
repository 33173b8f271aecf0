//! The layout of a kernel's memory management, from its VMCOREINFO alone.

use dormouse_linux::vmcoreinfo::VmcoreInfo;
use dormouse_sys::{PAGE_LEN, PAGE_SIZE};

use crate::memory::arch::Paging;
use crate::memory::select::SelectError;
use crate::memory::select::zones::Zones;

/// What is needed to find the `struct page` of a page frame, and to read from it whether the page is free.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelLayout {
    /// Its page tables.
    pub paging: Paging,
    /// Virtual address of the array of pointers to arrays of `struct mem_section`.
    pub section_roots: u64,
    /// Pointers in it.
    pub section_root_count: u64,
    /// Bytes of a `struct mem_section`.
    pub section_size: u64,
    /// Offset of `section_mem_map` in it.
    pub section_mem_map: u64,
    /// Page frames in a section.
    pub section_pages: u64,
    /// Bytes of a `struct page`.
    pub page_size: usize,
    /// Offset of `_mapcount`, where the page's type is.
    pub page_mapcount: usize,
    /// Offset of `private`, where a free block's order is.
    pub page_private: usize,
    /// Offset of `flags`.
    pub page_flags: usize,
    /// The mark of the first page of a free block.
    pub buddy: PageType,
    /// The mark of a page that is offline, such as a balloon's.
    pub offline: Option<PageType>,
    /// The bit in `flags` of a page with a hardware error.
    pub hwpoison: Option<u32>,
    /// Orders that free blocks can have are below this.
    pub orders: u64,
    /// Where the kernel counts its free pages itself, as far as that is known.
    pub(super) zones: Option<Zones>,
}

/// A value of `_mapcount` that stands for a type of page.
///
/// Up to Linux 6.11 these are bit masks in which one bit is clear; the value that VMCOREINFO gives is what a page of
/// that type and no other property has. From kernel commit 4ffca5a96678 ("mm: support only one page_type per page", in
/// v6.12) on, the type is the topmost byte, and the rest may be anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageType {
    value: u32,
    mask: u32,
}

impl PageType {
    /// From the number that VMCOREINFO gives.
    #[must_use]
    pub fn new(number: u64) -> PageType {
        // The kernel prints an int; its 32 bits are what the page holds.
        let [a, b, c, d, ..] = number.to_le_bytes();
        let value = u32::from_le_bytes([a, b, c, d]);
        let is_byte = value & 0x00ff_ffff == 0 && value >= 0xf000_0000;
        PageType { value, mask: if is_byte { 0xff00_0000 } else { u32::MAX } }
    }

    /// Whether a page with this `_mapcount` has the type.
    #[must_use]
    pub fn matches(self, mapcount: u32) -> bool {
        mapcount & self.mask == self.value
    }
}

impl KernelLayout {
    /// Reads it.
    ///
    /// # Errors
    /// [`SelectError::Missing`] and [`SelectError::Value`] name what is missing or impossible.
    pub fn new(info: &VmcoreInfo) -> Result<KernelLayout, SelectError> {
        let number = |name| info.number(name).ok_or(SelectError::Missing(name));
        let symbol = |name| info.symbol(name).ok_or(SelectError::Missing(name));
        let measure = |kind, name| info.measure(kind, name).ok_or(SelectError::Missing(name));
        let bounded = |name, value: usize, max: usize| match value {
            value if value > 0 && value <= max => Ok(value),
            value => Err(SelectError::Value(name, value as u64)),
        };

        let page_size = bounded("SIZE(page)", measure("SIZE", "page")?, PAGE_LEN)?;
        let field = |name, bytes| {
            let offset = measure("OFFSET", name)?;
            // A field at offset 0 is in place; what must not be is one that leaves the structure.
            let fits = offset.checked_add(bytes).is_some_and(|end| end <= page_size);
            if fits { Ok(offset) } else { Err(SelectError::Value(name, offset as u64)) }
        };
        let section_bits = number("SECTION_SIZE_BITS")?;
        if !(21..=40).contains(&section_bits) {
            return Err(SelectError::Value("SECTION_SIZE_BITS", section_bits));
        }
        let section_size = bounded("SIZE(mem_section)", measure("SIZE", "mem_section")?, PAGE_LEN)?;
        let section_mem_map = measure("OFFSET", "mem_section.section_mem_map")?;
        if section_mem_map.checked_add(8).is_none_or(|end| end > section_size) {
            return Err(SelectError::Value("OFFSET(mem_section.section_mem_map)", section_mem_map as u64));
        }
        let orders = bounded("LENGTH(zone.free_area)", measure("LENGTH", "zone.free_area")?, 32)?;
        Ok(KernelLayout {
            paging: Paging::new(info)?,
            section_roots: symbol("mem_section")?,
            section_root_count: measure("LENGTH", "mem_section")? as u64,
            section_size: section_size as u64,
            section_mem_map: section_mem_map as u64,
            section_pages: (1 << section_bits) / PAGE_SIZE,
            page_size,
            page_mapcount: field("page._mapcount", 4)?,
            page_private: field("page.private", 8)?,
            page_flags: field("page.flags", 8)?,
            buddy: PageType::new(number("PAGE_BUDDY_MAPCOUNT_VALUE")?),
            offline: info.number("PAGE_OFFLINE_MAPCOUNT_VALUE").map(PageType::new),
            hwpoison: info.number("PG_hwpoison").and_then(|bit| u32::try_from(bit).ok()).filter(|bit| *bit < 64),
            orders: orders as u64,
            zones: Zones::new(info),
        })
    }
}
