//! A save kernel that waits: started once, gone back to this session, and entered again when it hibernates, so that the
//! hibernation needs no boot.
//!
//! A process keeps it ([`keep`]). It holds the page in which the save kernel finds its order, and has it loaded: what
//! was started and has come back lies in the image that kexec has loaded, or Dormouse's module. It is good for one
//! hibernation, and only for the machine and the policy that it was started with; whatever has changed, the hibernation
//! loads another one.

mod record;

use std::fs;
use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use dormouse_image::{Mailbox, Uuid};
use dormouse_linux::foreign_page::ForeignPage;
use dormouse_linux::system::Uname;
use dormouse_linux::units::mib;
use dormouse_linux::{kexec_loads, kmsg, procfs};
use dormouse_sys::module::Module;
use dormouse_sys::pin::PinnedPage;
use dormouse_sys::ticks::ticks;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use thiserror::Error;

use record::{Facts, LoadedBy};
pub use record::{NotWarm, Record};
pub(crate) use record::{is_loaded, module_of_keeper};

use crate::console::phase::Phase;
use crate::cycle::around::{self, Around};
use crate::cycle::jump::{self, Jumper};
use crate::cycle::lock::Lock;
use crate::cycle::place::Place;
use crate::cycle::refusal::{JumpError, Unready};
use crate::cycle::{disk, drivers, leftover};
use crate::filesystems::Mounted;
use crate::handoff::mailbox::{self, Nonce};
use crate::handoff::next_order;
use crate::handoff::order::{Order, WaitOrder};
use crate::handoff::report::Outcome;
use crate::launch::Loaded;
use crate::machine::Machine;
use crate::policy::Policy;
use crate::store::Access;

/// The most pages that an order may take: each is looked for in a mebibyte of its own.
const MOST_PAGES: usize = 32;
/// How often the process that keeps it looks whether it is as it should be.
const PERIOD: Duration = Duration::from_secs(15);
/// A machine that has been up, or awake, for less is busy.
const SETTLED: Duration = Duration::from_secs(60);

/// A save kernel that can be entered.
#[derive(Debug)]
pub(super) struct Waiting {
    page: ForeignPage,
    nonce: [u8; 16],
    /// Where Dormouse's module has loaded it.
    module: Option<Module>,
}

/// The save kernel that waits, if it will do. Whatever comes of it, it is not used twice.
pub(super) fn find(policy: &Policy, machine: &Machine, place: &Place) -> Option<Waiting> {
    let record = Record::take()?;
    let now = Facts::now(policy, machine, place).map_err(|_| NotWarm::Changed("a file of the policy's"));
    match now.and_then(|now| record.check(&now)) {
        Ok((page, module)) => Some(Waiting { page, nonce: record.nonce, module }),
        Err(why) => {
            log::warn!("{}: the save kernel that waits is not used: {why}", Phase::HibernatePrepare);
            if why == NotWarm::Replaced {
                leftover::disown();
            }
            None
        }
    }
}

impl Waiting {
    /// Whether Dormouse's module jumps into it.
    pub(super) fn is_by_module(&self) -> bool {
        self.module.is_some()
    }

    /// Gives it its order. What this returns is what there is to jump into, and must live until the jump has returned.
    ///
    /// # Errors
    /// The order cannot be left in memory.
    pub(super) fn enter(self, order: &Order, place: &Place) -> anyhow::Result<(Loaded, Given)> {
        let loaded = Loaded::that_waits(self.module);
        let bytes = order.encode()?;
        let count = next_order::Place::pages_of(bytes.len());
        if count > MOST_PAGES {
            bail!("the order for the save kernel that waits has {} bytes, too many to be left for it", bytes.len());
        }
        let mut given = Given(Vec::with_capacity(count));
        for content in bytes.chunks(mailbox::SIZE) {
            // What is looked at on the way to a page gets the content too, and stays behind with it.
            let mut page = place.pin(&[0]).context("for the order")?;
            page.write(0, content);
            given.0.push(page);
        }
        let pages = given.0.iter().map(PinnedPage::pfn).collect();
        let named = next_order::Place { len: bytes.len(), pages }.to_page(&self.nonce)?;
        self.page.write(&named).context("the page for the order of the save kernel that waits")?;
        Ok((loaded, given))
    }
}

/// The order, in memory.
#[derive(Debug)]
#[must_use]
pub(super) struct Given(Vec<PinnedPage>);

impl Drop for Given {
    fn drop(&mut self) {
        // A key may be in it, where nobody has taken it.
        self.0.iter_mut().for_each(|page| page.write(0, &[0; mailbox::SIZE]));
    }
}

/// A save kernel that waits, as the process that keeps it has it. Dropping it unloads it.
#[derive(Debug)]
struct Kept {
    record: Record,
    _page: PinnedPage,
    loaded: Option<Loaded>,
}

