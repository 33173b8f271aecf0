//! The image in a file of a filesystem that the session has mounted.

use anyhow::{Context, Result, ensure};
use dormouse_tests::artifacts::Artifacts;
use dormouse_tests::cycle::{self, unobserved};
use dormouse_tests::filesystem;
use dormouse_tests::guest::Guest;
use dormouse_tests::machine::{Disk, DiskKind, GuestConfig, MIB};
use dormouse_tests::userland::{GuestPolicy, Userland};

use crate::{demand_proofs, ids, lines_of_boot, reasons, told};

/// Where the session mounts its filesystem.
pub(crate) const FILES: &str = "/run/files";
pub(crate) const IMAGE: &str = "/run/files/image";
/// A's policy, which names the file. That of C, in `/etc`, names its place on the disk.
pub(crate) const POLICY: &str = "/run/file.toml";

/// A guest with a filesystem on its one disk of `disk` MiB and a file for the image in it, made after the guest has run
/// `prepare` there. It is up and has the filesystem mounted; its ordinary boot knows where the file lies.
fn guest_with_file(kind: &str, disk: u64, prepare: &str, size: &str) -> Result<Guest> {
    let artifacts = Artifacts::from_environment()?;
    let mut config = GuestConfig::new(1, "768M".parse()?);
    config.disks = vec![Disk { kind: DiskKind::Virtio, bytes: disk * MIB }];
    let own_modules: Vec<String> = if kind == "ext4" { Vec::new() } else { vec![kind.to_owned()] };
    let userland = |device: &str| {
        let policies = vec![GuestPolicy::standard(format!("[image]\ndevice = \"{device}\"\nwait = 5\n"))];
        Userland { policies, own_modules: own_modules.clone(), ..Userland::default() }
    };
    let mut guest = Guest::new(config, &userland("/dev/vda"), &artifacts)?;
    filesystem::make(kind, &guest.disk_file(0))?;
    guest.boot()?;
    mount(&mut guest, kind, "", "/dev/vda")?;
    guest.succeed(&format!("cd {FILES}\n{prepare}"))?;
    let printed = guest.succeed(&format!("dormouse image create --size {size} {IMAGE}"))?;
    ensure!(printed.contains("UUID=") && printed.contains("/dev/vda"), "{printed}");
    let device = boot_device(&mut guest)?;
    guest.succeed(&format!("umount {FILES}"))?;
    guest.cut_power();

    guest.set_userland(&userland(&device), &artifacts)?;
    let lines = lines_of_boot(&mut guest)?;
    let (_, offset) = device.split_once('@').context("no offset")?;
    let expected = format!("no image to resume: the one on /dev/vda (from byte {offset} on) is empty");
    ensure!(reasons(&lines) == [expected.as_str()], "{:?}", told(&lines));
    mount(&mut guest, kind, "", "/dev/vda")?;
    ensure!(boot_device(&mut guest)? == device, "the file has moved");
    Ok(guest)
}

/// Mounts a device, and gives A a policy that names a file there.
pub(crate) fn mount(guest: &mut Guest, kind: &str, options: &str, device: &str) -> Result<()> {
    guest.succeed(&format!("mkdir -p {FILES} && mount -t {kind} {options} {device} {FILES}"))?;
    guest.succeed(&format!("sed 's|^device = .*|device = \"{IMAGE}\"|' /etc/dormouse.toml >{POLICY}"))?;
    Ok(())
}

/// The image device as an initramfs needs it.
pub(crate) fn boot_device(guest: &mut Guest) -> Result<String> {
    let policy = guest.succeed(&format!("dormouse --config {POLICY} config show --boot"))?;
    let device = policy.lines().find_map(|line| line.strip_prefix("device = \"")?.strip_suffix('"'));
    let device = device.with_context(|| policy.clone())?.to_owned();
    ensure!(device.starts_with("UUID=") && device.contains('@'), "{policy}");
    Ok(device)
}

pub(crate) fn hibernate(then: &str) -> String {
    format!("dormouse --config {POLICY} hibernate --then {then} --json")
}

