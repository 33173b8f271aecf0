//! Debian with its own kernel as A, B, C and D, installed by the README's commands: DKMS builds the module in the
//! guest, and no kernel is built for it.

use anyhow::{Context, Result, ensure};
use dormouse_tests::artifacts::Artifacts;
use dormouse_tests::cycle;
use dormouse_tests::debian::{self, MODULE_PACKAGE, PACKAGE, Suite, TIMEOUT};
use dormouse_tests::filesystem;
use dormouse_tests::guest::{Guest, READY_MARK};
use dormouse_tests::machine::GuestConfig;
use serde_json::Value;

use crate::debian::{PATIENCE, Session, hibernate, power_off, succeed};
use crate::machines_jump::press_power_button;
use crate::stock::COMPLAINTS;

/// The power button is to do nothing but be noticed.
const NO_POWER_KEY: &str = "mkdir -p /etc/systemd/logind.conf.d && \
    printf '[Login]\nHandlePowerKey=ignore\n' >/etc/systemd/logind.conf.d/button.conf";

/// What would be left of the packages: the kernel's module is in /usr/lib.
const FILES: &str = "find /etc /usr /var/lib -xdev ! -path '/var/lib/dpkg/*' | sort";

/// Debian 12 with both packages, the image on a disk of its own, and a session.
fn debian_12() -> Result<(Stock, Session)> {
    let mut guest = Stock::new(Suite::Bookworm)?;
    guest.install(&format!("{PACKAGE} {MODULE_PACKAGE}"))?;
    let device = guest.guest.config().disk_path(1)?;
    guest.set_up(&format!("--device {device}"))?;
    let session = guest.begin()?;
    Ok((guest, session))
}

pub(crate) fn debian_12_goes_off_and_on_three_times() -> Result<()> {
    let (mut guest, session) = debian_12()?;
    for _ in 0..3 {
        guest.goes_off_and_on(&session)?;
    }
    Ok(())
}

/// The image is in a file of the root filesystem. The module comes later than the rest, and what the doctor finds until
/// then names it.
pub(crate) fn debian_13_with_the_module_as_the_doctor_wants_it() -> Result<()> {
    let mut guest = Stock::new(Suite::Trixie)?;
    guest.install(PACKAGE)?;
    let (state, text) = guest.check("kernel-jump")?;
    ensure!(state == "failed" && text.contains("apt install ./dormouse-dkms_"), "{text}");
    guest.install(MODULE_PACKAGE)?;
    guest.set_up("--yes --size 768M")?;
    let session = guest.begin()?;
    guest.goes_off_and_on(&session)
}

/// A new kernel, whose module is there when its save kernel is made, and which resumes the session; and a removal that
/// leaves nothing.
pub(crate) fn debian_12_gets_a_new_kernel_and_loses_the_packages() -> Result<()> {
    let (mut guest, session) = debian_12()?;
    guest.another_kernel_resumes(&session)?;
    guest.removal_leaves_nothing()
}

pub(crate) fn debian_13_without_its_module_and_locked_down() -> Result<()> {
    let mut guest = Stock::new(Suite::Trixie)?;
    guest.install(&format!("{PACKAGE} {MODULE_PACKAGE}"))?;
    guest.set_up("--yes --size 768M")?;
    guest.without_its_module()?;
    guest.locked_down()
}

/// A guest, and the release of its kernel.
struct Stock {
    guest: Guest,
    release: String,
}

impl Stock {
    /// As Debian's installer leaves it, and up.
    fn new(suite: Suite) -> Result<Stock> {
        let config = GuestConfig::new(2, "1G".parse()?);
        let (guest, release) = debian::stock_guest(suite, config, &Artifacts::from_environment()?)?;
        let mut stock = Stock { guest, release };
        stock.boot()?;
        stock.guest.succeed(NO_POWER_KEY)?;
        let release = stock.guest.succeed(&format!("{FILES} >/root/before; uname -r"))?;
        ensure!(release.trim() == stock.release, "{release} has booted");
        stock.guest.succeed("grep -q '^# CONFIG_KEXEC_JUMP is not set' /boot/config-$(uname -r)")?;
        Ok(stock)
    }

    fn boot(&mut self) -> Result<()> {
        let mut cursor = self.guest.power_on()?;
        self.guest.wait_for(&mut cursor, READY_MARK, TIMEOUT).map(drop)
    }

