//! The image below what is put together of disks: volumes of several segments, a mirror. B, C and D see the disks
//! alone.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use dormouse::console::phase::Phase;
use dormouse_image::State;
use dormouse_image::layout::DATA_OFFSET;
use dormouse_tests::artifacts::Artifacts;
use dormouse_tests::cycle::{self, Saved, unobserved};
use dormouse_tests::guest::Guest;
use dormouse_tests::machine::{Disk, DiskKind, Fault, GuestConfig, MIB};
use dormouse_tests::qemu::copy_sparse;
use dormouse_tests::userland::{GuestPolicy, UNLOCK_PATH, Userland};
use dormouse_tests::workload::report::Report;
use dormouse_tests::{filesystem, image};
use tempfile::NamedTempFile;

use crate::image_file::{self, FILES, IMAGE, POLICY, boot_device, hibernate};
use crate::{TWO_BOOTS, demand_failed_save, demand_nothing_loaded, demand_proofs, ids, lines_of_boot, reasons, told};

/// The segments of the volume: where each begins on the disk, and how long it is.
const SEGMENTS: [(u64, u64); 2] = [(MIB, 200 * MIB), (300 * MIB, 200 * MIB)];
/// Where the second one is moved to.
const MOVED: u64 = 600 * MIB;
/// The second disk: a small filesystem, and room for volumes.
const SMALL: (u64, u64) = (MIB, 48 * MIB);
const CRYPT: (u64, u64) = (64 * MIB, 48 * MIB);
const VOLUME: (u64, u64) = (128 * MIB, 320 * MIB);

fn policy_text(device: &str) -> String {
    format!("[image]\ndevice = \"{device}\"\nwait = 5\n")
}

fn userland(device: &str, modules: &[&str]) -> Userland {
    let policies = vec![GuestPolicy::standard(policy_text(device))];
    Userland { policies, modules: modules.iter().map(|&name| name.to_owned()).collect(), ..Userland::default() }
}

/// The guest's arguments of `workload map` for linear segments of a disk.
fn linear(disk: &str, segments: &[(u64, u64)]) -> String {
    let segment = |(start, len): &(u64, u64)| {
        format!("{} linear \"$(cat /sys/class/block/{disk}/dev) {}\"", len / 512, start / 512)
    };
    segments.iter().map(segment).collect::<Vec<_>>().join(" ")
}

/// Mounts a device, and gives A a policy that names a file there.
fn mount(guest: &mut Guest, device: &str) -> Result<()> {
    image_file::mount(guest, "ext4", "", device)
}

/// A hibernation of A's policy that is refused with this identifier and these words, with nothing changed.
fn demand_refusal(guest: &mut Guest, id: &str, words: &[&str]) -> Result<()> {
    let output = guest.run(&hibernate("poweroff"))?;
    let json: serde_json::Value = serde_json::from_str(&output.stdout)?;
    ensure!(output.status == 3 && json["outcome"] == "refused" && json["id"] == id, "not {id}: {output:?}");
    for word in words {
        ensure!(json["message"].to_string().contains(word), "{word:?} is not in {json}");
    }
    demand_nothing_loaded(guest)
}

/// One hibernation that the session writes through, with a power-off.
fn power_cycle(guest: &mut Guest) -> Result<()> {
    let before = cycle::check_workload(guest)?;
    let saved = cycle::save(guest, before, &hibernate("poweroff"), &mut unobserved)?;
    let went_on = cycle::resume(guest, saved, &mut unobserved)?;
    demand_proofs(guest, &went_on)
}

