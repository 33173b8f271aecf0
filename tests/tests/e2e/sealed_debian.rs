//! A Debian system on an encrypted disk as installers make it: `/boot`, and LUKS2 with LVM or btrfs in it. Hibernating
//! asks nothing, and resuming nothing but the passphrase that the boot asks for anyway.

use anyhow::{Result, ensure};
use dormouse_tests::artifacts::Artifacts;
use dormouse_tests::console::Cursor;
use dormouse_tests::debian::{self, ENCRYPTED_PACKAGE, Encrypted, HOST_NAME, Suite, TIMEOUT};
use dormouse_tests::guest::{Guest, READY_MARK};
use dormouse_tests::machine::GuestConfig;

use crate::contains;
use crate::debian::{PATIENCE, Session, hibernate, power_off, succeed};

/// An argument on the kernel's command line.
const ARGUMENT: &str = "amberquarry=7331";
/// Made up in the guest of these halves, so that it is nowhere as a whole but in a file in memory.
const MARKER: [&str; 2] = ["thistledown-", "in-the-attic"];

pub(crate) fn an_encrypted_debian_13_goes_on() -> Result<()> {
    goes_on(Encrypted::Lvm(Suite::Trixie), Place::Root)
}

pub(crate) fn an_encrypted_debian_12_goes_on() -> Result<()> {
    goes_on(Encrypted::Lvm(Suite::Bookworm), Place::Root)
}

pub(crate) fn an_image_beside_an_encrypted_disk_is_sealed_by_it() -> Result<()> {
    goes_on(Encrypted::Lvm(Suite::Trixie), Place::Beside)
}

pub(crate) fn btrfs_with_dracut_and_systemd_goes_on() -> Result<()> {
    goes_on(Encrypted::Btrfs, Place::Root)
}

/// Where the image is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// In a file of the root filesystem, below all layers.
    Root,
    /// On a disk of its own.
    Beside,
}

fn goes_on(kind: Encrypted, place: Place) -> Result<()> {
    let artifacts = Artifacts::from_environment()?;
    let mut config = GuestConfig::new(1, "768M".parse()?);
    if place == Place::Root {
        config.disks.clear();
    }
    config.kernel_arguments.push(ARGUMENT.to_owned());
    let mut guest = debian::encrypted_guest(kind, config, &artifacts)?;
    boot(kind, &mut guest)?;
    guest.succeed(PATIENCE)?;
    succeed(&mut guest, &format!("dpkg --install {ENCRYPTED_PACKAGE} && rm {ENCRYPTED_PACKAGE}"))?;
    let setup = match place {
        // Encrypting every byte of it takes its time under emulation.
        Place::Root => "dormouse setup --yes --size 512M",
        Place::Beside => "dormouse setup --device /dev/vdb",
    };
    let planned = succeed(&mut guest, &format!("{setup} --dry-run"))?;
    ensure!(planned.contains("dormouse key add file /var/lib/dormouse/key"), "{planned}");
    let below = format!("on dm-crypt {} on /dev/vda3", kind.mapping());
    ensure!(planned.contains(&below) == (place == Place::Root), "{planned}");
    ensure!(guest.run("test -e /etc/dormouse.toml")?.status != 0, "--dry-run has changed something");
    guest.succeed_within(setup, 2 * TIMEOUT)?;
    succeed(&mut guest, "dormouse enable")?;
    // The boot's new initramfs; logind's part of it, too.
    power_off(&mut guest)?;
    debian::boot_next_encrypted(&mut guest, artifacts.release())?;
    let mut cursor = boot(kind, &mut guest)?;
    looked_between_unlock_and_mount(kind, &guest, &mut cursor)?;
    succeed(&mut guest, "dormouse doctor")?;

    let session = Session::begin(&mut guest)?;
    let [first, second] = MARKER;
    guest.succeed(&format!("printf '%s%s' {first} {second} >/run/marker"))?;
    match kind {
        Encrypted::Lvm(_) => succeed(&mut guest, SWAP)?,
        Encrypted::Btrfs => succeed(&mut guest, NOCOW_AND_COW)?,
    };
    hibernate(&mut guest)?;
    let marker = MARKER.concat();
    for word in [marker.as_str(), HOST_NAME, ARGUMENT] {
        for disk in 0..guest.config().disks.len() {
            ensure!(!contains(&guest.disk_file(disk), word)?, "{word} is on disk {disk} in clear");
        }
    }
    let mut cursor = guest.power_on()?;
    kind.unlock(&mut guest, &mut cursor)?;
    session.goes_on(&mut guest, &mut cursor)?;
    ensure!(guest.succeed("cat /run/marker")? == marker, "another marker");
    if kind == Encrypted::Btrfs {
        guest.succeed("test $(stat -c %s /home/file) = 67108864")?;
    } else {
        guest.succeed("swapoff -a && swapon -a && grep -q dm- /proc/swaps")?;
    }

    // What the session left is whole.
    power_off(&mut guest)?;
    guest.add_kernel_argument("fsck.mode=force");
    boot(kind, &mut guest)?;
    if kind == Encrypted::Btrfs {
        let scrubbed = succeed(&mut guest, "btrfs scrub start -B / && btrfs device stats --check /")?;
        ensure!(scrubbed.contains("no errors found"), "{scrubbed}");
    } else {
        let checked = guest.succeed("cat /run/initramfs/fsck.log")?;
        ensure!(checked.contains("-root: ") && !checked.contains("MODIFIED"), "{checked}");
    }
    let status = guest.succeed("dormouse status")?;
    ensure!(status.contains("no image to resume"), "{status}");

    let undone = succeed(&mut guest, "dormouse setup --undo --no-initramfs")?;
    ensure!(guest.run("test -e /etc/dormouse.toml || test -e /var/lib/dormouse/image")?.status != 0, "{undone}");
    Ok(())
}