/// The session writes to the filesystem all the time, and the image to the same disk: off and on again, and then a boot
/// that does not resume and replays the journal.
fn cycles(guest: &mut Guest, kind: &str) -> Result<()> {
    cycle::start_workload(guest)?;
    guest.succeed(&format!(
        "echo before >{FILES}/word && \
         (i=0; while :; do i=$((i + 1)); echo $i >>{FILES}/work; sleep 0.05; done) >/dev/null 2>&1 &"
    ))?;
    // An image of an earlier state that the page cache still holds must not be believed later.
    guest.succeed(&format!("cat {IMAGE} >/dev/null"))?;
    for _ in 0..2 {
        let before = cycle::check_workload(guest)?;
        let saved = cycle::save(guest, before, &hibernate("poweroff"), &mut unobserved)?;
        let went_on = cycle::resume(guest, saved, &mut unobserved)?;
        demand_proofs(guest, &went_on)?;
        let report = went_on.report()?;
        ensure!(report.device.starts_with("/dev/vda (from byte "), "{report:?}");
        let info = guest.succeed(&format!("dormouse image info {IMAGE}; dormouse --config {POLICY} status"))?;
        ensure!(info.matches("consumed").count() == 2, "{info}");
        guest.succeed(&format!("sync && grep -q before {FILES}/word"))?;
    }
    // The file stays where it is when its data are overwritten, and the next hibernation takes it.
    guest.succeed(&format!("dormouse image wipe {IMAGE} && dormouse image info {IMAGE} | grep -q wiped"))?;
    let before = cycle::check_workload(guest)?;
    let snapshot = cycle::stay_on(guest, before, &hibernate("return"), &mut unobserved)?;
    demand_proofs(guest, &snapshot)?;
    guest.succeed(&format!("dormouse image verify {IMAGE}"))?;

    let synced = guest.succeed(&format!("tail -n 1 {FILES}/work && sync"))?.trim().parse()?;
    let before = cycle::check_workload(guest)?;
    cycle::save(guest, before, &hibernate("poweroff"), &mut unobserved)?;
    guest.add_kernel_argument("noresume");
    let lines = lines_of_boot(guest)?;
    ensure!(ids(&lines) == ["boot-argument"], "{:?}", told(&lines));
    mount(guest, kind, "", "/dev/vda")?;
    let info = guest.succeed(&format!("dormouse image info {IMAGE}"))?;
    ensure!(info.contains("discarded: the kernel command line"), "{info}");
    demand_work(&guest.succeed(&format!("cat {FILES}/work && umount {FILES}"))?, synced)?;
    let complaints = guest.succeed(
        "dmesg | grep -i -e 'EXT4-fs error' -e 'XFS.*[Cc]orrupt' -e 'BTRFS.*error' -e 'csum failed' || true",
    )?;
    ensure!(complaints.is_empty(), "{complaints}");
    guest.cut_power();
    Ok(())
}

/// Demands of the file that the session wrote: the numbers from 1 on, up to `synced` at least. NULs may follow: ext4
/// may commit the size of a file whose last block grows before it writes that block, and the session is one that lost
/// its power.
fn demand_work(work: &str, synced: u64) -> Result<()> {
    let numbers = work.trim_end_matches('\0');
    let whole_lines = numbers.rsplit_once('\n').map_or("", |(lines, _)| lines);
    let mut last = 0;
    for line in whole_lines.lines() {
        last += 1;
        ensure!(line == last.to_string(), "line {last} is {line:?}: {numbers}");
    }
    ensure!(last >= synced, "{synced} numbers were synced, and {last} are there: {numbers}");
    Ok(())
}

/// In pieces of 2 MiB, not in the order of the disk: every second file is gone when the image is made.
pub(crate) fn a_scattered_file_on_ext4() -> Result<()> {
    let scatter = "i=0; while fallocate -l 2M f$i 2>/dev/null; do i=$((i + 1)); done; sync; \
                   while [ $i -gt 0 ]; do i=$((i - 2)); rm -f f$i; done; sync";
    let mut guest = guest_with_file("ext4", 700, scatter, "256M")?;
    let info = guest.succeed(&format!("dormouse image info --json {IMAGE}"))?;
    let info: serde_json::Value = serde_json::from_str(&info)?;
    ensure!(info["extents"].as_u64().is_some_and(|extents| extents > 60), "{info}");
    cycles(&mut guest, "ext4")?;
    filesystem::check_ext4(&guest.disk_file(0))?;
    Ok(())
}

pub(crate) fn a_file_on_xfs() -> Result<()> {
    let mut guest = guest_with_file("xfs", 1000, "", "auto")?;
    guest.succeed(&format!("workload clone {IMAGE} {FILES}/clone && sync"))?;
    refused(&mut guest, &hibernate("poweroff"), &[IMAGE, "shared with another file or a snapshot"])?;
    guest.succeed(&format!("rm {FILES}/clone && sync"))?;
    cycles(&mut guest, "xfs")?;
    filesystem::check_xfs(&guest.disk_file(0))?;
    Ok(())
}

