//! A guest that is a whole Debian system: systemd, a root filesystem on its first disk, and an initramfs that a
//! distribution's tool makes in it. QEMU is its boot loader, which finds kernel and initramfs where the guest has put
//! them: in `/boot`. Where the guest has installed GRUB, that is.
//!
//! The disk is the root filesystem, or what an installer makes of an encrypted disk: GRUB's partition, `/boot`, and
//! LUKS2 with LVM or btrfs in it, whose passphrase somebody has to type.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::artifacts::Artifacts;
use crate::console::Cursor;
use crate::filesystem;
use crate::guest::Guest;
use crate::machine::{Disk, DiskKind, Firmware, GuestConfig, MIB};
use crate::qemu;

/// Systemd takes its time under emulation, with everything else busy; so does what makes an initramfs.
pub const TIMEOUT: Duration = Duration::from_secs(1200);
/// Where the guest has the package.
pub const PACKAGE: &str = "/root/dormouse.deb";
/// Where a guest with Debian's own kernel has the package of the kernel module.
pub const MODULE_PACKAGE: &str = "/root/dormouse-dkms.deb";
/// Where an encrypted guest has Dormouse's.
pub const ENCRYPTED_PACKAGE: &str = "/boot/dormouse.deb";
/// An encrypted guest's host name, a word that is nowhere else in it.
pub const HOST_NAME: &str = "velvetburrow";
const PASSPHRASE: &str = "burrow";
/// The UUIDs of LUKS and of the btrfs in it: tests/src/debian/encrypt.
const LUKS: &str = "7e0f6c52-33a1-4b5e-9d0c-5a1e0b5c7d11";
const BTRFS: &str = "c2b9a4de-1f73-4c0a-8e46-0d9f3b7a6e22";
/// Where `/boot` begins on an encrypted guest's disk: scripts/build-debian, whose sfdisk begins at 1 MiB.
const BOOT_OFFSET: u64 = 2 * MIB;

/// Where the root filesystem begins on a disk with partitions, behind GRUB's.
const ROOT_OFFSET: u64 = MIB;
/// The EFI system partition behind it, for a machine with UEFI. It holds kernels and initramfs where systemd-boot finds
/// them.
const ESP_MIB: u64 = 192;
/// What a disk has before and behind its partitions.
const TABLES: u64 = 2 * MIB;
const SECTOR: u64 = 512;

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

    /// The environment variable that names the root filesystem of a guest with Debian's own kernel.
    pub(crate) fn stock_variable(self) -> String {
        format!("{}_STOCK", self.variable())
    }
}

/// What an encrypted guest's disk has beside GRUB's partition and `/boot`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encrypted {
    /// LUKS2 with LVM, ext4 and swap, as Debian's installer makes it; the initramfs is of initramfs-tools.
    Lvm(Suite),
    /// LUKS2 with btrfs, in subvolumes and compressed, as other installers make it; the initramfs is dracut's, with
    /// systemd. Debian 13.
    Btrfs,
}

impl Encrypted {
    /// The environment variable that names its disk.
    pub(crate) fn variable(self) -> String {
        match self {
            Encrypted::Lvm(suite) => format!("{}_ENCRYPTED", suite.variable()),
            Encrypted::Btrfs => format!("{}_ENCRYPTED_BTRFS", Suite::Trixie.variable()),
        }
    }

    /// How the kernel's command line names the root filesystem.
    fn root(self) -> String {
        match self {
            Encrypted::Lvm(_) => format!("root=/dev/mapper/{HOST_NAME}--vg-root ro"),
            Encrypted::Btrfs => format!("rd.luks.uuid=luks-{LUKS} root=UUID={BTRFS} rootflags=subvol=@ ro"),
        }
    }

    /// The mapped device's name.
    #[must_use]
    pub fn mapping(self) -> String {
        match self {
            Encrypted::Lvm(_) => "vda3_crypt".to_owned(),
            Encrypted::Btrfs => format!("luks-{LUKS}"),
        }
    }

    /// Types the passphrase when the boot of such a guest asks for it, from `cursor` on.
    ///
    /// # Errors
    /// Fails where it does not.
    pub fn unlock(self, guest: &mut Guest, cursor: &mut Cursor) -> Result<()> {
        let prompt = match self {
            Encrypted::Lvm(_) => format!("unlock disk {}", self.mapping()),
            Encrypted::Btrfs => "Please enter passphrase for disk".to_owned(),
        };
        guest.answer_prompt(cursor, &prompt, PASSPHRASE, TIMEOUT)
    }
}

/// A Debian guest, with the test kernel as its first.
///
/// # Errors
/// Fails where a part is missing.
pub fn guest(suite: Suite, config: GuestConfig, artifacts: &Artifacts) -> Result<Guest> {
    let image = artifacts.debian(suite)?;
    let mut guest = installed(config, &image, |root| put_programs(root, artifacts))?;
    boot_next(&mut guest, artifacts.release())?;
    Ok(guest)
}

