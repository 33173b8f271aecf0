#![allow(clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]
use std::collections::HashMap;

use dormouse_image::{PfnRange, PhysRange};
use dormouse_linux::vmcoreinfo::VmcoreInfo;
use proptest::prelude::*;

use super::*;
use crate::memory::arch::Paging;
use crate::memory::select::layout::PageType;
use crate::pipeline::seams::{Fate, PageFilter};

/// Recorded from Debian's own 6.1, the package linux-image-6.1.0-56-amd64.
const LINUX_6_1: &str = include_str!("testdata/vmcoreinfo-6.1.192.txt");
/// Recorded from a 6.11.11 with little more than `make tinyconfig` has.
const LINUX_6_11: &str = include_str!("testdata/vmcoreinfo-6.11.11.txt");
/// Recorded from the test kernel.
const LINUX_6_12: &str = include_str!("testdata/vmcoreinfo-6.12.117.txt");
/// Recorded from the second test kernel, which is for NUMA.
const LINUX_7_2: &str = include_str!("testdata/vmcoreinfo-7.2.12.txt");

const ROOTS: u64 = 0xff49_afbb_9fde_4000;
const SECTIONS: u64 = 0xff49_afbb_9fdf_0000;
const VMEMMAP: u64 = 0xffae_bafb_0000_0000;
const BUDDY: u32 = 0xf000_0000;

/// A stopped kernel's memory, by page frame.
struct Memory(HashMap<u64, Vec<u8>>);

impl Physical for Memory {
    fn look<T>(&self, address: u64, len: u64, look: impl FnOnce(&[u8]) -> T) -> Result<T, SelectError> {
        let source = std::io::ErrorKind::NotFound;
        let page = self.0.get(&(address / 4096)).ok_or(SelectError::Memory { address, source: source.into() })?;
        let at = usize::try_from(address % 4096).unwrap();
        Ok(look(&page[at..4096.min(at + usize::try_from(len).unwrap())]))
    }
}

