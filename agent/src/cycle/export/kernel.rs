//! What the exported memory shows of its kernel: VMCOREINFO, and where its page tables map it.
//!
//! The image does not record where VMCOREINFO lies. It is an ELF note at the start of a page of the kernel's
//! (`crash_save_vmcoreinfo_init`, kernel/vmcore_info.c, Linux 6.12: `alloc_pages_exact`), so pages that begin as such a
//! note does are looked at. Memory may hold others: of a kernel that ran here before, or a file's copy. One is believed
//! when what it describes exists: the page tables that it names must lead to the names of the kernel that the image's
//! header names.

use dormouse_image::{PfnRange, SessionRecord};
use dormouse_linux::vmcoreinfo::{self, VmcoreInfo, find_note};
use dormouse_sys::{PAGE_LEN, PAGE_SIZE};

use crate::cycle::export::memory::Segment;
use crate::memory::arch::{KERNEL_HALF, KERNEL_MAP, Paging};
use crate::memory::select::Physical;

/// Bytes of VMCOREINFO's note at most: its text has a page, and its head a little more (include/linux/vmcore_info.h).
pub(super) const NOTE_MAX: usize = 8192;

/// Bytes of a name in `struct new_utsname` (`__NEW_UTS_LEN` + 1, include/uapi/linux/utsname.h).
const UTS_LEN: u64 = 65;
/// The third name in it.
const UTS_RELEASE: u64 = 2 * UTS_LEN;
/// The fourth.
const UTS_VERSION: u64 = 3 * UTS_LEN;

/// The direct map begins at a multiple of this, with KASLR too (`kernel_randomize_memory`, arch/x86/mm/kaslr.c).
const DIRECT_MAP_ALIGN: u64 = 1 << 30;

/// The kernel's image is mapped in pieces of this size.
const IMAGE_ALIGN: u64 = 2 << 20;
/// The longest mapping of a kernel's image (`KERNEL_IMAGE_SIZE`, arch/x86/include/asm/page_64_types.h).
const IMAGE_MAX: u64 = 1 << 30;
/// Parts of the image that are not needed any more are unmapped; a gap as long as this is none of these.
const IMAGE_GAP: u64 = 64 << 20;

/// The saved kernel, as its memory describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Kernel {
    /// VMCOREINFO: a whole ELF note.
    pub(super) note: Vec<u8>,
    /// Its page tables.
    pub(super) paging: Paging,
    /// The virtual address of physical address 0 in the direct map, where it is known.
    pub(super) direct_map: Option<u64>,
    /// The kernel's image: its virtual address, and its page frames.
    pub(super) image: Option<(u64, PfnRange)>,
}

impl Kernel {
    /// Finds the kernel that `header` names by the notes that begin at the page frames `notes`.
    ///
    /// Returns `None` where none of them is believable, or where two of them differ.
    #[must_use]
    pub(super) fn find(memory: &impl Physical, header: &SessionRecord, notes: &[u64]) -> Option<Kernel> {
        let mut found: Option<(Vec<u8>, VmcoreInfo, Paging)> = None;
        for pfn in notes {
            let Some((note, info)) = read_note(memory, *pfn) else { continue };
            let Some(paging) = believe(memory, header, &info) else { continue };
            match &found {
                None => found = Some((note, info, paging)),
                Some((before, ..)) if *before == note => (),
                Some(_) => return None,
            }
        }
        let (note, info, paging) = found?;
        let direct_map = direct_map(memory, &info, &paging);
        let image = image(memory, &info, &paging);
        Some(Kernel { note, paging, direct_map, image })
    }

    /// Where the direct map shows the first page of `segment`, or 0 where it does not, or is not known.
    #[must_use]
    pub(super) fn virtual_address(&self, memory: &impl Physical, segment: &Segment) -> u64 {
        let physical = segment.frames.start * PAGE_SIZE;
        let address = self.direct_map.and_then(|base| base.checked_add(physical));
        let leads_there =
            |address: &u64| matches!(self.paging.translate(memory, *address), Ok((found, _)) if found == physical);
        address.filter(leads_there).unwrap_or(0)
    }
}

