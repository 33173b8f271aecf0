//! A Debian system that boots from its own disk, and whose boot loader starts the restore kernel: from `dormouse setup
//! --direct` to the removal.

use anyhow::{Result, anyhow, ensure};
use dormouse_tests::artifacts::Artifacts;
use dormouse_tests::console::Cursor;
use dormouse_tests::cycle;
use dormouse_tests::debian::{self, PACKAGE, Suite};
use dormouse_tests::guest::Guest;
use dormouse_tests::machine::{Firmware, GuestConfig, MachineType};

use crate::debian::{PATIENCE, Session, boot, hibernate, power_off, succeed};

/// The disk that holds the image, behind the root filesystem's.
const IMAGE: usize = 1;
/// As an administrator with a serial console has it.
const GRUB: &str = "mkdir -p /etc/default/grub.d && cat >/etc/default/grub.d/serial.cfg <<'END'
GRUB_TIMEOUT=1
GRUB_TERMINAL=serial
GRUB_SERIAL_COMMAND='serial --unit=0 --speed=115200'
GRUB_CMDLINE_LINUX='console=ttyS0,115200 no_timer_check'
GRUB_CMDLINE_LINUX_DEFAULT=''
END
";
/// The kernel is on the EFI system partition, where the hooks of Debian's package put it, and every initramfs.
const SYSTEMD_BOOT: &str = "echo 'root=/dev/vda2 ro console=ttyS0,115200 no_timer_check' >/etc/kernel/cmdline && \
    bootctl install --no-variables --make-entry-directory=yes && \
    kernel-install add $(uname -r) /boot/vmlinuz-$(uname -r) /boot/initrd.img-$(uname -r)";
/// How often A is booted until its kernel is where the restore kernel is not.
const MOST_BOOTS: usize = 20;

/// A boot loader as its package installs it.
struct Loader {
    firmware: Firmware,
    /// What an administrator does once.
    install: String,
    /// What the console has of an ordinary boot by it, and not of D's.
    ordinary: &'static str,
}

/// With GRUB and a kernel update's hooks as Debian has them.
pub(crate) fn debian_12_is_resumed_by_its_own_grub() -> Result<()> {
    let install = format!("{GRUB}grub-install /dev/vda && update-grub");
    is_resumed_by(&Loader { firmware: Firmware::Bios, install, ordinary: "Loading Linux " })
}

/// The same on a machine with UEFI.
pub(crate) fn debian_12_is_resumed_by_its_own_grub_on_uefi() -> Result<()> {
    let efi = "--target=x86_64-efi --efi-directory=/boot/efi --removable --no-nvram";
    let install = format!("{GRUB}grub-install {efi} && update-grub");
    is_resumed_by(&Loader { firmware: Firmware::Uefi, install, ordinary: "Loading Linux " })
}

/// With systemd-boot, whose entries are on the EFI system partition itself.
pub(crate) fn debian_12_is_resumed_by_its_own_systemd_boot() -> Result<()> {
    let install = SYSTEMD_BOOT.to_owned();
    is_resumed_by(&Loader { firmware: Firmware::Uefi, install, ordinary: "root=/dev/vda2" })
}

fn is_resumed_by(loader: &Loader) -> Result<()> {
    let artifacts = Artifacts::from_environment()?;
    let mut config = GuestConfig::new(2, "1G".parse()?);
    config.firmware = loader.firmware;
    if config.firmware == Firmware::Uefi {
        config.machine = MachineType::Q35;
    }
    let mut guest = debian::guest_with_partitions(Suite::Bookworm, config, &artifacts)?;
    boot(&mut guest)?;
    guest.succeed(PATIENCE)?;
    succeed(&mut guest, &format!("dpkg --install {PACKAGE}"))?;
    let device = guest.config().disk_path(IMAGE)?;
    succeed(&mut guest, &format!("dormouse setup --device {device}"))?;
    succeed(&mut guest, "dormouse enable")?;
    succeed(&mut guest, &loader.install)?;
    power_off(&mut guest)?;

    guest.change(|config| config.boots_itself = true);
    boot(&mut guest)?;
    succeed(&mut guest, "dormouse setup --direct")?;
    power_off(&mut guest)?;
    boot_beside_the_region(&mut guest)?;
    let doctor = guest.run("dormouse doctor")?;
    ensure!(doctor.status == 0, "{doctor:?}");
    let session = Session::begin(&mut guest)?;
    resumes_directly(&mut guest, loader, &session)?;
    resumes_directly(&mut guest, loader, &session)?;
    let status: serde_json::Value = serde_json::from_str(&guest.succeed("dormouse status --json")?)?;
    ensure!(status["last"]["report"]["direct"] == true, "{status}");

    // The boot loader is as it was.
    succeed(&mut guest, "dormouse setup --undo")?;
    let left = guest.succeed(
        "ls -d /boot/dormouse /boot/efi/dormouse /boot/efi/loader/entries/*dormouse* /etc/grub.d/*dormouse* \
         /etc/dormouse.toml.d/*direct* 2>/dev/null; grep -i dormouse /boot/grub/grub.cfg 2>/dev/null || true",
    )?;
    ensure!(left.is_empty(), "the boot loader keeps {left}");
    power_off(&mut guest)?;
    let from = guest.console().end();
    boot(&mut guest)?;
    demand_ordinary(&guest, loader, from, true)?;
    power_off(&mut guest)
}

/// A hibernation from which D alone brings the session back.
fn resumes_directly(guest: &mut Guest, loader: &Loader, session: &Session) -> Result<()> {
    hibernate(guest)?;
    let from = guest.console().end();
    session.resume(guest)?;
    demand_ordinary(guest, loader, from, false)
}

/// Whether there was an ordinary boot from this place of the console on.
fn demand_ordinary(guest: &Guest, loader: &Loader, mut from: Cursor, wanted: bool) -> Result<()> {
    let lines = guest.console().since(&mut from);
    let has = |text: &str| lines.iter().any(|line| line.text.contains(text));
    let is_ordinary = has(loader.ordinary) || has("dormouse: resume/");
    ensure!(is_ordinary == wanted, "{:#}", guest.explain(anyhow!("an ordinary boot: {is_ordinary}")));
    Ok(())
}

/// Boots until the kernel is not where the restore kernel will be.
fn boot_beside_the_region(guest: &mut Guest) -> Result<()> {
    for number in 1..=MOST_BOOTS {
        boot(guest)?;
        if cycle::is_beside_the_region(guest)? {
            return Ok(());
        }
        println!("boot {number}: the kernel is where the restore kernel will be; once more");
        power_off(guest)?;
    }
    Err(anyhow!("in {MOST_BOOTS} boots the kernel was where the restore kernel will be"))
}
