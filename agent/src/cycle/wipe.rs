//! After a resume, a save that failed or a discard: the image's data go from the disk, in the background of the running
//! system.
//!
//! It goes in steps, each under the lock and each with the device opened again: a hibernation that comes in between
//! finds device and lock free, and the rest is given up, since the image is another one then. What is interrupted is
//! begun again by `dormouse prepare`.

use std::fmt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::Context;
use dormouse_image::PhysRange;
use dormouse_linux::procfs;
use serde::Serialize;

use crate::cycle::lock::Lock;
use crate::machine::iomem::Iomem;
use crate::policy::Policy;
use crate::store::{Access, Image};
use crate::target::{self, Target, TargetError, file};

/// Bytes in a step: a slow stick writes that many within a second or two.
const STEP: u64 = 8 << 20;
/// Between two steps at least, and for as long as a step takes, so that others get at the lock and the disk.
const PAUSE: Duration = Duration::from_millis(100);
/// Of memory, where it is not known how much there is.
const MOST_MEMORY: u64 = 1 << 42;

/// How it ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Wiped {
    /// The device.
    pub device: String,
    /// The image's state.
    pub state: String,
    /// Whether nothing of a session is left on the device.
    pub is_wiped: bool,
}

impl fmt::Display for Wiped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Wiped { device, state, is_wiped } = self;
        match is_wiped {
            true => write!(f, "{device}: no data of a session are left; the image is {state}"),
            false => write!(f, "{device}: nothing was wiped, the image is {state}"),
        }
    }
}

/// Wipes what an image holds of a session that went on or was given up. One that can be resumed, and a snapshot, stay
/// as they are.
///
/// # Errors
/// The device cannot be opened or written; the lock is held; a file does not lie where a boot looks for it. The rest
/// can be wiped later.
pub fn run(target: &Target) -> anyhow::Result<Wiped> {
    let mut next = None;
    loop {
        // Waits: a hibernation that is under way changes the image, and what is left to do then is nothing.
        let lock = Lock::wait_if_any()?;
        let began = Instant::now();
        let mut image = target.open(Access::Write)?;
        if next.is_none() {
            target.check_for_wiping(&image)?;
        }
        let Some(wiping) = next.take().or_else(|| image.wiping(most())) else { return Ok(ended(target, &image)) };
        next = image.wipe(wiping, STEP)?;
        if next.is_none() {
            target.confirm(&image)?;
            return Ok(ended(target, &image));
        }
        drop((image, lock));
        sleep(began.elapsed().max(PAUSE));
    }
}

fn ended(target: &Target, image: &Image) -> Wiped {
    let commit = image.commit();
    Wiped { device: target.to_string(), state: commit.state.to_string(), is_wiped: image.is_wiped() }
}

/// How far a save of this machine's memory can have come.
fn most() -> u64 {
    let memory = procfs::text("/proc/iomem").ok().and_then(|text| Iomem::parse(&text).ok());
    let bytes = memory.map(|memory| memory.whole_ram().iter().map(PhysRange::len).sum());
    file::most(bytes.unwrap_or(MOST_MEMORY))
}

/// Begins to wipe the policy's image in a process of its own, if there is something to wipe: nobody waits for it. What
/// goes wrong is in its log, and `dormouse prepare` tries again.
pub fn begin(policy: &Policy, config: &Path) {
    if policy.image.wipe
        && is_needed(policy)
        && let Err(error) = spawn(config)
    {
        log::warn!("the image's data are not wiped: {error:#}");
    }
}

fn is_needed(policy: &Policy) -> bool {
    let found = target::find(&policy.image.device, Duration::ZERO).ok();
    let image = found.map(|target| target.open(Access::Read).map_err(|error: TargetError| log::debug!("{error}")));
    image.and_then(Result::ok).is_some_and(|image| image.is_to_be_wiped())
}

/// Where systemd runs, in a unit of its own: what a service leaves running ends with it.
fn spawn(config: &Path) -> anyhow::Result<()> {
    let program = std::env::current_exe().context("this program's own path")?;
    let config = std::path::absolute(config).context("the policy's path")?;
    let own = |command: &mut Command| {
        command.arg("--config").arg(&config).args(["image", "wipe"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    };
    if Path::new("/run/systemd/system").exists() {
        let mut unit = Command::new("systemd-run");
        unit.args(["--quiet", "--collect", "--no-block", "--unit=dormouse-wipe", "--nice=19"]);
        unit.args(["--property=IOSchedulingClass=idle", "--description=Wipe the image of a session that goes on"]);
        unit.arg(&program);
        own(&mut unit);
        if unit.status().is_ok_and(|status| status.success()) {
            return Ok(());
        }
    }
    let mut child = Command::new(program);
    own(&mut child);
    child.process_group(0).spawn().context("the process that wipes")?;
    Ok(())
}
