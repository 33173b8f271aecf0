//! What a guest machine is made of, and how QEMU and the guest call its parts.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::artifacts::KernelName;

/// Bytes in a MiB.
pub const MIB: u64 = 1 << 20;

/// The chipset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum MachineType {
    /// i440FX, PCI.
    Pc,
    /// ICH9, PCI Express.
    Q35,
}

/// What runs before the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Firmware {
    /// SeaBIOS.
    Bios,
    /// OVMF.
    Uefi,
}

/// How a disk is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DiskKind {
    /// virtio-blk on PCI.
    Virtio,
    /// NVMe.
    Nvme,
    /// SATA on an AHCI controller.
    Ahci,
    /// A SCSI disk on virtio-scsi.
    Scsi,
    /// USB mass storage on xHCI.
    Usb,
}

impl DiskKind {
    /// The modules that this disk needs, dependencies not counted. What is built into a kernel is no file of its own.
    #[must_use]
    pub fn modules(self) -> &'static [&'static str] {
        match self {
            DiskKind::Virtio => &["virtio_pci", "virtio_blk"],
            DiskKind::Nvme => &["nvme"],
            DiskKind::Ahci => &["ahci", "sd_mod"],
            DiskKind::Scsi => &["virtio_pci", "virtio_scsi", "sd_mod"],
            DiskKind::Usb => &["xhci_pci", "usb_storage", "sd_mod"],
        }
    }

    /// The guest's name of the `ordinal`th disk of this kind, counted from 0. The kinds that share the `sd` names
    /// are told apart by nothing: a guest has disks of one of them only.
    #[must_use]
    pub fn guest_path(self, ordinal: u8) -> String {
        let letter = char::from(b'a' + ordinal);
        match self {
            DiskKind::Virtio => format!("/dev/vd{letter}"),
            DiskKind::Nvme => format!("/dev/nvme{ordinal}n1"),
            DiskKind::Ahci | DiskKind::Scsi | DiskKind::Usb => format!("/dev/sd{letter}"),
        }
    }

    /// QEMU's `-device` arguments for the drive `drive`; `ordinal` as for `guest_path`.
    #[must_use]
    pub fn qemu_devices(self, drive: &str, ordinal: u8) -> Vec<String> {
        let bus = format!("{drive}-bus");
        match self {
            DiskKind::Virtio => vec![format!("virtio-blk-pci,drive={drive},id={drive}-device")],
            DiskKind::Nvme => vec![format!("nvme,drive={drive},serial=image{ordinal}")],
            DiskKind::Ahci => vec![format!("ahci,id={bus}"), format!("ide-hd,drive={drive},bus={bus}.0")],
            DiskKind::Scsi => {
                vec![format!("virtio-scsi-pci,id={bus}"), format!("scsi-hd,drive={drive},bus={bus}.0")]
            }
            DiskKind::Usb => {
                vec![format!("qemu-xhci,id={bus}"), format!("usb-storage,drive={drive},bus={bus}.0,id={drive}-device")]
            }
        }
    }
}

/// A disk of a guest: a sparse file on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disk {
    /// How it is attached.
    pub kind: DiskKind,
    /// Its size in bytes.
    pub bytes: u64,
}

/// A size of memory in whole MiB, written `768M` or `5G`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct MemorySize {
    /// The size in MiB.
    pub mib: u64,
}

impl MemorySize {
    /// The size in bytes.
    #[must_use]
    pub fn bytes(self) -> u64 {
        self.mib.saturating_mul(MIB)
    }
}

impl FromStr for MemorySize {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (digits, factor) = match text.as_bytes().last() {
            Some(b'M' | b'm') => (&text[..text.len() - 1], 1),
            Some(b'G' | b'g') => (&text[..text.len() - 1], 1024),
            _ => bail!("{text:?} is not a size of memory: write 768M or 5G"),
        };
        let number: u64 =
            digits.parse().with_context(|| format!("{text:?} is not a size of memory: write 768M or 5G"))?;
        let mib = number.checked_mul(factor).filter(|mib| (256..=1 << 20).contains(mib));
        let mib = mib.with_context(|| format!("{text} of memory: a guest has 256M to 1024G"))?;
        Ok(MemorySize { mib })
    }
}

impl fmt::Display for MemorySize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.mib.is_multiple_of(1024) { write!(f, "{}G", self.mib / 1024) } else { write!(f, "{}M", self.mib) }
    }
}

