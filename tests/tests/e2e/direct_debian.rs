//! A Debian system that boots from its own disk, and whose GRUB starts the restore kernel: from `dormouse setup
//! --direct` to the removal.

use anyhow::{Result, anyhow, ensure};
use dormouse_tests::artifacts::Artifacts;
use dormouse_tests::cycle;
use dormouse_tests::debian::{self, PACKAGE, Suite, TIMEOUT};
use dormouse_tests::guest::{Guest, READY_MARK};
use dormouse_tests::machine::GuestConfig;

use crate::debian::{PATIENCE, Session, hibernate, power_off, succeed};

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
grub-install /dev/vda && update-grub";
/// What GRUB's entry of an ordinary boot prints.
const ORDINARY: &str = "Loading Linux ";
/// How often A is booted until its kernel is where the restore kernel is not.
const MOST_BOOTS: usize = 20;

/// With GRUB and a kernel update's hooks as Debian has them.
pub(crate) fn debian_12_is_resumed_by_its_own_grub() -> Result<()> {
    let artifacts = Artifacts::from_environment()?;
    let mut guest = debian::guest_with_partitions(Suite::Bookworm, GuestConfig::new(2, "1G".parse()?), &artifacts)?;
    boot(&mut guest)?;
    guest.succeed(PATIENCE)?;
    succeed(&mut guest, GRUB)?;
    succeed(&mut guest, &format!("dpkg --install {PACKAGE}"))?;
    let device = guest.config().disk_path(IMAGE)?;
    succeed(&mut guest, &format!("dormouse setup --device {device}"))?;
    succeed(&mut guest, "dormouse enable")?;
    succeed(&mut guest, "dormouse setup --direct")?;
    guest.succeed("grep -q direct.cfg /boot/grub/grub.cfg")?;
    power_off(&mut guest)?;

    guest.change(|config| config.boots_itself = true);
    boot_beside_the_region(&mut guest)?;
    let doctor = guest.run("dormouse doctor")?;
    ensure!(doctor.status == 0, "{doctor:?}");
    let session = Session::begin(&mut guest)?;
    resumes_directly(&mut guest, &session)?;
    resumes_directly(&mut guest, &session)?;
    let status: serde_json::Value = serde_json::from_str(&guest.succeed("dormouse status --json")?)?;
    ensure!(status["last"]["report"]["direct"] == true, "{status}");

    // The boot loader is as it was.
    succeed(&mut guest, "dormouse setup --undo")?;
    let left = guest.succeed(
        "ls -d /boot/dormouse /etc/grub.d/*dormouse* /etc/dormouse.toml.d/*direct* 2>/dev/null; \
         grep -i dormouse /boot/grub/grub.cfg || true",
    )?;
    ensure!(left.is_empty(), "the boot loader keeps {left}");
    power_off(&mut guest)?;
    let from = guest.console().end();
    boot(&mut guest)?;
    demand_ordinary(&guest, from, true)?;
    power_off(&mut guest)
}

/// A hibernation from which D alone brings the session back.
fn resumes_directly(guest: &mut Guest, session: &Session) -> Result<()> {
    hibernate(guest)?;
    let from = guest.console().end();
    session.resume(guest)?;
    demand_ordinary(guest, from, false)
}

/// Whether there was an ordinary boot from this place of the console on.
fn demand_ordinary(guest: &Guest, from: dormouse_tests::console::Cursor, wanted: bool) -> Result<()> {
    let mut from = from;
    let lines = guest.console().since(&mut from);
    let has = |text: &str| lines.iter().any(|line| line.text.contains(text));
    let is_ordinary = has(ORDINARY) || has("dormouse: resume/");
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

fn boot(guest: &mut Guest) -> Result<()> {
    let mut cursor = guest.power_on()?;
    guest.wait_for(&mut cursor, READY_MARK, TIMEOUT).map(drop)
}
