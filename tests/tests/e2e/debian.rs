//! A Debian system with systemd, from the installation of the package to a session that goes on after the power was
//! off.

use anyhow::{Context, Result, ensure};
use dormouse_image::State;
use dormouse_tests::artifacts::Artifacts;
use dormouse_tests::console::Cursor;
use dormouse_tests::debian::{self, PACKAGE, Suite, TIMEOUT};
use dormouse_tests::guest::{Ending, Guest, READY_MARK};
use dormouse_tests::machine::GuestConfig;
use dormouse_tests::{filesystem, image};

/// The disk that holds the image, behind the root filesystem's.
const IMAGE: usize = 1;

/// The user's first hour, with an image on a disk of its own and the initramfs that initramfs-tools makes; then a boot
/// that is told not to resume.
pub(crate) fn initramfs_tools_an_upgrade_and_noresume() -> Result<()> {
    let artifacts = Artifacts::from_environment()?;
    let mut guest = with_initramfs_tools(&artifacts)?;
    // An upgrade, of the same version: the second kernel gets the new agent, and the boot's initramfs the new command.
    succeed(&mut guest, "touch /run/before")?;
    succeed(&mut guest, &format!("dpkg --install {PACKAGE}"))?;
    let remade = format!("/var/lib/dormouse/initramfs.img /boot/initrd.img-{}", artifacts.release());
    guest.succeed(&format!("for file in {remade}; do [ $file -nt /run/before ] || exit 1; done"))?;
    let session = boot_and_begin(&mut guest, &artifacts)?;
    hibernate(&mut guest)?;
    ensure!(image::commit(&guest.disk_file(IMAGE))?.state == State::Complete, "no image");
    session.resume(&mut guest)?;

    // There are loop devices, too, which the save kernel would not have.
    guest.succeed("truncate -s 64M /root/disk && modprobe loop && losetup /dev/loop0 /root/disk")?;
    for (status, command) in [(3, "image init"), (1, "setup --device")] {
        let refused = guest.run(&format!("dormouse {command} /dev/loop0"))?;
        ensure!(
            refused.status == status && refused.stderr.contains("/dev/loop0 lies in the file /root/disk"),
            "{refused:?}"
        );
    }
    guest
        .succeed("dormouse image init --force /dev/loop0 && dormouse image info /dev/loop0 && losetup -d /dev/loop0")?;
    boots_afresh_and_ends(&mut guest, &session, |_| Ok(()))
}

/// The same system, with a kernel that is updated while it runs.
pub(crate) fn initramfs_tools_and_a_kernel_update() -> Result<()> {
    let artifacts = Artifacts::from_environment()?;
    let mut guest = with_initramfs_tools(&artifacts)?;
    let device = guest.config().disk_path(IMAGE)?;
    let session = boot_and_begin(&mut guest, &artifacts)?;

    // Debian's own kernel is installed, which cannot be hibernated: the save kernel stays what it is, and it is the one
    // that boots next. The image's disk is away meanwhile: the hooks go on with what they knew of it, and leave a
    // record for each kernel.
    let driver = "/sys/bus/virtio/drivers/virtio_blk";
    guest.succeed(&format!(
        "basename $(readlink -f /sys/block/$(basename {device})/device) >/run/disk && \
         cat /run/disk >{driver}/unbind && sleep 1 && test ! -b {device} && rm -f /var/lib/dormouse/boots/*"
    ))?;
    // The package makes an initramfs for its own kernel.
    let update = format!("dpkg --install /root/linux-image-*.deb && update-initramfs -u -k {}", artifacts.release());
    let printed = succeed(&mut guest, &format!("{{ {update}; }} 2>&1"))?;
    ensure!(!printed.contains("dormouse: the save kernel stays"), "the update failed: {printed}");
    ensure!(printed.contains("not there; its modules are found as they were"), "{printed}");
    guest.succeed(&format!("cat /run/disk >{driver}/bind && udevadm settle && test -b {device}"))?;
    // Without one of these records nothing shows that this kernel would resume.
    let stamp = format!("/var/lib/dormouse/boots/{}", artifacts.release());
    let refused = guest.run(&format!("mv {stamp} /run/stamp && dormouse hibernate --json; mv /run/stamp {stamp}"))?;
    let json: serde_json::Value = serde_json::from_str(&refused.stdout)?;
    ensure!(json["id"] == "next-boot" && refused.stderr.contains(artifacts.release()), "{refused:?}");
    let other = guest.succeed("basename /boot/vmlinuz-*-cloud-amd64")?;
    let other = other.trim().strip_prefix("vmlinuz-").context("Debian's kernel")?.to_owned();
    debian::settle(&mut guest)?;
    let session = session.now(&mut guest)?;
    hibernate(&mut guest)?;
    debian::boot_next(&mut guest, &other)?;
    session.resume(&mut guest)?;
    let release = guest.succeed("uname -r")?;
    ensure!(release.trim() == artifacts.release(), "another kernel goes on: {release}");

    boots_afresh_and_ends(&mut guest, &session, |guest| {
        // This boot runs Debian's kernel.
        let doctor = guest.run("dormouse doctor")?;
        ensure!(doctor.status == 1, "{doctor:?}");
        let complaint = doctor.stdout.lines().skip_while(|line| !line.contains("kernel-jump")).take(8);
        let complaint = complaint.collect::<Vec<_>>().join("\n");
        ensure!(complaint.contains("CONFIG_KEXEC_JUMP") && complaint.contains("linux-source"), "{}", doctor.stdout);
        let json = guest.run("dormouse doctor --json")?;
        let report: serde_json::Value = serde_json::from_str(&json.stdout)?;
        ensure!(report["ready"] == false, "{report}");
        let refused = guest.run("dormouse hibernate --json")?;
        let json: serde_json::Value = serde_json::from_str(&refused.stdout)?;
        ensure!(refused.status == 3 && json["id"] == "kernel-jump", "{refused:?}");
        Ok(())
    })
}

