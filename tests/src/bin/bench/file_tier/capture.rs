//! Vmcores: the memory of guests that were doing something, kept outside the checkout from one run to the next.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use dormouse_tests::artifacts::Artifacts;
use dormouse_tests::guest::Guest;
use dormouse_tests::machine::{Disk, DiskKind, GuestConfig, MemorySize};

use super::workloads::Workload;
use super::{PAGE, payload};

/// Part of the name of a kept vmcore: changes with whatever a workload does.
const VERSION: u32 = 1;
/// The variable with the directory of what is kept outside the checkout, from scripts/bench.
const CACHE_VARIABLE: &str = "DORMOUSE_CACHE";

/// Lengths of an ELF header and of a program header.
const EHDR: usize = 64;
const PHDR: usize = 56;

const PIECE: usize = 1 << 20;

/// Puts the vmcore of `workload` into the file `output`, with every page of it in memory if that is on a tmpfs. It is
/// captured where no earlier run has left one.
pub(super) fn vmcore(workload: Workload, memory: MemorySize, artifacts: &Artifacts, output: &Path) -> Result<()> {
    let kept = kept(workload, memory, artifacts)?;
    if !kept.is_file() {
        capture(workload, memory, artifacts, &kept)?;
    }
    copy(&kept, output)
}

/// Where a vmcore is kept.
fn kept(workload: Workload, memory: MemorySize, artifacts: &Artifacts) -> Result<PathBuf> {
    let cache =
        std::env::var_os(CACHE_VARIABLE).context("DORMOUSE_CACHE is not set: run scripts/bench, which sets it")?;
    let directory = PathBuf::from(cache).join("vmcore");
    fs::create_dir_all(&directory).with_context(|| format!("{}: cannot be made", directory.display()))?;
    // The directory of the kernel is called by its key.
    let bzimage = artifacts.bzimage();
    let kernel = bzimage.parent().and_then(Path::file_name).context("the kernel is in no directory")?.to_string_lossy();
    Ok(directory.join(format!("{kernel}-{}-{memory}-v{VERSION}.vmcore", workload.name())))
}

fn capture(workload: Workload, memory: MemorySize, artifacts: &Artifacts, kept: &Path) -> Result<()> {
    let began = Instant::now();
    eprintln!("==> capturing the memory of a guest: {}, {memory}", workload.name());
    let mut config = GuestConfig::new(2, memory);
    config.can_be_dumped = true;
    config.disks.push(Disk { kind: DiskKind::Virtio, bytes: payload::disk_bytes(memory) });
    let mut guest = Guest::standard(config, artifacts)?;
    let directory =
        tempfile::Builder::new().prefix("dormouse-payload.").tempdir().context("the payload's directory")?;
    payload::build(workload, memory, directory.path(), &guest.disk_file(1))?;
    guest.boot()?;
    workload.run(&mut guest)?;
    let dump = directory.path().join("dump");
    guest.dump_memory(&dump)?;
    guest.cut_power();
    // Whole or not at all, also where two runs capture at once.
    let partial = kept.with_extension(format!("partial{}", std::process::id()));
    align(&dump, &partial)?;
    fs::rename(&partial, kept).with_context(|| format!("{}: cannot be made", kept.display()))?;
    eprintln!("==> captured after {} s: {}", began.elapsed().as_secs(), kept.display());
    Ok(())
}

/// Copies QEMU's dump into the order of `/proc/vmcore`: the program headers directly behind the ELF header, where
/// makedumpfile looks for them, and memory at a page's boundary, so that it can be mapped. Pages of zeroes become
/// holes.
fn align(dump: &Path, output: &Path) -> Result<()> {
    let input = File::open(dump).with_context(|| format!("{}: cannot be opened", dump.display()))?;
    let file = File::create(output).with_context(|| format!("{}: cannot be made", output.display()))?;
    let read = |at, len: usize| {
        let mut bytes = vec![0; len];
        input.read_exact_at(&mut bytes, at).with_context(|| format!("{}: {len} bytes at {at}", dump.display()))?;
        anyhow::Ok(bytes)
    };
    let mut front = read(0, EHDR)?;
    let (table, count) = (u64_at(&front, 32)?, u16_at(&front, 56)?);
    let mut headers = read(table, usize::from(count) * PHDR)?;
    // The program headers' place; there are no sections, which would say nothing more.
    front[32..40].copy_from_slice(&(EHDR as u64).to_le_bytes());
    front[40..48].fill(0);
    front[58..64].fill(0);

    let mut notes = Vec::new();
    for header in headers.chunks_exact_mut(PHDR).filter(|header| !is_load(header)) {
        let bytes = read(u64_at(header, 8)?, usize::try_from(u64_at(header, 32)?)?)?;
        let offset = EHDR + usize::from(count) * PHDR + notes.len();
        header[8..16].copy_from_slice(&(offset as u64).to_le_bytes());
        notes.extend(bytes);
    }
    let mut end = (EHDR + headers.len() + notes.len()).next_multiple_of(PAGE) as u64;
    for header in headers.chunks_exact_mut(PHDR).filter(|header| is_load(header)) {
        let (from, len) = (u64_at(header, 8)?, u64_at(header, 32)?);
        ensure!(len.is_multiple_of(PAGE as u64), "{}: a piece of memory is not made of whole pages", dump.display());
        header[8..16].copy_from_slice(&end.to_le_bytes());
        let mut at = 0;
        while at < len {
            let piece = read(from + at, PIECE.min(usize::try_from(len - at)?))?;
            for (page, bytes) in (0_u64..).zip(piece.chunks(PAGE)) {
                if bytes.iter().any(|byte| *byte != 0) {
                    file.write_all_at(bytes, end + at + page * PAGE as u64)
                        .with_context(|| format!("{}: cannot be written", output.display()))?;
                }
            }
            at += piece.len() as u64;
        }
        end += len;
    }
    for part in [headers, notes] {
        front.extend(part);
    }
    file.write_all_at(&front, 0)
        .and_then(|()| file.set_len(end))
        .with_context(|| format!("{}: cannot be written", output.display()))
}