impl Memory {
    fn put(&mut self, address: u64, bytes: &[u8]) {
        let at = usize::try_from(address % 4096).unwrap();
        let page = self.0.entry(address / 4096).or_insert_with(|| vec![0; 4096]);
        page[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn put_word(&mut self, address: u64, word: u64) {
        self.put(address, &word.to_le_bytes());
    }

    fn word(&self, address: u64) -> u64 {
        let mut bytes = [0; 8];
        self.read(address, &mut bytes).map_or(0, |()| u64::from_le_bytes(bytes))
    }

    /// Maps the page at virtual address `from` to physical address `to`, in 4 KiB pages.
    fn map(&mut self, layout: &KernelLayout, from: u64, to: u64) {
        let mut table = layout.paging.page_table;
        for level in (2..=layout.paging.levels).rev() {
            let slot = table + ((from >> (12 + 9 * (level - 1))) & 511) * 8;
            if self.word(slot) & 1 == 0 {
                let next = 0x10_0000 + self.0.len() as u64 * 4096;
                self.put_word(next, 0);
                self.put_word(slot, next | 0x63);
            }
            table = self.word(slot) & 0x000f_ffff_ffff_f000;
        }
        self.put_word(table + ((from >> 12) & 511) * 8, to | 1 << 63 | 0x63);
    }

    /// Writes the `struct page` of a page frame. The array lies in physical memory from 2 MiB on, each other page of it
    /// the wrong way round.
    fn page(&mut self, layout: &KernelLayout, pfn: u64, flags: u64, mapcount: u32, private: u64) {
        let at = pfn * layout.page_size as u64;
        let physical = |at: u64| 0x20_0000 + (at ^ 4096);
        for at in [at, at + layout.page_size as u64 - 1] {
            self.map(layout, VMEMMAP + at / 4096 * 4096, physical(at) / 4096 * 4096);
            // Pages without a field exist too.
            self.put(physical(at), &[]);
        }
        self.put_word(physical(at + layout.page_flags as u64), flags);
        self.put(physical(at + layout.page_mapcount as u64), &mapcount.to_le_bytes());
        self.put_word(physical(at + layout.page_private as u64), private);
    }
}

fn layout(levels: u32) -> KernelLayout {
    let info = VmcoreInfo::parse(LINUX_6_12.as_bytes());
    let known = KernelLayout::new(&info).unwrap();
    KernelLayout { paging: Paging { page_table: 0x1000, levels, ..known.paging }, section_roots: ROOTS, ..known }
}

/// A kernel with `pages` pages in one section, none of them free.
fn kernel(levels: u32, pages: u64) -> (Memory, KernelLayout) {
    kernel_of(layout(levels), pages)
}

fn kernel_of(layout: KernelLayout, pages: u64) -> (Memory, KernelLayout) {
    let mut memory = Memory(HashMap::new());
    memory.map(&layout, ROOTS, 0x3000);
    memory.put_word(0x3000, SECTIONS);
    memory.map(&layout, SECTIONS, 0x4000);
    memory.put_word(0x4000, VMEMMAP | 0xf);
    for pfn in 0..pages {
        memory.page(&layout, pfn, 0, u32::MAX, 0);
    }
    (memory, layout)
}

fn fates(selection: &Selection, pages: u64) -> String {
    (0..pages)
        .map(|pfn| match selection.fate(pfn) {
            Fate::Store => 's',
            Fate::Zero => '.',
            Fate::Leave => '!',
        })
        .collect()
}

#[test]
fn free_blocks_are_found_and_whatever_is_odd_is_stored() {
    for levels in [4, 5] {
        let (mut memory, layout) = kernel(levels, 64);
        let hwpoison = KernelLayout { hwpoison: Some(21), ..layout.clone() };
        memory.page(&layout, 4, 0, BUDDY, 2);
        memory.page(&layout, 8, 0, BUDDY, 0);
        // The low 24 bits of a page's type are not part of it.
        memory.page(&layout, 9, 0, BUDDY | 0x1234, 0);
        // Not aligned to its order; an order that there is not; a type that is not free; offline; poisoned.
        memory.page(&layout, 14, 0, BUDDY, 2);
        memory.page(&layout, 16, 0, BUDDY, 11);
        memory.page(&layout, 20, 0, 0xf500_0000, 0);
        memory.page(&layout, 24, 0, 0xf100_0000, 0);
        memory.page(&layout, 25, 1 << 21, BUDDY, 0);
        // A block that is longer than the memory.
        memory.page(&layout, 32, 0, BUDDY, 5);
        let ram = [PfnRange { start: 1, end: 40 }];
        let selection = select(&memory, &hwpoison, &ram, &SwapMap::nothing(), Fate::Zero, 2).unwrap();
        assert_eq!(fates(&selection, 41), "ssss......ssssssssssssss!!ssssss........s");
        assert_eq!(selection.free_fate(), Fate::Zero);
        let selection = select(&memory, &hwpoison, &ram, &SwapMap::nothing(), Fate::Leave, 2).unwrap();
        assert_eq!(fates(&selection, 41), "ssss!!!!!!ssssssssssssss!!ssssss!!!!!!!!s");
        assert_eq!(selection.free_fate(), Fate::Leave);
        assert_eq!(selection.free_pages(), 14);
    }
}

#[test]
fn a_struct_page_that_crosses_into_another_page_is_read_whole() {
    // 4096 is no multiple of 72: the 56th lies in both.
    let (mut memory, layout) = kernel_of(KernelLayout { page_size: 72, ..layout(4) }, 300);
    for pfn in [55, 56, 57, 113, 299] {
        memory.page(&layout, pfn, 0, BUDDY, 0);
    }
    let ram = [PfnRange { start: 0, end: 300 }];
    let selection = select(&memory, &layout, &ram, &SwapMap::nothing(), Fate::Leave, 2).unwrap();
    let free: Vec<u64> = (0..300).filter(|pfn| selection.fate(*pfn) == Fate::Leave).collect();
    assert_eq!(free, [55, 56, 57, 113, 299]);
}

#[test]
fn long_free_blocks_are_left_out_up_to_their_last_page() {
    for order in 1..11 {
        let first = 1 << order;
        // Only the first page of a block says that it is free; the others are not looked at.
        let (mut memory, layout) = kernel(4, first + 1);
        memory.page(&layout, first, 0, BUDDY, order);
        let ram = [PfnRange { start: 1, end: 2 * first }];
        let selection = select(&memory, &layout, &ram, &SwapMap::nothing(), Fate::Leave, 2).unwrap();
        let free: Vec<u64> = (0..2 * first + 70).filter(|pfn| selection.fate(*pfn) == Fate::Leave).collect();
        assert_eq!(free, (first..2 * first).collect::<Vec<u64>>(), "{order}");
        assert_eq!(selection.free_pages(), first);
    }
}

#[test]
fn a_free_page_of_the_region_is_left_out_where_its_content_is_now() {
    let (mut memory, layout) = kernel(4, 64);
    memory.page(&layout, 48, 0, BUDDY, 1);
    let mut lists = Memory(HashMap::new());
    let swapped = swapped(40, 48, &mut lists, &[60, 20]);
    let map = SwapMap::find(&lists, 0x9000, swapped).unwrap();
    let selection = select(&memory, &layout, &[PfnRange { start: 1, end: 64 }], &map, Fate::Zero, 2).unwrap();
    assert_eq!(selection.fate(20), Fate::Zero);
    assert_eq!(selection.fate(48), Fate::Store);
    assert_eq!(selection.fate(49), Fate::Zero);
}

#[test]
fn a_list_of_swapped_pages_that_leads_out_of_memory_stops_the_selection() {
    let (memory, layout) = kernel(4, 64);
    let ram = [PfnRange { start: 1, end: 64 }];
    for (source, is_memory) in [(63, true), (40, true), (0, false), (64, false), (1 << 51, false)] {
        let mut lists = Memory(HashMap::new());
        let swapped = swapped(40, 48, &mut lists, &[60, source]);
        let map = SwapMap::find(&lists, 0x9000, swapped).unwrap();
        match select(&memory, &layout, &ram, &map, Fate::Leave, 2) {
            Ok(_) => assert!(is_memory, "{source:#x}"),
            Err(error) => assert!(!is_memory && matches!(error, SelectError::Holder(pfn) if pfn == source), "{error}"),
        }
    }
}

#[test]
fn a_section_that_is_absent_or_offline_is_stored() {
    for coded in [0, VMEMMAP | 0b1011] {
        let (mut memory, layout) = kernel(4, 64);
        memory.page(&layout, 4, 0, BUDDY, 2);
        memory.put_word(0x4000, coded);
        let selection =
            select(&memory, &layout, &[PfnRange { start: 0, end: 64 }], &SwapMap::nothing(), Fate::Leave, 2).unwrap();
        assert_eq!(selection.free_pages(), 0);
    }
}

#[test]
fn data_that_cannot_be_reached_stop_the_selection() {
    let (memory, layout) = kernel(4, 64);
    let beyond = [PfnRange { start: 0, end: 65 }];
    assert!(matches!(
        select(&memory, &layout, &beyond, &SwapMap::nothing(), Fate::Leave, 2),
        Err(SelectError::Unmapped(_))
    ));
    let elsewhere = KernelLayout { paging: Paging { page_table: 0xdead_0000, ..layout.paging }, ..layout };
    let ram = [PfnRange { start: 0, end: 64 }];
    assert!(matches!(
        select(&memory, &elsewhere, &ram, &SwapMap::nothing(), Fate::Leave, 2),
        Err(SelectError::Memory { .. })
    ));
}

/// A balloon gives its pages back after the kernel has reported a count: what counts then is what its free lists have.
#[test]
fn the_kernels_own_count_is_believed_before_the_one_that_it_reported() {
    let (mut memory, layout) = kernel(4, 64);
    // As the recorded VMCOREINFO has it: the node, its zones, and their free lists.
    let node = 0xffff_ffff_ba4d_6040;
    memory.map(&layout, node & !0xfff, 0x9000);
    let mut put = |offset: u64, word: u64| memory.put_word(0x9040 + offset, word);
    put(3712, 0xffff_ffff_0000_0002);
    let blocks = |zone: u64, order: u64| zone * 1216 + 192 + (order + 1) * 72 - 8;
    put(blocks(0, 0), 3);
    put(blocks(1, 10), 40);
    // This zone is none any more.
    put(blocks(2, 0), 1_000_000);
    memory.page(&layout, 0, 0, BUDDY, 5);
    let ram = [PfnRange { start: 0, end: 64 }];
    let select = |memory: &Memory| select(memory, &layout, &ram, &SwapMap::nothing(), Fate::Leave, 2).unwrap();
    let error = select(&memory).check(32, 64).unwrap_err();
    assert!(matches!(error, SelectError::Count { found: 32, expected: 40_963 }), "{error}");
    memory.put_word(0x9040 + blocks(1, 10), 0);
    assert!(select(&memory).check(100_000, 64).is_ok());
    // Without it, the reported one is all there is.
    memory.put_word(0x9040 + 3712, 17);
    assert!(matches!(select(&memory).check(100_000, 64), Err(SelectError::Count { expected: 100_000, .. })));
}

/// A kernel for NUMA has a table of nodes.
#[test]
fn free_lists_of_every_node_are_counted() {
    let text = format!("{LINUX_6_12}SYMBOL(node_data)=ffffffffba4d7000\nLENGTH(node_data)=4\n");
    let layout = KernelLayout {
        paging: layout(4).paging,
        section_roots: ROOTS,
        ..KernelLayout::new(&VmcoreInfo::parse(text.as_bytes())).unwrap()
    };
    let (mut memory, layout) = kernel_of(layout, 64);
    let nodes = [0xff11_0000_0000_1000, 0xff11_0000_0000_3000];
    memory.map(&layout, 0xffff_ffff_ba4d_7000, 0x9000);
    for (number, node) in (0..).zip(nodes) {
        memory.map(&layout, node, 0xa000 + number * 0x1000);
        memory.put_word(0x9000 + number * 16, node);
        memory.put_word(0xa000 + number * 0x1000 + 3712, 1);
        memory.put_word(0xa000 + number * 0x1000 + 192 + 72 * 11 - 8, 20);
    }
    let ram = [PfnRange { start: 0, end: 64 }];
    let selection = select(&memory, &layout, &ram, &SwapMap::nothing(), Fate::Leave, 2).unwrap();
    assert!(matches!(selection.check(0, 64), Err(SelectError::Count { expected: 40_960, .. })));
}

#[test]
fn a_count_that_is_far_off_stops_the_selection() {
    let (mut memory, layout) = kernel(4, 64);
    memory.page(&layout, 0, 0, BUDDY, 5);
    let selection =
        select(&memory, &layout, &[PfnRange { start: 0, end: 64 }], &SwapMap::nothing(), Fate::Leave, 2).unwrap();
    assert!(selection.check(32 + 4096, 64).is_ok());
    let error = selection.check(100_000, 64).unwrap_err();
    assert!(matches!(error, SelectError::Count { found: 32, expected: 100_000 }), "{error}");
}

#[test]
fn kernels_of_each_kind_mark_their_free_pages() {
    // What the pages of these kernels hold in `_mapcount`: free ones, offline ones, and slabs (which 6.1 marks
    // elsewhere).
    for (note, free, offline, slab) in [
        (LINUX_6_1, 0xffff_ff7f_u32, 0xffff_feff, None),
        (LINUX_6_11, 0xbfff_ffff, 0xdfff_ffff, Some(0xfdff_ffff)),
        (LINUX_6_12, 0xf000_0000, 0xf100_0000, Some(0xf500_0000)),
        (LINUX_7_2, 0xf000_0000, 0xf100_0000, Some(0xf500_0000)),
    ] {
        let info = VmcoreInfo::parse(note.as_bytes());
        let release = info.text("OSRELEASE").unwrap();
        let layout = KernelLayout::new(&info).unwrap();
        let types = |mapcount| (layout.buddy.matches(mapcount), layout.offline.unwrap().matches(mapcount));
        assert_eq!(types(free), (true, false), "{release}");
        assert_eq!(types(offline), (false, true), "{release}");
        let number = info.number("PAGE_SLAB_MAPCOUNT_VALUE").map(PageType::new);
        assert_eq!(number, slab.map(|slab| PageType::new(u64::from(slab))), "{release}");
        // Mapped once or never, by many, underflowed, and other types.
        for in_use in [0, u32::MAX, 1, 0xffff_fffe, 0x7fff_ffff].into_iter().chain(slab) {
            assert_eq!(types(in_use), (false, false), "{release} {in_use:#x}");
        }
    }
}

#[test]
fn recorded_vmcoreinfos_of_older_kernels_give_their_layouts() {
    let layout = KernelLayout::new(&VmcoreInfo::parse(LINUX_6_1.as_bytes())).unwrap();
    // Debian's kernel has page extensions, so that a section takes 32 bytes, and a phys_base below zero.
    assert_eq!(
        (layout.section_roots, layout.section_root_count, layout.section_size),
        (0xff37_f4ee_1fbd_0000, 262_144, 32)
    );
    assert_eq!((layout.paging.page_table, layout.paging.levels, layout.hwpoison), (0x12c1_0000, 5, Some(23)));
    assert_eq!((layout.page_size, layout.page_mapcount, layout.page_private, layout.orders), (64, 48, 40, 11));

    let layout = KernelLayout::new(&VmcoreInfo::parse(LINUX_6_11.as_bytes())).unwrap();
    assert_eq!(
        (layout.section_roots, layout.section_root_count, layout.section_size),
        (0xff29_52fe_bfcf_b000, 131_072, 16)
    );
    assert_eq!((layout.paging.page_table, layout.paging.levels, layout.hwpoison), (0x3b82_b000, 5, None));
    assert_eq!((layout.page_size, layout.page_mapcount, layout.page_private, layout.orders), (64, 48, 40, 11));
}

/// In 7.2 the allocator has a list more for each order, and `page.compound_head` another name.
#[test]
fn the_recorded_vmcoreinfo_of_7_2_gives_its_layout() {
    let layout = KernelLayout::new(&VmcoreInfo::parse(LINUX_7_2.as_bytes())).unwrap();
    assert_eq!(
        (layout.section_roots, layout.section_root_count, layout.section_size),
        (0xff27_b60d_7cc8_5000, 131_072, 16)
    );
    assert_eq!((layout.page_size, layout.page_mapcount, layout.page_private, layout.orders), (64, 48, 40, 11));
    assert_eq!((layout.paging.page_table, layout.paging.levels, layout.hwpoison), (0x39a2_d000, 5, None));
}

#[test]
fn a_recorded_vmcoreinfo_gives_the_layout() {
    let layout = KernelLayout::new(&VmcoreInfo::parse(LINUX_6_12.as_bytes())).unwrap();
    assert_eq!((layout.section_roots, layout.section_root_count), (ROOTS, 131_072));
    assert_eq!((layout.section_pages, layout.section_size, layout.orders), (32_768, 16, 11));
    assert_eq!((layout.page_size, layout.page_mapcount, layout.page_private), (64, 48, 40));
    assert!(layout.buddy.matches(BUDDY) && layout.offline.unwrap().matches(0xf100_0000));
    assert_eq!(layout.paging.levels, 5);
}

#[test]
fn a_vmcoreinfo_that_lacks_something_or_lies_is_refused() {
    for key in ["SYMBOL(mem_section)", "SIZE(page)", "NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)", "NUMBER(phys_base)"] {
        let text: Vec<&str> = LINUX_6_12.lines().filter(|line| !line.starts_with(key)).collect();
        let error = KernelLayout::new(&VmcoreInfo::parse(text.join("\n").as_bytes())).unwrap_err();
        assert!(matches!(error, SelectError::Missing(_)), "{key}: {error}");
    }
    for lie in [
        "SIZE(page)=0",
        "SIZE(page)=5000",
        "OFFSET(page._mapcount)=61",
        "NUMBER(SECTION_SIZE_BITS)=64",
        "SIZE(mem_section)=0",
        "LENGTH(zone.free_area)=64",
        "OFFSET(mem_section.section_mem_map)=9",
    ] {
        let text = format!("{lie}\n{LINUX_6_12}");
        let error = KernelLayout::new(&VmcoreInfo::parse(text.as_bytes())).unwrap_err();
        assert!(matches!(error, SelectError::Value(..)), "{lie}: {error}");
    }
}

/// Writes a list that swaps one page each at the page frames `low` and `region`, with these sources, hung off the
/// control page at 0x9000.
fn swapped(low: u64, region: u64, memory: &mut Memory, sources: &[u64]) -> Swapped<'static> {
    let range = |pfn: u64| PhysRange { start: pfn * 4096, end: (pfn + 1) * 4096 };
    memory.put_word(0x9000 + 0x830, 0xa000 | 2);
    let mut entries = Vec::new();
    for (pfn, part) in [low, region].into_iter().zip(sources.chunks(sources.len() / 2)) {
        entries.push((pfn * 4096) | 1);
        entries.extend(part.iter().map(|source| (source * 4096) | 8));
    }
    // The second page of the list holds its end.
    entries.push(0xb000 | 2);
    for (at, entry) in entries.iter().enumerate() {
        memory.put_word(0xa000 + at as u64 * 8, *entry);
    }
    memory.put_word(0xb000, 4);
    Swapped { low: vec![range(low)].leak(), region: range(region) }
}

#[test]
fn the_swap_map_is_found_and_followed() {
    let mut memory = Memory(HashMap::new());
    // Other words of the control page look like lists, and are not.
    memory.put_word(0x9000, 0x9000 | 2);
    memory.put_word(0x9008, 0xdead_b000 | 2);
    let swapped = swapped(1, 0x1000, &mut memory, &[700, 800]);
    let map = SwapMap::find(&memory, 0x90f2, swapped).unwrap();
    assert_eq!([map.holder(1), map.holder(0x1000), map.holder(2), map.holder(700)], [700, 800, 2, 700]);
    let holders = |start, end| map.holders(PfnRange { start, end });
    assert_eq!(holders(1, 9), PfnRange { start: 700, end: 701 });
    assert_eq!(holders(2, 9), PfnRange { start: 2, end: 9 });
    assert_eq!(holders(2, 0x1009), PfnRange { start: 2, end: 0x1000 });
    assert_eq!(holders(0x1001, 0x1009), PfnRange { start: 0x1001, end: 0x1009 });
}

#[test]
fn a_region_that_can_only_be_claimed_costs_neither_memory_nor_time() {
    let mut memory = Memory(HashMap::new());
    let swapped = swapped(1, 0x1000, &mut memory, &[700, 800]);
    let claimed = Swapped { region: PhysRange { end: 1 << 52, ..swapped.region }, ..swapped };
    assert!(matches!(SwapMap::find(&memory, 0x90f2, claimed), Err(SelectError::NoSwapMap(0x9000))));
}

#[test]
fn a_list_that_is_not_exactly_the_loaded_one_is_not_believed() {
    type Change = fn(&mut Memory);
    let cases: [Change; 6] = [
        |memory| memory.put_word(0xa000, 0x2000 | 1),
        |memory| memory.put_word(0xa008, 0x7000 | 1),
        |memory| memory.put_word(0xa020, 0xa000 | 2),
        |memory| memory.put_word(0xb000, 0x3000 | 8),
        |memory| memory.put_word(0xa018, 4),
        |memory| memory.put_word(0xb000, 0x40),
    ];
    for (number, change) in cases.into_iter().enumerate() {
        let mut memory = Memory(HashMap::new());
        let swapped = swapped(1, 0x1000, &mut memory, &[700, 800]);
        change(&mut memory);
        let result = SwapMap::find(&memory, 0x90f2, swapped);
        assert!(matches!(result, Err(SelectError::NoSwapMap(0x9000))), "{number}: {result:?}");
    }
}

/// The map that swaps `low` and `region`, whose pages are held by `sources` now.
fn swap_map(low: PfnRange, region: PfnRange, sources: &[u64]) -> SwapMap {
    let mut memory = Memory(HashMap::new());
    memory.put_word(0x9000 + 0x830, 0xa000 | 2);
    let mut entries = Vec::new();
    let mut sources = sources.iter();
    for range in [low, region] {
        entries.push((range.start * 4096) | 1);
        entries.extend(sources.by_ref().take((range.end - range.start) as usize).map(|pfn| (pfn * 4096) | 8));
    }
    entries.push(4);
    for (at, entry) in entries.iter().enumerate() {
        memory.put_word(0xa000 + at as u64 * 8, *entry);
    }
    let bytes = |range: PfnRange| PhysRange { start: range.start * 4096, end: range.end * 4096 };
    let low = [bytes(low)];
    SwapMap::find(&memory, 0x9000, Swapped { low: &low, region: bytes(region) }).unwrap()
}

/// Sections of the machines that are made up, and the pages of one.
const MADE_UP: usize = 12;
const MADE_UP_PAGES: u64 = 64;
/// The hwpoison bit of their kernels.
const POISON: u32 = 21;

/// What a made-up `struct page` says.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Used,
    Free(u64),
    /// Marked as free, and poisoned.
    Poisoned,
    Offline,
}