/// A guest whose first disk is a copy of this root filesystem, which `install` changes.
fn installed(config: GuestConfig, image: &Path, install: impl FnOnce(&Ext4) -> Result<()>) -> Result<Guest> {
    let bytes = std::fs::metadata(image).with_context(|| format!("{}: cannot be read", image.display()))?.len();
    let mut config = config;
    config.disks.insert(ROOT, Disk { kind: DiskKind::Virtio, bytes });
    config.kernel_arguments.push(format!("root={} ro", DiskKind::Virtio.guest_path(0)));
    Guest::installed(config, |files| {
        let disk = files.disk(ROOT);
        qemu::copy_sparse(image, &disk)?;
        install(&Ext4 { disk, offset: 0 })
    })
}

/// A Debian guest whose first disk has partitions, so that the guest can install a boot loader there; until it has, it
/// boots as the others do, with the test kernel. On a machine with UEFI, `/boot/efi` is the EFI system partition.
///
/// # Errors
/// Fails where a part is missing.
pub fn guest_with_partitions(suite: Suite, config: GuestConfig, artifacts: &Artifacts) -> Result<Guest> {
    let image = artifacts.debian(suite)?;
    let bytes = std::fs::metadata(&image).with_context(|| format!("{}: cannot be read", image.display()))?.len();
    let mut config = config;
    let esp_offset = (config.firmware == Firmware::Uefi).then_some(ROOT_OFFSET + bytes);
    let esp_bytes = esp_offset.map_or(0, |_| ESP_MIB * MIB);
    config.disks.insert(ROOT, Disk { kind: DiskKind::Virtio, bytes: ROOT_OFFSET + bytes + esp_bytes + TABLES });
    let disk_path = DiskKind::Virtio.guest_path(0);
    let root = format!("{disk_path}2");
    config.kernel_arguments.push(format!("root={root} ro"));
    let guest = Guest::installed(config, |files| {
        let disk = files.disk(ROOT);
        filesystem::partition(&disk, &partitions(bytes, esp_offset))?;
        let mut dd = Command::new("dd");
        dd.arg(format!("if={}", image.display())).arg(format!("of={}", disk.display()));
        dd.args(["bs=1M", "seek=1", "conv=sparse,notrunc", "status=none"]);
        ensure!(dd.status().context("dd cannot be started")?.success(), "dd of {}", image.display());
        if let Some(offset) = esp_offset {
            filesystem::make_fat(&disk, offset / SECTOR, ESP_MIB, "ESP")?;
        }
        let filesystem = Ext4 { disk, offset: ROOT_OFFSET };
        let mut fstab = tempfile::NamedTempFile::new().context("a file for fstab")?;
        let esp = esp_offset.map_or(String::new(), |_| format!("{disk_path}3 /boot/efi vfat umask=0077 0 0\n"));
        write!(fstab, "{root} / ext4 errors=remount-ro 0 1\n{esp}").context("a file for fstab")?;
        filesystem.debugfs(&format!("cd /etc\nrm fstab\nwrite {} fstab\n", fstab.path().display()))?;
        put_programs(&filesystem, artifacts)
    })?;
    take_boot_files(&guest, &Ext4 { disk: guest.disk_file(ROOT), offset: ROOT_OFFSET }, "/boot", artifacts.release())?;
    Ok(guest)
}

/// GRUB's partition, the root filesystem of so many bytes, and the EFI system partition where there is one.
fn partitions(root_bytes: u64, esp_offset: Option<u64>) -> String {
    let esp = |offset: u64| {
        let (start, size) = (offset / SECTOR, ESP_MIB * MIB / SECTOR);
        format!("start={start}, size={size}, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B\n")
    };
    format!(
        "first-lba: 34\n\
         start=34, size=2014, type=21686148-6449-6E6F-744E-656564454649\n\
         start={}, size={}, type=0FC63DAF-8483-4772-8E79-3D69D8477DE4\n{}",
        ROOT_OFFSET / SECTOR,
        root_bytes / SECTOR,
        esp_offset.map_or(String::new(), esp)
    )
}

fn put_programs(root: &Ext4, artifacts: &Artifacts) -> Result<()> {
    root.put(&artifacts.binary("command-server"), "/usr/local/lib/command-server")?;
    root.put(&artifacts.binary("workload"), "/usr/local/bin/workload")?;
    root.put(&artifacts.package()?, PACKAGE)
}

/// A Debian guest that boots Debian's own kernel, and that kernel's release. Both of Dormouse's packages are in it.
///
/// # Errors
/// Fails where a part is missing.
pub fn stock_guest(suite: Suite, config: GuestConfig, artifacts: &Artifacts) -> Result<(Guest, String)> {
    let image = artifacts.stock_debian(suite)?;
    let mut release = String::new();
    let mut guest = installed(config, &image, |root| {
        let copy = tempfile::NamedTempFile::new().context("a file for the kernel's release")?;
        root.take("/boot/release", copy.path())?;
        release = std::fs::read_to_string(copy.path()).context("the kernel's release")?.trim().to_owned();
        put_programs(root, artifacts)?;
        root.put(&artifacts.module_package()?, MODULE_PACKAGE)
    })?;
    boot_next(&mut guest, &release)?;
    Ok((guest, release))
}

