//! Checks, once for each vmcore and outside of any measurement, that no contender is quick by losing data.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use super::contenders::{Contender, Files, pages_kept};
use super::dormouse::Dump;
use super::measure::measure;
use super::{PAGE, clean};

/// What the pages of a vmcore are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kinds {
    pub(super) total: u64,
    /// Neither free nor zero.
    pub(super) stored: u64,
    pub(super) free: u64,
}

/// Has every contender pack the vmcore and unpack it again, and compares. This also warms everything up.
pub(super) fn verify(contenders: &[Contender], files: &Files, threads: usize) -> Result<Kinds> {
    let kinds = kinds(&files.vmcore)?;
    let mut levels_seen = Vec::new();
    for contender in contenders {
        match contender {
            Contender::Dormouse(_) | Contender::Sealed(_) => {
                contender.prepare(files)?;
                measure(&mut contender.pack(files, threads)?)?;
                let mut unpack = contender.unpack(files, threads)?.context("Dormouse unpacks")?;
                measure(unpack.arg("--compare").arg(&files.vmcore))?;
            }
            Contender::Zstd(_) | Contender::Lz4 | Contender::Cp => {
                measure(&mut contender.pack(files, threads)?)?;
                if let Some(mut unpack) = contender.unpack(files, threads)? {
                    measure(&mut unpack)?;
                    compare(&files.vmcore, &files.restored)?;
                }
            }
            Contender::Makedumpfile { level, .. } if !levels_seen.contains(level) => {
                levels_seen.push(*level);
                let kept = pages_kept(*level, &files.vmcore, &files.packed)?;
                // It does not count the firmware's pages, and may think otherwise of pages that were on their way.
                let expected = if *level == 17 { kinds.stored } else { not_zero(&files.vmcore)? };
                if kept.abs_diff(expected) > expected / 64 + 1024 {
                    bail!("makedumpfile -d {level} keeps {kept} pages, it should be {expected}");
                }
            }
            // The first one of its level stands for the others, and the codec for itself.
            Contender::Makedumpfile { .. } | Contender::Codec(_) | Contender::Memcpy => {}
        }
        clean(files)?;
    }
    Ok(kinds)
}

fn kinds(vmcore: &Path) -> Result<Kinds> {
    let dump = Dump::open(vmcore)?;
    let mut stored = 0;
    dump.selected(|_, _| {
        stored += 1;
        Ok(())
    })?;
    Ok(Kinds { total: dump.pages(), stored, free: dump.free_pages() })
}

/// Pages of a vmcore that are not all zero. Its memory begins at a page's boundary; what is before is little.
fn not_zero(vmcore: &Path) -> Result<u64> {
    let mut pages = 0;
    pieces(vmcore, |piece| {
        pages += piece.chunks(PAGE).filter(|page| page.iter().any(|byte| *byte != 0)).count() as u64;
        Ok(())
    })?;
    Ok(pages)
}

fn compare(vmcore: &Path, restored: &Path) -> Result<()> {
    let mut other = File::open(restored).with_context(|| format!("{}: cannot be opened", restored.display()))?;
    let mut buffer = Vec::new();
    let mut at = 0;
    pieces(vmcore, |piece| {
        buffer.resize(piece.len(), 0);
        other.read_exact(&mut buffer).context("what was restored is too short")?;
        ensure!(buffer == piece, "what was restored is not what was packed, after byte {at}");
        at += piece.len();
        Ok(())
    })?;
    ensure!(other.read(&mut [0])? == 0, "what was restored is too long");
    Ok(())
}

/// Calls `look` with all of a file, 1 MiB at a time.
fn pieces(path: &Path, mut look: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let mut file = File::open(path).with_context(|| format!("{}: cannot be opened", path.display()))?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        let mut len = 0;
        while len < buffer.len() {
            match file.read(&mut buffer[len..]).with_context(|| format!("{}: cannot be read", path.display()))? {
                0 => break,
                read => len += read,
            }
        }
        if len == 0 {
            return Ok(());
        }
        look(&buffer[..len])?;
    }
}
