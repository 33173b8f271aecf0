//! A Debian system without a disk for the image, which a server has: from the installation of the package to a session
//! that goes on after the power was off. The boot's initramfs sets up no network.

use anyhow::{Result, ensure};
use dormouse_image::State;
use dormouse_tests::artifacts::Artifacts;
use dormouse_tests::debian::{self, PACKAGE, Suite};
use dormouse_tests::guest::Guest;
use dormouse_tests::image;
use dormouse_tests::machine::{GuestConfig, image_disk_bytes};
use dormouse_tests::nbd_server::Server;

use crate::debian::{CHOOSE_DRACUT, PATIENCE, Session, boot, hibernate, power_off, rename_initramfs, succeed};

/// As an administrator gives a machine its address, and lets a server have the image.
const NETWORK: &str = "mkdir -p /etc/systemd/network /etc/dormouse.toml.d && \
    printf '[Match]\nType=ether\n[Network]\nAddress=10.0.2.15/24\n' >/etc/systemd/network/lan.network && \
    printf '[image]\ntrust_server = true\n' >/etc/dormouse.toml.d/60-server.toml && \
    systemctl enable --now systemd-networkd";
/// And another one.
const ANOTHER: &str = "sed -i s/10.0.2.15/10.0.2.16/ /etc/systemd/network/lan.network && \
    systemctl restart systemd-networkd";

/// Waits until the machine has this address and no other there.
fn wait_for_address(guest: &mut Guest, address: &str) -> Result<()> {
    let is_there = format!("[ \"$(grep -o '10\\.0\\.2\\.1[56]' /proc/net/fib_trie | sort -u)\" = {address} ]");
    guest.succeed(&format!("for try in $(seq 300); do {is_there} && exit; sleep 0.2; done; exit 1")).map(drop)
}

pub(crate) fn debian_12_by_initramfs_tools() -> Result<()> {
    debian_12("true")
}

pub(crate) fn debian_12_by_dracut() -> Result<()> {
    debian_12(CHOOSE_DRACUT)
}

/// The initramfs of the boot has the driver of the network interface and the link to the server; `choose` has the
/// system make it with one tool.
fn debian_12(choose: &str) -> Result<()> {
    let artifacts = Artifacts::from_environment()?;
    let mut config = GuestConfig::new(1, "1G".parse()?);
    config.disks.clear();
    // To the host, too.
    config.link = "user,net=10.0.2.0/24".to_owned();
    let kept = tempfile::NamedTempFile::new()?;
    kept.as_file().set_len(image_disk_bytes(config.memory))?;
    let server = Server::start(&["file", &format!("file={}", kept.path().display())])?;
    let mut guest = debian::guest(Suite::Bookworm, config, &artifacts)?;
    boot(&mut guest)?;
    guest.succeed(PATIENCE)?;
    succeed(&mut guest, choose)?;
    succeed(&mut guest, NETWORK)?;
    wait_for_address(&mut guest, "10.0.2.15")?;
    succeed(&mut guest, &format!("dpkg --install {PACKAGE}"))?;
    succeed(&mut guest, &format!("dormouse setup --device {}", server.url_for_guest("")))?;
    succeed(&mut guest, "dormouse enable")?;
    rename_initramfs(&mut guest, artifacts.release())?;
    power_off(&mut guest)?;
    debian::boot_next(&mut guest, artifacts.release())?;
    boot(&mut guest)?;
    wait_for_address(&mut guest, "10.0.2.15")?;
    let doctor = succeed(&mut guest, "dormouse doctor")?;
    let session = Session::begin(&mut guest)?;
    for _ in 0..2 {
        hibernate(&mut guest)?;
        ensure!(image::commit(kept.path())?.state == State::Complete, "no image; the doctor: {doctor}");
        session.resume(&mut guest)?;
        ensure!(image::commit(kept.path())?.state == State::Consumed, "{:?}", image::commit(kept.path())?);
    }
    // An address that the boot's initramfs does not know would not be found again.
    guest.succeed(ANOTHER)?;
    wait_for_address(&mut guest, "10.0.2.16")?;
    // The last hibernation is still at work for a while after the session has gone on.
    let refused = guest.run(
        "for try in $(seq 120); do said=$(dormouse hibernate --json); status=$?; \
         case $said in *already-running*) sleep 1 ;; *) break ;; esac; done; printf '%s\\n' \"$said\"; exit $status",
    )?;
    let json: serde_json::Value = serde_json::from_str(&refused.stdout)?;
    ensure!(refused.status == 3 && json["id"] == "next-boot", "{refused:?}");
    power_off(&mut guest)
}
