#![allow(clippy::unwrap_used, clippy::panic)]
use dormouse_image::{Label, PhysRange, SessionRecord, State, Uuid};
use dormouse_linux::vmcoreinfo::VmcoreInfo;

use super::*;
use crate::cycle::export::memory::Segment;
use crate::memory::arch::{KERNEL_MAP, Paging};
use crate::memory::select::Physical;
use crate::pipeline::seams::PageSink;
use crate::store::{Disk, Image};

const RELEASE: &str = "6.12.117";
const VERSION: &str = "#1 SMP PREEMPT_DYNAMIC";

fn range(start: u64, end: u64) -> PfnRange {
    PfnRange { start, end }
}

/// A file of memory in which the tests write by physical address.
struct Memory(MemoryFile);

impl Memory {
    fn new(ranges: &[PfnRange]) -> Memory {
        Memory(MemoryFile::new(tempfile::tempfile().unwrap(), 0x3000, ranges).unwrap())
    }

    /// Writes as the pipeline does.
    fn put(&self, address: u64, bytes: &[u8]) {
        let pfn = address / PAGE_SIZE;
        let at = usize::try_from(address % PAGE_SIZE).unwrap();
        let mut page = self.page(pfn);
        page[at..at + bytes.len()].copy_from_slice(bytes);
        self.0.write(range(pfn, pfn + 1), |bytes| bytes.copy_from_slice(&page)).unwrap();
    }

    fn put_word(&self, address: u64, word: u64) {
        self.put(address, &word.to_le_bytes());
    }

    fn page(&self, pfn: u64) -> Vec<u8> {
        let mut page = vec![0; 4096];
        self.0.read(pfn * PAGE_SIZE, &mut page).unwrap();
        page
    }

    fn word(&self, address: u64) -> u64 {
        let mut bytes = [0; 8];
        self.0.read(address, &mut bytes).unwrap();
        u64::from_le_bytes(bytes)
    }

    /// What a page was filled with, if all of it was.
    fn filled_with(&self, pfn: u64) -> Option<u8> {
        let page = self.page(pfn);
        page.iter().all(|byte| *byte == page[0]).then_some(page[0])
    }

    fn fill(&self, pfn: u64, value: u8) {
        self.0.write(range(pfn, pfn + 1), |bytes| bytes.fill(value)).unwrap();
    }

    fn bytes_on_disk(&self) -> u64 {
        self.0.finish().unwrap()
    }
}

#[test]
fn every_page_is_at_its_place_and_zero_pages_are_holes() {
    let memory = Memory::new(&[range(0x1000, 0x9000), range(0x100, 0x1000), range(0x2_0000, 0x2_0010)]);
    let segments = [
        Segment { frames: range(0x100, 0x9000), offset: 0x3000 },
        Segment { frames: range(0x2_0000, 0x2_0010), offset: 0x3000 + 0x8f00 * 4096 },
    ];
    assert_eq!(memory.0.segments(), segments);
    // Across ranges that touch; a zero page between others; a run that is all zero.
    let run = range(0xfff, 0x1003);
    let fill = |bytes: &mut [u8]| bytes.chunks_mut(4096).zip([7, 0, 8, 9]).for_each(|(page, value)| page.fill(value));
    memory.0.write(run, fill).unwrap();
    memory.0.write(range(0x2000, 0x8000), |bytes| bytes.fill(0)).unwrap();
    memory.fill(0x2_000f, 5);
    for (pfn, value) in [(0xfff, 7), (0x1000, 0), (0x1001, 8), (0x1002, 9), (0x2000, 0), (0x2_000f, 5), (0x100, 0)] {
        assert_eq!(memory.filled_with(pfn), Some(value), "{pfn:#x}");
    }
    assert!(memory.bytes_on_disk() <= 64 << 10, "{}", memory.bytes_on_disk());
}

#[test]
fn ranges_outside_memory_are_neither_written_nor_read() {
    let memory = Memory::new(&[range(0x100, 0x1000), range(0x2000, 0x3000)]);
    for run in [range(0xff, 0x101), range(0xfff, 0x1001), range(0xfff, 0x2001), range(0x3000, 0x3001)] {
        assert!(memory.0.write(run, |_| ()).is_err(), "{run:?}");
        assert_eq!(memory.0.offset(run), None);
    }
    assert!(memory.0.read(0x1000 * 4096, &mut [0; 8]).is_err());
}

/// Low memory is page frame 1 to 3, the region 0x1000 to 0x1400. The control page is 0x20, the list begins at 0x21.
const SWAPPED: Swapped<'_> = Swapped {
    low: &[PhysRange { start: 0x1000, end: 0x3000 }],
    region: PhysRange { start: 0x100_0000, end: 0x140_0000 },
};
const ENTRY: u64 = 0x2_00f2;