/// Presses memory until some of it is in the swap volume.
const SWAP: &str = "head -c 128M /dev/urandom >/dev/shm/ballast && head -c 600M /dev/zero | tail | wc -c && \
    awk 'NR > 1 && $4 > 0 { used = 1 } END { exit !used }' /proc/swaps";

/// The image is overwritten in place; the rest is written elsewhere, and compressed.
const NOCOW_AND_COW: &str = "lsattr /var/lib/dormouse/image | grep '^[^ ]*C' && head -c 64M /dev/zero >/home/file && \
    findmnt --noheadings --output FSROOT,OPTIONS /home | grep '^/@home .*compress=zstd'";

/// Boots to the end, with the passphrase typed. Returns the place in the console where the boot began.
fn boot(kind: Encrypted, guest: &mut Guest) -> Result<Cursor> {
    let begin = guest.power_on()?;
    let mut cursor = begin;
    kind.unlock(guest, &mut cursor)?;
    guest.wait_for(&mut cursor, READY_MARK, TIMEOUT)?;
    Ok(begin)
}

/// The order in the boot at `cursor`: the first look, the passphrase, the second look, the root filesystem.
fn looked_between_unlock_and_mount(kind: Encrypted, guest: &Guest, cursor: &mut Cursor) -> Result<()> {
    let lines = guest.console().since(cursor);
    let at = |text: &str| lines.iter().position(|line| line.text.contains(text));
    let (unlocked, mounted) = match kind {
        Encrypted::Lvm(_) => ("vda3_crypt: set up successfully", "EXT4-fs (dm-"),
        Encrypted::Btrfs => ("Please enter passphrase", "BTRFS info (device dm-"),
    };
    let places = [at("dormouse: no image to resume"), at(unlocked), at("looked again, after the unlock"), at(mounted)];
    ensure!(places.iter().all(Option::is_some) && places.is_sorted(), "first look, unlock, second look: {places:?}");
    Ok(())
}