/// A file on ext4 on a volume of two segments, as LVM makes it: a full power cycle, during which the session writes to
/// the filesystem. Then the stack is another one: each is refused by the layer's name. A whole volume holds an image
/// too, and what lies below encryption is refused.
pub(crate) fn a_volume_of_two_segments_and_stacks_that_changed() -> Result<()> {
    let artifacts = Artifacts::from_environment()?;
    let mut config = GuestConfig::new(1, "768M".parse()?);
    config.disks = [900, 480].map(|mib| Disk { kind: DiskKind::Virtio, bytes: mib * MIB }).to_vec();
    config.modules.extend(["dm_crypt", "aes_generic", "ecb", "xts", "dm_snapshot"].map(str::to_owned));
    let mut guest = Guest::new(config, &userland("/dev/vda", &[]), &artifacts)?;
    let total = SEGMENTS.iter().map(|(_, len)| len).sum();
    scatter(&filesystem::ext4(total)?, &guest.disk_file(0), &SEGMENTS)?;
    scatter(&filesystem::ext4(SMALL.1)?, &guest.disk_file(1), &[SMALL])?;
    let map = format!("workload map vg-root --uuid LVM-vgroot {}", linear("vda", &SEGMENTS));

    guest.boot()?;
    let volume = guest.succeed(&map)?.trim().to_owned();
    mount(&mut guest, &volume)?;
    let created = guest.succeed(&format!("dormouse image create --size 300M {IMAGE}"))?;
    ensure!(created.contains("of /dev/vda, below filesystem ext4, linear LVM-vgroot"), "{created}");
    let device = boot_device(&mut guest)?;
    let info = guest.succeed(&format!("dormouse image info {IMAGE}"))?;
    ensure!(info.contains("filesystem ext4, linear LVM-vgroot over a disk") && info.contains("empty"), "{info}");
    guest.succeed(&format!("umount {FILES}"))?;
    guest.cut_power();

    guest.set_userland(&userland(&device, &[]), &artifacts)?;
    let lines = lines_of_boot(&mut guest)?;
    ensure!(reasons(&lines)[0].contains("on /dev/vda (from byte"), "{:?}", told(&lines));
    ensure!(guest.succeed(&map)?.trim() == volume, "another node");
    mount(&mut guest, &volume)?;
    ensure!(boot_device(&mut guest)? == device, "the file has moved");
    cycle::start_workload(&mut guest)?;
    guest.succeed(&format!(
        "echo before >{FILES}/word && \
         (i=0; while [ ! -e /run/enough ]; do i=$((i + 1)); echo $i >>{FILES}/work; sleep 0.05; done) \
         >/dev/null 2>&1 &"
    ))?;
    for _ in 0..2 {
        power_cycle(&mut guest)?;
        let info = guest.succeed(&format!("dormouse image info {IMAGE}"))?;
        ensure!(info.contains("state     consumed"), "{info}");
        guest.succeed(&format!("sync && grep -q before {FILES}/word"))?;
    }
    guest.succeed(&format!("dormouse image wipe {IMAGE} && dormouse image info {IMAGE} | grep -q wiped"))?;
    guest.succeed(&format!("touch /run/enough; sleep 0.2; umount {FILES}"))?;

    // A snapshot is taken of the volume: where its blocks lie may change.
    let sectors = total / 512;
    let origin = guest.succeed(&format!("workload map origin {sectors} snapshot-origin {volume}"))?.trim().to_owned();
    mount(&mut guest, &origin)?;
    demand_refusal(&mut guest, "image-layers", &[IMAGE, "/dev/mapper/origin", "snapshot-origin"])?;
    guest.succeed(&format!("umount {FILES} && workload unmap origin && workload unmap vg-root"))?;
    // The second segment is moved, as pvmove leaves it: the volume is the same one, and the file is elsewhere.
    let (start, len) = SEGMENTS[1];
    guest.succeed(&format!(
        "dd if=/dev/vda of=/dev/vda bs=1M skip={} seek={} count={} conv=notrunc",
        start / MIB,
        MOVED / MIB,
        len / MIB
    ))?;
    let moved = linear("vda", &[SEGMENTS[0], (MOVED, len)]);
    let moved = guest.succeed(&format!("workload map vg-root --uuid LVM-vgroot {moved}"))?.trim().to_owned();
    mount(&mut guest, &moved)?;
    demand_refusal(&mut guest, "image-moved", &[IMAGE, "have been moved below filesystem ext4, linear LVM-vgroot"])?;
    guest.succeed(&format!("umount {FILES}"))?;

    // Below encryption it must be sealed.
    guest.succeed(&format!(
        "key=$(printf %064d 1)$(printf %064d 2); \
         c=$(workload map c --uuid CRYPT-LUKS2-00112233445566778899aabbccddeeff-name {} crypt \
         \"aes-xts-plain64 $key 0 $(cat /sys/class/block/vdb/dev) {}\") && \
         dd if=/dev/vdb of=$c bs=1M skip={} count={} && mount -t ext4 $c {FILES} && \
         dormouse image create --size 8M {IMAGE} && dormouse image info {IMAGE} | \
         grep -q 'crypt CRYPT-LUKS2-00112233445566778899aabbccddeeff over a disk'",
        CRYPT.1 / 512,
        CRYPT.0 / 512,
        SMALL.0 / MIB,
        SMALL.1 / MIB,
    ))?;
    demand_refusal(&mut guest, "sealing-needed", &["crypt CRYPT-LUKS2-00112233445566778899aabbccddeeff"])?;
    let doctor = guest.run(&format!("dormouse --config {POLICY} doctor --json"))?.stdout;
    ensure!(doctor.contains("image-sealing"), "{doctor}");
    guest.succeed(&format!("umount {FILES}"))?;

    // A whole volume.
    let whole = guest.succeed(&format!("workload map vg-hib --uuid LVM-vghib {}", linear("vdb", &[VOLUME])))?;
    let whole = whole.trim();
    let made = guest.succeed(&format!("dormouse image init {whole}"))?;
    ensure!(made.contains("/dev/vdb (from byte"), "{made}");
    guest.succeed(&format!("sed 's|^device = .*|device = \"{whole}\"|' /etc/dormouse.toml >{POLICY}"))?;
    let before = cycle::check_workload(&mut guest)?;
    let snapshot = cycle::stay_on(&mut guest, before, &hibernate("return"), &mut unobserved)?;
    demand_proofs(&guest, &snapshot)?;
    guest.succeed(&format!("dormouse image verify {whole} && dormouse image info {whole} | grep -q snapshot"))?;

    // On the disk, the filesystem is whole.
    guest.cut_power();
    filesystem::check_ext4(gathered(&guest.disk_file(0), &SEGMENTS)?.path())?;
    Ok(())
}

