//! The conductor in B: A's memory to the image.

use std::io::ErrorKind;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use dormouse_image::layout::CHUNK_MAX;
use dormouse_image::{Header, PfnRange, SaveStats, SessionRecord, State};
use dormouse_linux::error_chain::in_full;
use dormouse_linux::memory_watch::Watch;
use dormouse_linux::procfs;
use dormouse_linux::vmcoreinfo::{self, VmcoreInfo, find_note};
use dormouse_sys::PAGE_SIZE;

use crate::console::phase::Phase;
use crate::console::progress::{Progress, Work};
use crate::console::screen;
use crate::cycle::direct;
use crate::cycle::drivers;
use crate::cycle::refusal::Unsealed;
use crate::cycle::rehearsal;
use crate::filesystems::Names;
use crate::handoff::mailbox::{self, FreePages};
use crate::handoff::report::{Outcome, Report};
use crate::handoff::spent::Spent;
use crate::handoff::task::{SaveTask, WaitTask};
use crate::machine::free_content::FreeContent;
use crate::memory::select::{self, KernelLayout, Physical, SelectError, Selection, SwapMap, Swapped};
use crate::memory::vmcore::{self, Vmcore};
use crate::pipeline::seams::{Fate, PageFilter, PageSink, PageSource, StoreFailure};
use crate::policy::{Policy, Then, Unsure, Verify};
use crate::store::{Access, Image, Reader, Writer};
use crate::target::{self, IfFile, Opened, Opening};
use crate::{filesystems, pipeline};

/// Saves the session that the order describes. When this returns `Ok`, the image is durable and complete. `alive` is
/// called whenever something got done.
///
/// # Errors
/// Anything that keeps the image from being complete. A's memory is as it was; B must jump back.
pub fn run(task: SaveTask<'_>, policy: &Policy, alive: &dyn Fn()) -> anyhow::Result<Report> {
    let (began, started_unix, watch) = (Instant::now(), procfs::now_unix(), Watch::start());
    let mut header = Header { session: task.order.session.clone(), entry: task.way.entry };
    let vmcore = vmcore_of(&header.session)?;
    let how = Opening { access: Access::Write, wait: policy.image.wait, if_file: IfFile::Refuse };
    let Opened { target: place, image } = target::open_again(&task.order.image, policy.image.disk.as_ref(), how)?;
    place.demand_all_legs()?;
    // A name that is not its UUID may lead to another one.
    let (found, ordered) = (image.label().uuid, header.session.image);
    ensure!(found == ordered, "the image on {place} is {found}, and this kernel was started for {ordered}");
    Unsealed::refuse(&image.label().stack, task.order.sealing.is_some())?;
    // A is stopped: what is on its disks now is what it will find there, if nobody else writes to them.
    settle(&mut header, &task, policy)?;
    alive();
    let how_to_stop = if policy.save.escape { "; press Esc to go back" } else { "" };
    screen::show(policy.console.verbosity, &format!("Hibernating to {place}{how_to_stop}"));

    let limits = pipeline::Limits::of_policy(&policy.pipeline);
    let pages = header.session.ram_pages();
    log::info!("{}: {pages} pages to {place}, {} threads", Phase::SaveWrite, limits.threads);
    let selection = selection(&vmcore, &header, policy, task.order.sealing.is_some());
    rehearsal::run(&header.session, &vmcore, &selection, limits)?;
    let mut writer = Writer::begin(image, &header, task.order.sealing.as_ref())?;
    let free = selection.free_pages().min(pages);
    let most = if selection.free_fate() == Fate::Store { pages } else { pages - free };
    let shown = if selection.free_fate() == Fate::Leave { most } else { pages };
    let mut progress = Progress::new(Work::Saving, shown, policy.console.verbosity);
    let work = pipeline::Task { memory: &header.session.ram, filter: &selection, most };
    let saved = pipeline::save(&vmcore, &work, policy.save.compression(), limits, &mut writer, |step| {
        progress.at(step.into());
        alive();
    });
    drop(progress);
    let counts = match saved {
        Ok(counts) => counts,
        Err(error) => {
            let error = anyhow::Error::new(error);
            // The device may be the very thing that failed; then there is no complete image either.
            if let Err(second) = writer.fail(&format!("{error:#}")) {
                log::warn!("the image could not be marked as failed: {}", in_full(&second));
            }
            return Err(error);
        }
    };
    if counts.stored + counts.zero + counts.left != pages {
        bail!("{} pages were saved of {pages}", counts.stored + counts.zero + counts.left);
    }

    drivers::settle(&task.order.disks, began + policy.image.wait, alive);
    log::info!("{}: flushing {place}", Phase::SaveCommit);
    let state = if task.order.then == Then::Return { State::Snapshot } else { State::Complete };
    let threads = u32::try_from(limits.threads)?;
    let check = |image: &Image| {
        alive();
        verify(image, &header, &vmcore, &selection, policy, alive)
    };
    let stats = |in_requests: Duration| {
        let vitals = watch.stop();
        let spent = Spent { device_ms: u32::try_from(in_requests.as_millis()).unwrap_or(u32::MAX), ..counts.spent };
        SaveStats {
            started_unix,
            millis: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
            threads,
            agent_peak_kib: vitals.peak_kib,
            least_available_kib: vitals.least_available_kib,
            spent: spent.to_values(),
        }
    };
    let image = writer.finish(state, counts.left, check, stats)?;
    arm(&task, policy);
    Ok(Report::of_image(image.commit(), image.disk().name().to_owned(), Outcome::Returned))
}

