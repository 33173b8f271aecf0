//! The conductor in C: decides whether there is a session to resume, and starts D.

use anyhow::Context;
use dormouse_image::{Header, State};
use dormouse_linux::plymouth::Splash;
use dormouse_linux::{kmsg, procfs};

use crate::console::phase::Phase;
use crate::cycle::last::{Event, Last};
use crate::filesystems;
use crate::handoff::arguments::BootSwitches;
use crate::handoff::order::{Order, RestoreOrder};
use crate::launch::SecondKernel;
use crate::machine::{Machine, compat};
use crate::policy::{Policy, Unfit};
use crate::store::{Access, Image, StoreError};
use crate::target::{self, IfFile, Opened, Opening, TargetError};

/// Restores that may begin without reaching their end: a power cut during the first one must not cost the session, and
/// an image that kills its restore must not be tried forever.
const ATTEMPTS: u32 = 2;

/// Resumes the saved session, or returns in one line why there is nothing to resume.
///
/// An image that is there and is not resumed is discarded: once this boot has mounted its filesystems, resuming would
/// destroy them.
///
/// # Errors
/// The image device could not be read, or D could not be started. The boot goes on all the same.
pub fn run(policy: &Policy) -> anyhow::Result<String> {
    kmsg::init();
    let result = go(policy);
    match &result {
        Ok(line) => Last::record(Event::Resume, line, None),
        Err(error) => Last::record(Event::Resume, &format!("{error:#}"), None),
    }
    result
}

fn go(policy: &Policy) -> anyhow::Result<String> {
    match decide(policy)? {
        Decision::GoOn(line) => Ok(line),
        Decision::Resume(mut opened, header) => match start(policy, &mut opened.image, &header) {
            Ok(never) => match never {},
            Err(error) => {
                let reason = format!("the restore kernel could not be started: {error:#}");
                discard(&mut opened, &reason)?;
                Ok(format!("not resuming: {reason}; the image is discarded"))
            }
        },
    }
}

enum Decision {
    GoOn(String),
    Resume(Box<Opened>, Box<Header>),
}

fn decide(policy: &Policy) -> anyhow::Result<Decision> {
    let switches = BootSwitches::parse(&procfs::text("/proc/cmdline")?);
    let go_on = |line: String| Ok(Decision::GoOn(line));
    log::info!("{}: looking for {}", Phase::ResumeCheck, policy.image.device);
    let mut opened = match open(policy, IfFile::Refuse) {
        Err(TargetError::Store(StoreError::NotInitialised { name })) => {
            return go_on(format!("no image to resume: {name} is not initialised"));
        }
        Err(error @ TargetError::Ambiguous { .. }) => return go_on(leave_several(error)?),
        result => result?,
    };
    let place = opened.target.clone();
    let image = &opened.image;
    let commit = image.commit().clone();
    match commit.state {
        State::Empty | State::Consumed | State::Discarded | State::Snapshot => {
            return go_on(format!("no image to resume: the one on {place} is {}", commit.state));
        }
        // Said once; from then on the image is discarded.
        State::Saving => {
            let reason = "the last save never finished";
            discard(&mut opened, reason)?;
            return go_on(format!("not resuming from {place}: {reason}; the session is lost"));
        }
        State::Failed => {
            discard(&mut opened, &commit.reason)?;
            return go_on(format!("not resuming from {place}: {}", commit.reason));
        }
        State::Complete | State::Restoring => {}
    }
    let refused = match switches {
        Ok(switches) if switches.off || switches.noresume => Some("the kernel command line says so".to_string()),
        // Whatever was meant, it was about Dormouse, and this boot is about to mount the session's filesystems.
        Err(error) => Some(error.to_string()),
        Ok(_) if !policy.resume.enabled => Some("the policy says so (resume.enabled)".to_string()),
        Ok(_) if commit.attempts >= ATTEMPTS => Some(format!("{} restores of it have already died", commit.attempts)),
        Ok(_) => None,
    };
    let header = refused.map_or_else(|| image.header().map_err(|error| error.in_full()), Err);
    let (reason, header) = match header {
        Ok(header) => match misfit(&header, policy) {
            None => return Ok(Decision::Resume(Box::new(opened), Box::new(header))),
            Some(reason) => (reason, Some(header)),
        },
        Err(reason) => (reason, None),
    };
    if may_stay(policy, header.as_ref()) {
        return go_on(format!("not resuming from {place}: {reason}; the image is kept"));
    }
    discard(&mut opened, &reason)?;
    go_on(format!("not resuming from {place}: {reason}; the image is discarded"))
}