/// The drivers of a mirror's disks.
const LEG_DRIVERS: [&str; 3] = ["virtio_pci", "virtio_scsi", "sd_mod"];
const MD: &str = "/sys/class/block/md0/md";

/// The second leg of a mirror, on a bus that is there without it. The first one is the machine's own disk.
struct SecondLeg {
    file: NamedTempFile,
}

impl SecondLeg {
    const ID: &str = "leg";
    const DEVICE: &str = "leg-device";

    /// Gives a machine the disks of a mirror, of `size` bytes each, and what drives it.
    fn of(config: &mut GuestConfig, size: u64) -> Result<SecondLeg> {
        config.disks = vec![Disk { kind: DiskKind::Virtio, bytes: size }];
        config.modules.push("raid1".to_owned());
        let leg = SecondLeg { file: NamedTempFile::new()? };
        leg.file.as_file().set_len(size)?;
        leg.attach(config);
        Ok(leg)
    }

    fn attach(&self, config: &mut GuestConfig) {
        SecondLeg::detach(config);
        let id = SecondLeg::ID;
        let drive = format!("if=none,id={id},format=raw,discard=unmap,file={}", self.file.path().display());
        let device = format!("scsi-hd,drive={id},bus=legs.0,id={}", SecondLeg::DEVICE);
        config.qemu_arguments.extend(["-drive", &drive, "-device", &device].map(str::to_owned));
    }

