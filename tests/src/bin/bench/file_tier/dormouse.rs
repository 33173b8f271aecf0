//! Dormouse as a contender: the agent's own stages, wired as its conductors wire them, on a vmcore in a file.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::str::FromStr;

use anyhow::{Context, Result, bail, ensure};
use dormouse::cycle::save::select_in;
use dormouse::memory::select::{Selection, SwapMap};
use dormouse::memory::vmcore::Vmcore;
use dormouse::pipeline::seams::{Fate, PageFilter, PageSink, PageSource};
use dormouse::pipeline::{self, Limits, Task, window};
use dormouse::policy::Compression;
use dormouse::store::{Access, Disk, Image, Reader, Writer};
use dormouse::target;
use dormouse_image::seal::{Nonce, SaveKey, Sealing, Suite};
use dormouse_image::{Header, Label, PfnRange, PhysRange, SaveStats, SessionRecord, State, Uuid};
use dormouse_linux::procfs::{self, now_unix};
use dormouse_sys::PAGE_SIZE;
use dormouse_sys::phys::WriteWindow;
use nix::fcntl::{FallocateFlags, fallocate};

use super::measure::{Clock, Printed};

/// Room of an image file beside that for all pages.
const IMAGE_OVERHEAD: u64 = 64 << 20;

/// How pages are to be stored: `auto`, `store`, or `zstd:` and a level.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Codec(pub(super) Compression);

impl FromStr for Codec {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Codec> {
        let level = |text: &str| text.strip_prefix("zstd:")?.parse().ok();
        match text {
            "auto" => Ok(Codec(Compression::Auto)),
            "store" => Ok(Codec(Compression::Store)),
            text => match level(text) {
                Some(level) => Ok(Codec(Compression::Zstd { level })),
                None => bail!("{text:?} is no codec: write auto, store, or zstd:1"),
            },
        }
    }
}

/// A vmcore, and which of its pages matter.
pub(super) struct Dump {
    vmcore: Vmcore,
    selection: Selection,
}

impl Dump {
    pub(super) fn open(path: &Path) -> Result<Dump> {
        let vmcore = Vmcore::open(path)?;
        // Nothing was swapped, for nothing has jumped.
        let selection =
            select_in(&vmcore, vmcore.frames(), &SwapMap::nothing(), Fate::Leave, Limits::of_threads(0).threads)
                .with_context(|| format!("{}: its free pages cannot be found", path.display()))?;
        Ok(Dump { vmcore, selection })
    }

    /// The number of its pages.
    pub(super) fn pages(&self) -> u64 {
        self.vmcore.frames().iter().map(PfnRange::pages).sum()
    }

    /// How many of them are free.
    pub(super) fn free_pages(&self) -> u64 {
        self.selection.free_pages()
    }

    /// Calls `look` with every page that is neither free nor zero, ascending.
    pub(super) fn selected(&self, mut look: impl FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
        for range in self.vmcore.frames() {
            for piece in window::pieces(*range) {
                let looked = self.vmcore.read(piece, |bytes| {
                    (piece.start..piece.end)
                        .zip(bytes.chunks_exact(super::PAGE))
                        .filter(|(pfn, page)| {
                            self.selection.fate(*pfn) == Fate::Store && page.iter().any(|byte| *byte != 0)
                        })
                        .try_for_each(|(pfn, page)| look(pfn, page))
                });
                looked.context("the vmcore cannot be read")??;
            }
        }
        Ok(())
    }

    /// A header that describes it, with an entry and ranges that nobody jumps to.
    fn header(&self, image: &Image) -> Result<Header> {
        let ram = self.vmcore.frames().to_vec();
        let (first, last) = (ram.first().context("the vmcore is empty")?, ram.last().context("the vmcore is empty")?);
        let behind = last.end * PAGE_SIZE;
        let part =
            |number: u64| PhysRange { start: behind + number * PAGE_SIZE, end: behind + (number + 1) * PAGE_SIZE };
        let entry = first.start * PAGE_SIZE + 1;
        let session = SessionRecord {
            image: image.label().uuid,
            save_id: procfs::random().map(Uuid::from_random)?,
            region: part(0),
            low: vec![part(1)],
            ram,
            ..SessionRecord::default()
        };
        Ok(Header { session, entry })
    }
}

/// With what sealed images are sealed here: nobody's secret.
fn sealing() -> Sealing {
    Sealing { key: SaveKey::new(&[0x5e; 32]), nonce: Nonce([0x5e; 16]), suite: Suite::of_this_cpu(), wraps: Vec::new() }
}