/// A guest in which Dormouse was installed and set up as a person does it.
fn with_initramfs_tools(artifacts: &Artifacts) -> Result<Guest> {
    let mut guest = debian::guest(Suite::Bookworm, GuestConfig::new(1, "1G".parse()?), artifacts)?;
    boot(&mut guest)?;
    guest.succeed(PATIENCE)?;
    succeed(&mut guest, &format!("dpkg --install {PACKAGE}"))?;
    let device = guest.config().disk_path(IMAGE)?;
    let printed = succeed(&mut guest, &format!("dormouse setup --device {device}"))?;
    ensure!(printed.contains("dormouse enable"), "{printed}");
    succeed(&mut guest, "dormouse enable")?;
    Ok(guest)
}

/// Boots with the initramfs that was made, and opens what a person has open.
fn boot_and_begin(guest: &mut Guest, artifacts: &Artifacts) -> Result<Session> {
    // logind takes its part of it from the next boot on.
    power_off(guest)?;
    debian::boot_next(guest, artifacts.release())?;
    boot(guest)?;
    let doctor = succeed(guest, "dormouse doctor")?;
    ensure!(doctor.contains("resume-hook"), "{doctor}");
    Session::begin(guest)
}

/// Hibernates, boots without resuming, looks at that boot, and shuts the guest down for good.
fn boots_afresh_and_ends(
    guest: &mut Guest,
    session: &Session,
    look: impl FnOnce(&mut Guest) -> Result<()>,
) -> Result<()> {
    hibernate(guest)?;
    guest.add_kernel_argument("noresume");
    let mut cursor = guest.power_on()?;
    guest.wait_for(&mut cursor, "(boot-argument): ", TIMEOUT)?;
    guest.wait_for(&mut cursor, READY_MARK, TIMEOUT)?;
    let boot_id = guest.succeed("cat /proc/sys/kernel/random/boot_id")?;
    ensure!(boot_id != session.boot_id, "the session was resumed");
    let status: serde_json::Value = serde_json::from_str(&guest.succeed("dormouse status --json")?)?;
    ensure!(status["last"]["id"] == "boot-argument", "{status}");
    look(guest)?;
    power_off(guest)?;
    filesystem::check_ext4(&guest.disk_file(0))?;
    Ok(())
}

/// As on a system that has dracut in the place of initramfs-tools.
pub(crate) const CHOOSE_DRACUT: &str = "dpkg --purge --force-depends initramfs-tools initramfs-tools-core";

/// Gives the initramfs that was made last, which dracut calls otherwise, the name that the next boot looks for.
pub(crate) fn rename_initramfs(guest: &mut Guest, release: &str) -> Result<()> {
    let initramfs = format!("/boot/initrd.img-{release}");
    let made = guest.succeed("ls -t /boot/initr*")?;
    let newest = made.lines().next().context("no initramfs")?;
    if newest != initramfs {
        guest.succeed(&format!("mv {newest} {initramfs}"))?;
    }
    Ok(())
}

pub(crate) fn dracut_an_image_in_a_file_and_removal() -> Result<()> {
    dracut(Suite::Bookworm)
}

pub(crate) fn dracut_ng_and_a_newer_systemd() -> Result<()> {
    dracut(Suite::Trixie)
}