/// The addresses that FIEMAP gives are those of the volume, and others than the disk's.
pub(crate) fn a_file_on_btrfs() -> Result<()> {
    let mut guest = guest_with_file("btrfs", 700, "", "300M")?;
    // What is copied to a new file is not overwritten in place.
    guest.succeed(&format!("cd {FILES} && mv image good && cp good image && sync"))?;
    refused(&mut guest, &hibernate("poweroff"), &[IMAGE, "btrfs writes each change of it elsewhere"])?;
    guest.succeed(&format!("cd {FILES} && mv good image && sync"))?;
    cycles(&mut guest, "btrfs")?;
    filesystem::check_btrfs(&guest.disk_file(0))?;
    Ok(())
}

/// Each with its reason, and nothing is left over.
pub(crate) fn files_that_will_not_do() -> Result<()> {
    let mut guest = guest_with_file("ext4", 700, "", "64M")?;
    let create = |size: &str, path: &str| format!("dormouse image create --size {size} {path}");
    refused(&mut guest, &create("64M", IMAGE), &[IMAGE, "already"])?;
    refused(&mut guest, &create("900M", "/run/files/large"), &["/run/files/large", "900 MiB do not fit", "--size"])?;
    refused(&mut guest, &create("auto", "/run/files/auto"), &["/run/files/auto", "MiB at most", "--size"])?;
    refused(&mut guest, &create("64M", "/run/image"), &["/run/image", "it is on tmpfs"])?;
    refused(&mut guest, &create("64M", "/proc/image"), &["/proc/image"])?;
    guest.succeed("cd /run && [ ! -e image ] && cd files && [ ! -e large ] && [ ! -e auto ]")?;
    // Nor is anything left of one that is given up, name or room.
    guest.succeed(&format!(
        "cd {FILES} && sync && free() {{ stat -f -c %f .; }}; before=$(free); \
         {create} & while [ $(free) = $before ]; do :; done; kill -KILL $!; wait $!; \
         [ ! -e given-up ] && for try in $(seq 50); do [ $(free) = $before ] && exit; sync; sleep 0.1; done; exit 1",
        create = create("256M", "given-up")
    ))?;

    // A copy has the label and lies elsewhere.
    guest.succeed(&format!("cd {FILES} && cp image copy && mv image good && mv copy image && sync"))?;
    refused(
        &mut guest,
        &hibernate("poweroff"),
        &[IMAGE, "blocks have been moved", "dormouse image create --size 64M"],
    )?;
    // The beginning of one, and room for the rest of it.
    guest.succeed(&format!(
        "cd {FILES} && rm image && fallocate -l 64M image && dd if=good of=image bs=1M count=2 conv=notrunc && sync"
    ))?;
    refused(&mut guest, &hibernate("poweroff"), &[IMAGE, "are reserved and not written yet"])?;
    // With a hole.
    guest.succeed(&format!(
        "cd {FILES} && rm image && dd if=good of=image bs=1M count=2 && \
         dd if=good of=image bs=1M count=1 seek=63 && sync"
    ))?;
    refused(&mut guest, &hibernate("poweroff"), &[IMAGE, "a hole at byte 2097152"])?;
    // Made as a device is.
    guest.succeed(&format!("cd {FILES} && dd if=/dev/zero of=image bs=1M count=64 && dormouse image init image"))?;
    refused(&mut guest, &hibernate("poweroff"), &[IMAGE, "dormouse image init"])?;
    guest.succeed(&format!("cd {FILES} && rm image"))?;
    refused(&mut guest, &hibernate("poweroff"), &[IMAGE, "the file does not exist"])?;
    guest.succeed(&format!("cd {FILES} && mv good image && dormouse --config {POLICY} config show --boot"))?;
    // Too late to resume, and that is no way to name the image in an initramfs.
    let output = guest.run(&format!("dormouse --config {POLICY} resume"))?;
    ensure!(output.status != 0 && output.stderr.contains("is mounted already"), "{output:?}");

    guest.succeed(&format!("umount {FILES}"))?;
    mount(&mut guest, "ext4", "-o data=journal", "/dev/vda")?;
    refused(&mut guest, &hibernate("poweroff"), &[IMAGE, "data=journal"])?;
    refused(&mut guest, &create("64M", "/run/files/other"), &["data=journal"])?;
    guest.succeed(&format!("umount {FILES}"))?;
    guest.cut_power();
    filesystem::check_ext4(&guest.disk_file(0))?;
    Ok(())
}

fn refused(guest: &mut Guest, command: &str, expected: &[&str]) -> Result<()> {
    let output = guest.run(command)?;
    ensure!(output.status == 3, "{command}: {output:?}");
    for expected in expected {
        ensure!(output.stderr.contains(expected), "{command}: {expected:?} is not in {:?}", output.stderr);
    }
    crate::demand_nothing_loaded(guest)
}
