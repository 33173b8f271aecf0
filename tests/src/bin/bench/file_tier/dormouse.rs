//! Dormouse as a contender, and its bounds, each a process of its own like the others.
//!
//! A vmcore from a file is saved as B saves `/proc/vmcore`, into an image that is a snapshot and can never be resumed. An
//! image is restored into a file on a tmpfs that stands for physical memory: mapped, and with all of its pages there, as
//! D finds them.

use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use dormouse::pipeline::{self, Limits, Task};
use dormouse::policy::Compression;
use dormouse::save::select_in;
use dormouse::select::{Selection, SwapMap};
use dormouse::stage::{Fate, PageFilter, PageSink, PageSource};
use dormouse::store::{Access, Disk, Image, Reader, Writer};
use dormouse::vmcore::Vmcore;
use dormouse::window;
use dormouse_image::{Header, Label, PfnRange, PhysRange, SaveStats, State, Uuid};
use dormouse_sys::phys::WriteWindow;
use dormouse_tests::machine::MIB;

use super::measure::Said;

const PAGE: usize = 4096;
const CHUNK: usize = 64 * PAGE;

/// What the default region of 128 MiB gives to what is in flight.
const MEMORY: u64 = 24 * MIB;

/// How chunks are stored, as the command line has it: `auto`, `store`, or a level of zstd.
pub(super) fn compression(name: &str) -> Result<Compression> {
    Ok(match name {
        "auto" => Compression::Auto,
        "store" => Compression::Store,
        level => Compression::Zstd { level: level.parse().with_context(|| format!("{level}: no codec"))? },
    })
}

/// Saves a vmcore into an image.
pub(super) fn pack(vmcore: &Path, output: &Path, compression: Compression, threads: usize) -> Result<Said> {
    let (vmcore, selection) = open(vmcore)?;
    let ram = vmcore.frames().to_vec();
    let pages: u64 = ram.iter().map(PfnRange::pages).sum();
    let file = File::create(output).with_context(|| format!("{}: cannot be made", output.display()))?;
    file.set_len(pages * PAGE as u64 + 64 * MIB)?;
    let label = Label { uuid: Uuid([1; 16]), created_unix: 0 };
    let image = Image::create(Disk::open(output, Access::Write)?, label)?;
    // Where no memory is: nothing was swapped.
    let nowhere = |start: u64| PhysRange { start, end: start + PAGE as u64 };
    let header = Header {
        image: label.uuid,
        save_id: Uuid([2; 16]),
        entry: ram.first().context("a vmcore without memory")?.start * PAGE as u64 + 8,
        region: nowhere(1 << 50),
        low: nowhere(1 << 49),
        ram: ram.clone(),
        ..Header::default()
    };
    let mut writer = Writer::begin(image, &header)?;
    let task = Task { memory: &ram, filter: &selection, most: pages - selection.free_pages().min(pages) };
    let limits = Limits { threads, memory: MEMORY };
    let counts = pipeline::save(&vmcore, &task, compression, limits, &mut writer, |_| ())?;
    let image = writer.finish(State::Snapshot, counts.left, SaveStats::default)?;
    Ok(Said { bytes: Some(image.commit().data_end), seconds: None })
}

/// Restores an image into memory that is there already.
pub(super) fn unpack(image: &Path, memory: &Path, threads: usize) -> Result<Said> {
    let image = Image::open(Disk::open(image, Access::Read)?)?;
    let header = image.header()?;
    let memory = Memory::new(memory, &header.ram)?;
    let began = Instant::now();
    let mut reader = Reader::open(&image, &header)?;
    pipeline::restore(&mut reader, &memory, Limits { threads, memory: MEMORY }, |_| ())?;
    Ok(Said { bytes: Some(image.commit().data_end), seconds: Some(began.elapsed().as_secs_f64()) })
}

/// Compares what an image is restored to with the vmcore that it was made from: every page that is not free.
pub(super) fn verify(vmcore: &Path, image: &Path, memory: &Path) -> Result<u64> {
    let image = Image::open(Disk::open(image, Access::Read)?)?;
    let header = image.header()?;
    let memory = Memory::new(memory, &header.ram)?;
    pipeline::restore(&mut Reader::open(&image, &header)?, &memory, Limits { threads: 2, memory: MEMORY }, |_| ())?;
    let (vmcore, selection) = open(vmcore)?;
    let mut same = 0;
    for run in vmcore.frames().iter().flat_map(|range| window::pieces(*range)) {
        let original = vmcore.read(run, <[u8]>::to_vec)?;
        let restored = memory.write(run, |bytes| bytes.to_vec())?;
        for ((pfn, original), restored) in (run.start..run.end).zip(original.chunks(PAGE)).zip(restored.chunks(PAGE)) {
            if selection.fate(pfn) == Fate::Store {
                ensure!(original == restored, "page frame {pfn:#x} was restored otherwise");
                same += 1;
            }
        }
    }
    Ok(same)
}