/// The same with dracut, the image in a file on the root filesystem, and in the end no Dormouse any more.
fn dracut(suite: Suite) -> Result<()> {
    let artifacts = Artifacts::from_environment()?;
    let mut guest = debian::guest(suite, GuestConfig::new(2, "1G".parse()?), &artifacts)?;
    boot(&mut guest)?;
    guest.succeed(PATIENCE)?;
    succeed(&mut guest, CHOOSE_DRACUT)?;
    succeed(
        &mut guest,
        &format!(
            "find /etc /usr /var/lib -xdev ! -path '/var/lib/dpkg/*' | sort >/root/before && dpkg --install {PACKAGE}"
        ),
    )?;
    succeed(&mut guest, "dormouse setup --file /var/lib/dormouse/image --size 1G")?;
    succeed(&mut guest, "dormouse enable")?;
    guest.succeed(SLEEPERS)?;
    rename_initramfs(&mut guest, artifacts.release())?;
    power_off(&mut guest)?;
    debian::boot_next(&mut guest, artifacts.release())?;
    boot(&mut guest)?;
    guest.succeed("test -e /run/initramfs/.need_shutdown || test -d /run/dracut || journalctl -b | grep -qi dracut")?;
    succeed(&mut guest, "dormouse doctor")?;

    let session = Session::begin(&mut guest)?;
    hold_inhibitors(&mut guest)?;
    hibernate(&mut guest)?;
    session.resume(&mut guest)?;
    wait_until(&mut guest, "grep -q post /run/slept")?;
    let slept = guest.succeed("cat /run/slept")?;
    ensure!(slept == "pre hibernate saved\npost hibernate saved\n", "the sleep hook was told {slept:?}");

    // The save kernel's initramfs as dracut makes it.
    succeed(
        &mut guest,
        &format!(
            "dracut --quiet --force --conf /usr/lib/dormouse/dracut.conf --kver {} /var/lib/dormouse/initramfs.img",
            artifacts.release()
        ),
    )?;
    let session = session.now(&mut guest)?;
    let went_on = succeed(&mut guest, "dormouse hibernate --then reboot")?;
    ensure!(went_on.starts_with("resumed from"), "{went_on}");
    session.check(&mut guest)?;

    succeed(&mut guest, "dpkg --purge dormouse")?;
    let left = guest.succeed(
        "find /etc /usr /var/lib -xdev ! -path '/var/lib/dpkg/*' | sort | comm -13 /root/before - \
         | grep -i dormouse || true",
    )?;
    ensure!(left.is_empty(), "the package leaves {left}");
    let service = guest.succeed("systemctl cat systemd-hibernate.service")?;
    ensure!(!service.contains("dormouse"), "{service}");
    power_off(&mut guest)?;
    filesystem::check_ext4(&guest.disk_file(0))?;
    Ok(())
}

/// Waits for the image device longer than by default: under emulation on a busy host, udev needs more than 10 s for it.
pub(crate) const PATIENCE: &str =
    "mkdir -p /etc/dormouse.toml.d && printf '[image]\nwait = 120\n' >/etc/dormouse.toml.d/50-patience.toml";

/// A sleep hook that notes what it is told and whether the program that delays the sleep is done, for which there is
/// time enough under emulation too.
const SLEEPERS: &str = "mkdir -p /etc/systemd/logind.conf.d /usr/lib/systemd/system-sleep && \
    printf '[Login]\nInhibitDelayMaxSec=60\n' >/etc/systemd/logind.conf.d/delay.conf && \
    printf '#!/bin/sh\necho \"$1 $2 $(cat /run/saver)\" >>/run/slept\n' >/usr/lib/systemd/system-sleep/notes && \
    chmod +x /usr/lib/systemd/system-sleep/notes";

/// One program forbids the sleep, and is heeded; then one delays it, to save something first.
fn hold_inhibitors(guest: &mut Guest) -> Result<()> {
    let hold = |guest: &mut Guest, name: &str, mode: &str, command: &str| {
        let inhibit = format!("systemd-inhibit --what=sleep --mode={mode} --who={name}");
        guest.succeed(&format!("systemd-run --quiet --unit={name} {inhibit} {command}"))?;
        wait_until(guest, &format!("systemd-inhibit --list | grep -q {name}"))
    };
    hold(guest, "burner", "block", "sleep infinity")?;
    let refused = guest.run("systemctl hibernate --check-inhibitors=yes")?;
    ensure!(refused.status != 0 && refused.stderr.contains("burner"), "{refused:?}");
    guest.succeed("systemctl stop burner")?;
    let is_asleep = "busctl get-property org.freedesktop.login1 /org/freedesktop/login1 \
                     org.freedesktop.login1.Manager PreparingForSleep";
    let save = format!("sh -c 'until {is_asleep} | grep -q true; do sleep 0.1; done; sleep 1; echo saved >/run/saver'");
    hold(guest, "saver", "delay", &save)
}

/// What a person has open.
pub(crate) struct Session {
    boot_id: String,
    /// How far the service had counted.
    count: u64,
    /// The service's process.
    pid: String,
    /// How many boots the journal knows.
    boots: String,
}

