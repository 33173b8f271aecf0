//! The conductor in A: loads B, jumps, and reports on return how it went.

use std::time::Duration;

use anyhow::{Context, bail};
use dormouse_image::State;
use dormouse_linux::error_chain::in_full;
use dormouse_linux::plymouth::Splash;
use dormouse_linux::system::Uname;
use dormouse_linux::{kmsg, volatile_memory};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::console::phase::Phase;
use crate::cycle::around::{self, Around};
use crate::cycle::direct::Prepared;
use crate::cycle::disk;
use crate::cycle::drivers;
use crate::cycle::jump::{self, Jumper};
use crate::cycle::keys;
use crate::cycle::last::{Event, Last};
use crate::cycle::lock::Lock;
use crate::cycle::place::Place;
use crate::cycle::refusal::{self, Complaint, JumpError, Unready, Unsealed};
use crate::cycle::shrink::shrink;
use crate::cycle::warm::{self, Waiting};
use crate::cycle::{direct, evidence, leftover, waiting};
use crate::filesystems::{self, Mounted};
use crate::handoff::mailbox::{self, ArmedWatchdog, FreePages};
use crate::handoff::order::{Order, SaveOrder};
use crate::handoff::report::{Before, Outcome, Report};
use crate::machine::free_content::FreeContent;
use crate::machine::{self, Machine};
use crate::policy::{Policy, Then};
use crate::store::Access;
use crate::target::{self, IfFile, Opened, Opening};

/// What the command line says beyond the policy.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// What follows the save, in place of the policy's `save.then`.
    pub then: Option<Then>,
    /// Whether to jump although this kernel's version is older than the fix that lets it be returned to.
    pub trust_kernel: bool,
    /// Whether to jump although nothing shows that the next boot resumes.
    pub trust_boot: bool,
    /// Whether to replace a kernel that is loaded for `kexec -e`, and to write over a session that waits in the image.
    pub force: bool,
}

/// Hibernates this machine. Returns when it goes on: after the resume, after a snapshot, or after a save that failed,
/// which the report says.
///
/// # Errors
/// Whatever is found before the jump: nothing has changed then, and the [`Complaint`] is a refusal. After it, a
/// [`JumpError`].
pub fn run(policy: &Policy, options: Options) -> Result<Report, Complaint> {
    kmsg::init();
    let _lock = Lock::take().map_err(|error| complaint_of(&error))?;
    let result = hibernate(policy, options).map_err(|error| complaint_of(&error));
    match &result {
        Ok(report) => Last::record(Event::Hibernate, report.id(), &report.to_string(), Some(report)),
        Err(complaint) => Last::record(Event::Hibernate, complaint.id_or("failed"), &complaint.to_string(), None),
    }
    result
}

/// Before the jump nothing has changed, whatever goes wrong.
fn complaint_of(error: &anyhow::Error) -> Complaint {
    if error.is::<JumpError>() { Complaint::of(error) } else { Complaint::refused(error) }
}

/// SIGINT, SIGTERM and SIGHUP, which end a hibernation between two steps, so that nothing is left loaded.
struct Signals(SignalFd);

const SIGNALS: [Signal; 3] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];

impl Signals {
    fn hold() -> anyhow::Result<Signals> {
        let mask: SigSet = SIGNALS.into_iter().collect();
        mask.thread_block().context("signals cannot be held back")?;
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        Ok(Signals(SignalFd::with_flags(&mask, flags).context("signals cannot be held back")?))
    }

    /// The end, if one has come.
    fn check(&self) -> anyhow::Result<()> {
        match self.0.read_signal() {
            Ok(Some(info)) => {
                let signal = i32::try_from(info.ssi_signo).ok().and_then(|number| Signal::try_from(number).ok());
                bail!(Unready::Stopped(signal.map_or("a signal", Signal::as_str)))
            }
            _ => Ok(()),
        }
    }

    /// What came too late to stop anything is forgotten: the report of what has happened is to be read.
    fn forget(&self) {
        while let Ok(Some(_)) = self.0.read_signal() {}
    }
}

impl Drop for Signals {
    /// What is run afterwards (the system-sleep hooks) inherits the mask, and must be possible to end.
    fn drop(&mut self) {
        self.forget();
        if let Err(error) = SIGNALS.into_iter().collect::<SigSet>().thread_unblock() {
            log::warn!("signals stay held back: {error}");
        }
    }
}

/// How kernel B comes to run.
enum How {
    /// It waits, and is entered.
    Enter(Waiting),
    /// It is loaded by who jumps.
    Load(Jumper),
}

impl How {
    fn is_by_module(&self) -> bool {
        match self {
            How::Enter(waiting) => waiting.is_by_module(),
            How::Load(jumper) => matches!(jumper, Jumper::Module(_)),
        }
    }
}

