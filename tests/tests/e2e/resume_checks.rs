//! Images that must not be resumed: they are damaged, the machine is another one, or another system has written to the
//! session's disks.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow, ensure};
use dormouse::console::phase::Phase;
use dormouse_image::State;
use dormouse_image::layout::{HEADER_OFFSET, SLOT_OFFSETS};
use dormouse_tests::artifacts::Artifacts;
use dormouse_tests::console::Line;
use dormouse_tests::cycle::{self, unobserved};
use dormouse_tests::guest::Guest;
use dormouse_tests::machine::{Disk, DiskKind, Fault, GuestConfig, MIB, MachineType};
use dormouse_tests::qemu::copy_sparse;
use dormouse_tests::userland::{GuestPolicy, Userland};
use dormouse_tests::{filesystem, image};

use crate::{
    demand_proofs, demand_refusal, ids, lines_of_boot, power_cycle, reasons, save, session, session_with, told,
};

const KEEP: &str = "[resume]\nmismatch = \"keep\"\n";

/// What C can see is refused before D is started, and what D can see before memory is written.
pub(crate) fn damage_anywhere() -> Result<()> {
    let mut guest = session(GuestConfig::new(2, "512M".parse()?))?;
    save(&mut guest)?;
    let disk = guest.disk_file(0);
    let good = kept_copy(&disk)?;
    let commit = image::commit(&disk)?;
    let (_, chunks) = image::pages(&disk)?;
    let same_len = |pair: &&[image::StoredChunk]| pair[0].stored_len == pair[1].stored_len;
    let pair = chunks.windows(2).find(same_len).map_or_else(|| chunks[..2].to_vec(), <[_]>::to_vec);

    type Damage<'a> = Box<dyn Fn() -> Result<()> + 'a>;
    let flip = |offset: u64| -> Damage<'_> {
        let disk = disk.clone();
        Box::new(move || image::flip_byte(&disk, offset))
    };
    let cases: Vec<(&str, Damage<'_>, &str, Seen)> = vec![
        ("the header", flip(HEADER_OFFSET + 300), "header", Seen::InC),
        ("its version", flip(HEADER_OFFSET + 8), "version", Seen::InC),
        ("the last index block", flip(commit.last_index.offset + 100), "index", Seen::BeforeMemory),
        ("a chunk", flip(chunks[chunks.len() / 3].offset + 20), "is damaged", Seen::BeforeTheJump),
        ("the order of two chunks", Box::new(|| swap(&disk, &pair[0], &pair[1])), "is damaged", Seen::BeforeTheJump),
        (
            "the end of the device",
            Box::new(|| {
                let disk = File::options().write(true).open(&disk)?;
                Ok(disk.set_len((commit.data_end - 1) / MIB * MIB)?)
            }),
            "cut short",
            Seen::InC,
        ),
        (
            "both slots of the commit record",
            Box::new(|| SLOT_OFFSETS.iter().try_for_each(|slot| image::flip_byte(&disk, slot + 50))),
            "commit record",
            Seen::InC,
        ),
    ];
    for (what, damage, expected, seen) in cases {
        restore_copy(&good)?;
        damage()?;
        let lines = lines_of_boot(&mut guest)?;
        let demand = |holds: bool, words: &str| {
            if holds { Ok(()) } else { Err(guest.explain(anyhow!("{what} is damaged: {words}"))) }
        };
        let reached = |phase: Phase| lines.iter().any(|line| line.contains(&format!("dormouse: {phase}: ")));
        let shown = lines.iter().any(|line| line.contains("dormouse: ") && line.contains(expected));
        demand(shown, "the console does not show it")?;
        demand(reached(Phase::RestoreVerify) == (seen != Seen::InC), "D was started, or was not")?;
        demand(reached(Phase::RestoreWrite) == (seen == Seen::BeforeTheJump), "memory was written, or was not")?;
        demand(!reached(Phase::RestoreJump), "D jumped")?;
        ensure!(guest.run("workload check")?.status != 0, "{what} is damaged: the workload still runs");
        let status = guest.succeed("dormouse status")?;
        ensure!(status.contains(expected), "{what} is damaged: {status}");
        guest.cut_power();
        if let Ok(commit) = image::commit(&disk) {
            ensure!(commit.state == State::Discarded, "{what} is damaged: {commit:?}");
        }
    }
    Ok(())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    InC,
    BeforeMemory,
    BeforeTheJump,
}