    /// Installs packages as the README does.
    fn install(&mut self, packages: &str) -> Result<()> {
        succeed(&mut self.guest, &format!("apt-get install --yes --no-install-recommends {packages} 2>&1")).map(drop)
    }

    /// The README's other commands, and the reboot.
    fn set_up(&mut self, place: &str) -> Result<()> {
        self.guest.succeed(PATIENCE)?;
        succeed(&mut self.guest, &format!("dormouse setup {place}"))?;
        succeed(&mut self.guest, "dormouse enable")?;
        power_off(&mut self.guest)?;
        debian::boot_next(&mut self.guest, &self.release)?;
        self.boot()?;
        succeed(&mut self.guest, "dormouse doctor")?;
        let (_, text) = self.check("kernel-jump")?;
        ensure!(text.contains("Dormouse's own module jumps"), "{text}");
        let (_, text) = self.check("jump-module")?;
        ensure!(text.contains(&format!("installed for Linux {}", self.release)), "{text}");
        Ok(())
    }

    /// What the doctor's check with this identifier has: its state, and what it found with the remedy.
    fn check(&mut self, id: &str) -> Result<(String, String)> {
        let diagnosis: Value = serde_json::from_str(&self.guest.run("dormouse doctor --json")?.stdout)?;
        let checks = diagnosis["checks"].as_array().context("no checks")?;
        let check = checks.iter().find(|check| check["id"] == id).with_context(|| format!("no {id}"))?;
        let text = |name: &str| check[name].as_str().unwrap_or_default().to_owned();
        Ok((text("state"), format!("{}; {}", text("found"), text("remedy"))))
    }

    /// What a person has open, and the workload.
    fn begin(&mut self) -> Result<Session> {
        // As much as /run has room for.
        succeed(&mut self.guest, "workload start --megabytes 64")?;
        Session::begin(&mut self.guest)
    }

    /// `systemctl hibernate`, off, on: everything goes on.
    fn goes_off_and_on(&mut self, session: &Session) -> Result<()> {
        self.goes_on_after(session, |_| Ok(()))
    }

    fn goes_on_after(&mut self, session: &Session, off: impl FnOnce(&mut Guest) -> Result<()>) -> Result<()> {
        let guest = &mut self.guest;
        let before = cycle::check_workload(guest)?;
        hibernate(guest)?;
        off(guest)?;
        session.resume(guest)?;
        let broken: Vec<_> = cycle::settle(guest, &before)?.into_iter().filter(|proof| !proof.holds).collect();
        ensure!(broken.is_empty(), "{:#}", guest.explain(anyhow::anyhow!("{broken:?}")));
        press_power_button(guest)?;
        let status: Value = serde_json::from_str(&guest.succeed("dormouse status --json")?)?;
        let report = &status["last"]["report"];
        ensure!(report["before"]["by_module"] == true && report["outcome"] == "resumed", "{status}");
        let complaints = guest.succeed(COMPLAINTS)?;
        ensure!(complaints.is_empty(), "{complaints}");
        let release = guest.succeed("uname -r")?;
        ensure!(release.trim() == self.release, "another kernel goes on: {release}");
        Ok(())
    }

    /// Debian's other kernel is installed, and its headers after it: the module is built then, and the save kernel made
    /// of it. The next boot is this kernel's, and resumes the session.
    fn another_kernel_resumes(&mut self, session: &Session) -> Result<()> {
        let guest = &mut self.guest;
        let printed = succeed(guest, "dpkg --install /root/linux-image-*.deb 2>&1")?;
        ensure!(!printed.contains("the save kernel stays as it is"), "{printed}");
        let printed = succeed(guest, "dpkg --install /root/linux-headers-*.deb 2>&1")?;
        ensure!(!printed.contains("the save kernel stays as it is"), "{printed}");
        let other = guest.succeed("basename /boot/vmlinuz-*-cloud-amd64")?;
        let other = other.trim().strip_prefix("vmlinuz-").context("Debian's other kernel")?.to_owned();
        let module = format!("/lib/modules/{other}/updates/dkms/dormouse.ko");
        let made = format!("/var/lib/dormouse/initramfs.img -nt {module} -a /boot/initrd.img-{other}");
        guest.succeed(&format!("ls {module}* && [ {made} -nt /var/lib/dormouse/initramfs.img ]"))?;
        guest.succeed(&format!("cmp /boot/vmlinuz-{other} /var/lib/dormouse/vmlinuz"))?;
        debian::settle(guest)?;
        self.goes_on_after(session, |guest| debian::boot_next(guest, &other))
    }