/// The note that begins at a page frame, and what it holds.
fn read_note(memory: &impl Physical, pfn: u64) -> Option<(Vec<u8>, VmcoreInfo)> {
    let mut bytes = vec![0; NOTE_MAX];
    for (at, page) in (pfn..).zip(bytes.chunks_exact_mut(PAGE_LEN)) {
        // After a shorter note there may be nothing.
        let _ = memory.read(at * PAGE_SIZE, page);
    }
    let content = find_note(&bytes, vmcoreinfo::NOTE)?;
    let info = VmcoreInfo::parse(&content);
    // The head, the name with its padding, and the content with its.
    let len = 12 + vmcoreinfo::NOTE.len().next_multiple_of(4) + content.len().next_multiple_of(4);
    bytes.get(..len).map(|note| (note.to_vec(), info))
}

/// The page tables that VMCOREINFO names, if they lead to what `header` names.
fn believe(memory: &impl Physical, header: &SessionRecord, info: &VmcoreInfo) -> Option<Paging> {
    if info.text("OSRELEASE") != Some(&header.kernel_release) {
        return None;
    }
    let paging = Paging::new(info).ok()?;
    let names = info.symbol("init_uts_ns")?.checked_add(info.measure("OFFSET", "uts_namespace.name")? as u64)?;
    let name = |offset| text(memory, &paging, names.checked_add(offset)?);
    let is_it = name(UTS_RELEASE)? == header.kernel_release && name(UTS_VERSION)? == header.kernel_version;
    is_it.then_some(paging)
}

/// A name in `struct new_utsname`, at a virtual address.
fn text(memory: &impl Physical, paging: &Paging, address: u64) -> Option<String> {
    let mut bytes = Vec::new();
    for at in address..address.checked_add(UTS_LEN)? {
        let mut byte = [0];
        memory.read(paging.translate(memory, at).ok()?.0, &mut byte).ok()?;
        if byte == [0] {
            return String::from_utf8(bytes).ok();
        }
        bytes.extend(byte);
    }
    None
}

/// The start of the direct map: `mem_section` is an array in memory that was allocated, so its address is one of the
/// direct map's, and the page tables show of what.
fn direct_map(memory: &impl Physical, info: &VmcoreInfo, paging: &Paging) -> Option<u64> {
    let address = info.symbol("mem_section").filter(|address| (KERNEL_HALF..KERNEL_MAP).contains(address))?;
    let (physical, _) = paging.translate(memory, address).ok()?;
    address.checked_sub(physical).filter(|base| base.is_multiple_of(DIRECT_MAP_ALIGN))
}

/// The kernel's image: from `_stext` as far as its mapping goes.
fn image(memory: &impl Physical, info: &VmcoreInfo, paging: &Paging) -> Option<(u64, PfnRange)> {
    let start = info.symbol("_stext")? / IMAGE_ALIGN * IMAGE_ALIGN;
    let physical = start.checked_sub(KERNEL_MAP)?.wrapping_add(info.number("phys_base")?);
    let size = info.number("KERNEL_IMAGE_SIZE").unwrap_or(IMAGE_MAX).min(IMAGE_MAX);
    let limit = (KERNEL_MAP + size).saturating_sub(start);
    let (mut at, mut end) = (0, 0);
    while at < limit && at - end < IMAGE_GAP {
        match paging.translate(memory, start + at) {
            Ok((found, len)) if found == physical.wrapping_add(at) => {
                at += len;
                end = at;
            }
            _ => at += PAGE_SIZE,
        }
    }
    let frames = PfnRange { start: physical / PAGE_SIZE, end: physical.checked_add(end)? / PAGE_SIZE };
    (physical.is_multiple_of(PAGE_SIZE) && frames.pages() > 0).then_some((start, frames))
}