/// Compresses the pages that would be stored, which are in memory: the codec alone.
pub(super) fn compress_alone(vmcore: &Path, level: i32, threads: usize) -> Result<Said> {
    let pages = selected_pages(vmcore)?;
    let bytes = AtomicU64::new(0);
    let began = Instant::now();
    on_all_threads(threads, pages.chunks(CHUNK).len(), || {
        let mut codec = zstd::bulk::Compressor::new(level)?;
        let mut out = vec![0; zstd::zstd_safe::compress_bound(CHUNK)];
        let (pages, bytes) = (&pages, &bytes);
        Ok(move |at: usize| {
            let len = codec.compress_to_buffer(chunk(pages, at), &mut out[..])?;
            bytes.fetch_add(len as u64, Ordering::Relaxed);
            Ok(())
        })
    })?;
    Ok(Said { bytes: Some(bytes.into_inner()), seconds: Some(began.elapsed().as_secs_f64()) })
}

/// Decompresses these pages from memory to where they belong, which is there already: the codec alone.
pub(super) fn decompress_alone(vmcore: &Path, memory: &Path, level: i32, threads: usize) -> Result<Said> {
    let pages = selected_pages(vmcore)?;
    let mut chunks = Vec::new();
    for raw in pages.chunks(CHUNK) {
        chunks.push(zstd::bulk::compress(raw, level)?);
    }
    let len = (pages.len() / PAGE) as u64;
    let lengths: Vec<usize> = pages.chunks(CHUNK).map(<[u8]>::len).collect();
    drop(pages);
    let memory = Memory::new(memory, &[PfnRange { start: 0, end: len }])?;
    let began = Instant::now();
    on_all_threads(threads, chunks.len(), || {
        let mut codec = zstd::bulk::Decompressor::new()?;
        let (chunks, lengths, memory) = (&chunks, &lengths, &memory);
        Ok(move |at: usize| {
            let start = at * CHUNK;
            memory.window.with(start..start + lengths[at], |raw| codec.decompress_to_buffer(&chunks[at], raw))??;
            Ok(())
        })
    })?;
    let bytes = chunks.iter().map(|chunk| chunk.len() as u64).sum();
    Ok(Said { bytes: Some(bytes), seconds: Some(began.elapsed().as_secs_f64()) })
}

fn open(path: &Path) -> Result<(Vmcore, Selection)> {
    let vmcore = Vmcore::open(path)?;
    let selection = select_in(&vmcore, vmcore.frames(), &SwapMap::nothing(), Fate::Leave)?;
    Ok((vmcore, selection))
}

/// The pages that a save stores, one behind the other.
fn selected_pages(path: &Path) -> Result<Vec<u8>> {
    let (vmcore, selection) = open(path)?;
    let mut pages = Vec::new();
    for run in vmcore.frames().iter().flat_map(|range| window::pieces(*range)) {
        vmcore.read(run, |bytes| {
            for (pfn, page) in (run.start..run.end).zip(bytes.chunks(PAGE)) {
                if selection.fate(pfn) == Fate::Store && page.iter().any(|byte| *byte != 0) {
                    pages.extend_from_slice(page);
                }
            }
        })?;
    }
    Ok(pages)
}

fn chunk(pages: &[u8], at: usize) -> &[u8] {
    &pages[at * CHUNK..pages.len().min((at + 1) * CHUNK)]
}

/// Does pieces of work 0 to `count` on some threads, each with what `prepare` makes for it.
fn on_all_threads<W: FnMut(usize) -> Result<()>>(
    threads: usize,
    count: usize,
    prepare: impl Fn() -> Result<W> + Sync,
) -> Result<()> {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| {
                    let mut work = prepare()?;
                    loop {
                        match next.fetch_add(1, Ordering::Relaxed) {
                            at if at < count => work(at)?,
                            _ => return Ok(()),
                        }
                    }
                })
            })
            .collect();
        workers.into_iter().try_for_each(|worker| match worker.join() {
            Ok(result) => result,
            Err(_) => bail!("a thread of the bound panicked"),
        })
    })
}

/// A file that stands for physical memory: mapped, and all of it there.
struct Memory {
    window: WriteWindow,
    /// The page frames, each range with the bytes before it.
    ranges: Vec<(PfnRange, usize)>,
}

impl Memory {
    fn new(path: &Path, ram: &[PfnRange]) -> Result<Memory> {
        let mut len = 0;
        let mut ranges = Vec::new();
        for range in ram {
            ranges.push((*range, len));
            len += usize::try_from(range.pages())? * PAGE;
        }
        let file = File::options().read(true).write(true).create(true).truncate(true).open(path);
        let file = file.with_context(|| format!("{}: cannot be made", path.display()))?;
        file.set_len(len as u64)?;
        let window = WriteWindow::map(&file, 0, len)?;
        // Not zeroes, so that a page that is not restored is noticed.
        window.with(0..len, |bytes| bytes.fill(0xa5))?;
        Ok(Memory { window, ranges })
    }
}

impl PageSink for Memory {
    fn write<T>(&self, run: PfnRange, write: impl FnOnce(&mut [u8]) -> T) -> std::io::Result<T> {
        let at = self.ranges.partition_point(|(range, _)| range.end <= run.start);
        let (range, before) = self.ranges.get(at).filter(|(range, _)| range.contains(&run)).ok_or_else(|| {
            std::io::Error::new(std::io::ErrorKind::InvalidInput, format!("page frame {:#x} is nowhere", run.start))
        })?;
        let bytes = |pages: u64| usize::try_from(pages).unwrap_or(usize::MAX).saturating_mul(PAGE);
        let start = before + bytes(run.start - range.start);
        self.window.with(start..start + bytes(run.pages()), write)
    }
}