/// What goes wrong with a disk, each time and for good unless noted otherwise. All that is written before is on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Writing the 512 bytes at this offset.
    Write(u64),
    /// Reading the 512 bytes at this offset.
    Read(u64),
    /// Writing anything, once, after this many flushes.
    WriteAfterFlushes(u32),
    /// The flush after this many others, once.
    FlushAfterFlushes(u32),
}

impl Fault {
    /// QEMU's options for a `blkdebug` node (docs/devel/blkdebug.rst in its source).
    pub(crate) fn options(self) -> String {
        // The states count flushes: 1 is the first.
        let states = |flushes: u32| -> String {
            let step = |n: u32| {
                let (state, next) = (n + 1, n + 2);
                format!(
                    "file.set-state.{n}.event=flush_to_disk,file.set-state.{n}.state={state},\
                     file.set-state.{n}.new_state={next},"
                )
            };
            (0..flushes).map(step).collect()
        };
        let (error, always) = ("file.inject-error.0.errno=5,", "file.inject-error.0.event=none,");
        match self {
            Fault::Write(at) => {
                format!("{error}{always}file.inject-error.0.iotype=write,file.inject-error.0.sector={}", at / 512)
            }
            Fault::Read(at) => {
                format!("{error}{always}file.inject-error.0.iotype=read,file.inject-error.0.sector={}", at / 512)
            }
            Fault::WriteAfterFlushes(flushes) => format!(
                "{}{error}file.inject-error.0.event=write_aio,file.inject-error.0.iotype=write,\
                 file.inject-error.0.once=on,file.inject-error.0.state={}",
                states(flushes),
                flushes + 1
            ),
            Fault::FlushAfterFlushes(flushes) => format!(
                "{}{error}file.inject-error.0.event=flush_to_disk,file.inject-error.0.iotype=flush,\
                 file.inject-error.0.once=on,file.inject-error.0.state={}",
                states(flushes),
                flushes + 1
            ),
        }
    }
}

/// A machine for QEMU to be.
#[derive(Debug, Clone)]
pub struct GuestConfig {
    /// The chipset.
    pub machine: MachineType,
    /// What runs before the kernel.
    pub firmware: Firmware,
    /// CPUs, each a thread of the host.
    pub cpus: u32,
    /// QEMU's CPU model with its features.
    pub cpu_model: String,
    /// Memory.
    pub memory: MemorySize,
    /// Disks in the order in which the guest finds them.
    pub disks: Vec<Disk>,
    /// The kernel of A and C.
    pub kernel: KernelName,
    /// The kernel of B and D, unless it is A's.
    pub second_kernel: Option<KernelName>,
    /// Arguments for the kernel beside those that the harness needs.
    pub kernel_arguments: Vec<String>,
    /// Modules that A and C load at boot and B and D do not, beside those of their disks: the power button's.
    pub modules: Vec<String>,
    /// Whether A, B and D have Dormouse's own kernel module. Their kernels must have it: `scripts/build-module`.
    pub has_module: bool,
    /// QEMU's arguments after those that this describes.
    pub qemu_arguments: Vec<String>,
    /// What the machine's link is connected to, as QEMU's `-netdev` has it, without an id: a network that leads no
    /// further than QEMU, unless this says so.
    pub link: String,
    /// Disks that fail, by the index of the disk.
    pub faults: Vec<(usize, Fault)>,
    /// Disks that are slow, by the index of the disk, with the bytes that they take in a second.
    pub throttles: Vec<(usize, u64)>,
    /// By what the machine boots from a disk of its own, the last one, which has `/boot` on it; otherwise QEMU loads
    /// the kernel.
    pub boot_loader: Option<BootLoader>,
    /// For how long the boot loader shows its menu; as its own files have it, where this does not say.
    pub menu_seconds: Option<u32>,
    /// Whether the machine boots what is installed on its first disk, in place of a kernel of the host's.
    pub boots_itself: bool,
    /// Whether there is a watchdog that restarts the machine (a 6300ESB).
    pub watchdog: bool,
    /// Whether there is a TPM 2.0.
    pub tpm: bool,
    /// Whether there is a screen and a keyboard, and the kernel's console is on them too.
    pub screen: bool,
    /// Whether the host can read the memory, as a file.
    pub memory_is_a_file: bool,
    /// Whether the host has found room for all of the memory before the machine is powered on. Otherwise it does at the
    /// first touch of each page, while the machine runs.
    pub memory_is_there: bool,
    /// The file with the state that the machine goes on from, in place of booting.
    pub goes_on_from: Option<PathBuf>,
    /// Whether the host can have the memory dumped as a vmcore, with the VMCOREINFO that the guest hands over.
    pub can_be_dumped: bool,
}