    fn detach(config: &mut GuestConfig) {
        config.qemu_arguments = ["-device", "virtio-scsi-pci,id=legs"].map(str::to_owned).to_vec();
    }

    fn path(&self) -> PathBuf {
        self.file.path().to_owned()
    }
}

/// The guest's command that assembles the mirror of those legs that are there.
fn assemble(state: &str) -> String {
    format!(
        "for try in $(seq 50); do [ -b /dev/sda1 ] && break; sleep 0.1; done; n=/sys/class/block; \
         echo md0 >/sys/module/md_mod/parameters/new_array && echo 1.2 >{MD}/metadata_version && \
         for leg in vda1 sda1; do [ ! -e $n/$leg ] || cat $n/$leg/dev >{MD}/new_dev || exit 1; done && \
         echo {state} >{MD}/array_state"
    )
}

/// Unmounts the filesystem, and waits until the mirror's disks say that they are alike.
fn unmount(guest: &mut Guest) -> Result<()> {
    guest.succeed(&format!(
        "umount {FILES} && for try in $(seq 100); do [ $(cat {MD}/array_state) = clean ] && exit; sleep 0.1; done; \
         exit 1"
    ))?;
    Ok(())
}

/// Has the mirror's legs compared by md, which must find no difference.
fn demand_equal_legs(guest: &mut Guest) -> Result<()> {
    let compared = guest.succeed(&format!(
        "echo check >{MD}/sync_action; sleep 0.5; \
         for try in $(seq 900); do [ $(cat {MD}/sync_action) = idle ] && break; sleep 0.1; done; \
         cat {MD}/sync_action {MD}/mismatch_cnt {MD}/degraded {MD}/last_sync_action"
    ))?;
    ensure!(compared.split_whitespace().collect::<Vec<_>>() == ["idle", "0", "0", "check"], "{compared}");
    Ok(())
}

/// The session writes, and finds that a leg is not there any more: it hibernates no more until the mirror is whole.
fn demand_degraded(guest: &mut Guest) -> Result<()> {
    guest.succeed(&format!(
        "echo alone >{FILES}/word && sync && \
         for try in $(seq 300); do [ $(cat {MD}/degraded) = 1 ] && exit; sleep 0.1; done; exit 1"
    ))?;
    demand_refusal(guest, "image-layers", &[IMAGE, "/dev/md0", "raid1", "degraded"])
}

/// Boots: the image is found on both legs, with nothing mounted.
fn demand_image_on_both_legs(guest: &mut Guest) -> Result<()> {
    let lines = lines_of_boot(guest)?;
    ensure!(reasons(&lines)[0].contains("on /dev/sda1 and /dev/vda1 (from byte"), "{:?}", told(&lines));
    Ok(())
}

/// With the second leg away the session goes on, and finds the mirror degraded.
fn demand_resume_from_one_leg(guest: &mut Guest, saved: Saved) -> Result<()> {
    guest.change(SecondLeg::detach);
    let went_on = cycle::resume(guest, saved, &mut unobserved)?;
    demand_proofs(guest, &went_on)?;
    guest.succeed(&format!("grep -q after {FILES}/word"))?;
    demand_degraded(guest)
}

/// Where the image begins on the disk of each leg.
fn place_on_leg(device: &str) -> Result<u64> {
    let (_, offset) = device.split_once('@').context("no offset")?;
    Ok(MIB + offset.parse::<u64>()?)
}

