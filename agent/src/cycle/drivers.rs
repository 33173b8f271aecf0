//! What the session uses of the machine beside the image's own disk, and what B must therefore drive: a watchdog that
//! counts, and disks that keep what was written in a cache of their own.
//!
//! The jump freezes disks and does not stop them: a SCSI or SATA disk is not told to write its cache (Linux 6.12,
//! drivers/scsi/sd.c, `sd_pm_ops` has no `freeze`; drivers/ata/libata-eh.c leaves it to the hibernation's power-off).
//! So A flushes every disk as the last thing before it jumps. What its kernel threads write until the devices are
//! frozen, B flushes, where it has the disk's driver. That driver also stops the disk when B powers off
//! (`sd_shutdown`).

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use dormouse_linux::block::{self, Disk};
use dormouse_linux::mountinfo;
use dormouse_linux::watchdogs::HardwareWatchdog;
use dormouse_linux::{bzimage_release, cpio_file, kmod, procfs, swaps};

use crate::console::phase::Phase;
use crate::handoff::mailbox::ArmedWatchdog;
use crate::handoff::places::{DISK_MODULES_LIST, MODULES_LIST, WATCHDOG_MODULES_LIST};
use crate::policy::Policy;
use crate::target::Needs;

/// How often B looks for disks that have not turned up.
const PERIOD: Duration = Duration::from_millis(100);

/// The disks under whatever is mounted, in any mount namespace, and under swap.
#[must_use]
pub fn disks_of_session() -> Vec<Disk> {
    block::disks_in_use(&mountinfo::read_all().unwrap_or_default(), &swaps::all())
}

/// The hardware watchdog that a program has started, if one has.
#[must_use]
pub fn armed_watchdog() -> Option<ArmedWatchdog> {
    let watchdogs = HardwareWatchdog::all(Path::new("/sys"));
    let armed = watchdogs.iter().find(|watchdog| watchdog.is_active)?;
    ArmedWatchdog::new(&armed.identity, armed.timeout.as_secs())
}

/// What B could not drive.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Undriven {
    /// Disks of the session, each with the modules that are missing.
    pub disks: Vec<(PathBuf, Vec<String>)>,
    /// A watchdog that runs.
    pub watchdogs: Vec<(String, Vec<String>)>,
}

/// What of the session's `disks` and watchdogs B could not drive with the initramfs that exists. `None` where that does
/// not show what it holds.
#[must_use]
pub fn undriven(policy: &Policy, disks: &[Disk]) -> Option<Undriven> {
    let carried = carried(&procfs::read(&policy.kernel.initramfs).ok()?)?;
    let release = bzimage_release::of_file(&policy.kernel.image).ok();
    let directory = Path::new("/lib/modules").join(release.as_deref().unwrap_or_default());
    let missing = |needs: Result<Needs, _>| {
        let names = needs.map_or_else(|_: kmod::ModulesError| Vec::new(), |needs| needs.modules);
        // What that kernel has built in needs nothing. Where its modules are not installed, it is taken to have the
        // same ones as the running kernel.
        let names = kmod::order(&directory, &names).unwrap_or(names);
        names.into_iter().filter(|name| !carried.contains(name)).collect::<Vec<_>>()
    };
    let disks = disks.iter().map(|disk| (missing(Needs::of(&disk.hardware, &directory)), disk.hardware.node.clone()));
    let watchdogs = HardwareWatchdog::all(Path::new("/sys")).into_iter().filter(|watchdog| watchdog.is_active);
    let watchdogs = watchdogs.map(|watchdog| (missing(Needs::of_watchdog(&watchdog, &directory)), watchdog.name));
    Some(Undriven {
        disks: disks.filter(|(missing, _)| !missing.is_empty()).map(|(missing, node)| (node, missing)).collect(),
        watchdogs: watchdogs
            .filter(|(missing, _)| !missing.is_empty())
            .map(|(missing, name)| (name, missing))
            .collect(),
    })
}

/// The modules that an initramfs of B's says it holds.
fn carried(initramfs: &[u8]) -> Option<BTreeSet<String>> {
    let [modules, watchdogs, disks] =
        cpio_file::find_each(initramfs, [MODULES_LIST, WATCHDOG_MODULES_LIST, DISK_MODULES_LIST]);
    // An older Dormouse has made none of the others.
    let lists = [modules?, watchdogs.unwrap_or_default(), disks.unwrap_or_default()];
    let names = |list: Vec<u8>| String::from_utf8_lossy(&list).lines().map(kmod::name_of_path).collect::<Vec<_>>();
    Some(lists.into_iter().flat_map(names).collect())
}