/// Makes an empty image for this vmcore in the file `output`, with all of its blocks: as an image's place is made once,
/// and not by each hibernation.
pub(super) fn place(vmcore: &Path, output: &Path) -> Result<()> {
    let pages: u64 = Vmcore::open(vmcore)?.frames().iter().map(PfnRange::pages).sum();
    let file = File::create(output).with_context(|| format!("{}: cannot be made", output.display()))?;
    let len = pages * PAGE_SIZE + IMAGE_OVERHEAD;
    fallocate(&file, FallocateFlags::empty(), 0, i64::try_from(len)?)
        .with_context(|| format!("{}: no room for an image", output.display()))?;
    let label = Label {
        uuid: procfs::random().map(Uuid::from_random)?,
        created_unix: now_unix(),
        extents: Vec::new(),
        mirror: None,
        stack: Vec::new(),
    };
    Image::create(Disk::open(output, Access::Write)?, label)?;
    Ok(())
}

/// Saves a vmcore to the image in the file `output`.
pub(super) fn pack(vmcore: &Path, output: &Path, codec: Codec, threads: usize, is_sealed: bool) -> Result<()> {
    let dump = Dump::open(vmcore)?;
    let image = target::Target::at(output)?.open(Access::Write)?;
    let header = dump.header(&image)?;
    let mut writer = Writer::begin(image, &header, is_sealed.then(sealing).as_ref())?;
    let most = dump.pages() - dump.selection.spared_pages();
    let task = Task { memory: &header.session.ram, filter: &dump.selection, most };
    let counts = pipeline::save(&dump.vmcore, &task, codec.0, Limits::of_threads(threads), &mut writer, |_| ())?;
    ensure!(counts.stored + counts.zero + counts.left == dump.pages(), "not every page was saved: {counts:?}");
    // The state of an image whose session goes on: nothing ever resumes it.
    let image = writer.finish(State::Snapshot, counts.left, |_| Ok(()), |_| SaveStats::default())?;
    Printed { bytes: Some(image.commit().data_end), spent: Some(counts.spent), ..Printed::default() }.print()
}

/// Restores an image into memory that was mapped and touched before, as D's memory is. With `vmcore`, compares it with
/// what was saved.
pub(super) fn unpack(
    image: &Path,
    scratch: &Path,
    threads: usize,
    is_sealed: bool,
    vmcore: Option<&Path>,
) -> Result<()> {
    // The agent's own way but for the states, which do not let a snapshot be restored.
    let open = || -> Result<Image> {
        let mut image = target::Target::at(image)?.open(Access::Read)?;
        image.unlock(is_sealed.then(|| sealing().key).as_ref())?;
        Ok(image)
    };
    let ranges = open()?.header()?.session.ram;
    let memory = Target::new(scratch, &ranges).context("memory to restore to")?;
    let clock = Clock::start()?;
    let image = open()?;
    let header = image.header()?;
    let mut reader = Reader::open(&image, &header)?;
    let counts = pipeline::restore(&mut reader, &memory, Limits::of_threads(threads), |_| ())?;
    let printed = Printed { spent: Some(counts.spent), ..clock.stop(None)? };
    let totals = image.commit().totals;
    ensure!((counts.stored, counts.zero) == (totals.stored_pages, totals.zero_pages), "not every page was restored");
    if let Some(path) = vmcore {
        let mut pages = 0;
        Dump::open(path)?.selected(|pfn, page| {
            pages += 1;
            let same = memory.write(PfnRange { start: pfn, end: pfn + 1 }, |restored| restored == page)?;
            ensure!(same, "page {pfn:#x} is not restored as it was saved");
            Ok(())
        })?;
        ensure!(pages == totals.stored_pages, "{pages} pages were to be stored, {} were", totals.stored_pages);
    }
    printed.print()
}

/// Memory that stands for that of a machine to be restored.
struct Target {
    windows: Vec<(PfnRange, WriteWindow)>,
}

impl Target {
    fn new(scratch: &Path, ranges: &[PfnRange]) -> Result<Target> {
        let file = tempfile::tempfile_in(scratch)?;
        // Not only its length: a mapping of what there is no room for would end this program.
        let len = ranges.iter().map(PfnRange::pages).sum::<u64>() * PAGE_SIZE;
        fallocate(&file, FallocateFlags::empty(), 0, i64::try_from(len)?)?;
        let (mut windows, mut at) = (Vec::new(), 0);
        for range in ranges {
            let len = usize::try_from(range.pages() * PAGE_SIZE)?;
            let window = WriteWindow::map(&file, at, len)?;
            // With something that no restore leaves there.
            window.with(0..len, |bytes| bytes.fill(0xa5))?;
            windows.push((*range, window));
            at += range.pages() * PAGE_SIZE;
        }
        Ok(Target { windows })
    }
}

impl PageSink for Target {
    fn write<T>(&self, run: PfnRange, write: impl FnOnce(&mut [u8]) -> T) -> io::Result<T> {
        let window = self.windows.iter().find(|(range, _)| range.contains(&run));
        let (range, window) = window.ok_or(ErrorKind::InvalidInput)?;
        let byte = |pfn: u64| usize::try_from((pfn - range.start) * PAGE_SIZE).map_err(io::Error::other);
        window.with(byte(run.start)?..byte(run.end)?, write)
    }
}
