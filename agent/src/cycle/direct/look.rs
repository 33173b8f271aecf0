//! The conductor in a D that a boot loader has started: what C does, and then what D does.

use std::thread;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use dormouse_image::FileKey;
use dormouse_linux::ask::AskError;
use dormouse_linux::procfs;
use dormouse_linux::tpm::{TpmError, Transport};
use zeroize::Zeroizing;

use crate::console::phase::Phase;
use crate::cycle::direct::block;
use crate::cycle::judge::{Judge, NO_HEADER, judge};
use crate::cycle::look;
use crate::cycle::restore::{self, Restored};
use crate::cycle::verdict::{Moment, Switches, Verdict};
use crate::handoff::arguments::BootSwitches;
use crate::handoff::order::RestoreOrder;
use crate::handoff::task::{LookTask, RestoreTask};
use crate::key::{KeyFile, Means, OfThisBoot};
use crate::launch::demand_confined;
use crate::machine::firmware_map;
use crate::machine::iomem::Iomem;
use crate::policy::Policy;
use crate::store::Access;
use crate::target::{self, IfFile, Opened, Opening};

/// How often somebody hears that this goes on while a person is asked.
const PERIOD: Duration = Duration::from_millis(250);

/// Looks for the image, and restores the session in it if it may be resumed. As [`restore::run`].
///
/// # Errors
/// Why it is not resumed. Unless the restore has begun, the image is as it was: an ordinary boot follows, and decides.
pub(crate) fn run(task: LookTask<'_>, policy: &Policy, alive: &dyn Fn()) -> anyhow::Result<Restored> {
    let order = task.order;
    // Before all else, so that whatever happens to this kernel, the next boot is an ordinary one.
    // systemd-boot has no block: it has removed its variable.
    if let Some(block) = &order.block {
        block::disarm(block, policy.image.wait).context("the boot loader's block")?;
    }
    let running = Iomem::parse(&procfs::text("/proc/iomem")?)?;
    demand_confined(&running, order.region, &order.low)?;
    ensure!(
        !BootSwitches::parse(&procfs::text("/proc/cmdline")?).forbids(),
        "the kernel command line says so; to give up the session, say it to the ordinary boot"
    );
    log::info!("{}: looking for {}", Phase::RestoreVerify, order.image);
    let how = Opening { access: Access::Write, wait: policy.image.wait, if_file: IfFile::Refuse };
    target::reach(&order.image, order.link.as_ref(), policy.image.wait, alive)?;
    let Opened { target, mut image } = target::open_on(&order.image, policy.image.disk.as_ref(), how)?;
    alive();
    let moment = if look::needs_unlock(policy, &image) {
        Moment::Locked(Switches::Resume)
    } else {
        Moment::Boot(Switches::Resume)
    };
    let mut means = Patient { means: OfThisBoot { wait: policy.image.wait }, alive };
    let by = &mut Judge { policy, machine: firmware_map::machine, means: &mut means };
    let (header, key) = match judge(&mut image, moment, by) {
        (Verdict::Resume, header, key) => (header.context(NO_HEADER)?, key),
        (Verdict::Nothing, ..) => bail!("the image on {target} is {}", image.commit().state),
        (Verdict::Later, ..) => bail!("the image's key is in a volume, which only an ordinary boot unlocks"),
        (Verdict::Refuse { reason, .. }, ..) => bail!("not resuming from {target} ({}): {reason}", reason.id()),
    };
    let (region, saved) = (order.region, header.session.region);
    ensure!(region == saved, "this kernel was placed for the region {region}, and the session's is {saved}");
    // Counted before anything can go wrong: a restore that dies is not tried forever.
    image.lock();
    image.begin_restore()?;
    let order =
        RestoreOrder { image: image.name(), save_id: header.session.save_id, key, link: task.order.link.clone() };
    drop(image);
    restore::run(RestoreTask { order: &order, bridge: task.bridge, is_direct: true }, policy, alive)
}

/// What C has, with somebody told again and again that this goes on: a person may take minutes.
struct Patient<'a> {
    means: OfThisBoot,
    alive: &'a dyn Fn(),
}

impl Means for Patient<'_> {
    fn file(&mut self, _: &FileKey) -> anyhow::Result<KeyFile> {
        bail!("only an ordinary boot unlocks the volume that it is in")
    }

    fn tpm(&mut self) -> Result<Box<dyn Transport>, TpmError> {
        self.means.tpm()
    }

    fn passphrase(&mut self, note: Option<&str>) -> Result<Zeroizing<Vec<u8>>, AskError> {
        let Patient { means, alive } = self;
        thread::scope(|scope| {
            let asking = scope.spawn(|| means.passphrase(note));
            while !asking.is_finished() {
                alive();
                thread::sleep(PERIOD);
            }
            asking.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}