    /// A module that is missing, and one that was built for another kernel: the doctor and the refusal name it. As a
    /// kernel's installation does it, the module is put back before the save kernel is made.
    fn without_its_module(&mut self) -> Result<()> {
        let Stock { guest, release } = self;
        let release = release.clone();
        let name = "$(cd /usr/src && ls -d dormouse-* | tr - /)";
        let unload = "! grep -q '^dormouse ' /proc/modules || rmmod dormouse";
        succeed(guest, &format!("{{ {unload}; }} && dkms uninstall {name} -k {release}"))?;
        self.demand_complaint("kernel-jump", "dormouse-dkms")?;
        let hooks = format!("run-parts --arg={release} --arg=/boot/vmlinuz-{release} /etc/kernel/postinst.d 2>&1");
        let printed = succeed(&mut self.guest, &hooks)?;
        ensure!(!printed.contains("the save kernel stays as it is"), "{printed}");
        let module = format!("/lib/modules/{release}/updates/dkms/dormouse.ko");
        self.guest.succeed(&format!("ls {module}* && [ /var/lib/dormouse/initramfs.img -nt {module}* ]"))?;
        let (state, text) = self.check("jump-module")?;
        ensure!(state == "ok", "{text}");
        self.guest.succeed(&format!(
            "cd $(dirname {module}) && {{ ! [ -e dormouse.ko.xz ] || unxz dormouse.ko.xz; }} && \
             sed -i 's/vermagic={release}/vermagic=9{release}/' dormouse.ko && depmod"
        ))?;
        self.demand_complaint("jump-module", &format!("built for Linux 9{release}"))?;
        self.guest.succeed(&format!("sed -i 's/vermagic=9/vermagic=/' {module} && depmod")).map(drop)
    }

    /// A boot in which the kernel loads no module that is not signed, and has no kexec_load(2).
    fn locked_down(&mut self) -> Result<()> {
        power_off(&mut self.guest)?;
        self.guest.add_kernel_argument("lockdown=integrity");
        self.boot()?;
        let (state, text) = self.check("lockdown")?;
        ensure!(state == "failed" && text.contains("(integrity)"), "{text}");
        let (state, text) = self.check("jump-module")?;
        ensure!(state == "failed" && text.contains("Secure Boot off"), "{text}");
        let refused = self.guest.run("dormouse hibernate --json")?;
        let json: Value = serde_json::from_str(&refused.stdout)?;
        ensure!(refused.status == 3 && json["outcome"] == "refused", "{refused:?}");
        power_off(&mut self.guest)?;
        filesystem::check_ext4(&self.guest.disk_file(0)).map(drop)
    }

    /// The doctor's check with this identifier fails with these words, and a hibernation is refused with it.
    fn demand_complaint(&mut self, id: &str, words: &str) -> Result<()> {
        let (state, text) = self.check(id)?;
        ensure!(state == "failed" && text.contains(words), "{id}: {state}, {text}");
        let refused = self.guest.run("dormouse hibernate --json")?;
        let json: Value = serde_json::from_str(&refused.stdout)?;
        ensure!(refused.status == 3 && json["id"] == id, "not {id}: {refused:?}");
        ensure!(format!("{}; {}", json["message"], json["remedy"]).contains(words), "{json}");
        Ok(())
    }

    /// Nothing of Dormouse's is left but what the journal has of it.
    fn removal_leaves_nothing(&mut self) -> Result<()> {
        let guest = &mut self.guest;
        succeed(guest, "dormouse setup --undo --no-initramfs")?;
        succeed(guest, "apt-get purge --yes dormouse-dkms dormouse 2>&1")?;
        let left = guest.succeed(&format!("{FILES} | comm -13 /root/before - | grep -i dormouse || true"))?;
        ensure!(left.is_empty(), "the packages leave {left}");
        guest
            .succeed("! grep -q dormouse /proc/modules && ! test -e /dev/dormouse && ! dkms status | grep dormouse")?;
        guest.succeed("! lsinitramfs /boot/initrd.img-$(uname -r) | grep dormouse")?;
        power_off(guest)?;
        filesystem::check_ext4(&guest.disk_file(0)).map(drop)
    }
}