fn hibernate(policy: &Policy, options: Options) -> anyhow::Result<Report> {
    let signals = Signals::hold()?;
    log::info!("{}: reading the machine", Phase::HibernatePrepare);
    let machine = Machine::read().context(Unready::Machine)?;
    let place = Place::choose(&machine, policy)?;
    let how = match warm::find(policy, &machine, &place) {
        Some(waiting) => How::Enter(waiting),
        None => {
            leftover::unload();
            How::Load(jumper(&machine, policy, options)?)
        }
    };
    let (is_warm, is_by_module) = (matches!(how, How::Enter(_)), how.is_by_module());
    // The module loads beside it.
    around::refuse_loaded(options.force || is_by_module || is_warm)?;
    let then = options.then.unwrap_or(policy.save.then);
    let in_next_boot = refusal::in_boot(Last::resume_of_this_boot().as_ref(), then)
        .or_else(|| refusal::in_resume(&machine.cmdline, policy.resume.enabled, then));
    refusal::refuse(in_next_boot.filter(|_| !options.trust_boot))?;
    let (image, name, link) = {
        let Opened { target, mut image } = image(policy)?;
        let link = target.link()?;
        keys::unlock_here(&mut image);
        waiting::refuse(&image, options.force)?;
        Unsealed::refuse(&image.label().stack, keys::seals(policy))?;
        evidence::demand(policy, &image, then, options.trust_boot)?;
        (image.label().uuid, image.name(), link)
    };
    if !is_warm {
        place.refuse_little_memory()?;
    }
    let (mut page, mailbox) = place.mailbox()?;
    let disks = drivers::disks_of_session();
    // First: a filesystem on such memory cannot be compared either, but that it would be lost says more.
    refusal::refuse(refusal::in_volatile_memory(volatile_memory::in_use(&disks), then))?;
    let mounted = mounted(policy, then)?;
    // After all that refuses; and before the key of this save is made, since memory may be swapped out now.
    let shrunk = shrink(policy.save.shrink);
    signals.check()?;
    let session = place.session(&machine, image, mailbox, mounted)?;
    let free_content = FreeContent::of_running_kernel(&session.cmdline, &session.kernel_release);
    log::debug!("{}: expected of free pages: {free_content:?}", Phase::HibernatePrepare);

    let save_id = session.save_id;
    if !is_warm {
        drivers::warn_of_undriven(policy, &disks);
    }
    let places = if then == Then::Return { Vec::new() } else { drivers::places(&disks) };
    let (sealing, prepared) = {
        let opened = self::image(policy)?;
        let sealing = keys::for_save(policy, &opened, save_id)?;
        let is_sealed = sealing.is_some();
        let prepared = direct::prepare(policy, &machine, &place, &opened.image, &session, then, is_sealed);
        (sealing, prepared)
    };
    let uuid = image;
    let expectation = keys::Expectation::of(uuid, then, sealing.is_some());
    let arming = prepared.as_ref().and_then(Prepared::arming);
    let image = name.clone();
    let order = Order::Save(Box::new(SaveOrder { image, session, then, disks: places, sealing, arming, link }));
    signals.check()?;
    let _mark = (!is_by_module).then(leftover::mark);
    let (loaded, _given) = match how {
        How::Enter(waiting) => {
            log::info!("{}: kernel B waits in {}", Phase::HibernateLoad, place.region);
            let (loaded, given) = waiting.enter(&order, &place)?;
            (loaded, Some(given))
        }
        How::Load(jumper) => {
            log::info!("{}: kernel B goes to {}", Phase::HibernateLoad, place.region);
            let kernel = place.plan(&machine, policy, &order, jumper.most_segments())?;
            (jumper.load(kernel)?, None)
        }
    };
    drop(order);

    log::info!("{}: syncing filesystems, then freezing", Phase::HibernateJump);
    let mut splash = Splash::say("Hibernating");
    nix::unistd::sync();
    let around = Around::begin()?;
    if let Some(splash) = &mut splash {
        splash.hide();
    }
    // After whatever may take its time: where an image in a file lies must still hold when B writes there.
    let found = self::image(policy)?;
    // What a server has is found by another name than its UUID.
    if (found.image.name(), found.image.label().uuid) != (name.clone(), uuid) {
        bail!(Unready::ImageReplaced);
    }
    drop(found);
    let expectation = expectation.raise(save_id)?;
    // What still lies in a disk's cache is written, and what its filesystem has just synced is safe.
    drivers::flush(&disks);
    let watchdog = drivers::armed_watchdog().map_or([0; 8], ArmedWatchdog::to_bytes);
    page.write(mailbox::WATCHDOG, &watchdog);
    // Whatever fails from here on takes it back.
    let prepared = prepared.and_then(Prepared::arm);
    // As late as can be: B compares it with what it finds.
    let free = FreePages { content: free_content, count: machine::free_pages() };
    page.write(mailbox::FREE_PAGES, &free.to_bytes());
    signals.check()?;
    let jumped = loaded.jump(around.announced());
    // Here A goes on, perhaps days later.
    log::info!("{}: this session goes on", Phase::HibernateReturn);
    drop(splash);
    signals.forget();
    // After a resume the loaded image leads nowhere: its pages hold a kernel that is gone. Each hibernation loads
    // again.
    drop(loaded);
    drop(expectation);
    let before = around.end(jumped, &save_id, &page.read());
    let was_prepared = prepared.is_some();
    if let Some(prepared) = prepared {
        prepared.take_back();
    }
    let before = before?;
    let report = mailbox::read(&page.read(), &mailbox.nonce);
    let failed = report.as_ref().map_or(true, |report| report.outcome == Outcome::Failed);
    let report = report.map_err(JumpError::NoReport);
    let why = report.as_ref().map_or_else(|error| error.to_string(), |report| report.reason.clone());
    if failed && let Err(error) = invalidate(policy, &why) {
        let reason = report.map_or_else(|error| in_full(&error), |report| report.reason);
        bail!(JumpError::NotInvalidated { reason, source: error.into() });
    }
    let report = Report { before: Some(Before { shrunk, ..before }), ..report? };
    if report.outcome == Outcome::Resumed {
        evidence::record_resumed(policy, &name);
        if was_prepared {
            direct::note_way(report.direct);
        }
        settle_legs(policy);
    }
    log::info!("{}: {}", Phase::HibernateReturn, report.summary());
    Ok(report)
}