/// Tells the boot loader to start D, where it is to do that: now that the image is durable. Otherwise, and where it
/// fails, the next boot goes through C.
fn arm(task: &SaveTask<'_>, policy: &Policy) {
    let Some(block) = task.order.arming.as_ref().filter(|_| task.order.then != Then::Return) else { return };
    match direct::arm(block, policy.image.wait) {
        Ok(()) => log::info!("{}: the boot loader starts the restore kernel at the next power-on", Phase::SaveCommit),
        Err(error) => log::warn!("{}: direct: no: {error:#}; the next boot goes through C", Phase::SaveCommit),
    }
}

/// Looks whether a save would find what it needs, for a kernel that is to wait for its order. Nothing is written, and
/// nothing that is read is kept.
///
/// # Errors
/// What is missing.
pub fn rehearse(task: WaitTask<'_>, policy: &Policy) -> anyhow::Result<()> {
    let memory = vmcore_of(&task.order.session)?;
    drop(memory);
    let how = Opening { access: Access::Read, wait: policy.image.wait, if_file: IfFile::Refuse };
    let Opened { target, .. } = target::open_again(&task.order.image, policy.image.disk.as_ref(), how)?;
    log::info!("{}: kernel B is ready to save to {target}", Phase::SaveStart);
    Ok(())
}

/// A's memory, which must be what the session lists.
fn vmcore_of(session: &SessionRecord) -> anyhow::Result<Vmcore> {
    if !Path::new(vmcore::PATH).exists() {
        bail!("{} is missing; the save kernel needs CONFIG_PROC_VMCORE", vmcore::PATH);
    }
    let vmcore = Vmcore::open(Path::new(vmcore::PATH))?;
    if vmcore.frames() != session.ram {
        bail!("{} does not show the memory that the session record lists", vmcore::PATH);
    }
    Ok(vmcore)
}

/// Notes what is on the disks, so that the next boot can tell whether another system has written to them. A session of
/// which it could not is not saved, unless the policy takes that upon itself or nothing is ever resumed.
fn settle(header: &mut Header, task: &SaveTask<'_>, policy: &Policy) -> anyhow::Result<()> {
    let lost = filesystems::settle(&mut header.session, policy.image.wait, Names::read);
    if lost.is_empty() || task.order.then == Then::Return {
        return Ok(());
    }
    let lost = lost.join(", ");
    if policy.resume.unsure == Unsure::Refuse {
        bail!(
            "no boot could tell whether another system has written to {lost}: the save kernel sees no disk that holds \
             it; give it the driver (`dormouse build-initramfs --modules`), unmount it, or set \
             resume.unsure = \"resume\""
        );
    }
    log::warn!("{}: no boot will be able to tell whether another system has written to {lost}", Phase::SaveWrite);
    Ok(())
}