pub(crate) fn chunks_that_cannot_be_read() -> Result<()> {
    let mut guest = session(GuestConfig::new(2, "512M".parse()?))?;
    save(&mut guest)?;
    let (_, chunks) = image::pages(&guest.disk_file(0))?;
    let at = chunks[chunks.len() / 2].offset;
    guest.change(|config| config.faults.push((0, Fault::Read(at))));
    let lines = lines_of_boot(&mut guest)?;
    let reasons = reasons(&lines);
    let printed = reasons.len() == 1 && reasons[0].contains("Input/output error") && reasons[0].contains("offset");
    ensure!(printed, "{reasons:?}");
    ensure!(!lines.iter().any(|line| line.contains(&Phase::RestoreJump.to_string())), "D jumped");
    ensure!(guest.run("workload check")?.status != 0, "the workload still runs");
    Ok(())
}

/// Each with both values named; and when the machine is again what it was, the session goes on.
pub(crate) fn another_machine() -> Result<()> {
    const OWN: &str = "5f0c4b52-9f0e-4e6e-8d5e-0c7a3b1e2d01";
    const OTHER: &str = "5f0c4b52-9f0e-4e6e-8d5e-0c7a3b1e2d02";
    let mut config = GuestConfig::new(2, "768M".parse()?);
    config.qemu_arguments = ["-uuid", OWN].map(str::to_owned).to_vec();
    let mut guest = session_with(config.clone(), KEEP)?;
    let saved = save(&mut guest)?;

    type Change = fn(&mut GuestConfig);
    let cases: [(Change, &str, &[&str]); 6] = [
        (|c| c.qemu_arguments[1] = OTHER.to_owned(), "machine-identity", &[OWN, OTHER]),
        (|c| c.memory.mib = 640, "machine-memory", &["at 0x27", "-0x2ff"]),
        (|c| c.cpu_model = "Nehalem".to_owned(), "machine-cpu", &["this is Intel Core i7"]),
        (|c| c.cpu_model = "max,la57=off".to_owned(), "machine-paging", &["boot without no5lvl"]),
        (|c| c.cpu_model = "max,sse4.2=off".to_owned(), "machine-features", &["sse4_2"]),
        (|c| c.cpus = 1, "machine-cpus", &["2 CPUs", "has 1"]),
    ];
    for (change, id, expected) in cases {
        guest.change(change);
        let lines = lines_of_boot(&mut guest)?;
        let reasons = reasons(&lines);
        ensure!(
            reasons.len() == 1 && reasons[0].contains(&format!("({id})")) && reasons[0].ends_with("the image is kept"),
            "{id}: {reasons:?}"
        );
        for expected in expected {
            ensure!(reasons[0].contains(expected), "{expected:?} is not in {reasons:?}");
        }
        guest.cut_power();
        guest.change(|here| *here = config.clone());
    }
    let went_on = cycle::resume(&mut guest, saved, &mut unobserved)?;
    demand_proofs(&guest, &went_on)
}

/// Memory that has gone may be back at the next power-on: by default the image is kept for a few boots, each counted.
pub(crate) fn a_machine_with_less_memory_is_looked_at_again() -> Result<()> {
    let mut guest = session(GuestConfig::new(1, "768M".parse()?))?;
    let saved = save(&mut guest)?;
    guest.change(|config| config.memory.mib = 640);
    let lines = lines_of_boot(&mut guest)?;
    ensure!(ids(&lines) == ["machine-memory"] && reasons(&lines)[0].ends_with("the image is kept"), "{lines:?}");
    // The rest of the boot keeps it too.
    let prepare = guest.run("dormouse prepare")?;
    guest.succeed("sync")?;
    guest.cut_power();
    let commit = image::commit(&guest.disk_file(0))?;
    ensure!(commit.state == State::Complete && commit.kept == 1, "{commit:?}, {prepare:?}");
    guest.change(|config| config.memory.mib = 768);
    let went_on = cycle::resume(&mut guest, saved, &mut unobserved)?;
    demand_proofs(&guest, &went_on)
}

