//! A guest that is a whole Debian system: systemd, a root filesystem on its first disk, and an initramfs that a
//! distribution's tool makes in it. QEMU is its boot loader, which finds kernel and initramfs where the guest has put
//! them: in `/boot`.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::artifacts::Artifacts;
use crate::guest::Guest;
use crate::machine::{Disk, DiskKind, GuestConfig};
use crate::qemu;

/// Systemd takes its time under emulation, with everything else busy; so does what makes an initramfs.
pub const TIMEOUT: Duration = Duration::from_secs(600);
/// Where the guest has the package.
pub const PACKAGE: &str = "/root/dormouse.deb";

/// The root filesystem's disk.
const ROOT: usize = 0;

/// Which Debian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suite {
    /// 12: systemd 252, dracut 059.
    Bookworm,
    /// 13: systemd 257, dracut-ng 106.
    Trixie,
}

impl Suite {
    /// The environment variable that names its root filesystem.
    pub(crate) fn variable(self) -> &'static str {
        match self {
            Suite::Bookworm => "DORMOUSE_BOOKWORM",
            Suite::Trixie => "DORMOUSE_TRIXIE",
        }
    }
}

/// A Debian guest, with the test kernel as its first.
///
/// # Errors
/// Fails where a part is missing.
pub fn guest(suite: Suite, config: GuestConfig, artifacts: &Artifacts) -> Result<Guest> {
    let image = artifacts.debian(suite)?;
    let bytes = std::fs::metadata(&image).with_context(|| format!("{}: cannot be read", image.display()))?.len();
    let mut config = config;
    config.disks.insert(ROOT, Disk { kind: DiskKind::Virtio, bytes });
    config.kernel_arguments.push(format!("root={} ro", DiskKind::Virtio.guest_path(0)));
    let mut guest = Guest::installed(config, |files| {
        let disk = files.disk(ROOT);
        qemu::copy_sparse(&image, &disk)?;
        put(&disk, &artifacts.binary("command-server"), "/usr/local/lib/command-server")?;
        put(&disk, &artifacts.binary("workload"), "/usr/local/bin/workload")?;
        put(&disk, &artifacts.package()?, PACKAGE)
    })?;
    boot_next(&mut guest, artifacts.release())?;
    Ok(guest)
}

/// Has the next power-on boot the kernel with this release, and its initramfs, as they are in the guest's `/boot` now.
/// The machine must be off, and what was last written there not only in the filesystem's journal: see [`settle`].
///
/// # Errors
/// Fails where they are missing.
pub fn boot_next(guest: &mut Guest, release: &str) -> Result<()> {
    let disk = guest.disk_file(ROOT);
    let (kernel, initramfs) = guest.boot_files();
    take(&disk, &format!("/boot/vmlinuz-{release}"), &kernel)?;
    take(&disk, &format!("/boot/initrd.img-{release}"), &initramfs)
}

/// Has the running guest write its root filesystem's journal back, so that a boot loader, which does not replay it,
/// sees all files.
///
/// # Errors
/// Fails where the guest does.
pub fn settle(guest: &mut Guest) -> Result<()> {
    // Freezing checkpoints the journal; all that thaws it is in memory by then.
    guest.succeed("sync && fsfreeze --version >/dev/null && fsfreeze --freeze / && fsfreeze --unfreeze /").map(drop)
}

/// Writes a file of the host's into the filesystem of a guest that is off, as a program.
fn put(disk: &Path, from: &Path, to: &str) -> Result<()> {
    let name = to.rsplit('/').next().unwrap_or(to);
    let directory = to.strip_suffix(name).unwrap_or("/");
    debugfs(disk, &format!("cd {directory}\nwrite {} {name}\nset_inode_field {name} mode 0100755\n", from.display()))
}

/// Copies a file out of the filesystem of a guest that is off.
fn take(disk: &Path, from: &str, to: &Path) -> Result<()> {
    let _ = std::fs::remove_file(to);
    debugfs(disk, &format!("dump {from} {}\n", to.display()))?;
    let len = std::fs::metadata(to).map_or(0, |metadata| metadata.len());
    ensure!(len > 0, "{}: it has no {from}", disk.display());
    Ok(())
}

/// Runs debugfs(8), whose exit status does not cover its commands.
fn debugfs(disk: &Path, commands: &str) -> Result<()> {
    let mut script = tempfile::NamedTempFile::new().context("a file for debugfs")?;
    script.write_all(commands.as_bytes()).context("a file for debugfs")?;
    let is_writing = commands.contains("write ");
    let output = Command::new("/sbin/debugfs")
        .args(if is_writing { &["-w"][..] } else { &[] })
        .arg("-f")
        .arg(script.path())
        .arg(disk)
        .output()
        .context("debugfs (e2fsprogs) cannot be started; scripts/test installs it")?;
    // It repeats each command on stdout, and its version is on stderr.
    let complaints: Vec<String> = String::from_utf8_lossy(&output.stderr)
        .lines()
        .filter(|line| !line.starts_with("debugfs ") && !line.trim().is_empty())
        .map(str::to_owned)
        .collect();
    ensure!(
        output.status.success() && complaints.is_empty(),
        "debugfs on {}: {}",
        disk.display(),
        complaints.join("; ")
    );
    Ok(())
}

/// What a boot's kernel and initramfs are called in the guest's directory.
#[must_use]
pub(crate) fn boot_files(directory: &Path) -> (PathBuf, PathBuf) {
    (directory.join("vmlinuz"), directory.join("initrd.img"))
}
