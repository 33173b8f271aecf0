//! The conductor of `dormouse image export`: an image to a core file, on any machine.
//!
//! The image holds memory as it was while the save kernel ran. The file shows it as the saved kernel left it, in the
//! form of kdump's /proc/vmcore: what the jump had swapped is put back to its place, which leaves holes where it was.
//!
//! There is no NT_PRSTATUS note: the registers of the only CPU that still ran are among what the kernel stored in its
//! memory, and the programs that read cores of kernels do without. The page tables give the virtual addresses.

mod elf;
mod kernel;
mod memory;

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::{fmt, io};

use anyhow::{Context, bail};
use dormouse_image::{Header, PfnRange, PhysRange};
use dormouse_linux::error_chain::in_full;
use dormouse_linux::units::mib;
use dormouse_sys::PAGE_SIZE;
use serde::Serialize;

use self::elf::Load;
use self::kernel::Kernel;
use self::memory::MemoryFile;
use crate::memory::select::{SwapMap, Swapped};
use crate::pipeline;
use crate::store::{Access, FindKey, Reader};
use crate::target::Target;

/// What was exported.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Export {
    /// The file.
    pub file: PathBuf,
    /// Memory that it shows, in bytes.
    pub memory: u64,
    /// In how many segments.
    pub segments: usize,
    /// What it takes on its disk, in bytes.
    pub on_disk: u64,
    /// What is missing from it, a sentence each.
    pub lacks: Vec<&'static str>,
}

impl fmt::Display for Export {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Export { file, memory, segments, on_disk, lacks } = self;
        let plural = if *segments == 1 { "" } else { "s" };
        write!(f, "{}: {} of memory in {segments} segment{plural}", file.display(), mib(*memory))?;
        write!(f, ", {} on disk", mib(*on_disk))?;
        lacks.iter().try_for_each(|lack| write!(f, "; {lack}"))
    }
}

/// Writes the memory of the session on the image device `device` to `path`, a file that must not exist yet. That takes
/// the key of a sealed one.
///
/// # Errors
/// The image has no whole session, is damaged, or is sealed and `find` has no key; the file cannot be written. It is
/// removed then.
pub fn run(device: &Path, path: &Path, find: FindKey<'_>) -> anyhow::Result<Export> {
    let mut image = Target::at(device)?.open(Access::Read)?;
    image.unlock_by(find)?;
    let header = image.header()?;
    let mut reader = Reader::open(&image, &header)?;
    let session = &header.session;
    let swapped = session.swapped();
    let ranges: Vec<PfnRange> = session.ram.iter().copied().chain(swapped.iter().map(PhysRange::frames)).collect();
    let Some(start) = elf::room(ranges.len(), kernel::NOTE_MAX) else {
        bail!("the saved memory has {} ranges, more than an ELF file can describe", ranges.len());
    };

    // Memory holds secrets; whoever may read it is for the owner to decide.
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path);
    let file = file.with_context(|| format!("{}: cannot create it", path.display()))?;
    let partial = Partial(Some(path));
    let totals = image.commit().totals;
    let failed = |error: anyhow::Error| {
        if is_full(&error) {
            let needed = mib(totals.stored_pages * PAGE_SIZE);
            error.context(format!("{}: no room for it; it may need as much as {needed}", path.display()))
        } else {
            error
        }
    };
    let cannot_write = || format!("{}: cannot write it", path.display());

    let memory = MemoryFile::new(file, start, &ranges).with_context(cannot_write).map_err(failed)?;
    let counts = pipeline::restore(&mut reader, &memory, pipeline::Limits::of_threads(0), |_| ())
        .with_context(|| format!("exporting {} to {}", device.display(), path.display()))
        .map_err(failed)?;
    if (counts.stored, counts.zero) != (totals.stored_pages, totals.zero_pages) {
        bail!("{}: {} pages were read of {}", device.display(), counts.stored + counts.zero, totals.ram_pages);
    }
    let lacks = describe(&memory, &header).with_context(cannot_write).map_err(failed)?;
    let on_disk = memory.finish().with_context(cannot_write).map_err(failed)?;
    partial.keep();
    Ok(Export {
        file: path.to_path_buf(),
        memory: memory.segments().iter().map(|segment| segment.frames.pages() * PAGE_SIZE).sum(),
        segments: memory.segments().len(),
        on_disk,
        lacks,
    })
}

/// Puts what was swapped to its place, and writes the front of the file. Returns what the file lacks.
fn describe(memory: &MemoryFile, header: &Header) -> io::Result<Vec<&'static str>> {
    let mut lacks = Vec::new();
    let swapped = Swapped { low: &header.session.low, region: header.session.region };
    match SwapMap::find(memory, header.entry, swapped) {
        Ok(map) => memory.unswap(&map, swapped)?,
        Err(error) => {
            log::debug!("{}", in_full(&error));
            lacks.push("the list of swapped pages was not found, so the region and low memory are missing");
        }
    }
    let kernel = Kernel::find(memory, &header.session, &memory.notes());
    let mut loads = Vec::new();
    if let Some((virt, frames)) = kernel.as_ref().and_then(|kernel| kernel.image)
        && let Some(offset) = memory.offset(frames)
    {
        loads.push(Load { frames, offset, virt });
    }
    loads.extend(memory.segments().iter().map(|segment| Load {
        frames: segment.frames,
        offset: segment.offset,
        virt: kernel.as_ref().map_or(0, |kernel| kernel.virtual_address(memory, segment)),
    }));
    if kernel.is_none() {
        lacks.push(
            "the kernel's VMCOREINFO was not found, so analysis programs cannot identify the kernel by themselves",
        );
    }
    let note = kernel.map_or(Vec::new(), |kernel| kernel.note);
    // They have room: it was asked for before.
    let front = elf::front(&note, &loads).ok_or(io::ErrorKind::InvalidInput)?;
    memory.write_front(&front)?;
    Ok(lacks)
}

/// Whether there was no room.
fn is_full(error: &anyhow::Error) -> bool {
    let kinds = [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded, io::ErrorKind::FileTooLarge];
    error.chain().filter_map(|cause| cause.downcast_ref::<io::Error>()).any(|cause| kinds.contains(&cause.kind()))
}

/// A file that is removed unless it is kept.
struct Partial<'a>(Option<&'a Path>);

impl Partial<'_> {
    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Partial<'_> {
    fn drop(&mut self) {
        if let Some(path) = self.0
            && let Err(error) = std::fs::remove_file(path)
        {
            log::warn!("{}: cannot remove it: {error}", path.display());
        }
    }
}

#[cfg(test)]
mod tests;