/// A file on ext4 on a volume on a mirror of md's. Both legs are written, so that comparing them finds no difference.
/// With one leg missing at the resume the session goes on, and the next hibernation is refused until the mirror is
/// whole.
pub(crate) fn a_volume_on_a_mirror_and_a_leg_that_is_missing() -> Result<()> {
    const SIZE: u64 = 430 * MIB;
    /// What other volumes may have of the mirror.
    const BEFORE: u64 = 8 * MIB;
    let artifacts = Artifacts::from_environment()?;
    let mut config = GuestConfig::new(1, "768M".parse()?);
    let second = SecondLeg::of(&mut config, SIZE)?;
    config.modules.push("dm_mod".to_owned());
    let mut guest = Guest::new(config, &userland("/dev/vda", &LEG_DRIVERS), &artifacts)?;
    let legs = [guest.disk_file(0), second.path()];
    let len = make_mirror(&legs, SIZE, BEFORE)?;
    let assemble =
        format!("{} && workload map vg-root --uuid LVM-vgroot {}", assemble("active"), linear("md0", &[(BEFORE, len)]));

    guest.boot()?;
    let volume = guest.succeed(&assemble)?.trim().to_owned();
    mount(&mut guest, &volume)?;
    let created = guest.succeed(&format!("dormouse image create --size 256M {IMAGE}"))?;
    ensure!(
        created.contains("of /dev/vda1 and of /dev/sda1, below filesystem ext4, linear LVM-vgroot, raid1 "),
        "{created}"
    );
    let device = boot_device(&mut guest)?;
    unmount(&mut guest)?;
    guest.cut_power();

    guest.set_userland(&userland(&device, &LEG_DRIVERS), &artifacts)?;
    demand_image_on_both_legs(&mut guest)?;
    guest.succeed(&assemble)?;
    mount(&mut guest, &volume)?;
    cycle::start_workload(&mut guest)?;
    guest.succeed(&format!("echo before >{FILES}/word && sync"))?;
    power_cycle(&mut guest)?;
    guest.succeed(&format!("echo after >{FILES}/word && sync"))?;
    demand_equal_legs(&mut guest)?;

    // Each leg alone says what the image is.
    let before = cycle::check_workload(&mut guest)?;
    let saved = cycle::save(&mut guest, before, &hibernate("poweroff"), &mut unobserved)?;
    let place = place_on_leg(&device)?;
    legs.iter().try_for_each(|leg| demand_state(leg, place, State::Complete))?;
    demand_resume_from_one_leg(&mut guest, saved)?;
    demand_state(&legs[1], place, State::Complete).context("the missing leg was written")?;
    guest.cut_power();

    // The leg that was missing is there again: the session that has gone on is not resumed from it.
    guest.change(|config| second.attach(config));
    let lines = lines_of_boot(&mut guest)?;
    ensure!(ids(&lines).is_empty() && reasons(&lines)[0].contains("consumed"), "{:?}", told(&lines));
    guest.cut_power();
    Ok(())
}