/// The session waits for the microcode that it was saved with, or a newer one. Where the next boot would not have it,
/// nothing is saved.
pub(crate) fn older_microcode() -> Result<()> {
    // As AMD's CPUs have it: the lower half of the register counts.
    let with = |revision: &str| format!("max,ucode-rev={revision}");
    let mut config = GuestConfig::new(1, "512M".parse()?);
    config.cpu_model = with("0x1000066");
    let mut guest = session(config)?;
    let here = guest.succeed("grep -m1 ^microcode /proc/cpuinfo")?;
    ensure!(here.trim_end().ends_with(": 0x1000066"), "{here}");

    // As if it had been loaded since the boot's initramfs looked for the image.
    let found = "/run/dormouse/resume.json";
    guest.succeed(&format!(
        "cp {found} /run/found && sed -i s/16777318/16777317/ {found} && grep -q 16777317 {found}"
    ))?;
    demand_refusal(&mut guest, "boot-evidence")?;
    guest.succeed(&format!("cp /run/found {found}"))?;
    let saved = save(&mut guest)?;

    guest.change(|config| config.cpu_model = with("0x1000065"));
    let lines = lines_of_boot(&mut guest)?;
    let reasons = reasons(&lines);
    let is_named = |text: &str| text.contains("0x1000066") && text.contains("0x1000065");
    ensure!(ids(&lines) == ["machine-microcode"] && is_named(reasons[0]), "{reasons:?}");
    ensure!(reasons[0].ends_with("the image is kept"), "{reasons:?}");
    guest.cut_power();
    let commit = image::commit(&guest.disk_file(0))?;
    ensure!(commit.state == State::Complete && commit.kept == 1, "{commit:?}");

    guest.change(|config| config.cpu_model = with("0x1000067"));
    let mut newer = false;
    let mut observe = |line: &Line| newer |= line.text.contains("microcode is newer now");
    let went_on = cycle::resume(&mut guest, saved, &mut observe)?;
    ensure!(newer, "the log does not name the newer microcode");
    demand_proofs(&guest, &went_on)
}

pub(crate) fn a_policy_that_never_resumes() -> Result<()> {
    let config = GuestConfig::new(1, "512M".parse()?);
    let policy = "[resume]\nenabled = false\n";
    let mut guest = session_with(config, policy)?;
    demand_refusal(&mut guest, "resume-disabled")?;
    let before = cycle::check_workload(&mut guest)?;
    let hibernate = "dormouse hibernate --then poweroff --json --trust-boot";
    cycle::save(&mut guest, before, hibernate, &mut unobserved)?;
    let lines = lines_of_boot(&mut guest)?;
    ensure!(ids(&lines) == ["policy-disabled"], "{:?}", told(&lines));
    Ok(())
}

/// Never twice, whatever follows the jump.
pub(crate) fn an_image_that_was_resumed() -> Result<()> {
    let mut guest = session(GuestConfig::new(1, "512M".parse()?))?;
    power_cycle(&mut guest)?;
    guest.cut_power();
    let lines = lines_of_boot(&mut guest)?;
    ensure!(reasons(&lines) == ["no image to resume: the one on /dev/vda is consumed"], "{:?}", told(&lines));
    ensure!(guest.run("workload check")?.status != 0, "the workload still runs");
    Ok(())
}