/// Reads back what was written, past the caches, and compares it as the policy asks.
fn verify(
    image: &Image,
    header: &Header,
    vmcore: &Vmcore,
    filter: &Selection,
    policy: &Policy,
    alive: &dyn Fn(),
) -> Result<(), StoreFailure> {
    if policy.save.verify == Verify::Off {
        return Ok(());
    }
    let began = Instant::now();
    let totals = image.commit().totals;
    let pages = totals.stored_pages + totals.zero_pages;
    log::info!("{}: reading {pages} pages back ({})", Phase::SaveVerify, policy.save.verify.as_str());
    let mut reader = Reader::open(image, header)?;
    let limits = pipeline::Limits::of_policy(&policy.pipeline);
    let mut progress = Progress::new(Work::Verifying, pages, policy.console.verbosity);
    let step = |step: pipeline::Step| {
        progress.at(step.into());
        alive();
    };
    let memory = (policy.save.verify == Verify::Memory).then_some((vmcore, filter));
    let sink = ReadBack { memory, scratch: Mutex::default() };
    let counts = pipeline::restore(&mut reader, &sink, limits, step)?;
    drop(progress);
    if (counts.stored, counts.zero) != (totals.stored_pages, totals.zero_pages) {
        return Err(format!("{} pages were read of {pages}", counts.stored + counts.zero).into());
    }
    log::info!("{}: it is what was saved, compared in {} ms", Phase::SaveVerify, began.elapsed().as_millis());
    Ok(())
}

/// A sink that keeps nothing. One for both ways to verify, since each sink has a pipeline of its own in the agent.
struct ReadBack<'a> {
    /// The memory that was saved, which must be what is given.
    memory: Option<(&'a Vmcore, &'a Selection)>,
    /// Memory for what is given, used again and again.
    scratch: Mutex<Vec<Vec<u8>>>,
}

impl PageSink for ReadBack<'_> {
    fn write<T>(&self, run: PfnRange, write: impl FnOnce(&mut [u8]) -> T) -> std::io::Result<T> {
        let pool = || self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        let mut given = pool().pop().unwrap_or_else(|| vec![0; CHUNK_MAX]);
        // What is longer than a chunk is a run of zeroes, of which a part is as good as the whole.
        let len = usize::try_from(run.pages() * PAGE_SIZE).map_or(CHUNK_MAX, |len| len.min(CHUNK_MAX));
        let result = write(&mut given[..len]);
        let differs = match self.memory {
            Some((vmcore, filter)) => differing(vmcore, filter, run, &given[..len])?,
            None => None,
        };
        pool().push(given);
        match differs {
            None => Ok(result),
            Some(pfn) => Err(std::io::Error::other(format!("page frame {pfn:#x} holds something else"))),
        }
    }
}

/// The first page of `run` that matters and is not in memory as it is in `given`, over and over again.
fn differing(vmcore: &Vmcore, filter: &Selection, run: PfnRange, given: &[u8]) -> std::io::Result<Option<u64>> {
    let page_len = usize::try_from(PAGE_SIZE).map_err(std::io::Error::other)?;
    let pages_given = given.len() / page_len;
    let differs = vmcore.read(run, |memory| {
        memory.chunks(page_len).enumerate().position(|(at, page)| {
            let at_given = at % pages_given * page_len;
            // A page that is restored as zeroes because it is not needed may hold anything.
            page != &given[at_given..at_given + page_len] && filter.fate(run.start + at as u64) == Fate::Store
        })
    })?;
    Ok(differs.map(|at| run.start + at as u64))
}

/// Which pages matter. Where that cannot be found out for certain, all of them do.
fn selection(vmcore: &Vmcore, header: &Header, policy: &Policy, is_sealed: bool) -> Selection {
    let began = Instant::now();
    match select_pages(vmcore, header, policy, is_sealed) {
        Ok(selection) => {
            let fate = match selection.free_fate() {
                Fate::Leave => "left out",
                Fate::Zero => "restored as zeroes",
                Fate::Store => "stored all the same",
            };
            let (free, millis) = (selection.free_pages(), began.elapsed().as_millis());
            log::info!("{}: {free} pages are free and {fate}, found in {millis} ms", Phase::SaveWrite);
            selection
        }
        Err(error) => {
            log::warn!("{}: storing every page: {}", Phase::SaveWrite, in_full(&error));
            Selection::everything()
        }
    }
}

