//! The ELF core header that B's kernel makes `/proc/vmcore` from.
//!
//! `parse_crash_elf64_headers` (fs/proc/vmcore.c, Linux 6.12) takes one PT_LOAD for each range of old memory and, at
//! physical addresses, the notes; it wants at least one note that is not empty.

use dormouse_image::{PfnRange, PhysRange};
use dormouse_sys::PAGE_SIZE;
use goblin::elf::header::{EM_X86_64, ET_CORE};
use goblin::elf::program_header::{PT_LOAD, PT_NOTE};

/// Length of an ELF64 header in bytes.
pub(crate) const EHDR_SIZE: u16 = 64;
/// Length of an ELF64 program header in bytes.
pub(crate) const PHDR_SIZE: u16 = 56;

/// Builds the header for `ram`, with the notes that lie in physical memory at `note`.
///
/// Returns `None` where there are more ranges than a 16-bit count holds.
#[must_use]
pub fn build(ram: &[PfnRange], note: PhysRange) -> Option<Vec<u8>> {
    let count = u16::try_from(ram.len() + 1).ok()?;
    let mut bytes = Vec::with_capacity(usize::from(EHDR_SIZE) + usize::from(PHDR_SIZE) * usize::from(count));
    file_header(&mut bytes, count);
    // In memory, an offset into the old kernel's "file" is a physical address.
    let segment = |kind, address, size| ProgramHeader { kind, flags: 0, offset: address, virt: 0, phys: address, size };
    program_header(&mut bytes, &segment(PT_NOTE, note.start, note.end - note.start));
    for range in ram {
        let size = (range.end - range.start) * PAGE_SIZE;
        program_header(&mut bytes, &segment(PT_LOAD, range.start * PAGE_SIZE, size));
    }
    Some(bytes)
}

/// Appends the header of an x86-64 ELF64 core file whose `count` program headers follow at once.
pub(crate) fn file_header(bytes: &mut Vec<u8>, count: u16) {
    bytes.extend(b"\x7fELF");
    // 64 bit, little-endian, current version, System V.
    bytes.extend([2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    bytes.extend(ET_CORE.to_le_bytes());
    bytes.extend(EM_X86_64.to_le_bytes());
    bytes.extend(1_u32.to_le_bytes());
    for word in [0, u64::from(EHDR_SIZE), 0] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend(0_u32.to_le_bytes());
    for half in [EHDR_SIZE, PHDR_SIZE, count, 0, 0, 0] {
        bytes.extend(half.to_le_bytes());
    }
}

/// A program header, as far as core files differ in it.
pub(crate) struct ProgramHeader {
    /// `PT_LOAD` or `PT_NOTE`.
    pub(crate) kind: u32,
    /// `PF_R` and the like.
    pub(crate) flags: u32,
    /// Offset in the file.
    pub(crate) offset: u64,
    /// Virtual address, or 0 where it has none.
    pub(crate) virt: u64,
    /// Physical address.
    pub(crate) phys: u64,
    /// Length in bytes, in the file and in memory.
    pub(crate) size: u64,
}

/// Appends a program header.
pub(crate) fn program_header(bytes: &mut Vec<u8>, header: &ProgramHeader) {
    bytes.extend(header.kind.to_le_bytes());
    bytes.extend(header.flags.to_le_bytes());
    for word in [header.offset, header.virt, header.phys, header.size, header.size, 0] {
        bytes.extend(word.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn goblin_reads_it_back() {
        let ram = [PfnRange { start: 0x100, end: 0x1000 }, PfnRange { start: 0x9000, end: 0x18_0000 }];
        let bytes = build(&ram, PhysRange { start: 0x12_3000, end: 0x12_3444 }).unwrap();
        let header = goblin::elf::Elf::parse_header(&bytes).unwrap();
        assert_eq!((header.e_type, header.e_machine, header.e_phnum), (ET_CORE, EM_X86_64, 3));
        let headers = goblin::elf64::program_header::ProgramHeader::from_bytes(&bytes[64..], 3);
        assert_eq!((headers[0].p_type, headers[0].p_offset, headers[0].p_memsz), (PT_NOTE, 0x12_3000, 0x444));
        assert_eq!((headers[2].p_type, headers[2].p_paddr), (PT_LOAD, 0x900_0000));
        assert_eq!(headers[2].p_filesz, (0x18_0000 - 0x9000) * 4096);
    }
}
