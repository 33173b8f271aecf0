//! What lies between a filesystem and its disk, and what swap areas hold: compared by the bytes of the disk, and what
//! cannot be compared refused before the jump.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use dormouse_image::State;
use dormouse_tests::artifacts::Artifacts;
use dormouse_tests::cycle::{self, unobserved};
use dormouse_tests::guest::Guest;
use dormouse_tests::machine::{Disk, DiskKind, GuestConfig, MIB, MachineType};
use dormouse_tests::qemu::copy_sparse;
use dormouse_tests::userland::{GuestPolicy, POLICY_ARGUMENT, Userland};
use dormouse_tests::{filesystem, image};

use crate::{demand_proofs, demand_refusal, ids, lines_of_boot, reasons, save, stay_on};

/// How large the filesystems are, and where they begin on their disks.
const SIZE: u64 = 48 * MIB;
const START: u64 = MIB;

/// The disks after the image's: below linear, below crypt, the two legs of a mirror, swap.
const LINEAR: usize = 1;
const CRYPT: usize = 2;
const LEGS: [usize; 2] = [3, 4];
const SWAP: usize = 5;

/// The guest's commands that put the devices together. They leave their paths in variables.
fn assemble() -> String {
    let (sectors, start, key) = (SIZE / 512, START / 512, "5a".repeat(32) + &"a5".repeat(32));
    let leg = |disk: &str, slot: u32| {
        format!(
            "cat $n/{disk}/dev >$m/new_dev && echo {start} >$m/dev-{disk}/offset && echo {} >$m/dev-{disk}/size && \
             echo {slot} >$m/dev-{disk}/slot",
            SIZE / 1024
        )
    };
    format!(
        "n=/sys/class/block m=$n/md0/md && \
         linear=$(workload map l {sectors} linear \"$(cat $n/vdb/dev) {start}\") && \
         crypt=$(workload map c {sectors} crypt \"aes-xts-plain64 {key} 0 $(cat $n/vdc/dev) {start}\") && \
         echo md0 >/sys/module/md_mod/parameters/new_array && echo none >$m/metadata_version && \
         echo raid1 >$m/level && echo 2 >$m/raid_disks && echo {} >$m/component_size && {} && {} && \
         echo none >$m/resync_start && echo active >$m/array_state && \
         mkdir -p /run/l /run/c /run/m /run/file",
        SIZE / 1024,
        leg("vdd", 0),
        leg("vde", 1)
    )
}