/// Memory after a jump, with `holder` saying where the swapped pages are.
fn jumped(holder: impl Fn(u64) -> u64) -> Memory {
    let memory = Memory::new(&[range(1, 3), range(0x20, 0x1000), range(0x1000, 0x1400), range(0x1400, 0x3000)]);
    let mut entries = Vec::new();
    for swapped in SWAPPED.low.iter().chain([&SWAPPED.region]) {
        entries.push(swapped.start | 1);
        entries.extend((swapped.frames().start..swapped.frames().end).map(|pfn| (holder(pfn) * 4096) | 8));
    }
    entries.push(4);
    // Each page of the list but the last ends with a pointer to the next.
    let mut page = 0x2_1000;
    memory.put_word(ENTRY / 4096 * 4096 + 0x830, page | 2);
    for part in entries.chunks(511) {
        for (at, entry) in (page..).step_by(8).zip(part.iter().copied().chain([(page + 4096) | 2])) {
            memory.put_word(at, entry);
        }
        page += 4096;
    }
    memory
}

fn unswap(memory: &Memory) -> io::Result<()> {
    memory.0.unswap(&SwapMap::find(&memory.0, ENTRY, SWAPPED).unwrap(), SWAPPED)
}

#[test]
fn swapped_pages_are_put_back() {
    // Some together, some one by one and backwards, one in its own place.
    let holder = |pfn| match pfn {
        1 | 2 => 0x2fff - pfn,
        0x1040 => pfn,
        0x1000..0x1300 => pfn + 0x500,
        _ => 0x4000 - pfn,
    };
    let memory = jumped(holder);
    let swapped: Vec<u64> = (1..3).chain(0x1000..0x1400).collect();
    let value = |pfn: u64| u8::try_from(pfn % 251).unwrap();
    for pfn in swapped.iter().filter(|pfn| holder(**pfn) != **pfn) {
        memory.fill(holder(*pfn), value(*pfn));
    }
    memory.fill(0x100, 77);
    let before = memory.bytes_on_disk();
    unswap(&memory).unwrap();
    for pfn in swapped {
        let expected = if holder(pfn) == pfn { 0 } else { value(pfn) };
        assert_eq!(memory.filled_with(pfn), Some(expected), "{pfn:#x}");
        assert!(holder(pfn) == pfn || memory.filled_with(holder(pfn)) == Some(0), "{pfn:#x}");
    }
    assert_eq!(memory.filled_with(0x100), Some(77));
    // What is moved does not need twice the room.
    assert!(memory.bytes_on_disk() <= before + (64 << 10), "{before} {}", memory.bytes_on_disk());
}

#[test]
fn a_map_that_cannot_be_is_refused() {
    for wrong in [0x1010, 0x1f_0000, 0x10] {
        let memory = jumped(|pfn| if pfn == 0x1020 { wrong } else { pfn + 0x1800 });
        let error = unswap(&memory).unwrap_err().to_string();
        assert!(error.contains("not in the saved memory"), "{wrong:#x}: {error}");
    }
}

/// A kernel in memory: four levels of page tables at 2 MiB, its image at 4 MiB, which is mapped 16 MiB above the start
/// of all kernels, and a direct map.
struct Fixture {
    memory: Memory,
    tables: u64,
    info: String,
}

const IMAGE: u64 = 0x40_0000;
const STEXT: u64 = KERNEL_MAP + 0x100_0000;
const DIRECT_MAP: u64 = 0xffff_8880_0000_0000;

impl Fixture {
    fn new() -> Fixture {
        let mut fixture =
            Fixture { memory: Memory::new(&[range(0x100, 0x4000)]), tables: 0x20_0000, info: String::new() };
        // What is not needed any more, pages 8 to 11, is unmapped.
        for page in (0..8).chain(12..16) {
            fixture.map(STEXT + page * 4096, IMAGE + page * 4096);
        }
        fixture.map(DIRECT_MAP + 0x50_0000, 0x50_0000);
        fixture.map(DIRECT_MAP + 0x10_0000, 0x10_0000);
        // The kernel's names cross into the next page.
        let names = 5 * 4096 - 100;
        for (number, name) in ["Linux", "host", RELEASE, VERSION, "x86_64"].into_iter().enumerate() {
            for (at, byte) in (IMAGE + names + 65 * number as u64..).zip(name.bytes()) {
                fixture.memory.put(at, &[byte]);
            }
        }
        fixture.info = format!(
            "OSRELEASE={RELEASE}\nSYMBOL(init_uts_ns)={:x}\nOFFSET(uts_namespace.name)=0\nSYMBOL(_stext)={STEXT:x}\n\
             SYMBOL(mem_section)={:x}\nNUMBER(phys_base)=-12582912\nSYMBOL(init_top_pgt)={:x}\n\
             NUMBER(pgtable_l5_enabled)=0\nKERNELOFFSET=0\n",
            STEXT + names,
            DIRECT_MAP + 0x50_0000,
            KERNEL_MAP + 0x20_0000 + 0xc0_0000,
        );
        fixture
    }