/// A Debian guest on an encrypted disk, its first, with the test kernel.
///
/// # Errors
/// Fails where a part is missing.
pub fn encrypted_guest(kind: Encrypted, config: GuestConfig, artifacts: &Artifacts) -> Result<Guest> {
    let image = artifacts.encrypted_debian(kind)?;
    let bytes = std::fs::metadata(&image).with_context(|| format!("{}: cannot be read", image.display()))?.len();
    let mut config = config;
    config.disks.insert(ROOT, Disk { kind: DiskKind::Virtio, bytes });
    config.kernel_arguments.push(kind.root());
    let mut guest = Guest::installed(config, |files| {
        let disk = files.disk(ROOT);
        qemu::copy_sparse(&image, &disk)?;
        let boot = Ext4 { disk, offset: BOOT_OFFSET };
        boot.put(&artifacts.binary("command-server"), "/command-server")?;
        boot.put(&artifacts.package()?, "/dormouse.deb")
    })?;
    boot_next_encrypted(&mut guest, artifacts.release())?;
    Ok(guest)
}

/// Has the next power-on boot the kernel with this release, and its initramfs, as they are in the guest's `/boot` now.
/// The machine must be off, and what was last written there not only in the filesystem's journal: see [`settle`].
///
/// # Errors
/// Fails where they are missing.
pub fn boot_next(guest: &mut Guest, release: &str) -> Result<()> {
    take_boot_files(guest, &Ext4 { disk: guest.disk_file(ROOT), offset: 0 }, "/boot", release)
}

/// [`boot_next`] for an encrypted guest.
///
/// # Errors
/// As [`boot_next`].
pub fn boot_next_encrypted(guest: &mut Guest, release: &str) -> Result<()> {
    take_boot_files(guest, &Ext4 { disk: guest.disk_file(ROOT), offset: BOOT_OFFSET }, "", release)
}

fn take_boot_files(guest: &Guest, from: &Ext4, directory: &str, release: &str) -> Result<()> {
    let (kernel, initramfs) = guest.boot_files();
    from.take(&format!("{directory}/vmlinuz-{release}"), &kernel)?;
    from.take(&format!("{directory}/initrd.img-{release}"), &initramfs)
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

/// A filesystem on the disk of a guest that is off.
struct Ext4 {
    disk: PathBuf,
    /// Where it begins.
    offset: u64,
}

impl Ext4 {
    /// Writes a file of the host's into it, as a program.
    fn put(&self, from: &Path, to: &str) -> Result<()> {
        let name = to.rsplit('/').next().unwrap_or(to);
        let directory = to.strip_suffix(name).unwrap_or("/");
        let from = from.display();
        self.debugfs(&format!("cd {directory}\nwrite {from} {name}\nset_inode_field {name} mode 0100755\n"))
    }

    /// Copies a file out of it.
    fn take(&self, from: &str, to: &Path) -> Result<()> {
        let _ = std::fs::remove_file(to);
        self.debugfs(&format!("dump {from} {}\n", to.display()))?;
        let len = std::fs::metadata(to).map_or(0, |metadata| metadata.len());
        ensure!(len > 0, "{}: it has no {from}", self.disk.display());
        Ok(())
    }

    /// Runs debugfs(8), whose exit status does not cover its commands.
    fn debugfs(&self, commands: &str) -> Result<()> {
        let mut script = tempfile::NamedTempFile::new().context("a file for debugfs")?;
        script.write_all(commands.as_bytes()).context("a file for debugfs")?;
        let is_writing = commands.contains("write ");
        let disk = self.disk.display();
        let output = Command::new("/sbin/debugfs")
            .args(if is_writing { &["-w"][..] } else { &[] })
            .arg("-f")
            .arg(script.path())
            .arg(if self.offset == 0 { disk.to_string() } else { format!("{disk}?offset={}", self.offset) })
            .output()
            .context("debugfs (e2fsprogs) cannot be started; scripts/test installs it")?;
        // It repeats each command on stdout, and its version is on stderr.
        let complaints: Vec<String> = String::from_utf8_lossy(&output.stderr)
            .lines()
            .filter(|line| !line.starts_with("debugfs ") && !line.trim().is_empty())
            .map(str::to_owned)
            .collect();
        ensure!(output.status.success() && complaints.is_empty(), "debugfs on {disk}: {}", complaints.join("; "));
        Ok(())
    }
}

/// What a boot's kernel and initramfs are called in the guest's directory.
#[must_use]
pub(crate) fn boot_files(directory: &Path) -> (PathBuf, PathBuf) {
    (directory.join("vmlinuz"), directory.join("initrd.img"))
}