/// The session has a filesystem below dm-linear, one below dm-crypt, one on a mirror of md's that is mounted in another
/// mount namespace, one in a file, and a swap area with memory of its own. Whichever of these is written elsewhere, the
/// session is not resumed, and waits; with all as they were, it goes on, and nothing is waited for.
pub(crate) fn written_below_layers_and_in_a_swap_area() -> Result<()> {
    let mut config = GuestConfig::new(1, "768M".parse()?);
    config.disks.extend([64, 64, 64, 64, 256].map(|mib| Disk { kind: DiskKind::Virtio, bytes: mib * MIB }));
    config.modules = ["dm_crypt", "aes_generic", "ecb", "xts", "raid1", "loop"].map(str::to_owned).to_vec();
    let policy = GuestPolicy::standard("[image]\ndevice = \"/dev/vda\"\n[resume]\nmismatch = \"keep\"\n".to_owned());
    let userland = Userland { policies: vec![policy], ..Userland::default() };
    let mut guest = Guest::new(config, &userland, &Artifacts::from_environment()?)?;
    let (large, small) = (formatted(SIZE)?, formatted(8 * MIB)?);
    put(&large, &guest.disk_file(LINEAR), START)?;
    put(&small, &guest.disk_file(LINEAR), START + SIZE)?;
    LEGS.iter().try_for_each(|leg| put(&large, &guest.disk_file(*leg), START))?;

    guest.boot()?;
    cycle::init_image(&mut guest, "/dev/vda")?;
    guest.succeed(&format!(
        "{} && dd if=$linear of=$crypt bs=1M && mount -t ext4 $linear /run/l && mount -t ext4 $crypt /run/c && \
         dd if=/dev/vdb of=/run/l/image bs=1M skip={} count=8 && mount -t ext4 -o loop /run/l/image /run/file && \
         mkswap /dev/vdf && swapon /dev/vdf && \
         (busybox unshare -m sh -c 'mount -t ext4 /dev/md0 /run/m && echo before >/run/m/word && \
         touch /run/there && exec sleep 1000000' >/dev/null 2>&1 &)",
        assemble(),
        (START + SIZE) / MIB
    ))?;
    guest.succeed("for try in $(seq 100); do [ -e /run/there ] && break; sleep 0.1; done; [ -e /run/there ]")?;
    guest
        .succeed("! grep -q /run/m /proc/self/mountinfo && for at in l c file; do echo before >/run/$at/word; done")?;
    // What the workload takes from here on can be driven out of memory.
    guest.succeed(
        "mkdir -p /run/groups && mount -t cgroup2 cgroup2 /run/groups && echo +memory >/run/groups/cgroup.subtree_control \
         && mkdir /run/groups/work",
    )?;
    let megabytes = cycle::workload_megabytes(guest.config().memory);
    guest.succeed(&format!(
        "sh -c 'echo $$ >/run/groups/work/cgroup.procs && workload start --megabytes {megabytes}'"
    ))?;
    guest
        .run("echo 40M swappiness=200 >/run/groups/work/memory.reclaim || echo 40M >/run/groups/work/memory.reclaim")?;
    let out = swapped_kib(&mut guest)?;
    ensure!(out > 8 << 10, "no more than {out} KiB were swapped out");
    let doctor = guest.run("dormouse doctor")?.stdout;
    ensure!(doctor.contains("filesystems: 3, swap areas: 1; all can be compared"), "{doctor}");
    let saved = save(&mut guest)?;

    let disks: Vec<PathBuf> = (LINEAR..=SWAP).map(|disk| guest.disk_file(disk)).collect();
    disks.iter().try_for_each(|disk| copy_sparse(disk, &disk.with_extension("good")))?;
    guest.add_kernel_argument("rescue");
    guest.boot()?;
    guest.change(|config| config.kernel_arguments.clear());
    guest.succeed(&format!(
        "{} && for pair in $linear:l $crypt:c /dev/md0:m; do mount -t ext4 ${{pair%:*}} /run/${{pair#*:}} && \
         echo after >/run/${{pair#*:}}/word && umount /run/${{pair#*:}} || exit 1; done; sync",
        assemble()
    ))?;
    guest.cut_power();
    disks.iter().try_for_each(|disk| copy_sparse(disk, &disk.with_extension("bad")))?;
    let swap = guest.disk_file(SWAP);
    copy_sparse(&swap.with_extension("good"), &swap.with_extension("bad"))?;
    let overwritten = File::options().write(true).open(swap.with_extension("bad"))?;
    overwritten.write_all_at(&vec![0xa5; 128 << 20], 4096)?;

    let filesystem = |device: &str, point: &str| {
        format!("the ext4 filesystem on {device}, which the session has mounted at {point},")
    };
    for (bad, expected) in [
        (&[LINEAR][..], filesystem("/dev/vdb", "/run/l")),
        (&[CRYPT], filesystem("/dev/vdc", "/run/c")),
        // A leg that was written by itself.
        (&LEGS[1..], filesystem("/dev/vde", "/run/m")),
        (&[SWAP], "on /dev/vdf, which the session uses,".to_owned()),
    ] {
        disks.iter().try_for_each(|disk| copy_sparse(&disk.with_extension("good"), disk))?;
        for disk in bad.iter().map(|disk| guest.disk_file(*disk)) {
            copy_sparse(&disk.with_extension("bad"), &disk)?;
        }
        let lines = lines_of_boot(&mut guest)?;
        let reasons = reasons(&lines);
        let is_named = ids(&lines) == ["filesystem-written"] && reasons[0].contains(&expected);
        ensure!(is_named && reasons[0].ends_with("the image is kept"), "{expected}: {reasons:?}");
        guest.cut_power();
    }

    disks.iter().try_for_each(|disk| copy_sparse(&disk.with_extension("good"), disk))?;
    let mut waited = Vec::new();
    let went_on = cycle::resume(&mut guest, saved, &mut |line| {
        let is_wait = ["waiting for the disks", "not known whether"].iter().any(|text| line.text.contains(text));
        waited.extend(is_wait.then(|| line.text.clone()));
    })?;
    ensure!(waited.is_empty(), "{waited:?}");
    demand_proofs(&guest, &went_on)?;
    guest.succeed(
        "for at in l c file; do echo after >/run/$at/word && sync && grep -q after /run/$at/word || exit 1; done",
    )?;
    let complaints = guest.succeed("dmesg | grep -i -e 'EXT4-fs error' -e 'I/O error' -e 'raid1:.*fail' || true")?;
    ensure!(complaints.is_empty(), "{complaints}");
    Ok(())
}

