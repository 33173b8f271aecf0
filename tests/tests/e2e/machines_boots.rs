//! What the next boot will do with the image, before the power goes off; and what is left of the image afterwards.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Result, ensure};
use dormouse_image::State;
use dormouse_image::layout::HEADER_OFFSET;
use dormouse_tests::artifacts::Artifacts;
use dormouse_tests::cycle;
use dormouse_tests::guest::Guest;
use dormouse_tests::image;
use dormouse_tests::machine::GuestConfig;
use dormouse_tests::userland::{GuestPolicy, Userland};

use crate::{demand_refusal, ids, lines_of_boot, power_cycle, save, told};

/// A's policy, which names the place. That of C, in `/etc`, names an image.
const POLICY: &str = "/run/place.toml";

/// Only a boot that has found this very image shows that the next one will; and when the session goes on, or the image
/// is given up, nothing is left of it on the disk.
pub(crate) fn only_what_was_found_is_relied_on_and_nothing_is_left() -> Result<()> {
    let artifacts = Artifacts::from_environment()?;
    let userland = |device: &str| {
        let policies = vec![GuestPolicy::standard(format!("[image]\ndevice = \"{device}\"\nwait = 2\n"))];
        Userland { policies, ..Userland::default() }
    };
    let unknown = "UUID=01234567-89ab-4cde-8f01-23456789abcd";
    let mut guest = Guest::new(GuestConfig::new(1, "512M".parse()?), &userland(unknown), &artifacts)?;
    guest.boot()?;
    cycle::init_image(&mut guest, "/dev/vda")?;
    let name_the_place = format!("printf '[image]\\ndevice = \"/dev/vda\"\\n' >{POLICY}");
    guest.succeed(&name_the_place)?;
    refused(&mut guest, &format!("this boot has looked for {unknown} without finding it"))?;
    guest.cut_power();

    // A boot that has found an image, which was made again since.
    let disk = guest.disk_file(0);
    let uuid = image::commit(&disk)?.image;
    guest.set_userland(&userland(&format!("UUID={uuid}")), &artifacts)?;
    guest.boot()?;
    cycle::start_workload(&mut guest)?;
    guest.succeed(&name_the_place)?;
    guest.succeed("dd if=/dev/vda of=/run/before bs=4k count=16 && dormouse image init --force /dev/vda")?;
    refused(
        &mut guest,
        &format!("this boot has looked for UUID={uuid}, which is not the image that the policy names"),
    )?;
    guest.succeed("dd if=/run/before of=/dev/vda bs=4k && sync")?;

    an_initramfs_is_built_while_the_disk_is_away(&mut guest)?;
    power_cycle(&mut guest)?;
    wait_until_wiped(&mut guest)?;
    ensure!(is_clean(&disk)?, "memory of the session is left on the disk");
    // It has shown by itself that a boot finds the image, and the image is as good as before.
    save(&mut guest)?;
    ensure!(image::commit(&disk)?.state == State::Complete && !is_clean(&disk)?, "no image");
    guest.add_kernel_argument("noresume");
    let lines = lines_of_boot(&mut guest)?;
    ensure!(ids(&lines) == ["boot-argument"], "{:?}", told(&lines));
    guest.succeed("dormouse prepare")?;
    wait_until_wiped(&mut guest)?;
    let status = guest.succeed("dormouse status")?;
    ensure!(status.contains("discarded since") && status.contains("the kernel command line"), "{status}");
    guest.cut_power();
    ensure!(is_clean(&disk)? && image::commit(&disk)?.state == State::Discarded, "memory of the session is left");
    Ok(())
}

/// What a hook does, for the one kernel that may boot: it goes on with what is known of the disk, and until it is done
/// nothing shows that this kernel would resume.
fn an_initramfs_is_built_while_the_disk_is_away(guest: &mut Guest) -> Result<()> {
    let (driver, modules) = ("/sys/bus/virtio/drivers/virtio_blk", "/run/modules");
    let files =
        format!("dormouse initramfs-files --release $(uname -r) --modules-dir {modules} --scratch /run/scratch");
    guest.succeed(&format!(
        "mkdir -p /boot /run/scratch {modules} && : >/boot/vmlinuz-$(uname -r) && \
         sed 's/ .*/.ko:/' /proc/modules >{modules}/modules.dep && \
         ls /sys/module | sed 's/$/.ko/' >{modules}/modules.builtin && {files}"
    ))?;
    let printed = guest.succeed(&format!(
        "disk=$(basename $(readlink -f /sys/block/vda/device)); echo $disk >{driver}/unbind && [ ! -b /dev/vda ] && \
         {files} 2>&1; status=$?; echo $disk >{driver}/bind; \
         for try in $(seq 100); do [ -b /dev/vda ] && break; sleep 0.1; done; exit $status"
    ))?;
    ensure!(printed.contains("not there; its modules are found as they were"), "{printed}");
    ensure!(printed.contains(" /usr/lib/dormouse/dormouse-resume 755"), "{printed}");
    demand_refusal(guest, "next-boot")?;
    guest.succeed("dormouse initramfs-done $(uname -r)").map(drop)
}

fn refused(guest: &mut Guest, expected: &str) -> Result<()> {
    let output = guest.run(&format!("dormouse --config {POLICY} hibernate --then poweroff --json"))?;
    let json: serde_json::Value = serde_json::from_str(&output.stdout)?;
    ensure!(output.status == 3 && json["id"] == "boot-evidence", "{output:?}");
    ensure!(output.stderr.contains(expected) && output.stderr.contains("--trust-boot"), "{output:?}");
    Ok(())
}

/// It goes on in the background.
fn wait_until_wiped(guest: &mut Guest) -> Result<()> {
    guest.succeed(
        "for try in $(seq 300); do dormouse image info /dev/vda | grep -q wiped && exit; sleep 0.2; done; \
         dormouse image info /dev/vda >&2; exit 1",
    )?;
    Ok(())
}

/// Whether a disk has nothing but the label and the state of an image.
fn is_clean(disk: &Path) -> Result<bool> {
    let file = File::open(disk)?;
    let (mut at, mut piece) = (HEADER_OFFSET, vec![0; 1 << 20]);
    loop {
        match file.read_at(&mut piece, at)? {
            0 => return Ok(true),
            len if piece[..len].iter().any(|byte| *byte != 0) => return Ok(false),
            len => at += u64::try_from(len)?,
        }
    }
}