impl Session {
    /// A service that counts in its memory and appends to a file that it keeps open, and a shell in tmux that remembers
    /// a value.
    pub(crate) fn begin(guest: &mut Guest) -> Result<Session> {
        guest.succeed(
            "systemd-run --quiet --unit=counter sh -c \
             'exec 3>>/var/log/counter; i=0; while :; do i=$((i + 1)); echo $i >&3; sleep 0.1; done'",
        )?;
        guest.succeed("tmux new-session -d -s work && tmux send-keys -t work 'word=remembered' Enter")?;
        wait_until(guest, "test -s /var/log/counter")?;
        Session::read(guest)
    }

    fn read(guest: &mut Guest) -> Result<Session> {
        let mut asked = |command: &str| guest.succeed(command).map(|printed| printed.trim().to_owned());
        Ok(Session {
            boot_id: asked("cat /proc/sys/kernel/random/boot_id")?,
            count: asked("tail -n 1 /var/log/counter")?.parse()?,
            pid: asked("systemctl show --property MainPID --value counter")?,
            boots: asked("journalctl --quiet --list-boots | wc -l")?,
        })
    }

    /// The same session, a while later.
    fn now(self, guest: &mut Guest) -> Result<Session> {
        let now = Session::read(guest)?;
        ensure!(now.boot_id == self.boot_id && now.count > self.count, "another session");
        Ok(now)
    }

    /// Powers on, and demands that everything goes on.
    pub(crate) fn resume(&self, guest: &mut Guest) -> Result<()> {
        let mut cursor = guest.power_on()?;
        self.goes_on(guest, &mut cursor)
    }

    /// Demands that everything goes on in the boot at `cursor`.
    pub(crate) fn goes_on(&self, guest: &mut Guest, cursor: &mut Cursor) -> Result<()> {
        let goes_on = guest.follow(cursor, TIMEOUT, "the session", |line| {
            let is_back = line.text.contains("this session goes on");
            (is_back || line.text.contains(READY_MARK)).then_some(is_back)
        })?;
        ensure!(goes_on, "{:#}", guest.explain(anyhow::anyhow!("an ordinary boot in place of the session")));
        self.check(guest)
    }

    fn check(&self, guest: &mut Guest) -> Result<()> {
        wait_until(guest, &format!("test $(tail -n 1 /var/log/counter) -gt {}", self.count + 5))?;
        let now = Session::read(guest)?;
        ensure!(now.boot_id == self.boot_id, "boot {} in place of {}", now.boot_id, self.boot_id);
        ensure!(
            now.count > self.count && now.pid == self.pid,
            "the service counted to {}, then {}",
            self.count,
            now.count
        );
        ensure!(now.boots == self.boots, "the journal knows {} boots, not {}", now.boots, self.boots);
        // Every number once, in order.
        guest.succeed("awk '$1 != NR { exit 1 }' /var/log/counter")?;
        guest.succeed("rm -f /run/word; tmux send-keys -t work 'echo $word >/run/word' Enter")?;
        wait_until(guest, "grep -q remembered /run/word")?;
        let failed = guest.succeed("systemctl --failed --plain --no-legend")?;
        ensure!(failed.is_empty(), "{failed}");
        Ok(())
    }
}

/// `systemctl hibernate`, as a person gives it, until the power is off.
pub(crate) fn hibernate(guest: &mut Guest) -> Result<()> {
    let mut cursor = guest.console().end();
    let request = guest.send("systemctl hibernate")?;
    if let Ending::Answered(output) = guest.follow_command(request, &mut cursor, TIMEOUT, &mut |_| ())? {
        ensure!(output.status == 0, "{:#}", guest.explain(anyhow::anyhow!("systemctl hibernate: {output:?}")));
        guest.wait_for_power_off(TIMEOUT)?;
    }
    Ok(())
}

/// Switches on, until an ordinary boot is up.
pub(crate) fn boot(guest: &mut Guest) -> Result<()> {
    let mut cursor = guest.power_on()?;
    guest.wait_for(&mut cursor, READY_MARK, TIMEOUT).map(drop)
}

pub(crate) fn power_off(guest: &mut Guest) -> Result<()> {
    guest.send("systemctl poweroff")?;
    guest.wait_for_power_off(TIMEOUT)
}

/// Waits until a command succeeds in the guest, for 20 s and more.
fn wait_until(guest: &mut Guest, command: &str) -> Result<()> {
    guest.succeed(&format!("for try in $(seq 100); do {command} && exit; sleep 0.2; done; exit 1")).map(drop)
}

/// A command that may take minutes under emulation.
pub(crate) fn succeed(guest: &mut Guest, command: &str) -> Result<String> {
    guest.succeed_within(command, TIMEOUT)
}