/// Sections that are present, with an array, and online; without one of these; and none.
fn section_flags() -> impl Strategy<Value = u64> {
    prop_oneof![4 => Just(0xf_u64), 1 => Just(0b1011), 1 => Just(0b1110), 1 => Just(0)]
}

fn kinds() -> impl Strategy<Value = Vec<(u64, Kind)>> {
    let kind = prop_oneof![
        // Also orders that there are not, and blocks that reach beyond their section.
        8 => (0..12_u64).prop_map(Kind::Free),
        1 => Just(Kind::Poisoned),
        1 => Just(Kind::Offline),
    ];
    // Aligned ones, others, and whatever lies inside of free blocks.
    let pfn = (0..MADE_UP as u64 * MADE_UP_PAGES, 0..7_u32).prop_map(|(pfn, zeroes)| pfn >> zeroes << zeroes);
    proptest::collection::vec((pfn, kind), 0..120)
}

/// Three ranges of memory with gaps between them.
fn made_up_ram() -> impl Strategy<Value = Vec<PfnRange>> {
    let points = proptest::collection::btree_set(0..=MADE_UP as u64 * MADE_UP_PAGES, 6);
    points.prop_map(|points| {
        let points: Vec<u64> = points.into_iter().collect();
        points.chunks(2).map(|pair| PfnRange { start: pair[0], end: pair[1] }).collect()
    })
}