impl Drop for Kept {
    fn drop(&mut self) {
        let was_taken = self.was_taken();
        if matches!(self.record.loaded_by, LoadedBy::Kernel { .. }) && (was_taken || !self.record.is_loaded()) {
            // A hibernation has unloaded it, or what is loaded now is somebody else's.
            std::mem::forget(self.loaded.take());
            if !was_taken {
                leftover::disown();
            }
        }
        Record::remove();
    }
}

/// Keeps a save kernel that waits, whenever the policy wants one and the machine has nothing else to do; `at_once`
/// whatever it does. Returns when it is told to end, or where the policy wants none. What is in the way before the jump
/// may pass; a save kernel that was started and cannot wait is not started again.
///
/// # Errors
/// It cannot be had on this machine.
pub fn keep(policy: impl Fn() -> anyhow::Result<Policy>, at_once: bool) -> anyhow::Result<()> {
    kmsg::init();
    let mask: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect();
    mask.thread_block().context("signals cannot be held back")?;
    let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC).context("signals cannot be held back")?;
    let mut kept: Option<Kept> = None;
    let mut awake_since = Instant::now();
    loop {
        let policy = policy()?;
        if !policy.save.warm {
            log::info!("{}: the policy wants no save kernel that waits (save.warm)", Phase::HibernatePrepare);
            return Ok(());
        }
        // A hibernation that is under way decides what becomes of it.
        if let Ok(lock) = Lock::take() {
            if let Some(reason) = kept.as_ref().and_then(|kept| kept.fault(&policy)) {
                log::info!("{}: the save kernel no longer waits: {reason}", Phase::HibernatePrepare);
                kept = None;
                awake_since = Instant::now();
            }
            if kept.is_none() && (at_once || is_idle(awake_since)) {
                kept = start(&policy, &lock).map(Some).or_else(|error| may_pass(error).map(|()| None))?;
                awake_since = Instant::now();
            }
        }
        if is_told_to_end(&signals, PERIOD)? {
            let _lock = Lock::take();
            drop(kept);
            return Ok(());
        }
    }
}

/// Nothing was changed by what went wrong before the jump, and another time it may go right.
fn may_pass(error: anyhow::Error) -> anyhow::Result<()> {
    if error.is::<CannotWait>() || error.is::<JumpError>() {
        return Err(error);
    }
    log::warn!("{}: no save kernel waits: {error:#}", Phase::HibernatePrepare);
    Ok(())
}

/// The save kernel has come back, and did not get as far as to wait.
#[derive(Debug, Error)]
#[error("the save kernel cannot wait: {0}")]
struct CannotWait(String);

impl Kept {
    /// Whether a hibernation has taken it.
    fn was_taken(&self) -> bool {
        Record::read().is_none_or(|record| record != self.record)
    }

    /// Why it is no longer of use.
    fn fault(&self, policy: &Policy) -> Option<String> {
        if self.was_taken() {
            return Some("it was used".to_owned());
        }
        let facts = Machine::read().and_then(|machine| {
            let place = Place::choose(&machine, policy)?;
            Facts::now(policy, &machine, &place)
        });
        match facts {
            Ok(facts) => self.record.check(&facts).err().map(|fault| fault.to_string()),
            Err(error) => Some(format!("{error:#}")),
        }
    }
}

/// Whether nobody would notice that the machine stands still for a second.
fn is_idle(awake_since: Instant) -> bool {
    let load = fs::read_to_string("/proc/loadavg").ok();
    let load = load.and_then(|text| text.split(' ').next()?.parse::<f64>().ok());
    awake_since.elapsed() >= SETTLED && load.is_some_and(|load| load < 0.5)
}