    fn map(&mut self, from: u64, to: u64) {
        let memory = &self.memory;
        let mut table = 0x20_0000;
        for level in (2..=4).rev() {
            let slot = table + ((from >> (12 + 9 * (level - 1))) & 511) * 8;
            if memory.word(slot) & 1 == 0 {
                self.tables += 4096;
                memory.put_word(slot, self.tables | 0x63);
            }
            table = memory.word(slot) & 0x000f_ffff_ffff_f000;
        }
        memory.put_word(table + ((from >> 12) & 511) * 8, to | 1 << 63 | 0x63);
    }

    /// Puts a note with `text` at a page frame.
    fn note(&self, pfn: u64, text: &str) {
        let mut note = vec![11, 0, 0, 0];
        note.extend(u32::try_from(text.len()).unwrap().to_le_bytes());
        note.extend(b"\0\0\0\0VMCOREINFO\0\0");
        note.extend(text.as_bytes());
        for (at, part) in (pfn * 4096..).step_by(4096).zip(note.chunks(4096)) {
            self.memory.put(at, part);
        }
    }

    fn find(&self) -> Option<Kernel> {
        let (kernel_release, kernel_version) = (RELEASE.into(), VERSION.into());
        let header = SessionRecord { kernel_release, kernel_version, ..SessionRecord::default() };
        Kernel::find(&self.memory.0, &header, &self.memory.0.notes())
    }
}

#[test]
fn the_kernel_is_found_by_its_own_words() {
    let fixture = Fixture::new();
    // So long that it goes on in the next page.
    let text = format!("{}{}", fixture.info, "SIZE(page)=64\n".repeat(270));
    fixture.note(0x300, &text);
    let kernel = fixture.find().unwrap();
    assert_eq!(kernel.note.len(), 24 + text.len().next_multiple_of(4));
    assert!(kernel.note[24..].starts_with(text.as_bytes()));
    assert_eq!(kernel.paging, Paging { page_table: 0x20_0000, levels: 4, encryption_mask: 0 });
    assert_eq!(kernel.direct_map, Some(DIRECT_MAP));
    assert_eq!(kernel.image, Some((STEXT, range(0x400, 0x410))));
    let at = |start| kernel.virtual_address(&fixture.memory.0, &Segment { frames: range(start, start + 1), offset: 0 });
    assert_eq!((at(0x100), at(0x101)), (DIRECT_MAP + 0x10_0000, 0));
    assert!(VmcoreInfo::parse(&kernel.note[24..]).symbol("_stext").is_some());
}

#[test]
fn only_a_note_that_leads_to_the_saved_kernel_is_believed() {
    let fixture = Fixture::new();
    let stale = [
        // Another kernel; another place of the same kernel; one that does not name a place.
        fixture.info.replace("OSRELEASE=6.12.117", "OSRELEASE=6.12.116"),
        fixture.info.replace("NUMBER(phys_base)=-12582912", "NUMBER(phys_base)=-8388608"),
        fixture.info.replace("init_uts_ns)=ffffffff81", "init_uts_ns)=ffffffff91"),
        fixture.info.replace("SYMBOL(init_top_pgt)", "SYMBOL(nothing)"),
        "OSRELEASE=6.12.117\n".into(),
    ];
    for (pfn, text) in (0x310..).step_by(2).zip(&stale) {
        fixture.note(pfn, text);
    }
    assert_eq!(fixture.memory.0.notes().len(), stale.len());
    assert_eq!(fixture.find(), None);
    fixture.note(0x300, &fixture.info);
    let found = fixture.find().unwrap();
    assert!(found.note[24..].starts_with(fixture.info.as_bytes()));
    // An equal second one is as good; a different one leaves nothing certain.
    fixture.note(0x340, &fixture.info);
    assert_eq!(fixture.find(), Some(found));
    fixture.note(0x342, &fixture.info.replace("KERNELOFFSET=0", "KERNELOFFSET=1"));
    assert_eq!(fixture.find(), None);
}