/// A volume on LUKS on a mirror, unlocked by each boot between its two looks, with the image's key in a file on it. The
/// whole goes off and on; a rescue system unlocks and writes the filesystem, and the session is not resumed; with all
/// as it was it is, from one leg.
pub(crate) fn an_encrypted_volume_on_a_mirror_and_a_rescue_system() -> Result<()> {
    const SIZE: u64 = 280 * MIB;
    /// LUKS has its header before, and LVM its own.
    const OPENED: u64 = 2 * MIB;
    const BEFORE: u64 = 3 * MIB;
    const CRYPT: &str = "CRYPT-LUKS2-00112233445566778899aabbccddeeff-name";
    const RING: &str = "/var/lib/dormouse/keys";
    let artifacts = Artifacts::from_environment()?;
    let mut config = GuestConfig::new(1, "512M".parse()?);
    let second = SecondLeg::of(&mut config, SIZE)?;
    config.modules.extend(["dm_crypt", "aes_generic", "ecb", "xts"].map(str::to_owned));
    let (key, volume) = ("5a".repeat(32) + &"a5".repeat(32), "/dev/dm-1");
    let userland = |device: &str, len: u64| {
        let unlock = format!(
            "{} && workload map c --uuid {CRYPT} {} crypt \
             \"aes-xts-plain64 {key} 0 $(cat $n/md0/dev) {}\" && workload map vg-root --uuid LVM-vgroot {}\n",
            assemble("read-auto"),
            (BEFORE - OPENED + len) / 512,
            OPENED / 512,
            linear("dm-0", &[(BEFORE - OPENED, len)])
        );
        let policies = vec![GuestPolicy::standard(policy_text(device) + "key = \"file\"\n")];
        Userland { policies, unlock, ..self::userland(device, &LEG_DRIVERS) }
    };
    let len = volume_len(SIZE, BEFORE);
    let mut guest = Guest::new(config, &userland("/dev/vda", len), &artifacts)?;
    let legs = [guest.disk_file(0), second.path()];
    make_mirror(&legs, SIZE, BEFORE)?;

    guest.boot()?;
    guest.succeed(&format!("dd if=/dev/md0 of={volume} bs=1M skip={} count={}", BEFORE / MIB, len / MIB))?;
    mount(&mut guest, volume)?;
    let created = guest.succeed(&format!("dormouse image create --size 200M {IMAGE}"))?;
    ensure!(created.contains("below filesystem ext4, linear LVM-vgroot, crypt CRYPT-LUKS2-"), "{created}");
    let added = guest.succeed(&format!("dormouse --config {POLICY} key add file {FILES}/key"))?;
    ensure!(added.contains("key 1 (file)") && !added.contains("is not encrypted"), "{added}");
    let device = boot_device(&mut guest)?;
    guest.succeed(&format!("cp -r {RING} {FILES}/ring"))?;
    unmount(&mut guest)?;
    guest.cut_power();

    guest.set_userland(&userland(&device, len), &artifacts)?;
    demand_image_on_both_legs(&mut guest)?;
    mount(&mut guest, volume)?;
    guest.succeed(&format!("mkdir -p /var/lib/dormouse && cp -r {FILES}/ring {RING}"))?;
    cycle::start_workload(&mut guest)?;
    guest.succeed(&format!("echo before >{FILES}/word && sync"))?;
    power_cycle(&mut guest)?;
    guest.succeed(&format!("grep -q before {FILES}/word && echo after >{FILES}/word && sync"))?;
    demand_equal_legs(&mut guest)?;

    let before = cycle::check_workload(&mut guest)?;
    let saved = cycle::save(&mut guest, before, &hibernate("poweroff"), &mut unobserved)?;
    let good = legs.clone().map(|leg| leg.with_extension("good"));
    let copy = |from: &[PathBuf; 2], to: &[PathBuf; 2]| from.iter().zip(to).try_for_each(|(f, t)| copy_sparse(f, t));
    copy(&legs, &good)?;
    guest.add_kernel_argument("rescue");
    guest.boot()?;
    guest.change(|config| config.kernel_arguments.clear());
    guest.succeed(&format!(
        "sh {UNLOCK_PATH} && mkdir {FILES} && mount -t ext4 {volume} {FILES} && grep -q after {FILES}/word && \
         echo rescued >{FILES}/word"
    ))?;
    unmount(&mut guest)?;
    guest.cut_power();
    let lines = lines_of_boot(&mut guest)?;
    let expected = format!("which the session has mounted at {FILES}, was written by another system");
    ensure!(ids(&lines) == ["filesystem-written"], "{:?}", told(&lines));
    ensure!(reasons(&lines)[0].contains(&expected), "{:?}", told(&lines));
    ensure!(!lines.iter().any(|line| line.contains("restore/")), "D was started");
    guest.cut_power();
    let place = place_on_leg(&device)?;
    legs.iter().try_for_each(|leg| demand_state(leg, place, State::Discarded))?;

    copy(&good, &legs)?;
    demand_resume_from_one_leg(&mut guest, saved)?;
    demand_state(&legs[1], place, State::Complete).context("the missing leg was written")?;
    good.iter().try_for_each(std::fs::remove_file)?;
    Ok(())
}

