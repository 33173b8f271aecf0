//! The front of an ELF core file: its header, the program headers, and the notes.

use dormouse_image::PfnRange;
use dormouse_sys::PAGE_SIZE;
use goblin::elf::program_header::{PF_R, PF_W, PF_X, PT_LOAD, PT_NOTE};

use crate::launch::arch::elfcorehdr::{EHDR_SIZE, PHDR_SIZE, ProgramHeader, file_header, program_header};

/// Program headers beside one for each range of memory: the notes, and the kernel's own mapping.
const OTHERS: usize = 2;

/// A PT_LOAD.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Load {
    /// Its page frames.
    pub(super) frames: PfnRange,
    /// Where the file holds the first of them, in bytes.
    pub(super) offset: u64,
    /// The virtual address of the first, or 0 where it is not known.
    pub(super) virt: u64,
}

/// Bytes at the start of a file for the front of a core with `ranges` ranges of memory and notes of at most `notes`
/// bytes, in whole pages; `None` where there are more ranges than an ELF file can have program headers.
#[must_use]
pub(super) fn room(ranges: usize, notes: usize) -> Option<u64> {
    // 0xffff stands for "too many" (PN_XNUM, elf(5)).
    let count = u16::try_from(ranges.checked_add(OTHERS)?).ok().filter(|count| *count < u16::MAX)?;
    let bytes = u64::from(EHDR_SIZE) + u64::from(PHDR_SIZE) * u64::from(count) + u64::try_from(notes).ok()?;
    Some(bytes.next_multiple_of(PAGE_SIZE))
}

/// The front of a core file with `notes` and `loads`, or `None` where there are too many.
#[must_use]
pub(super) fn front(notes: &[u8], loads: &[Load]) -> Option<Vec<u8>> {
    let count = u16::try_from(loads.len() + 1).ok().filter(|count| *count < u16::MAX)?;
    let mut bytes = Vec::new();
    file_header(&mut bytes, count);
    let offset = u64::from(EHDR_SIZE) + u64::from(PHDR_SIZE) * u64::from(count);
    let size = u64::try_from(notes.len()).ok()?;
    program_header(&mut bytes, &ProgramHeader { kind: PT_NOTE, flags: 0, offset, virt: 0, phys: 0, size });
    for load in loads {
        program_header(
            &mut bytes,
            &ProgramHeader {
                kind: PT_LOAD,
                flags: PF_R | PF_W | PF_X,
                offset: load.offset,
                virt: load.virt,
                phys: load.frames.start * PAGE_SIZE,
                size: load.frames.pages() * PAGE_SIZE,
            },
        );
    }
    bytes.extend(notes);
    Some(bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use goblin::elf::Elf;
    use goblin::elf::header::{EM_X86_64, ET_CORE};

    fn range(start: u64, end: u64) -> PfnRange {
        PfnRange { start, end }
    }

    #[test]
    fn goblin_reads_it_back() {
        let note = b"\x0b\0\0\0\x05\0\0\0\0\0\0\0VMCOREINFO\0\0A=b\nc\0\0\0";
        let loads = [
            Load { frames: range(0x1000, 0x1800), offset: 0x1000_1000, virt: 0xffff_ffff_8100_0000 },
            Load { frames: range(0, 0xa0), offset: 0x1000, virt: 0xffff_8880_0000_0000 },
            Load { frames: range(0x100, 0x8_0000), offset: 0xa_1000, virt: 0 },
        ];
        let bytes = front(note, &loads).unwrap();
        assert!(bytes.len() as u64 <= room(2, note.len()).unwrap());
        let elf = Elf::parse(&bytes).unwrap();
        assert_eq!((elf.header.e_type, elf.header.e_machine), (ET_CORE, EM_X86_64));
        assert!(elf.is_64 && elf.little_endian);
        let notes: Vec<_> = elf.iter_note_headers(&bytes).unwrap().map(Result::unwrap).collect();
        assert_eq!((notes.len(), notes[0].name, notes[0].desc), (1, "VMCOREINFO", &b"A=b\nc"[..]));
        let found: Vec<_> = elf.program_headers.iter().filter(|header| header.p_type == PT_LOAD).collect();
        assert_eq!(found.len(), 3);
        for (load, header) in loads.iter().zip(found) {
            assert_eq!((header.p_paddr, header.p_vaddr), (load.frames.start * 4096, load.virt));
            assert_eq!((header.p_offset, header.p_filesz), (load.offset, load.frames.pages() * 4096));
            assert_eq!(header.p_memsz, header.p_filesz);
        }
    }

    #[test]
    fn the_front_begins_as_it_always_has() {
        let bytes = front(&[], &[Load { frames: range(1, 2), offset: 0x1000, virt: 0 }]).unwrap();
        #[rustfmt::skip]
        let expected = [
            0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, // ELF64, little-endian
            4, 0, 62, 0, 1, 0, 0, 0,                                    // core, x86-64, version 1
            0, 0, 0, 0, 0, 0, 0, 0, 64, 0, 0, 0, 0, 0, 0, 0,            // no entry; program headers at 64
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 64, 0, 56, 0,           // no sections; sizes
            2, 0, 0, 0, 0, 0, 0, 0,                                     // two program headers
            4, 0, 0, 0, 0, 0, 0, 0, 176, 0, 0, 0, 0, 0, 0, 0,           // notes, after both
        ];
        assert_eq!(bytes[..expected.len()], expected);
        assert_eq!(bytes.len(), 64 + 2 * 56);
    }

    #[test]
    fn there_is_room_for_as_many_ranges_as_can_be_counted() {
        assert_eq!(room(3, 4096), Some(8192));
        assert_eq!(room(1, 3864), Some(4096));
        assert_eq!(room(1, 3865), Some(8192));
        assert!(room(65_532, 0).is_some());
        assert_eq!(room(65_533, 0), None);
        assert_eq!(room(usize::MAX, 0), None);
    }
}