#[test]
fn a_note_is_no_note_without_its_head() {
    let memory = Memory::new(&[range(0x100, 0x200)]);
    for (pfn, text) in [
        (0x100, &b"\x0b\0\0\0\x40\0\0\0\0\0\0\0VMCOREINFO\0\0OSRELEASE=6"[..]),
        (0x101, b"\x0b\0\0\0\x40\0\0\0\x01\0\0\0VMCOREINFO\0\0OSRELEASE=6"),
        (0x102, b"\x0c\0\0\0\x40\0\0\0\0\0\0\0VMCOREINFO\0\0OSRELEASE=6"),
        (0x103, b"\x0b\0\0\0\x40\0\0\0\0\0\0\0VMCOREINFX\0\0OSRELEASE=6"),
        (0x104, b"\x0b\0\0\0\x40\0\0\0\0\0\0\0VMCOREINFO\0\0\0\0\0\0"),
    ] {
        memory.put(pfn * 4096, text);
    }
    assert_eq!(memory.0.notes(), [0x100]);
}

#[test]
fn a_note_in_the_region_is_found_where_it_belongs() {
    let memory = jumped(|pfn| pfn + 0x1800);
    memory.put((0x1200 + 0x1800) * 4096, b"\x0b\0\0\0\x40\0\0\0\0\0\0\0VMCOREINFO\0\0OSRELEASE=6");
    memory.put(0x200 * 4096, b"\x0b\0\0\0\x40\0\0\0\0\0\0\0VMCOREINFO\0\0OSRELEASE=6");
    assert_eq!(memory.0.notes(), [0x200, 0x2a00]);
    unswap(&memory).unwrap();
    assert_eq!(memory.0.notes(), [0x200, 0x1200]);
}

#[test]
fn missing_kernel_facts_are_reported_and_the_rest_is_a_core() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let ranges = [range(1, 3), range(0x20, 0x30), range(0x1000, 0x1400)];
    let memory = MemoryFile::new(file.reopen().unwrap(), elf::room(3, kernel::NOTE_MAX).unwrap(), &ranges).unwrap();
    memory.write(range(0x2f, 0x30), |bytes| bytes.fill(9)).unwrap();
    let session = SessionRecord { low: SWAPPED.low.to_vec(), region: SWAPPED.region, ..SessionRecord::default() };
    let header = Header { session, entry: ENTRY };
    let lacks = describe(&memory, &header).unwrap();
    assert_eq!(lacks.len(), 2);
    assert!(lacks[0].contains("swapped") && lacks[1].contains("VMCOREINFO"), "{lacks:?}");
    let bytes = std::fs::read(file.path()).unwrap();
    let elf = goblin::elf::Elf::parse(&bytes).unwrap();
    assert_eq!(elf.program_headers.len(), 4);
    let load = elf.program_headers.iter().find(|header| header.p_paddr == 0x2_0000).unwrap();
    assert_eq!((load.p_vaddr, load.p_filesz), (0, 0x1_0000));
    assert_eq!(bytes[load.file_range()][0xf000..], [9; 4096]);
}

#[test]
fn an_image_without_a_session_is_refused_and_leaves_no_file() {
    let directory = tempfile::tempdir().unwrap();
    let (device, file) = (directory.path().join("device"), directory.path().join("core"));
    std::fs::File::create(&device).unwrap().set_len(4 << 20).unwrap();
    let label = Label { uuid: Uuid([7; 16]), created_unix: 1, extents: Vec::new(), mirror: None, stack: Vec::new() };
    let image = Image::create(Disk::open(&device, Access::Write).unwrap(), label).unwrap();
    assert_eq!(image.commit().state, State::Empty);
    let error = format!("{:#}", run(&device, &file, &|_| Ok(None)).unwrap_err());
    assert!(error.contains("empty") && !file.exists(), "{error}");
}

#[test]
fn a_file_that_is_not_kept_is_removed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("core");
    std::fs::write(&path, "x").unwrap();
    Partial(Some(&path)).keep();
    assert!(path.exists());
    drop(Partial(Some(&path)));
    assert!(!path.exists());
}

#[test]
fn a_full_disk_is_told_from_other_failures() {
    let no_space = || io::Error::from_raw_os_error(nix::errno::Errno::ENOSPC as i32);
    let through_the_pipeline = pipeline::PipelineError::Memory { pfn: 1, source: no_space() };
    assert!(is_full(&anyhow::Error::new(through_the_pipeline).context("exporting")));
    assert!(is_full(&anyhow::Error::new(no_space())));
    assert!(!is_full(&anyhow::Error::new(io::Error::other("x"))));
}

#[test]
fn summary_is_one_line() {
    let mut export = Export { file: "core".into(), memory: 3 << 30, segments: 1, on_disk: 5 << 20, lacks: Vec::new() };
    assert_eq!(export.to_string(), "core: 3,072 MiB of memory in 1 segment, 5 MiB on disk");
    export.segments = 2;
    export.lacks = vec!["this is missing", "and that"];
    let expected = "core: 3,072 MiB of memory in 2 segments, 5 MiB on disk; this is missing; and that";
    assert_eq!(export.to_string(), expected);
}