impl GuestConfig {
    /// A `pc` with BIOS and one virtio disk that holds an image of all of its memory.
    #[must_use]
    pub fn new(cpus: u32, memory: MemorySize) -> Self {
        GuestConfig {
            machine: MachineType::Pc,
            firmware: Firmware::Bios,
            cpus,
            cpu_model: "max".to_owned(),
            memory,
            disks: vec![Disk { kind: DiskKind::Virtio, bytes: image_disk_bytes(memory) }],
            kernel: KernelName::Test,
            second_kernel: None,
            kernel_arguments: Vec::new(),
            modules: vec!["button".to_owned()],
            has_module: false,
            qemu_arguments: Vec::new(),
            link: "user,restrict=on".to_owned(),
            faults: Vec::new(),
            throttles: Vec::new(),
            boot_loader: None,
            menu_seconds: None,
            boots_itself: false,
            watchdog: false,
            tpm: false,
            screen: false,
            memory_is_a_file: false,
            memory_is_there: false,
            goes_on_from: None,
            can_be_dumped: false,
        }
    }

    /// The same machine with one disk of another kind.
    #[must_use]
    pub fn disk(mut self, kind: DiskKind) -> Self {
        self.disks = vec![Disk { kind, bytes: image_disk_bytes(self.memory) }];
        self
    }

    /// The guest's name of disk `index`.
    ///
    /// # Errors
    /// Fails where there is no such disk.
    pub fn disk_path(&self, index: usize) -> Result<String> {
        let disk = self.disks.get(index).with_context(|| format!("the guest has no disk {index}"))?;
        Ok(disk.kind.guest_path(self.disk_ordinal(index)?))
    }

    /// The guest's name of the disk with the boot loader, where it has one.
    #[must_use]
    pub(crate) fn boot_disk_path(&self) -> String {
        let before = self.disks.iter().filter(|disk| disk.kind == DiskKind::Virtio).count();
        DiskKind::Virtio.guest_path(u8::try_from(before).unwrap_or(u8::MAX))
    }

    /// The place of disk `index` among those of its kind.
    pub(crate) fn disk_ordinal(&self, index: usize) -> Result<u8> {
        let disk = self.disks.get(index).with_context(|| format!("the guest has no disk {index}"))?;
        let before = self.disks.iter().take(index).filter(|other| other.kind == disk.kind).count();
        u8::try_from(before).ok().filter(|&n| n < 26).context("more disks of a kind than letters")
    }
}

/// What is on the disk that the machine boots from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BootLoader {
    /// GRUB, for a BIOS and for UEFI: [`crate::grub`].
    Grub,
    /// systemd-boot, for UEFI: [`crate::systemd_boot`].
    SystemdBoot,
}

/// A disk that holds an image of memory that does not compress at all.
#[must_use]
pub fn image_disk_bytes(memory: MemorySize) -> u64 {
    memory.bytes() + memory.bytes() / 8 + 64 * MIB
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn memory_sizes() {
        assert_eq!("768M".parse::<MemorySize>().unwrap(), MemorySize { mib: 768 });
        assert_eq!("5G".parse::<MemorySize>().unwrap(), MemorySize { mib: 5120 });
        assert_eq!(MemorySize { mib: 5120 }.to_string(), "5G");
        assert_eq!(MemorySize { mib: 768 }.to_string(), "768M");
        for text in ["", "M", "768", "0G", "128M", "-1G", "1T", "99999999999999999999G", "18014398509481985G"] {
            assert!(text.parse::<MemorySize>().is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn disks_of_a_kind_are_counted() {
        let mut config = GuestConfig::new(1, MemorySize { mib: 768 });
        config.disks.insert(0, Disk { kind: DiskKind::Nvme, bytes: MIB });
        config.disks.push(Disk { kind: DiskKind::Virtio, bytes: MIB });
        let paths: Vec<_> = (0..3).map(|index| config.disk_path(index).unwrap()).collect();
        assert_eq!(paths, ["/dev/nvme0n1", "/dev/vda", "/dev/vdb"]);
        assert!(config.disk_path(3).is_err());
    }
}