/// The policy decides which image is meant, and where it does not, none is.
pub(crate) fn two_images_on_two_devices() -> Result<()> {
    let artifacts = Artifacts::from_environment()?;
    let mut config = GuestConfig::new(1, "512M".parse()?);
    config.disks.push(config.disks[0]);
    let blank = tempfile::NamedTempFile::new()?;
    blank.as_file().set_len(config.disks[0].bytes)?;
    image::command(&artifacts, &["init"], blank.path())?;
    let uuid = image::commit(blank.path())?.image;
    let policy = GuestPolicy::standard(format!("[image]\ndevice = \"UUID={uuid}\"\nwait = 2\n"));
    let userland = Userland { policies: vec![policy], ..Userland::default() };
    let mut guest = Guest::new(config, &userland, &artifacts)?;
    std::fs::copy(blank.path(), guest.disk_file(0))?;
    image::command(&artifacts, &["init"], &guest.disk_file(1))?;
    guest.boot()?;
    cycle::start_workload(&mut guest)?;
    let saved = save(&mut guest)?;
    let (first, second) = (guest.disk_file(0), guest.disk_file(1));
    let good = kept_copy(&first)?;
    let other = kept_copy(&second)?;

    // Another image, with another UUID, in the place of the one that is meant: another machine's session.
    let foreign = image::commit(&second)?.image;
    std::fs::rename(&first, first.with_extension("away"))?;
    copy_sparse(&good, &first)?;
    relabel(&artifacts, &first)?;
    let lines = lines_of_boot(&mut guest)?;
    ensure!(lines.iter().any(|line| line.contains(&format!("UUID={uuid}: not found within 2 s"))), "{lines:?}");
    guest.cut_power();

    // Two of the same.
    copy_sparse(&good, &first)?;
    copy_sparse(&good, &second)?;
    let lines = lines_of_boot(&mut guest)?;
    ensure!(ids(&lines) == ["ambiguous-devices"], "{:?}", told(&lines));
    guest.cut_power();
    // A mounts nothing, so nothing was lost.
    ensure!(image::commit(&first)?.state == State::Complete, "{:?}", image::commit(&first)?);

    // With the other image where it was, the session goes on.
    copy_sparse(&other, &second)?;
    let went_on = cycle::resume(&mut guest, saved, &mut unobserved)?;
    demand_proofs(&guest, &went_on)?;
    guest.cut_power();
    ensure!(
        image::commit(&second)?.image == foreign && image::commit(&second)?.state == State::Empty,
        "it was touched"
    );
    Ok(())
}

/// B has drivers for the disks and saw them lie still.
pub(crate) fn filesystems_that_were_written_elsewhere() -> Result<()> {
    let kinds = ["ext4", "xfs", "btrfs", "vfat"];
    let mut config = GuestConfig::new(1, "768M".parse()?);
    config.disks.extend(kinds.map(|_| Disk { kind: DiskKind::Virtio, bytes: 320 * MIB }));
    let own = ["xfs", "btrfs", "vfat"].map(str::to_owned).to_vec();
    written_elsewhere(config, &kinds, own)
}

/// B has no driver for a stick that A has mounted, and goes by what A knew.
pub(crate) fn a_filesystem_that_b_does_not_see() -> Result<()> {
    let mut config = GuestConfig::new(1, "768M".parse()?);
    config.machine = MachineType::Q35;
    config.disks.push(Disk { kind: DiskKind::Usb, bytes: 64 * MIB });
    written_elsewhere(config, &["ext4"], DiskKind::Usb.modules().iter().map(|&name| name.to_owned()).collect())
}

