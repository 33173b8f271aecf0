//! VMCOREINFO and what it leads to: page tables and `struct page`s in memory that may hold anything.

use dormouse::memory::select::{KernelLayout, Physical, SelectError, SwapMap, Swapped, select};
use dormouse::pipeline::seams::Fate;
use dormouse_image::{BLOCK, PfnRange, PhysRange};
use dormouse_linux::vmcoreinfo::{NOTE, VmcoreInfo, begins_note, find_note};

const PAGE: u64 = BLOCK as u64;

/// What VMCOREINFO begins with.
const FIRST: &[u8] = b"OSRELEASE=";

/// The memory in which free pages are looked for.
const RAM: [PfnRange; 2] = [PfnRange { start: 1, end: 0xa0 }, PfnRange { start: 0x100, end: 0x400 }];
/// What the jump has swapped of it.
const SWAPPED: Swapped<'_> = Swapped {
    low: &[PhysRange { start: PAGE, end: 4 * PAGE }],
    region: PhysRange { start: 256 * PAGE, end: 260 * PAGE },
};
/// A region that only a header would claim.
const CLAIMED: Swapped<'_> = Swapped { region: PhysRange { start: 256 * PAGE, end: 1 << 52 }, ..SWAPPED };

/// Reads any bytes as ELF notes, or else as the text of VMCOREINFO's, and as memory.
pub(super) fn run(input: &[u8]) {
    let text = find_note(input, NOTE);
    if let Some(text) = text.as_ref().filter(|text| begins_note(input) && text.len() >= FIRST.len()) {
        assert!(text.starts_with(FIRST));
    }
    let text = text.unwrap_or_else(|| input.to_vec());

    // After another note, it is found whole.
    let notes = [note(b"CORE\0", &[1; 7]), note(NOTE, &text)].concat();
    assert_eq!(find_note(&notes, NOTE).as_ref(), Some(&text));

    let info = VmcoreInfo::parse(&text);
    let layout = match KernelLayout::new(&info) {
        Ok(layout) => layout,
        Err(error) => return assert!(error.to_string().starts_with("VMCOREINFO")),
    };
    let inside = |offset: usize, len: usize| offset < layout.page_size && layout.page_size - offset >= len;
    assert!(inside(layout.page_mapcount, 4) && inside(layout.page_private, 8) && inside(layout.page_flags, 8));
    assert!(layout.page_size <= BLOCK && layout.section_size <= PAGE && layout.orders <= 32);
    assert!(layout.section_mem_map < layout.section_size && layout.section_size - layout.section_mem_map >= 8);

    let memory = Echo(input);
    for address in [0, layout.section_roots, u64::MAX] {
        if let Ok((physical, len)) = layout.paging.translate(&memory, address) {
            assert!(len > 0 && len <= 1 << 30 && physical + len <= 1 << 52, "{address:#x}: {physical:#x} {len:#x}");
        }
    }

    assert!(SwapMap::find(&memory, PAGE, CLAIMED).is_err());
    let maps = [SwapMap::find(&memory, PAGE, SWAPPED).ok(), Some(SwapMap::nothing())];
    for map in maps.into_iter().flatten() {
        let pages = RAM.iter().map(PfnRange::pages).sum();
        match select(&memory, &layout, &RAM, &map, Fate::Leave, 2) {
            Ok(selection) => assert!(selection.free_pages() <= pages),
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
}

/// A note with its padding.
fn note(name: &[u8], content: &[u8]) -> Vec<u8> {
    let len = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes();
    let mut note = [len(name), len(content), [0; 4]].concat();
    for part in [name, content] {
        note.extend(part);
        note.resize(note.len().next_multiple_of(4), 0);
    }
    note
}

/// Memory that is the input, again and again.
struct Echo<'a>(&'a [u8]);

impl Physical for Echo<'_> {
    fn look<T>(&self, address: u64, len: u64, look: impl FnOnce(&[u8]) -> T) -> Result<T, SelectError> {
        let len = len.min(PAGE - address % PAGE);
        let input = self.0.len() as u64;
        let byte =
            |at: u64| usize::try_from((address % input + at) % input).ok().and_then(|at| self.0.get(at)).copied();
        let bytes: Option<Vec<u8>> = (0..len).map(byte).collect();
        bytes.map(|bytes| look(&bytes)).ok_or(SelectError::Unmapped(address))
    }
}