fn is_told_to_end(signals: &SignalFd, within: Duration) -> anyhow::Result<bool> {
    let mut descriptors = [PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
    match poll(&mut descriptors, PollTimeout::try_from(within)?) {
        Ok(ready) => Ok(ready > 0),
        Err(Errno::EINTR) => Ok(false),
        Err(error) => Err(error).context("waiting for a signal"),
    }
}

/// Starts it and comes back from it.
fn start(policy: &Policy, _lock: &Lock) -> anyhow::Result<Kept> {
    leftover::unload();
    let machine = Machine::read().context(Unready::Machine)?;
    let jumper = jump::choose(policy.save.jump, &Uname::read()?.release, false)?;
    let by_module = matches!(jumper, Jumper::Module(_));
    if !by_module {
        kexec_loads::begin().context("a save kernel that waits needs Linux 6.3 or newer (kexec_load_limit_reboot)")?;
        around::refuse_loaded(false)?;
    }
    let place = Place::choose(&machine, policy)?;
    place.refuse_little_memory()?;
    let facts = Facts::now(policy, &machine, &place)?;
    // Of what it is entered for, this is known by now, and takes its time.
    drivers::warn_of_undriven(policy, &drivers::disks_of_session());
    let (page, mailbox, order) = order_to_wait(policy, &machine, &place, by_module)?;
    let kernel = place.plan(&machine, policy, &order, jumper.most_segments())?;
    let mark = (!by_module).then(leftover::mark);
    let loaded = jumper.load(kernel)?;
    let loaded_by = match loaded.module() {
        Some(module) => LoadedBy::Module { descriptor: module.descriptor() },
        None => LoadedBy::Kernel { loads_left: kexec_loads::left()? },
    };
    log::info!("{}: kernel B is started, to wait", Phase::HibernateJump);
    let seconds = go_and_return(&loaded, &page, &mailbox.nonce)?;
    let record = Record {
        process: std::process::id(),
        since_unix: procfs::now_unix(),
        seconds,
        bytes: place.swapped_len(),
        address: page.address(),
        pfn: mailbox.pfn,
        nonce: mailbox.nonce,
        loaded_by,
        facts,
    };
    record.write()?;
    // For as long as it is loaded: what is left of this process, if it is killed, is unloaded by the next hibernation.
    std::mem::forget(mark);
    let (bytes, seconds) = (mib(record.bytes), record.seconds);
    log::info!("{}: kernel B waits in {bytes} of memory; it has run for {seconds:.2} s", Phase::HibernateReturn);
    Ok(Kept { record, _page: page, loaded: Some(loaded) })
}

/// An order to wait, and the page for the report and for the order that follows.
fn order_to_wait(
    policy: &Policy,
    machine: &Machine,
    place: &Place,
    by_module: bool,
) -> anyhow::Result<(PinnedPage, Mailbox, Order)> {
    let opened = disk::open_image(policy, Access::Read)?;
    let (image, name, link) = (opened.image.label().uuid, opened.image.name(), opened.target.link()?);
    drop(opened);
    let (page, mailbox) = place.mailbox()?;
    let session = Box::new(place.session(machine, image, mailbox, Mounted::default())?);
    Ok((page, mailbox, Order::Wait(WaitOrder { image: name, session, by_module, link })))
}

/// Jumps, and returns when the save kernel waits, with how long it has run, in seconds.
fn go_and_return(loaded: &Loaded, page: &PinnedPage, nonce: &Nonce) -> anyhow::Result<f64> {
    nix::unistd::sync();
    let around = Around::begin()?;
    let jumped = loaded.jump(around.announced());
    around.end(jumped, &Uuid::from_random(procfs::random()?), &page.read())?;
    let report = mailbox::read(&page.read(), nonce).map_err(|error| CannotWait(error.to_string()))?;
    if report.outcome != Outcome::Waiting {
        bail!(CannotWait(report.reason));
    }
    Ok(report.save.seconds)
}

/// How long it takes to get into the save kernel and out again, in seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measured {
    /// Where it is loaded and booted.
    pub booted: f64,
    /// Where it waits, and is entered.
    pub entered: f64,
    /// What it takes of the memory while it waits, in bytes.
    pub bytes: u64,
}

/// Gets into a save kernel that is loaded for it, and once more into the same one. Nothing is saved, and nothing is
/// left of it. One that a process keeps gives way, and is started again.
///
/// # Errors
/// A save kernel cannot be started on this machine, or cannot wait.
pub fn measure(policy: &Policy) -> anyhow::Result<Measured> {
    kmsg::init();
    let lock = Lock::take()?;
    Record::take();
    let rate = ticks_per_second();
    let (kept, booted) = timed(rate, || start(policy, &lock))?;
    let machine = Machine::read().context(Unready::Machine)?;
    let place = Place::choose(&machine, policy)?;
    let (record, module) = (&kept.record, kept.record.module());
    let (page, mailbox, order) = order_to_wait(policy, &machine, &place, module.is_some())?;
    let waiting = Waiting { page: ForeignPage::open(record.process, record.address)?, nonce: record.nonce, module };
    let ((), entered) = timed(rate, || {
        let (loaded, _given) = waiting.enter(&order, &place)?;
        go_and_return(&loaded, &page, &mailbox.nonce).map(drop)
    })?;
    Ok(Measured { booted, entered, bytes: record.bytes })
}

/// The clocks of this kernel stand still while another one runs; the CPU's counter does not.
fn timed<T>(rate: f64, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<(T, f64)> {
    let before = ticks();
    let done = work()?;
    Ok((done, ticks().wrapping_sub(before) as f64 / rate))
}

fn ticks_per_second() -> f64 {
    let (began, before) = (Instant::now(), ticks());
    thread::sleep(Duration::from_millis(100));
    ticks().wrapping_sub(before) as f64 / began.elapsed().as_secs_f64()
}