/// Copies a file without leaving holes in the copy, which would be faster to read than memory.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let mut input = File::open(from).with_context(|| format!("{}: cannot be opened", from.display()))?;
    let output = File::create(to).with_context(|| format!("{}: cannot be made", to.display()))?;
    let (mut at, mut buffer) = (0, vec![0; PIECE]);
    loop {
        let read = input.read(&mut buffer).with_context(|| format!("{}: cannot be read", from.display()))?;
        if read == 0 {
            return Ok(());
        }
        output.write_all_at(&buffer[..read], at).with_context(|| format!("{}: cannot be written", to.display()))?;
        at += read as u64;
    }
}

/// Whether a program header is of memory (PT_LOAD).
fn is_load(header: &[u8]) -> bool {
    header.get(..4) == Some(&[1, 0, 0, 0])
}

fn u64_at(bytes: &[u8], at: usize) -> Result<u64> {
    let word = bytes.get(at..at + 8).and_then(|word| word.try_into().ok());
    word.map(u64::from_le_bytes).context("the dump's headers are cut off")
}

fn u16_at(bytes: &[u8], at: usize) -> Result<u16> {
    let word = bytes.get(at..at + 2).and_then(|word| word.try_into().ok());
    word.map(u16::from_le_bytes).context("the dump's headers are cut off")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use dormouse::memory::vmcore::Vmcore;
    use dormouse::pipeline::seams::PageSource;
    use dormouse_image::PfnRange;

    /// A dump as QEMU 7.2 writes it: a section header before the program headers, memory at any offset.
    fn dump() -> Vec<u8> {
        let mut bytes = vec![0; EHDR];
        bytes[..8].copy_from_slice(b"\x7fELF\x02\x01\x01\0");
        bytes[16..20].copy_from_slice(&[4, 0, 62, 0]);
        bytes[32..40].copy_from_slice(&128_u64.to_le_bytes());
        bytes[40..48].copy_from_slice(&64_u64.to_le_bytes());
        bytes[54..64].copy_from_slice(&[56, 0, 3, 0, 64, 0, 1, 0, 0, 0]);
        bytes.resize(128, 0xee);
        let note_at = 128 + 3 * PHDR as u64;
        let mut header = |kind: u32, offset: u64, address: u64, len: u64| {
            // Flags behind the kind are no part of it.
            for word in [u64::from(kind), offset, 0, address, len, len, 0] {
                bytes.extend(word.to_le_bytes());
            }
        };
        header(4, note_at, 0, 20);
        header(1, note_at + 20, 0x1000, 0x3000);
        header(1, note_at + 20 + 0x3000, 0x10000, 0x1000);
        bytes.extend(*b"twenty bytes of note");
        for fill in [1, 0, 3, 4] {
            bytes.extend([fill; PAGE]);
        }
        bytes.extend(b"\0.shstrtab");
        bytes
    }

    #[test]
    fn a_dump_is_laid_out_as_the_kernel_does() {
        let directory = tempfile::tempdir().unwrap();
        let (from, to) = (directory.path().join("dump"), directory.path().join("vmcore"));
        fs::write(&from, dump()).unwrap();
        align(&from, &to).unwrap();
        let vmcore = Vmcore::open(&to).unwrap();
        assert_eq!(vmcore.notes(), b"twenty bytes of note");
        assert_eq!(vmcore.frames(), [PfnRange { start: 1, end: 4 }, PfnRange { start: 16, end: 17 }]);
        for (pfn, fill) in [(1, 1), (2, 0), (3, 3), (16, 4)] {
            let same = |bytes: &[u8]| bytes.iter().all(|byte| *byte == fill);
            assert!(vmcore.read(PfnRange { start: pfn, end: pfn + 1 }, same).unwrap(), "{pfn}");
        }
        let copied = directory.path().join("copied");
        copy(&to, &copied).unwrap();
        assert_eq!(fs::read(&to).unwrap(), fs::read(&copied).unwrap());
    }
}