/// A file on ext4 on a mirror. One leg takes no writes at one place, and one is pulled out: the save ends in the
/// session, with the disk's name, and no boot resumes what was left.
pub(crate) fn a_leg_that_fails_during_the_save() -> Result<()> {
    const SIZE: u64 = 280 * MIB;
    let artifacts = Artifacts::from_environment()?;
    let mut config = GuestConfig::new(1, "512M".parse()?);
    let second = SecondLeg::of(&mut config, SIZE)?;
    let mut guest = Guest::new(config, &userland("/dev/vda", &LEG_DRIVERS), &artifacts)?;
    let legs = [guest.disk_file(0), second.path()];
    make_mirror(&legs, SIZE, 0)?;
    let assemble = assemble("active");

    guest.boot()?;
    guest.succeed(&assemble)?;
    mount(&mut guest, "/dev/md0")?;
    guest.succeed(&format!("dormouse image create --size 200M {IMAGE}"))?;
    let device = boot_device(&mut guest)?;
    unmount(&mut guest)?;
    guest.cut_power();
    let place = place_on_leg(&device)?;

    guest.set_userland(&userland(&device, &LEG_DRIVERS), &artifacts)?;
    guest.change(|config| config.faults.push((0, Fault::Write(place + DATA_OFFSET + 10 * MIB))));
    let session = |guest: &mut Guest| -> Result<Report> {
        let lines = lines_of_boot(guest)?;
        ensure!(reasons(&lines).len() == 1, "{:?}", told(&lines));
        ensure!(guest.run("workload check")?.status != 0, "the workload still runs");
        guest.succeed(&assemble)?;
        mount(guest, "/dev/md0")?;
        cycle::start_workload(guest)?;
        guest.succeed(&format!("echo before >{FILES}/word && sync"))?;
        cycle::check_workload(guest)
    };
    let before = session(&mut guest)?;
    let back = cycle::stay_on(&mut guest, before, &hibernate("poweroff"), &mut unobserved)?;
    demand_proofs(&guest, &back)?;
    demand_failed_save(&mut guest, &back.output, &["writing", "failed: /dev/vda1 (from byte", "Input/output error"])?;
    let unharmed = guest.succeed(&format!("grep -q before {FILES}/word && cat {MD}/degraded"))?;
    ensure!(unharmed.trim() == "0", "md has noticed: {unharmed}");
    legs.iter().try_for_each(|leg| demand_state(leg, place, State::Failed))?;
    guest.cut_power();

    guest.change(|config| config.faults.clear());
    let before = session(&mut guest)?;
    let mut cursor = guest.console().end();
    let command = guest.send(&hibernate("poweroff"))?;
    guest.monitor()?.limit_writes(SecondLeg::ID, 16 * MIB)?;
    let phase = Phase::SaveWrite;
    guest.follow_during(command, &mut cursor, TWO_BOOTS, &format!("progress of {phase}"), |line| {
        crate::is_under_way(line, phase)
    })?;
    guest.monitor()?.unplug(SecondLeg::DEVICE)?;
    let output = guest.answer(command, TWO_BOOTS)?;
    crate::demand_same_session(&mut guest, &before)?;
    demand_failed_save(&mut guest, &output, &["failed: /dev/sda1 (from byte"])?;
    demand_degraded(&mut guest)?;
    guest.cut_power();
    demand_state(&legs[0], place, State::Failed)?;
    let lines = lines_of_boot(&mut guest)?;
    ensure!(ids(&lines) == ["save-failed"], "{:?}", told(&lines));
    guest.cut_power();
    Ok(())
}

/// Puts a file into pieces of a disk of a machine that is off.
fn scatter(file: &NamedTempFile, disk: &Path, segments: &[(u64, u64)]) -> Result<()> {
    let (bytes, disk) = (std::fs::read(file.path())?, File::options().write(true).open(disk)?);
    let mut from = 0;
    for (start, len) in segments {
        let to = from + usize::try_from(*len)?;
        // What is zero stays a hole.
        for (at, block) in bytes[from..to].chunks(1 << 16).enumerate() {
            if block.iter().any(|byte| *byte != 0) {
                disk.write_all_at(block, start + (at << 16) as u64)?;
            }
        }
        from = to;
    }
    Ok(())
}