fn select_pages(vmcore: &Vmcore, header: &Header, policy: &Policy, is_sealed: bool) -> Result<Selection, SelectError> {
    let stated = free_pages(vmcore, header)?;
    // Also where free pages are stored, those that must not be touched have to be found.
    let fate = match stated.content {
        _ if !policy.save.skip_free => {
            log::info!("{}: storing every page: the policy asks for it (save.skip_free)", Phase::SaveWrite);
            Fate::Store
        }
        // What C needed to open the image must not be found there.
        FreeContent::Anything if is_sealed => Fate::Zero,
        FreeContent::Anything => Fate::Leave,
        FreeContent::Zero => Fate::Zero,
        FreeContent::Pattern => {
            log::warn!("{}: storing every page: {}", Phase::SaveWrite, SelectError::Poisoning);
            Fate::Store
        }
    };
    let swapped = Swapped { low: &header.session.low, region: header.session.region };
    let map = SwapMap::find(&OldMemory { vmcore, swapped: None }, header.entry, swapped)?;
    let mut ram = header.session.ram.clone();
    ram.push(header.session.region.frames());
    ram.sort_by_key(|range| range.start);
    let selection = select_in(vmcore, &ram, &map, fate)?;
    selection.check(stated.count, header.session.ram_pages())?;
    Ok(selection)
}

/// Finds the free pages of `ram` in a vmcore by its own VMCOREINFO, and what must not be touched.
///
/// # Errors
/// [`SelectError`]: the kernel's data are not what they should be. Then nothing may be left out.
pub fn select_in(vmcore: &Vmcore, ram: &[PfnRange], map: &SwapMap, free_fate: Fate) -> Result<Selection, SelectError> {
    let note = find_note(vmcore.notes(), vmcoreinfo::NOTE).ok_or(SelectError::Missing("note"))?;
    let layout = KernelLayout::new(&VmcoreInfo::parse(&note))?;
    select::select(&OldMemory { vmcore, swapped: Some(map) }, &layout, ram, map, free_fate)
}

/// What A stated about its free pages when it jumped.
fn free_pages(vmcore: &Vmcore, header: &Header) -> Result<FreePages, SelectError> {
    let missing = SelectError::NothingSaid;
    let Some(mailbox) = &header.session.mailbox else { return Err(missing) };
    let mut page = vec![0; mailbox::SIZE];
    OldMemory { vmcore, swapped: None }.read(mailbox.pfn * PAGE_SIZE, &mut page)?;
    mailbox::free_pages(&page, &mailbox.nonce).ok_or(missing)
}

/// A's memory by physical address, for the selection.
struct OldMemory<'a> {
    vmcore: &'a Vmcore,
    /// Where swapped pages are now; without it, memory is shown as it is now.
    swapped: Option<&'a SwapMap>,
}

impl Physical for OldMemory<'_> {
    fn look<T>(&self, address: u64, len: u64, look: impl FnOnce(&[u8]) -> T) -> Result<T, SelectError> {
        let failed = |source| SelectError::Memory { address, source };
        let (pfn, within) = (address / PAGE_SIZE, address % PAGE_SIZE);
        let wanted = PfnRange { start: pfn, end: pfn + (within + len).div_ceil(PAGE_SIZE).max(1) };
        let together = self.swapped.map_or(wanted, |map| map.holders(wanted));
        let run = self.vmcore.together(together).ok_or_else(|| failed(ErrorKind::InvalidInput.into()))?;
        let looked = self.vmcore.read(run, |bytes| {
            let start = usize::try_from(within).ok()?;
            let end = start.saturating_add(usize::try_from(len).ok()?).min(bytes.len());
            bytes.get(start..end).map(look)
        });
        looked.map_err(failed)?.ok_or_else(|| failed(ErrorKind::InvalidInput.into()))
    }
}