/// Sees to it that no boot resumes this session after it has gone on. B has done so before it came back, unless the
/// device failed it at just that moment, with the image complete in one of the commit record's slots. The device may
/// take its time to be there again.
fn invalidate(policy: &Policy, reason: &str) -> anyhow::Result<()> {
    let how = Opening { access: Access::Write, wait: policy.image.wait, if_file: IfFile::Trust };
    let Opened { target, mut image } = target::open_on(&policy.image.device, disk::expected(policy).as_ref(), how)?;
    if image.commit().state.is_waiting() || image.commit().state == State::Saving {
        image.transition(State::Failed, &format!("{reason}; the session went on"))?;
    }
    Ok(target.confirm(&image)?)
}

/// Gives a disk of a mirror the image's state that was not there when D wrote it.
fn settle_legs(policy: &Policy) {
    let how = Opening { access: Access::Write, wait: Duration::ZERO, if_file: IfFile::Trust };
    let opened = target::open(&policy.image.device, how).map_err(anyhow::Error::from);
    if let Err(error) = opened.and_then(|mut opened| Ok(opened.image.settle_legs()?)) {
        log::warn!("{}: not each disk of the image may know that it is used up: {error:#}", Phase::HibernateReturn);
    }
}

/// Who jumps. Refuses a kernel that could not be returned to, before anything is changed.
fn jumper(machine: &Machine, policy: &Policy, options: Options) -> anyhow::Result<Jumper> {
    let modes = std::fs::read_to_string("/sys/power/disk").unwrap_or_default();
    let found = refusal::in_command_line(&machine.cmdline).or_else(|| refusal::in_power_disk(&modes));
    refusal::refuse(found)?;
    Ok(jump::choose(policy.save.jump, &Uname::read()?.release, options.trust_kernel)?)
}

/// The image that the policy names, which must be initialised and not in use. One in a file, whatever the policy calls
/// it, must lie where its label says: B writes there, whatever the filesystem has put there since.
fn image(policy: &Policy) -> anyhow::Result<Opened> {
    Ok(disk::open_image(policy, Access::Write)?)
}

/// What is mounted and swapped to. Refuses a session of which no boot could tell whether another system has written to
/// its filesystems, unless the policy takes that upon itself or nothing is ever resumed.
fn mounted(policy: &Policy, then: Then) -> anyhow::Result<Mounted> {
    // What is still to be written could be a superblock.
    nix::unistd::sync();
    let mounted = filesystems::of_session()?;
    refusal::refuse(refusal::in_filesystems(&mounted.unsure, policy.resume.unsure, then))?;
    if !mounted.unsure.is_empty() {
        let list = mounted.unsure.join(", ");
        log::warn!("{}: writes by another system will not be noticed: {list}", Phase::HibernatePrepare);
    }
    Ok(mounted)
}
