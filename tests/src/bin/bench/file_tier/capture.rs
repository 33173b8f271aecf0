//! Vmcores: the memory of guests that were doing something, kept outside the checkout from one run to the next.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use dormouse_tests::artifacts::Artifacts;
use dormouse_tests::guest::Guest;
use dormouse_tests::machine::{Disk, DiskKind, GuestConfig, MemorySize};

use super::payload;
use super::workloads::Workload;

/// Part of the name of a kept vmcore: changes with whatever a workload does.
const VERSION: u32 = 1;
/// The variable with the folder of what is kept outside the checkout, from scripts/bench.
const CACHE_VARIABLE: &str = "DORMOUSE_CACHE";

const PAGE: usize = 4096;
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
    let folder = PathBuf::from(cache).join("vmcore");
    fs::create_dir_all(&folder).with_context(|| format!("{}: cannot be made", folder.display()))?;
    // The folder of the kernel is called by its key.
    let bzimage = artifacts.bzimage();
    let kernel = bzimage.parent().and_then(Path::file_name).context("the kernel is in no folder")?.to_string_lossy();
    Ok(folder.join(format!("{kernel}-{}-{memory}-v{VERSION}.vmcore", workload.name())))
}

fn capture(workload: Workload, memory: MemorySize, artifacts: &Artifacts, kept: &Path) -> Result<()> {
    let began = Instant::now();
    eprintln!("==> capturing the memory of a guest: {}, {memory}", workload.name());
    let mut config = GuestConfig::new(2, memory);
    config.can_be_dumped = true;
    config.disks.push(Disk { kind: DiskKind::Virtio, bytes: payload::disk_bytes(memory) });
    let mut guest = Guest::standard(config, artifacts)?;
    let folder = tempfile::Builder::new().prefix("dormouse-payload.").tempdir().context("the payload's folder")?;
    payload::build(workload, memory, folder.path(), &guest.disk_file(1))?;
    guest.boot()?;
    workload.run(&mut guest)?;
    let dump = folder.path().join("dump");
    guest.dump_memory(&dump)?;
    guest.cut_power();
    // Whole or not at all, also where two runs capture at once.
    let partial = kept.with_extension(format!("partial{}", std::process::id()));
    align(&dump, &partial)?;
    fs::rename(&partial, kept).with_context(|| format!("{}: cannot be made", kept.display()))?;
    eprintln!("==> captured after {} s: {}", began.elapsed().as_secs(), kept.display());
    Ok(())
}

/// Copies QEMU's dump so that its memory begins at a page's boundary in the file, as it does in `/proc/vmcore` and as
/// mapping it requires. Pages of zeroes become holes.
fn align(dump: &Path, output: &Path) -> Result<()> {
    let input = File::open(dump).with_context(|| format!("{}: cannot be opened", dump.display()))?;
    let file = File::create(output).with_context(|| format!("{}: cannot be made", output.display()))?;
    let mut start = vec![0; 64];
    input.read_exact_at(&mut start, 0).context("the dump's ELF header")?;
    let (table, entries) = (u64_at(&start, 32)?, u16_at(&start, 56)?);
    let table_len = usize::from(entries) * 56;
    let mut headers = vec![0; table_len];
    input.read_exact_at(&mut headers, table).context("the dump's program headers")?;
    let mut first = u64::MAX;
    for header in headers.chunks_exact(56).filter(|header| is_load(header)) {
        first = first.min(u64_at(header, 8)?);
    }
    let shift = first.next_multiple_of(PAGE as u64) - first;
    for header in headers.chunks_exact_mut(56).filter(|header| is_load(header)) {
        let offset = u64_at(header, 8)? + shift;
        if !offset.is_multiple_of(PAGE as u64) {
            bail!("{}: a piece of memory is not made of whole pages", dump.display());
        }
        header[8..16].copy_from_slice(&offset.to_le_bytes());
    }
    // Headers and notes.
    let mut before = vec![0; usize::try_from(first).context("the dump holds no memory")?];
    input.read_exact_at(&mut before, 0).context("the dump's headers")?;
    let table = usize::try_from(table)?;
    before
        .get_mut(table..table + table_len)
        .context("the dump's headers are behind its memory")?
        .copy_from_slice(&headers);
    // Its sections say nothing that the program headers do not, and lie elsewhere now.
    before.get_mut(40..48).context("the dump's ELF header is cut off")?.fill(0);
    before.get_mut(58..64).context("the dump's ELF header is cut off")?.fill(0);
    let write = |bytes: &[u8], at| {
        file.write_all_at(bytes, at).with_context(|| format!("{}: cannot be written", output.display()))
    };
    write(&before, 0)?;

    let len = input.metadata()?.len();
    file.set_len(len + shift).with_context(|| format!("{}: cannot be made that long", output.display()))?;
    let (mut at, mut buffer) = (first, vec![0; PIECE]);
    while at < len {
        let piece = buffer.len().min(usize::try_from(len - at).unwrap_or(usize::MAX));
        input.read_exact_at(&mut buffer[..piece], at).with_context(|| format!("{}: cannot be read", dump.display()))?;
        for (page, bytes) in (0_u64..).zip(buffer[..piece].chunks(PAGE)) {
            if bytes.iter().any(|byte| *byte != 0) {
                write(bytes, at + shift + page * PAGE as u64)?;
            }
        }
        at += piece as u64;
    }
    Ok(())
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