/// A session has each of `kinds` mounted, from its second disk on. Each in turn is mounted and written by a rescue
/// system.
fn written_elsewhere(config: GuestConfig, kinds: &[&str], own_modules: Vec<String>) -> Result<()> {
    let device = config.disk_path(0)?;
    let paths = (1..=kinds.len()).map(|disk| config.disk_path(disk)).collect::<Result<Vec<_>>>()?;
    let policies = vec![GuestPolicy::standard(format!("[image]\ndevice = \"{device}\"\n"))];
    let userland = Userland { policies, own_modules, ..Userland::default() };
    let mut guest = Guest::new(config, &userland, &Artifacts::from_environment()?)?;
    for (disk, kind) in (1..).zip(kinds) {
        filesystem::make(kind, &guest.disk_file(disk))?;
    }
    guest.boot()?;
    cycle::init_image(&mut guest, &device)?;
    for (path, kind) in paths.iter().zip(kinds) {
        guest.succeed(&format!("{} && echo before >/run/{kind}/word", mount(path, kind)))?;
    }
    cycle::start_workload(&mut guest)?;
    // The session is at work until the end: what it writes itself is no reason to refuse it.
    for kind in kinds {
        guest.succeed(&format!(
            "(i=0; while :; do i=$((i + 1)); echo $i >>/run/{kind}/work; sleep 0.05; done) >/dev/null 2>&1 &"
        ))?;
    }
    let saved = save(&mut guest)?;
    let disks: Vec<PathBuf> = (0..=kinds.len()).map(|disk| guest.disk_file(disk)).collect();
    let good = disks.iter().map(|disk| kept_copy(disk)).collect::<Result<Vec<_>>>()?;

    for (path, kind) in paths.iter().zip(kinds) {
        good.iter().try_for_each(|copy| restore_copy(copy))?;
        guest.add_kernel_argument("rescue");
        guest.boot()?;
        guest.change(|config| config.kernel_arguments.clear());
        guest.succeed(&format!("{} && echo after >/run/{kind}/word && umount /run/{kind}", mount(path, kind)))?;
        guest.cut_power();
        let lines = lines_of_boot(&mut guest)?;
        let reasons = reasons(&lines);
        let expected = format!("the {kind} filesystem on {path}, which the session has mounted at /run/{kind}");
        ensure!(ids(&lines) == ["filesystem-written"] && reasons[0].contains(&expected), "{kind}: {reasons:?}");
        ensure!(guest.run("workload check")?.status != 0, "{kind}: the workload still runs");
        guest.cut_power();
        let commit = image::commit(&disks[0])?;
        ensure!(commit.state == State::Discarded && commit.reason.contains(&expected), "{commit:?}");
    }

    good.iter().try_for_each(|copy| restore_copy(copy))?;
    let went_on = cycle::resume(&mut guest, saved, &mut unobserved)?;
    demand_proofs(&guest, &went_on)?;
    for kind in kinds {
        guest.succeed(&format!("echo after >/run/{kind}/word && sync && grep -q after /run/{kind}/word"))?;
    }
    let complaints = guest.succeed(
        "dmesg | grep -i -e 'EXT4-fs error' -e 'XFS.*[Cc]orrupt' -e 'BTRFS error' -e 'FAT-fs.*error' || true",
    )?;
    ensure!(complaints.is_empty(), "{complaints}");
    Ok(())
}

/// The guest's command that mounts a filesystem.
fn mount(path: &str, kind: &str) -> String {
    format!(
        "for try in $(seq 300); do [ -b {path} ] && break; sleep 0.1; done; mkdir -p /run/{kind} && \
         mount -t {kind} {path} /run/{kind}"
    )
}

/// A copy of a disk of a machine that is off, beside it.
fn kept_copy(disk: &Path) -> Result<PathBuf> {
    let copy = disk.with_extension("good");
    copy_sparse(disk, &copy)?;
    Ok(copy)
}

/// The disk that a copy was made of.
fn disk_of(copy: &Path) -> PathBuf {
    copy.with_extension("img")
}

fn restore_copy(copy: &Path) -> Result<()> {
    copy_sparse(copy, &disk_of(copy))
}

/// Exchanges what two chunks hold, as far as both go.
fn swap(disk: &Path, a: &image::StoredChunk, b: &image::StoredChunk) -> Result<()> {
    let file = File::options().read(true).write(true).open(disk)?;
    let len = usize::try_from(a.stored_len.min(b.stored_len))?;
    let (mut of_a, mut of_b) = (vec![0; len], vec![0; len]);
    file.read_exact_at(&mut of_a, a.offset)?;
    file.read_exact_at(&mut of_b, b.offset)?;
    file.write_all_at(&of_b, a.offset)?;
    file.write_all_at(&of_a, b.offset)?;
    Ok(())
}

/// Gives an image device another identity.
fn relabel(artifacts: &Artifacts, disk: &Path) -> Result<()> {
    image::command(artifacts, &["init", "--force"], disk)?;
    Ok(())
}