/// The pieces of a disk, one after the other.
fn gathered(disk: &Path, segments: &[(u64, u64)]) -> Result<NamedTempFile> {
    let mut file = NamedTempFile::new()?;
    let disk = File::open(disk)?;
    for (start, len) in segments {
        let mut bytes = vec![0; usize::try_from(*len)?];
        disk.read_exact_at(&mut bytes, *start)?;
        file.write_all(&bytes)?;
    }
    Ok(file)
}

/// Demands that the image which begins at byte `place` of this leg is in this state.
fn demand_state(leg: &Path, place: u64, expected: State) -> Result<()> {
    let state = image::commit_at(leg, place)?.state;
    ensure!(state == expected, "{}: {state} in place of {expected}", leg.display());
    Ok(())
}

/// Where the data begin in the partition of a leg.
const DATA: u64 = MIB;

/// How long the partitions of a mirror's disks of `size` bytes are. The partition table has its copy at the end.
fn partition_len(size: u64) -> u64 {
    size - 2 * MIB
}

/// What is left of a mirror of such disks from byte `start` on.
fn volume_len(size: u64, start: u64) -> u64 {
    partition_len(size) - DATA - start
}

/// A mirror of two disks' first partitions, in order, with an empty ext4 filesystem from byte `start` of it on. Returns
/// how long that is.
fn make_mirror(legs: &[PathBuf; 2], size: u64, start: u64) -> Result<u64> {
    let len = partition_len(size);
    let filesystem = filesystem::ext4(volume_len(size, start))?;
    for (number, leg) in legs.iter().enumerate() {
        filesystem::partition(leg, &format!("start={}, size={}", MIB / 512, len / 512))?;
        let superblock = superblock(u32::try_from(number)?, DATA / 512, (len - DATA) / 512);
        File::options().write(true).open(leg)?.write_all_at(&superblock, MIB + 4096)?;
        scatter(&filesystem, leg, &[(MIB + DATA + start, volume_len(size, start))])?;
    }
    Ok(volume_len(size, start))
}

/// A superblock of md's, version 1.2, of one of two disks that are in order (include/uapi/linux/raid/md_p.h,
/// `struct mdp_superblock_1`).
fn superblock(number: u32, data_offset: u64, data_size: u64) -> Vec<u8> {
    let mut bytes = vec![0; 512];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(0, &0xa92b_4efc_u32.to_le_bytes());
    put(4, &1_u32.to_le_bytes());
    put(16, &[0x5d; 16]);
    put(32, b"dormouse:0");
    // Level, size, disks.
    put(72, &1_u32.to_le_bytes());
    put(80, &data_size.to_le_bytes());
    put(92, &2_u32.to_le_bytes());
    // Where the data are, how much, and where this is.
    put(128, &data_offset.to_le_bytes());
    put(136, &data_size.to_le_bytes());
    put(144, &8_u64.to_le_bytes());
    put(160, &number.to_le_bytes());
    put(168, &[number.to_le_bytes()[0] + 1; 16]);
    // Events; nothing is left to be synchronised; roles.
    put(200, &1_u64.to_le_bytes());
    put(208, &u64::MAX.to_le_bytes());
    put(220, &2_u32.to_le_bytes());
    put(256, &[0, 0, 1, 0]);
    // drivers/md/md.c, `calc_sb_1_csum`.
    let words =
        bytes[..260].chunks_exact(4).map(|word| u64::from(u32::from_le_bytes([word[0], word[1], word[2], word[3]])));
    let sum: u64 = words.sum();
    let sum = (sum & u64::from(u32::MAX)) + (sum >> 32);
    bytes[216..220].copy_from_slice(&sum.to_le_bytes()[..4]);
    bytes
}
