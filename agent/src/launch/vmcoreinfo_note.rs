//! VMCOREINFO for the second kernel: where this kernel keeps it, or a copy.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use anyhow::{Context, bail};
use dormouse_image::PhysRange;
use dormouse_linux::vmcoreinfo::{self, find_note};
use goblin::elf::program_header::PT_NOTE;
use goblin::elf64::header::SIZEOF_EHDR;
use goblin::elf64::program_header::{ProgramHeader, SIZEOF_PHDR};

use crate::launch::Note;

/// This kernel's VMCOREINFO, for a second kernel that swaps the memory of `swapped` out.
///
/// Where the note lies in memory that is swapped, the second kernel would not find it there; it gets a copy then. Where
/// no copy can be made, it gets a note of ours, because without any note it would show no vmcore at all.
///
/// # Errors
/// `/sys/kernel/vmcoreinfo` is missing, which means a kernel without `CONFIG_CRASH_DUMP`.
pub fn vmcoreinfo_note(swapped: &[PhysRange]) -> anyhow::Result<Note> {
    let path = "/sys/kernel/vmcoreinfo";
    let line = std::fs::read_to_string(path)
        .with_context(|| format!("{path}: cannot read it; this kernel needs CONFIG_CRASH_DUMP"))?;
    let Some(note) = parse_vmcoreinfo(&line) else { bail!("{path}: not an address and a size: `{line}`") };
    if !swapped.iter().any(|range| range.overlaps(&note)) {
        return Ok(Note::InMemory(note));
    }
    match kcore_note() {
        Ok(Some(content)) => Ok(Note::Copy(elf_note("VMCOREINFO", &content))),
        result => {
            log::warn!("cannot copy VMCOREINFO from /proc/kcore ({result:?})");
            Ok(Note::Copy(elf_note("DORMOUSE", b"no VMCOREINFO")))
        }
    }
}

/// Address and size, both hexadecimal (kernel/ksysfs.c, `vmcoreinfo_show`).
fn parse_vmcoreinfo(line: &str) -> Option<PhysRange> {
    let (address, size) = line.trim().split_once(' ')?;
    let start = u64::from_str_radix(address.trim_start_matches("0x"), 16).ok()?;
    let size = u64::from_str_radix(size.trim_start_matches("0x"), 16).ok()?;
    let end = start.checked_add(size).filter(|end| *end > start)?;
    Some(PhysRange { start, end })
}

/// An ELF note, and an empty one after it at which the kernel stops reading.
fn elf_note(name: &str, content: &[u8]) -> Vec<u8> {
    let mut note = Vec::new();
    // A small number each.
    let len = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX).to_le_bytes();
    note.extend(len(name.len() + 1));
    note.extend(len(content.len()));
    note.extend([0; 4]);
    note.extend(name.as_bytes());
    note.push(0);
    note.resize(note.len().next_multiple_of(4), 0);
    note.extend(content);
    note.resize(note.len().next_multiple_of(4) + 12, 0);
    note
}

/// The VMCOREINFO note of `/proc/kcore` (fs/proc/kcore.c puts it there since Linux 4.19).
fn kcore_note() -> io::Result<Option<Vec<u8>>> {
    let kcore = File::open("/proc/kcore")?;
    let mut start = [0; SIZEOF_EHDR];
    kcore.read_exact_at(&mut start, 0)?;
    let header = goblin::elf::Elf::parse_header(&start).map_err(io::Error::other)?;
    let count = usize::from(header.e_phnum);
    let mut table = vec![0; count * SIZEOF_PHDR];
    kcore.read_exact_at(&mut table, header.e_phoff)?;
    let headers = ProgramHeader::from_bytes(&table, count);
    let Some(notes) = headers.iter().find(|header| header.p_type == PT_NOTE) else {
        return Ok(None);
    };
    let mut bytes = vec![0; usize::try_from(notes.p_filesz.min(1 << 20)).map_err(io::Error::other)?];
    kcore.read_exact_at(&mut bytes, notes.p_offset)?;
    Ok(find_note(&bytes, vmcoreinfo::NOTE))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn parses_the_kernels_address_and_size() {
        assert_eq!(parse_vmcoreinfo("0x2fee0000 1024\n"), Some(PhysRange { start: 0x2fee_0000, end: 0x2fee_1024 }));
        assert_eq!(parse_vmcoreinfo("nothing\n"), None);
        assert_eq!(parse_vmcoreinfo("ffffffffffffffff 1024\n"), None);
    }

    #[test]
    fn a_note_is_found_among_others() {
        let mut notes = elf_note("CORE", &[1; 7]);
        notes.truncate(notes.len() - 12);
        notes.extend(elf_note("VMCOREINFO", b"PAGESIZE=4096\n"));
        assert_eq!(find_note(&notes, vmcoreinfo::NOTE).unwrap(), b"PAGESIZE=4096\n");
        assert_eq!(find_note(&notes, b"OTHER\0"), None);
        assert_eq!(find_note(&[0xff; 40], b"OTHER\0"), None);
    }
}