/// Names what B cannot drive, and what that costs. A session is not refused for it: A has flushed the disks, and what
/// is lost without a driver is what the kernel's own threads write in the moments until the devices are frozen, if the
/// disk does not write it in the time that the save takes.
pub fn warn_of_undriven(policy: &Policy, disks: &[Disk]) {
    let undriven = undriven(policy, disks).unwrap_or_default();
    for (node, modules) in undriven.disks {
        log::warn!(
            "{}: the save kernel does not drive {} (it lacks {}), and will switch it off without a flush: run \
             `dormouse update`",
            Phase::HibernatePrepare,
            node.display(),
            modules.join(", ")
        );
    }
    for (name, modules) in undriven.watchdogs {
        log::warn!(
            "{}: {name} is running, and the save kernel cannot set it back (it lacks {}): it may restart the machine \
             during the save. Run `dormouse update`, or stop it",
            Phase::HibernatePrepare,
            modules.join(", ")
        );
    }
}

/// The places of disks, by which B knows them.
#[must_use]
pub fn places(disks: &[Disk]) -> Vec<String> {
    disks.iter().map(|disk| disk.place.clone()).collect()
}

/// Has every disk write its cache, in A. One that cannot is named in the log: nothing is lost by it that a power cut
/// would not lose.
pub fn flush(disks: &[Disk]) {
    std::thread::scope(|scope| {
        let flushes: Vec<_> = disks.iter().map(|disk| (disk, scope.spawn(|| sync(&disk.hardware.node)))).collect();
        for (disk, flush) in flushes {
            if let Ok(Err(error)) = flush.join() {
                let node = disk.hardware.node.display();
                log::warn!("{}: {node}: flushing it failed: {error}", Phase::HibernateJump);
            }
        }
    });
}

/// Writes out what the kernel holds of the device itself, and has it write its cache (Linux 6.12, block/fops.c,
/// `blkdev_fsync`).
fn sync(node: &Path) -> io::Result<()> {
    File::open(node)?.sync_all()
}

/// Waits in B until the disks at `places` have turned up, `deadline` at the latest, and has each write its cache. What
/// has not come or cannot be flushed is named in the log; the image is whole without it.
pub fn settle(places: &[String], deadline: Instant, alive: &dyn Fn()) {
    let missing = |found: &[Disk]| places_without(places, found);
    let mut found = block::all_disks();
    while !missing(&found).is_empty() && Instant::now() < deadline {
        alive();
        std::thread::sleep(PERIOD);
        found = block::all_disks();
    }
    for place in missing(&found) {
        log::warn!("{}: the disk at {place} has not turned up; it is switched off as it is", Phase::SaveCommit);
    }
    for disk in found.iter().filter(|disk| places.contains(&disk.place)) {
        let node = disk.hardware.node.display();
        match sync(&disk.hardware.node) {
            Ok(()) => log::info!("{}: flushed {node} of the session ({})", Phase::SaveCommit, disk.place),
            Err(error) => log::warn!("{}: {node}: flushing it failed: {error}", Phase::SaveCommit),
        }
        alive();
    }
}

/// The places, once for each disk there, at which `found` has none.
fn places_without<'a>(places: &'a [String], found: &[Disk]) -> Vec<&'a String> {
    let mut there: Vec<&str> = found.iter().map(|disk| disk.place.as_str()).collect();
    let mut is_missing = |place: &&String| match there.iter().position(|other| other == place) {
        Some(at) => {
            there.swap_remove(at);
            false
        }
        None => true,
    };
    places.iter().filter(|place| is_missing(place)).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use dormouse_linux::cpio::Archive;

    #[test]
    fn an_initramfs_says_what_it_holds() {
        let lists = [
            (MODULES_LIST, "virtio_pci.ko\nvirtio_blk\n"),
            (WATCHDOG_MODULES_LIST, "i6300esb.ko\n"),
            (DISK_MODULES_LIST, "usb-storage.ko\n"),
        ];
        let of = |lists: &[(&str, &str)]| {
            let archive = lists
                .iter()
                .fold(Archive::new(), |archive, (path, text)| archive.file(path, 0o644, text.as_bytes().to_vec()));
            carried(&archive.finish().unwrap())
        };
        let all = ["i6300esb", "usb_storage", "virtio_blk", "virtio_pci"].map(String::from);
        assert_eq!(of(&lists), Some(all.into()));
        assert_eq!(of(&lists[..1]).unwrap().len(), 2);
        assert_eq!(of(&lists[1..]), None);
        assert_eq!(carried(b"\x1f\x8b\x08"), None);
    }

    #[test]
    fn disks_that_have_not_come_are_counted_by_their_place() {
        let places = ["a", "b", "b"].map(String::from);
        assert_eq!(places_without(&places, &[]).len(), 3);
        assert!(places_without(&[], &[]).is_empty());
    }
}