/// Gives up an image that waits although this boot is over with its initramfs, and says so in one line; `None` where none
/// does. The filesystems are mounted by now, so the rule is that of [`run`]: it stays only by policy, and only where the next
/// boot can tell what this one has done to them.
///
/// A session that was resumed does not find its own image waiting: it was marked before the jump.
///
/// # Errors
/// There is an image device that cannot be looked at or written to.
pub fn give_up_unresumed(policy: &Policy) -> anyhow::Result<Option<String>> {
    let mut opened = match open(policy, IfFile::Trust) {
        Err(TargetError::NotFound { .. } | TargetError::Store(StoreError::NotInitialised { .. })) => return Ok(None),
        Err(error @ TargetError::Ambiguous { .. }) => return leave_several(error).map(Some),
        result => result?,
    };
    let place = opened.target.clone();
    if !opened.image.commit().state.is_waiting() {
        return Ok(None);
    }
    let header = opened.image.header().ok();
    let boot_id = procfs::text("/proc/sys/kernel/random/boot_id")?;
    let is_own = header.as_ref().is_some_and(|header| header.session.boot_id.to_string() == boot_id.trim());
    if !is_own && may_stay(policy, header.as_ref()) {
        return Ok(Some(format!("a session waits in the image on {place}, and is kept by policy (resume.mismatch)")));
    }
    let reason = match Last::resume_of_this_boot() {
        _ if is_own => "the session in it goes on".to_owned(),
        Some(last) => format!("a boot went on without it and mounted filesystems ({})", last.text),
        None => {
            "a boot mounted filesystems without asking for it: its initramfs does not run `dormouse resume`".to_owned()
        }
    };
    discard(&mut opened, &reason)?;
    Ok(Some(format!("the image on {place} is discarded: {reason}; see `dormouse doctor`")))
}

/// Whether an image that is not resumed may wait for another boot: by policy, and only if that can tell whether this one has
/// written to the session's filesystems.
fn may_stay(policy: &Policy, header: Option<&Header>) -> bool {
    policy.resume.mismatch == Unfit::Keep && header.is_some_and(can_tell)
}

/// Several devices have the name of the image device, and which one is meant must not be guessed. What this boot goes on to
/// do to the session's filesystems must not be lost on the next one, so an image stays only where that can tell.
fn leave_several(error: TargetError) -> anyhow::Result<String> {
    let mut line = format!("not resuming: {error}");
    if let TargetError::Ambiguous { first, second, .. } = &error {
        for target in [first, second] {
            let Ok(image) = target.open(Access::Write) else { continue };
            if image.commit().state.is_waiting() && !image.header().is_ok_and(|header| can_tell(&header)) {
                discard(&mut Opened { target: target.clone(), image }, &error.to_string())?;
                line.push_str(&format!("; the image on {target} is discarded"));
            }
        }
    }
    Ok(line)
}

/// Whether the next boot can tell if this one writes to the session's filesystems.
fn can_tell(header: &Header) -> bool {
    let unsure = filesystems::compare(&header.session.filesystems, &filesystems::devices()).unsure;
    if !unsure.is_empty() {
        log::warn!("{}: the image cannot be kept: {} cannot be compared", Phase::ResumeCheck, unsure.join(", "));
    }
    unsure.is_empty()
}

fn open(policy: &Policy, if_file: IfFile) -> Result<Opened, TargetError> {
    target::open(&policy.image.device, Opening { access: Access::Write, wait: policy.image.wait, if_file })
}

/// Why a session does not fit what is here: the machine, or its own filesystems.
fn misfit(header: &Header, policy: &Policy) -> Option<String> {
    let machine = match Machine::read() {
        Ok(machine) => machine,
        Err(error) => return Some(format!("{error:#}")),
    };
    if let Err(mismatch) = compat::check(&header.session, &machine) {
        return Some(mismatch.to_string());
    }
    let filesystems = filesystems::compare_within(&header.session.filesystems, policy.image.wait, filesystems::devices);
    if !filesystems.unsure.is_empty() && filesystems.changed.is_none() {
        let list = filesystems.unsure.join(", ");
        log::warn!("{}: whether another system has written to them cannot be told: {list}", Phase::ResumeCheck);
    }
    filesystems.changed
}

fn discard(Opened { target, image }: &mut Opened, reason: &str) -> anyhow::Result<()> {
    image.transition(State::Discarded, reason).context("the image could not be discarded")?;
    Ok(target.confirm(image)?)
}

/// Loads D into the image's region and jumps. Returns only with the reason why it could not.
fn start(policy: &Policy, image: &mut Image, header: &Header) -> anyhow::Result<std::convert::Infallible> {
    log::info!("{}: kernel D goes to {}", Phase::ResumeLoad, header.session.region);
    let mut splash = Splash::say("Resuming from hibernation");
    let machine = Machine::read()?;
    let order = Order::Restore(RestoreOrder { image: image.name(), save_id: header.session.save_id });
    let kernel = SecondKernel::plan(&machine, policy, &order, header.session.region, &header.session.low)?;
    log::debug!("{}: command line of D: {}", Phase::ResumeLoad, kernel.command_line());
    let loaded = kernel.load().context("kexec_load was refused")?;
    // Counted here and not in D, which may be unable to find the device: a restore that dies is not tried forever.
    image.begin_restore()?;
    log::info!("{}: resuming the session of {}", Phase::ResumeJump, header.session.hostname);
    if let Some(splash) = &mut splash {
        splash.hide();
    }
    loaded.jump_for_good().context("the jump was refused")
}