/// A filesystem that lies on its disk in a way that cannot be followed is refused in A; one whose disk B has no driver
/// for brings B back. With the policy's leave both are saved and resumed, and nothing is waited for.
pub(crate) fn what_cannot_be_compared() -> Result<()> {
    const ALLOWING: &str = "/etc/allowing.toml";
    let mut config = GuestConfig::new(1, "768M".parse()?);
    config.machine = MachineType::Q35;
    config.disks.push(Disk { kind: DiskKind::Virtio, bytes: 64 * MIB });
    config.disks.push(Disk { kind: DiskKind::Usb, bytes: 320 * MIB });
    config.modules = ["dm_mod", "xfs"].map(str::to_owned).to_vec();
    let text = "[image]\ndevice = \"/dev/vda\"\nwait = 3\n";
    let allowing = format!("{text}[resume]\nunsure = \"resume\"\n");
    let policies =
        vec![GuestPolicy::standard(text.to_owned()), GuestPolicy { path: ALLOWING.to_owned(), text: allowing }];
    let own_modules = DiskKind::Usb.modules().iter().map(|&name| name.to_owned()).collect();
    let userland = Userland { policies, own_modules, ..Userland::default() };
    let mut guest = Guest::new(config, &userland, &Artifacts::from_environment()?)?;
    put(&formatted(SIZE)?, &guest.disk_file(1), START)?;
    filesystem::make("xfs", &guest.disk_file(2))?;
    guest.boot()?;
    cycle::init_image(&mut guest, "/dev/vda")?;
    cycle::start_workload(&mut guest)?;
    // One stripe on one disk: where it lies would be easy to see, and the next target of this kind would not.
    guest.succeed(&format!(
        "mkdir -p /run/s /run/x && s=$(workload map s {} striped \"1 8 $(cat /sys/class/block/vdb/dev) {}\") && \
         mount -t ext4 $s /run/s",
        SIZE / 512,
        START / 512
    ))?;
    demand_refusal(&mut guest, "filesystems")?;
    let doctor: serde_json::Value = serde_json::from_str(&guest.run("dormouse doctor --json")?.stdout)?;
    let row = doctor["checks"].as_array().into_iter().flatten().find(|check| check["id"] == "filesystems");
    let row = row.context("the doctor has no such check")?;
    ensure!(row["state"] == "failed" && row["found"].to_string().contains("striped"), "{row}");

    guest.succeed("umount /run/s")?;
    guest
        .succeed("for try in $(seq 300); do [ -b /dev/sda ] && break; sleep 0.1; done; mount -t xfs /dev/sda /run/x")?;
    let back = stay_on(&mut guest, "dormouse hibernate --then poweroff --json")?;
    ensure!(back.output.status == 1 && back.output.stdout.contains("/run/x (xfs"), "{:?}", back.output);
    demand_proofs(&guest, &back)?;
    ensure!(image::commit(&guest.disk_file(0))?.state != State::Complete, "the image would be resumed");

    guest.succeed("mount -t ext4 /dev/dm-0 /run/s")?;
    let before = cycle::check_workload(&mut guest)?;
    let hibernate = format!("dormouse --config {ALLOWING} hibernate --then poweroff --json");
    let saved = cycle::save(&mut guest, before, &hibernate, &mut unobserved)?;
    guest.add_kernel_argument(&format!("{POLICY_ARGUMENT}={ALLOWING}"));
    let (mut waited, mut named) = (Vec::new(), false);
    let went_on = cycle::resume(&mut guest, saved, &mut |line| {
        waited.extend(line.text.contains("waiting for the disks").then(|| line.text.clone()));
        named |=
            line.text.contains("not known whether") && line.text.contains("/run/s") && line.text.contains("/run/x");
    })?;
    ensure!(waited.is_empty() && named, "{waited:?}, or what was not compared is not named");
    demand_proofs(&guest, &went_on)
}

/// A file with an empty ext4 filesystem.
fn formatted(bytes: u64) -> Result<tempfile::NamedTempFile> {
    let file = tempfile::NamedTempFile::new()?;
    file.as_file().set_len(bytes)?;
    filesystem::make("ext4", file.path())?;
    Ok(file)
}

/// Puts a file into a disk of a machine that is off.
fn put(file: &tempfile::NamedTempFile, disk: &Path, start: u64) -> Result<()> {
    let bytes = std::fs::read(file.path())?;
    File::options().write(true).open(disk)?.write_all_at(&bytes, start)?;
    Ok(())
}

/// How much is swapped out.
fn swapped_kib(guest: &mut Guest) -> Result<u64> {
    let swaps = guest.succeed("cat /proc/swaps")?;
    let used = swaps.lines().nth(1).and_then(|line| line.split_whitespace().nth(3)?.parse().ok());
    used.with_context(|| format!("no swap area: {swaps}"))
}