/// The fates of the pages of a made-up machine, found page by page, and how many are free.
fn page_by_page(ram: &[PfnRange], flags: &[u64], kinds: &[Kind], map: &SwapMap, orders: u64) -> (Vec<Fate>, u64) {
    let mut fates = vec![Fate::Store; kinds.len()];
    let (mut free, mut untouchable) = (Vec::new(), Vec::new());
    for range in ram {
        let mut block_end = 0;
        for pfn in range.start..range.end {
            if pfn % MADE_UP_PAGES == 0 {
                block_end = 0;
            }
            if flags[(pfn / MADE_UP_PAGES) as usize] & 5 != 5 {
                continue;
            }
            if pfn >= block_end {
                match kinds[pfn as usize] {
                    Kind::Free(order) if order < orders && pfn % (1 << order) == 0 => block_end = pfn + (1 << order),
                    Kind::Poisoned | Kind::Offline => untouchable.push(map.holder(pfn)),
                    _ => {}
                }
            }
            if pfn < block_end {
                free.push(map.holder(pfn));
            }
        }
    }
    free.iter().for_each(|pfn| fates[*pfn as usize] = Fate::Zero);
    untouchable.iter().for_each(|pfn| fates[*pfn as usize] = Fate::Leave);
    (fates, free.len() as u64)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_number_of_threads_finds_what_is_found_page_by_page(
        flags in proptest::collection::vec(section_flags(), MADE_UP),
        list in kinds(),
        ram in made_up_ram(),
        swapped in (0..150_u64, 1..20_u64, 300..400_u64, 1..200_u64),
        seed in any::<u64>(),
    ) {
        let layout = KernelLayout { section_pages: MADE_UP_PAGES, hwpoison: Some(POISON), ..layout(4) };
        let (mut memory, layout) = kernel_of(layout, MADE_UP as u64 * MADE_UP_PAGES);
        for (section, flags) in (0..).zip(&flags) {
            memory.put_word(0x4000 + section * layout.section_size, if *flags == 0 { 0 } else { VMEMMAP | flags });
        }
        let mut kinds = vec![Kind::Used; MADE_UP * MADE_UP_PAGES as usize];
        list.iter().for_each(|(pfn, kind)| kinds[*pfn as usize] = *kind);
        for (pfn, kind) in (0..).zip(&kinds) {
            match kind {
                Kind::Used => {}
                Kind::Free(order) => memory.page(&layout, pfn, 0, BUDDY, *order),
                Kind::Poisoned => memory.page(&layout, pfn, 1 << POISON, BUDDY, 0),
                Kind::Offline => memory.page(&layout, pfn, 0, 0xf100_0000, 0),
            }
        }
        let (low, low_pages, region, region_pages) = swapped;
        let low = PfnRange { start: low, end: low + low_pages };
        let region = PfnRange { start: region, end: region + region_pages };
        // Anywhere in memory, also in what is swapped.
        let all: Vec<u64> = ram.iter().flat_map(|range| range.start..range.end).collect();
        let number = |at: u64| seed.rotate_left((at % 64) as u32).wrapping_mul(at | 1);
        let source = |at: u64| all[(number(at) % all.len() as u64) as usize];
        let sources: Vec<u64> = (0..low_pages + region_pages).map(source).collect();
        let map = swap_map(low, region, &sources);

        let (fates, free) = page_by_page(&ram, &flags, &kinds, &map, layout.orders);
        let [one, others @ ..] =
            [1, 2, 5].map(|threads| select(&memory, &layout, &ram, &map, Fate::Zero, threads).unwrap());
        prop_assert_eq!(one.free_pages(), free);
        prop_assert!(others.iter().all(|other| *other == one));
        let found: Vec<Fate> = (0..fates.len() as u64).map(|pfn| one.fate(pfn)).collect();
        prop_assert_eq!(&found, &fates);
        let (mut start, end) = (0, fates.len() as u64);
        while start < end {
            let (fate, pages) = one.run(PfnRange { start, end });
            prop_assert!(pages > 0 && start + pages <= end);
            prop_assert!(fates[start as usize..(start + pages) as usize].iter().all(|other| *other == fate));
            start += pages;
        }
    }

    #[test]
    fn no_memory_makes_it_panic(words in proptest::collection::vec((0_u64..0x6000, any::<u64>()), 0..40)) {
        let (mut memory, layout) = kernel(4, 8);
        for (at, word) in words {
            memory.put_word(at / 8 * 8, word);
        }
        let _ = select(&memory, &layout, &[PfnRange { start: 0, end: 8 }], &SwapMap::nothing(), Fate::Leave, 2);
    }

    #[test]
    fn no_text_makes_the_layout_panic(text in "[A-Z()=_.a-z0-9\n-]{0,300}") {
        let _ = KernelLayout::new(&VmcoreInfo::parse(text.as_bytes()));
    }
}
