//! What a session gives up before it is saved (`save.shrink`).

use std::fs::File;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, ensure};
use dormouse::handoff::report::{Report, Shrunk};
use dormouse_tests::artifacts::Artifacts;
use dormouse_tests::cycle::{self, unobserved};
use dormouse_tests::guest::Guest;
use dormouse_tests::machine::{Disk, DiskKind, GuestConfig, MIB};
use dormouse_tests::userland::{GuestPolicy, POLICY_PATH, Userland};

use crate::{TWO_BOOTS, demand_proofs};

/// How much of a disk's content is in memory.
const CACHED: u64 = 192 * MIB;
/// How much less than without caches is wanted in use.
const SWAPPED: u64 = 64 * MIB;
const PAGE: u64 = 4096;

const GROUPS: &str = "/sys/fs/cgroup";
const CACHE: &str = "/etc/cache.toml";
const SIZE: &str = "/etc/size.toml";

/// One session by each policy, with a disk's content in memory each time: the image gets smaller and smaller. Without
/// control groups, a size drops caches and no more.
pub(crate) fn nothing_caches_and_what_can_be_swapped_out() -> Result<()> {
    let mut guest = session()?;
    let none = cycle_by(&mut guest, POLICY_PATH)?;
    ensure!(none.before.is_some_and(|before| before.shrunk.is_none()), "{none:?}");
    let cache = cycle_by(&mut guest, CACHE)?;
    let without_caches = shrunk(&cache)?;
    ensure!(without_caches.given_up_bytes >= CACHED, "{cache:?}");
    demand_fewer_pages(&cache, &none, CACHED * 3 / 4)?;

    // Less than what is in use without caches, which only swapping out brings about.
    let wanted = (without_caches.in_use_bytes - SWAPPED) / MIB;
    guest.succeed(&format!("sed 's/\"cache\"/\"{wanted}M\"/' {CACHE} >{SIZE} && grep -q {wanted}M {SIZE}"))?;
    read_all(&mut guest)?;
    let before = cycle::check_workload(&mut guest)?;
    let command = format!("dormouse --config {SIZE} hibernate --then return --json");
    let snapshot = cycle::stay_on(&mut guest, before, &command, &mut unobserved)?;
    demand_proofs(&guest, &snapshot)?;
    let no_groups = shrunk(&snapshot.report()?)?;
    ensure!(no_groups.given_up_bytes >= CACHED && no_groups.in_use_bytes > wanted * MIB, "{no_groups:?}");
    guest.succeed("dmesg | grep -q 'only caches were, since /sys/fs/cgroup has no memory.reclaim'")?;

    guest.succeed(&format!("mount -t cgroup2 cgroup2 {GROUPS}"))?;
    let size = cycle_by(&mut guest, SIZE)?;
    let with_groups = shrunk(&size)?;
    ensure!(with_groups.in_use_bytes <= wanted * MIB && with_groups.seconds < 15.0, "{with_groups:?}");
    demand_fewer_pages(&size, &cache, SWAPPED / 2)?;
    let status = guest.succeed("dormouse status")?;
    ensure!(status.contains("MiB given up in "), "{status}");

    // A size that half of the caches make up for: the rest of them stays.
    let most = (without_caches.in_use_bytes + CACHED / 2) / MIB;
    guest.succeed(&format!("sed 's/\"cache\"/\"{most}M\"/' {CACHE} >{SIZE} && grep -q {most}M {SIZE}"))?;
    let half = cycle_by(&mut guest, SIZE)?;
    let in_use = shrunk(&half)?.in_use_bytes;
    ensure!(in_use <= most * MIB && in_use + 32 * MIB > most * MIB, "{half:?}");
    Ok(())
}

/// A guest with the policies, a disk whose content is not zero, swap, and the workload.
fn session() -> Result<Guest> {
    let mut config = GuestConfig::new(2, "1G".parse()?);
    config.disks.extend([CACHED, 256 * MIB].map(|bytes| Disk { kind: DiskKind::Virtio, bytes }));
    let image = config.disk_path(0)?;
    let policy = |path: &str, shrink: &str| GuestPolicy {
        path: path.to_owned(),
        text: format!("[image]\ndevice = \"{image}\"\n[save]\nshrink = \"{shrink}\"\n"),
    };
    let userland =
        Userland { policies: vec![policy(POLICY_PATH, "none"), policy(CACHE, "cache")], ..Userland::default() };
    let mut guest = Guest::new(config, &userland, &Artifacts::from_environment()?)?;
    let content = File::options().write(true).open(guest.disk_file(1))?;
    let mut block = [0_u8; 1 << 20];
    for number in 0..CACHED / MIB {
        // No two pages alike, and none of zeroes.
        block.chunks_mut(8).zip(number << 32..).for_each(|(word, value)| word.copy_from_slice(&(!value).to_le_bytes()));
        content.write_all_at(&block, number * MIB)?;
    }
    guest.boot()?;
    cycle::init_image(&mut guest, &image)?;
    // A device that nobody has open keeps nothing in memory.
    guest.succeed("mkswap /dev/vdc && swapon /dev/vdc && (sleep 1000000 </dev/vdb &) >/dev/null 2>&1")?;
    // It swaps out a part of itself where there is swap, and looks whether that comes back.
    cycle::start_workload(&mut guest)?;
    Ok(guest)
}

/// The whole disk is in memory then.
fn read_all(guest: &mut Guest) -> Result<()> {
    guest.succeed_within("cat /dev/vdb >/dev/null", TWO_BOOTS)?;
    Ok(())
}

/// One hibernation with a power-off by this policy, with the disk's content in memory when it begins.
fn cycle_by(guest: &mut Guest, policy: &str) -> Result<Report> {
    read_all(guest)?;
    let before = cycle::check_workload(guest)?;
    let command = format!("dormouse --config {policy} hibernate --then poweroff --json");
    let saved = cycle::save(guest, before, &command, &mut unobserved)?;
    let went_on = cycle::resume(guest, saved, &mut unobserved)?;
    demand_proofs(guest, &went_on)?;
    went_on.report()
}

fn shrunk(report: &Report) -> Result<Shrunk> {
    report.before.and_then(|before| before.shrunk).context("the report does not say what was given up")
}

/// Pages that the image has, as they are or as zeroes.
fn pages(report: &Report) -> u64 {
    report.stored_pages + report.zero_pages
}

fn demand_fewer_pages(report: &Report, than: &Report, bytes: u64) -> Result<()> {
    let (now, then) = (pages(report), pages(than));
    ensure!(now + bytes / PAGE <= then, "{now} pages, and {then} before: {report:?}");
    Ok(())
}
