//! What refuses, in one place: each reason with an identifier that programs can go by, a text, and a remedy.
//!
//! An [`Obstacle`] is what keeps this machine from being hibernated: `dormouse hibernate` refuses with it, and
//! `dormouse doctor` shows it before it matters. A [`Refusal`] is any error that has an identifier, whatever room it
//! comes from; a [`Complaint`] is an error as it is reported to the user. All of this is pure.

mod below;

use std::error::Error as StdError;
use std::path::PathBuf;
use std::{fmt, io};

pub use below::Unsealed;
use dormouse_linux::block::NoHardware;
use dormouse_linux::block::layers::NoPlace;
use dormouse_linux::free_memory::Free;
use dormouse_linux::hibernation_events::Unannounced;
use dormouse_linux::network::NoWay;
use dormouse_linux::not_frozen::NotFrozen;
use dormouse_linux::units::mib;
use dormouse_linux::volatile_memory::Used;
use dormouse_sys::kexec;
use nix::errno::Errno;
use serde::Serialize;
use thiserror::Error;

use crate::cycle::evidence::NoEvidence;
use crate::cycle::jump::NoModule;
use crate::cycle::last::Last;
use crate::cycle::region_size::TooSmall;
use crate::cycle::waiting::Waiting;
use crate::handoff::arguments::BootSwitches;
use crate::handoff::mailbox::MailboxError;
use crate::key::KeyError;
use crate::launch::arch::bzimage::BzImageError;
use crate::launch::region::RegionError;
use crate::launch::{FileError, LoaderError};
use crate::machine;
use crate::machine::iomem::IomemError;
use crate::policy::{PolicyError, SealKey, Then, Unsure};
use crate::store::{NotDiscarded, StoreError};
use crate::target::TargetError;
use crate::target::device::InitRefusal;

/// Something that keeps this machine from being hibernated. Its text is what was found.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Obstacle {
    /// The kernel has no way to jump and to be returned to.
    #[error("this kernel cannot be returned to: it lacks CONFIG_KEXEC_JUMP")]
    NoJump,
    /// The kernel is older than the fix without which it hangs on the way back.
    #[error("kernel {release} hangs when it is returned to")]
    NoReturn {
        /// As `uname -r` gives it.
        release: String,
    },
    /// Dormouse's module is to jump, and cannot.
    #[error("this kernel cannot be jumped from by the module: {0}")]
    NoModule(NoModule),
    /// `kexec_load(2)` was refused.
    #[error("kexec_load was refused{}", of_errno(*.0))]
    LoadRefused(Option<i32>),
    /// What is in memory can be read with a key that the next power-on does not have.
    #[error("memory encryption (mem_encrypt=on) is not supported: the next power-on has another key")]
    MemoryEncryption,
    /// The kernel reports that it must not be hibernated.
    #[error("the kernel does not allow hibernation now (/sys/power/disk)")]
    Forbidden,
    /// Nothing shows that the next boot will look for the image.
    #[error(
        "this boot has not looked for an image, so that the next one may not either, and the session would be lost"
    )]
    NoHook,
    /// The running kernel's command line forbids a resume.
    #[error(
        "the kernel command line keeps this boot from resuming; if it does so at the next boot, the session is lost"
    )]
    BootForbids,
    /// The policy forbids a resume.
    #[error("the policy never resumes (resume.enabled = false): the next boot would discard the image")]
    PolicyForbids,
    /// Memory that is not saved and loses its content with the power.
    #[error("{} is memory that loses its content with the power and is not saved, and {by}", node.display())]
    VolatileMemory {
        /// Its device.
        node: PathBuf,
        /// What uses it, as a clause.
        by: String,
    },
    /// No boot could tell whether another system has written to what the session has mounted.
    #[error("no boot could tell whether another system has written to {0}")]
    NotComparable(String),
    /// Setting aside what the region holds would drive programs out of memory.
    #[error(
        "{} of memory are available, and {} are needed to set aside what the region holds", mib(*available),
        mib(*needed)
    )]
    LittleMemory {
        /// Bytes.
        available: u64,
        /// Bytes.
        needed: u64,
    },
    /// Too little can be made free for what drivers allocate while devices freeze.
    #[error("{} of memory are free, and {} are needed while devices freeze", mib(*free), mib(*needed))]
    LittleFree {
        /// Bytes.
        free: u64,
        /// Bytes.
        needed: u64,
    },
    /// Another kernel waits to be started.
    #[error("another kernel is loaded for `kexec -e`, and a hibernation would replace it")]
    KernelLoaded,
    /// Something else hibernates.
    #[error("the kernel is being hibernated by another program (/dev/snapshot is in use)")]
    Hibernating,
    /// A driver does not take part in a hibernation.
    #[error("a driver refuses to be hibernated{}{}", of_errno(*errno), of_log(log))]
    Driver {
        /// Its error; what notifiers call bad is EPERM.
        errno: Option<i32>,
        /// The last lines of the kernel's log since it was asked.
        log: Vec<String>,
    },
}

/// The kernel's lines, as a clause.
fn of_log(lines: &[String]) -> String {
    if lines.is_empty() { String::new() } else { format!("; the kernel's log: {}", lines.join("; ")) }
}

/// What an error number means, as a clause.
fn of_errno(errno: Option<i32>) -> String {
    errno.map_or_else(String::new, |errno| format!(": {}", Errno::from_raw(errno).desc()))
}

impl Obstacle {
    /// What a refused `kexec_load(2)` means.
    #[must_use]
    pub fn of_load(error: &io::Error) -> Obstacle {
        Obstacle::LoadRefused(error.raw_os_error())
    }

    /// The error with which the module has refused to load something.
    #[must_use]
    pub fn of_module(error: &io::Error) -> Obstacle {
        match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENOMEM) => Obstacle::of_load(error),
            Some(Errno::EPERM) => Obstacle::NoModule(NoModule::LockedDown),
            _ => Obstacle::NoModule(NoModule::Other(error.to_string())),
        }
    }
}

impl Refusal for Obstacle {
    /// Those of the doctor's checks of the same things.
    fn id(&self) -> &'static str {
        match self {
            Obstacle::NoJump => "kernel-jump",
            Obstacle::NoReturn { .. } => "kernel-return",
            Obstacle::NoModule(_) => "jump-module",
            Obstacle::LoadRefused(_) => "kexec-allowed",
            Obstacle::MemoryEncryption => "memory-encryption",
            Obstacle::Forbidden => "kernel-hibernation",
            Obstacle::NoHook => "resume-hook",
            Obstacle::BootForbids => "command-line",
            Obstacle::PolicyForbids => "resume-disabled",
            Obstacle::VolatileMemory { .. } => "volatile-memory",
            Obstacle::NotComparable(_) => "filesystems",
            Obstacle::LittleMemory { .. } => "memory",
            Obstacle::LittleFree { .. } => "free-memory",
            Obstacle::KernelLoaded => "kexec-loaded",
            Obstacle::Hibernating => "hibernating",
            Obstacle::Driver { .. } => "driver-refuses",
        }
    }

    fn remedy(&self) -> Option<String> {
        let remedy = match self {
            Obstacle::NoJump => {
                "install the package dormouse-dkms, whose module jumps in its place, or boot a kernel that has it \
                 (Fedora's and RHEL's do; Debian's does not)"
            }
            Obstacle::NoModule(fault) => fault.remedy(),
            Obstacle::NoReturn { .. } => {
                "install the package dormouse-dkms, whose module returns to it, or boot a kernel with 07fa619f2a40 \
                 (\"x86/kexec: Restore GDT on return from ::preserve_context kexec\"), which is in Linux 6.13 and \
                 6.12.5. If your distribution has added it, use --trust-kernel"
            }
            Obstacle::LoadRefused(errno) => match errno.map(Errno::from_raw) {
                Some(Errno::EPERM) => {
                    "run as root, with kernel.kexec_load_disabled=0 and Secure Boot's lockdown off (it forbids \
                     kexec_load)"
                }
                Some(Errno::ENOSYS) => "this kernel lacks CONFIG_KEXEC",
                Some(Errno::ENOMEM) => {
                    "there is not enough free memory to set aside what the region holds; close something"
                }
                Some(Errno::EINVAL) => "the region may be more than half of memory; set a smaller region.size",
                Some(Errno::EBUSY) => "another kexec is under way",
                _ => "see `dmesg`",
            },
            Obstacle::MemoryEncryption => "boot without mem_encrypt=on",
            Obstacle::Forbidden => {
                "a program uses memfd_secret(2), CXL memory is in use, or lockdown or `nohibernate` forbid it: undo \
                 that"
            }
            Obstacle::NoHook => {
                "build the boot's initramfs with Dormouse's hook, as `dormouse setup` does, and reboot once; see \
                 `dormouse doctor`. If you know that it looks for the image, use --trust-boot"
            }
            Obstacle::BootForbids => {
                "take noresume and dormouse=off out of the boot loader's configuration. If they were meant for this \
                 boot alone, use --trust-boot"
            }
            Obstacle::PolicyForbids => "set resume.enabled = true and build both initramfs again, or use --trust-boot",
            Obstacle::VolatileMemory { .. } => {
                "unmount it and end what uses it, or boot without memmap=...! so that it is RAM, which is saved"
            }
            Obstacle::NotComparable(_) => {
                "unmount it, or set resume.unsure = \"resume\" and build both initramfs again, if no other system ever \
                 writes to it"
            }
            Obstacle::LittleMemory { .. } => "close something, or set a smaller region.size",
            Obstacle::LittleFree { .. } => "close something, or add swap space",
            Obstacle::KernelLoaded => "unload it with `kexec -u`, or use --force",
            Obstacle::Hibernating => "try again when it has finished; `fuser -v /dev/snapshot` shows a program",
            Obstacle::Driver { .. } => {
                "unload the driver or remove its device; the kernel's own hibernation would be refused as well. See \
                 `dmesg`"
            }
        };
        Some(remedy.to_owned())
    }
}

/// Refuses with what was found to be in the way, if anything was.
///
/// # Errors
/// The obstacle.
pub fn refuse(found: Option<Obstacle>) -> Result<(), Obstacle> {
    found.map_or(Ok(()), Err)
}

/// What is in the way with the answer of [`dormouse_sys::kexec::can_preserve_context`].
#[must_use]
pub fn in_jump(answer: &io::Result<bool>) -> Option<Obstacle> {
    match answer {
        Ok(true) => None,
        Ok(false) => Some(Obstacle::NoJump),
        // Without CONFIG_KEXEC it is without CONFIG_KEXEC_JUMP too.
        Err(error) if error.raw_os_error() == Some(Errno::ENOSYS as i32) => Some(Obstacle::NoJump),
        Err(error) => Some(Obstacle::of_load(error)),
    }
}

/// What is in the way in a kernel of this release, as `uname -r` has it.
#[must_use]
pub fn in_release(release: &str) -> Option<Obstacle> {
    (!machine::can_be_returned_to(release)).then(|| Obstacle::NoReturn { release: release.to_owned() })
}

/// What is in the way on the running kernel's command line.
#[must_use]
pub fn in_command_line(cmdline: &str) -> Option<Obstacle> {
    let is_encrypted = cmdline.split_whitespace().any(|argument| argument == "mem_encrypt=on");
    is_encrypted.then_some(Obstacle::MemoryEncryption)
}

/// What is in the way in the text of `/sys/power/disk`.
///
/// kernel/power/hibernate.c, `hibernation_available`: with secret memory or CXL memory in use, what would be saved is
/// not all, or not to be saved; and lockdown or `nohibernate` forbid it.
#[must_use]
pub fn in_power_disk(modes: &str) -> Option<Obstacle> {
    modes.contains("[disabled]").then_some(Obstacle::Forbidden)
}

/// What is in the way with memory that is neither RAM nor kept without power. A session that goes on keeps it.
#[must_use]
pub fn in_volatile_memory(used: Option<Used>, then: Then) -> Option<Obstacle> {
    let used = used.filter(|_| then != Then::Return);
    used.map(|Used { node, by }| Obstacle::VolatileMemory { node, by })
}

/// What is in the way with what `dormouse resume` reported in the initramfs of this boot. A session that goes on needs
/// no next boot.
#[must_use]
pub fn in_boot(resume: Option<&Last>, then: Then) -> Option<Obstacle> {
    (resume.is_none() && then != Then::Return).then_some(Obstacle::NoHook)
}

/// What is in the way in this kernel's command line and in the policy's `resume.enabled`: the next boot is most likely
/// told the same, and would discard the image. A session that goes on needs no next boot.
#[must_use]
pub fn in_resume(cmdline: &str, is_enabled: bool, then: Then) -> Option<Obstacle> {
    let resumes = !BootSwitches::parse(cmdline).forbids();
    match (resumes, is_enabled) {
        _ if then == Then::Return => None,
        (false, _) => Some(Obstacle::BootForbids),
        (true, false) => Some(Obstacle::PolicyForbids),
        (true, true) => None,
    }
}

/// What is in the way with filesystems and swap areas that cannot be compared. A session that goes on is never resumed.
#[must_use]
pub fn in_filesystems(unsure: &[String], policy: Unsure, then: Then) -> Option<Obstacle> {
    let is_refused = !unsure.is_empty() && policy == Unsure::Refuse && then != Then::Return;
    is_refused.then(|| Obstacle::NotComparable(unsure.join(", ")))
}

/// What is needed beside the pages that the region is swapped with: the kernel and the initramfs on their way into it.
const LOADING: u64 = 32 << 20;

/// What is in the way with this much memory available and a region of this size, both in bytes.
#[must_use]
pub fn in_memory(region: u64, available: u64) -> Option<Obstacle> {
    let needed = region.saturating_add(LOADING);
    (available < needed).then_some(Obstacle::LittleMemory { available, needed })
}

/// What is in the way with so much memory free, after all was made free that could be.
#[must_use]
pub fn in_free_memory(free: Free) -> Option<Obstacle> {
    (!free.is_enough()).then_some(Obstacle::LittleFree { free: free.now, needed: free.wanted })
}

/// What is in the way in the text of `/sys/kernel/kexec_loaded`.
#[must_use]
pub fn in_loaded(loaded: &str) -> Option<Obstacle> {
    (loaded.trim() == "1").then_some(Obstacle::KernelLoaded)
}

/// What is in the way where drivers could not be told of the hibernation. `modes` is the text of `/sys/power/disk` and
/// `log` what the kernel has logged since.
#[must_use]
pub fn in_announcement(error: &Unannounced, modes: &str, log: Vec<String>) -> Obstacle {
    match error {
        Unannounced::Busy => Obstacle::Hibernating,
        Unannounced::Refused(error) => {
            // What keeps the kernel from hibernating at all has the error number of a driver that refuses.
            in_power_disk(modes).unwrap_or_else(|| Obstacle::Driver { errno: error.raw_os_error(), log })
        }
        _ => Obstacle::Driver { errno: None, log },
    }
}

/// An error that has an identifier.
pub trait Refusal: StdError {
    /// What programs go by: it stays the same from version to version, whatever the text becomes.
    fn id(&self) -> &'static str;

    /// What can be done about it, as a clause: a command or a setting.
    fn remedy(&self) -> Option<String> {
        None
    }

    /// How it leaves things.
    fn class(&self) -> Class {
        Class::Refused
    }
}

/// How things are after an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// What was asked for was refused, and nothing was changed.
    Refused,
    /// What was asked for failed. The session is safe.
    Failed,
    /// The same, and an image must be discarded by hand, or a later boot would resume it.
    #[serde(rename = "failed")]
    DiscardByHand,
}

impl Refusal for RegionError {
    fn id(&self) -> &'static str {
        match self {
            RegionError::NoPlace { .. } => "region-no-place",
            RegionError::AddressNotRam { .. } => "region-address",
            RegionError::NoLowMemory => "low-memory",
        }
    }

    fn remedy(&self) -> Option<String> {
        match self {
            RegionError::NoPlace { .. } => Some("set a smaller region.size".to_owned()),
            RegionError::AddressNotRam { .. } => Some("set another region.address, or none".to_owned()),
            RegionError::NoLowMemory => Some("look for an option of the firmware that reserves it".to_owned()),
        }
    }
}

impl Refusal for TooSmall {
    fn id(&self) -> &'static str {
        "region-too-small"
    }

    fn remedy(&self) -> Option<String> {
        Some(format!("set region.size to \"auto\", or to \"{}M\" or more", self.enough >> 20))
    }
}

impl Refusal for IomemError {
    fn id(&self) -> &'static str {
        match self {
            IomemError::Malformed { .. } | IomemError::NoRam => "memory-map",
            IomemError::Hidden => "needs-root",
            IomemError::DriverMemory { .. } => "driver-memory",
        }
    }

    fn remedy(&self) -> Option<String> {
        let remedy = match self {
            IomemError::Malformed { .. } | IomemError::NoRam => "report it with the text of /proc/iomem",
            IomemError::Hidden => "run as root",
            IomemError::DriverMemory { .. } => {
                "take it offline: `lsmem` and `chmem --disable`, or do not load the driver"
            }
        };
        Some(remedy.to_owned())
    }
}

impl Refusal for LoaderError {
    fn id(&self) -> &'static str {
        match self {
            LoaderError::RegionTooSmall { .. } => "region-too-small",
            LoaderError::CommandLine { .. } => "kernel-arguments",
            LoaderError::BootParams(_) => "boot-params",
            LoaderError::TooManySegments { .. } => "low-memory",
            LoaderError::TooManyRanges(_) => "memory-ranges",
        }
    }

    fn remedy(&self) -> Option<String> {
        match self {
            LoaderError::RegionTooSmall { .. } => Some("set a larger region.size".to_owned()),
            LoaderError::CommandLine { .. } => Some("shorten kernel.arguments".to_owned()),
            LoaderError::TooManySegments { most, .. } if *most == kexec::MAX_SEGMENTS => Some(
                "have Dormouse's module jump, which takes more: install the package dormouse-dkms and set save.jump = \
                 \"module\""
                    .to_owned(),
            ),
            LoaderError::BootParams(_) | LoaderError::TooManySegments { .. } | LoaderError::TooManyRanges(_) => None,
        }
    }
}

impl Refusal for FileError {
    fn id(&self) -> &'static str {
        match self {
            FileError::Kernel { .. } => "save-kernel",
            FileError::Initramfs { .. } => "save-initramfs",
        }
    }

    fn remedy(&self) -> Option<String> {
        Some("make it with `dormouse update`".to_owned())
    }
}

impl Refusal for BzImageError {
    fn id(&self) -> &'static str {
        "save-kernel"
    }

    fn remedy(&self) -> Option<String> {
        Some("name another kernel: `dormouse build-initramfs --kernel FILE`".to_owned())
    }
}

impl Refusal for StoreError {
    fn id(&self) -> &'static str {
        match self {
            StoreError::Busy { .. } => "image-busy",
            StoreError::Held { .. } => "image-held",
            StoreError::Open { .. } => "image-not-opened",
            StoreError::Io { .. } | StoreError::Flush { .. } => "image-io",
            StoreError::Format { .. } => "image-damaged",
            StoreError::Misplaced { .. } => "image-misplaced",
            StoreError::Gone { .. } => "image-gone",
            StoreError::NotInitialised { .. } => "image-not-initialised",
            StoreError::TooSmall { .. } => "image-too-small",
            StoreError::Incomplete { .. } => "image-incomplete",
            StoreError::Beyond { .. } => "image-cut-short",
            StoreError::Unverified { .. } => "image-unverified",
            StoreError::Threads { .. } | StoreError::WriterGone { .. } => "writer-gone",
        }
    }

    fn remedy(&self) -> Option<String> {
        match self {
            StoreError::Busy { .. } => Some("unmount it, `swapoff` it, or use another device".to_owned()),
            StoreError::NotInitialised { name } => Some(format!("run `dormouse image init {name}`")),
            _ => None,
        }
    }

    fn class(&self) -> Class {
        match self {
            StoreError::Io { .. }
            | StoreError::Flush { .. }
            | StoreError::Format { .. }
            | StoreError::Beyond { .. }
            | StoreError::Unverified { .. }
            | StoreError::Threads { .. }
            | StoreError::WriterGone { .. } => Class::Failed,
            _ => Class::Refused,
        }
    }
}

impl Refusal for TargetError {
    fn id(&self) -> &'static str {
        match self {
            TargetError::NotFound { .. } => "image-not-found",
            TargetError::NoFile { .. } => "image-no-file",
            TargetError::Ambiguous { .. } => "ambiguous-devices",
            TargetError::OtherDisk { .. } => "other-disk",
            TargetError::Mounted { .. } => "image-mounted",
            TargetError::NoLeg { .. } => "image-leg-missing",
            TargetError::NoWay(_) => "image-no-way",
            TargetError::Down(_) | TargetError::NoLink { .. } => "network-down",
            TargetError::Store(error) => error.id(),
            TargetError::Moved(_) => "image-moved",
        }
    }

    fn remedy(&self) -> Option<String> {
        match self {
            TargetError::NoFile { path } => Some(format!(
                "make it with `dormouse image create --size auto {}`; an initramfs, where its filesystem is not \
                 mounted, needs the policy that `dormouse config show --boot` prints",
                path.display()
            )),
            TargetError::Mounted { .. } => {
                Some("give the initramfs the policy that `dormouse config show --boot` prints".to_owned())
            }
            TargetError::OtherDisk { .. } => Some(
                "attach the disk that it was put on; where the image was moved to this one for good, build both \
                 initramfs again (`dormouse update`, then the boot's)"
                    .to_owned(),
            ),
            TargetError::Store(error) => error.remedy(),
            TargetError::NoLeg { .. } => Some("attach that disk, or give the mirror another one".to_owned()),
            TargetError::NoWay(NoWay::Virtual { .. }) => Some(
                "reach it by an Ethernet interface that has an address of its own, or put the image on a disk"
                    .to_owned(),
            ),
            TargetError::NotFound { .. }
            | TargetError::Ambiguous { .. }
            | TargetError::NoWay(_)
            | TargetError::Down(_)
            | TargetError::NoLink { .. }
            | TargetError::Moved(_) => None,
        }
    }

    fn class(&self) -> Class {
        if let TargetError::Store(error) = self { error.class() } else { Class::Refused }
    }
}

impl Refusal for KeyError {
    fn id(&self) -> &'static str {
        match self {
            KeyError::NoKey { .. } => "key-missing",
            KeyError::Foreign(_) => "key-foreign",
            KeyError::File { .. } => "key-file",
            KeyError::Ring { .. } => "key-record",
            KeyError::Waiting => "image-waiting",
            KeyError::NoSlot(_) => "key-unknown",
            KeyError::Twice(_) => "key-twice",
            KeyError::NotOpened(_) => "image-no-key",
            KeyError::Replayed => "image-replayed",
            KeyError::Passphrase(_) | KeyError::Ask(_) => "key-passphrase",
            KeyError::Tpm(_) => "key-tpm",
            KeyError::Memory { .. } => "key-memory",
            KeyError::Make(_) => "key-failed",
            KeyError::Format(_) => "image-damaged",
            KeyError::Store(error) => error.id(),
        }
    }

    fn remedy(&self) -> Option<String> {
        let remedy = match self {
            KeyError::NoKey { kind: SealKey::None, .. } => {
                "add one: `dormouse key add file`, where the boot unlocks the root filesystem, or `dormouse key add \
                 passphrase`"
            }
            KeyError::NoKey { kind, .. } => return Some(format!("add one: `dormouse key add {kind}`")),
            KeyError::Foreign(_) => "add a key with --reset, which gives those up: `dormouse key add file --reset`",
            KeyError::Waiting => "reboot to resume it, or give it up: `dormouse image discard`",
            KeyError::NoSlot(_) | KeyError::Twice(_) => "see `dormouse key list`",
            KeyError::Ring { .. } => "remove it, and add keys with --reset: `dormouse key add file --reset`",
            KeyError::Store(error) => return error.remedy(),
            _ => return None,
        };
        Some(remedy.to_owned())
    }
}

impl Refusal for NoHardware {
    fn id(&self) -> &'static str {
        if matches!(self, NoHardware::Virtual { .. }) { "virtual-device" } else { "not-a-device" }
    }

    fn remedy(&self) -> Option<String> {
        matches!(self, NoHardware::Virtual { .. }).then(|| "use a partition or a disk".to_owned())
    }
}

impl Refusal for InitRefusal {
    fn id(&self) -> &'static str {
        match self {
            InitRefusal::Foreign { .. } => "image-foreign",
            InitRefusal::Waiting { .. } => "image-waiting",
        }
    }

    fn remedy(&self) -> Option<String> {
        Some("use --force if that may go".to_owned())
    }
}

impl Refusal for PolicyError {
    fn id(&self) -> &'static str {
        match self {
            PolicyError::Missing { .. } => "policy-missing",
            _ => "policy-invalid",
        }
    }

    fn remedy(&self) -> Option<String> {
        match self {
            PolicyError::Missing { .. } => Some(
                "run `dormouse setup`, or copy dormouse.toml (in the project's configs directory) to this place and \
                 set image.device in it to the device that `dormouse image init` prepared"
                    .to_owned(),
            ),
            PolicyError::MissingKey { key, .. } => Some(format!(
                "add {key} = \"/dev/...\" (or \"UUID=...\") with the device that `dormouse image init` prepared"
            )),
            _ => None,
        }
    }

    /// Whoever asks for the policy has asked for no more yet; `dormouse hibernate` refuses with it.
    fn class(&self) -> Class {
        Class::Failed
    }
}

impl Refusal for NotDiscarded {
    fn id(&self) -> &'static str {
        "image-not-discarded"
    }

    fn remedy(&self) -> Option<String> {
        Some(
            "run `dormouse image discard` before the next boot, which may resume it, or boot once with `noresume`"
                .to_owned(),
        )
    }

    fn class(&self) -> Class {
        Class::DiscardByHand
    }
}

/// What has an identifier in an error: itself, one of its contexts, or one of its causes. What must be undone by hand
/// comes first, then the most particular.
fn find(error: &anyhow::Error) -> Option<&dyn Refusal> {
    fn of<T: Refusal + Send + Sync + 'static>(error: &anyhow::Error) -> Option<&dyn Refusal> {
        let cause = || error.chain().find_map(|cause| cause.downcast_ref::<T>());
        error.downcast_ref::<T>().or_else(cause).map(|found| found as &dyn Refusal)
    }
    of::<JumpError>(error)
        .or_else(|| of::<NotDiscarded>(error))
        .or_else(|| of::<Obstacle>(error))
        .or_else(|| of::<RegionError>(error))
        .or_else(|| of::<TooSmall>(error))
        .or_else(|| of::<IomemError>(error))
        .or_else(|| of::<LoaderError>(error))
        .or_else(|| of::<FileError>(error))
        .or_else(|| of::<BzImageError>(error))
        .or_else(|| of::<NoPlace>(error))
        .or_else(|| of::<Unsealed>(error))
        .or_else(|| of::<NoHardware>(error))
        .or_else(|| of::<InitRefusal>(error))
        .or_else(|| of::<KeyError>(error))
        .or_else(|| of::<TargetError>(error))
        .or_else(|| of::<StoreError>(error))
        .or_else(|| of::<PolicyError>(error))
        .or_else(|| of::<Unready>(error))
        .or_else(|| of::<NoEvidence>(error))
        .or_else(|| of::<Waiting>(error))
}

/// Why a hibernation does not begin, where it is not the machine's fault.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Unready {
    /// Another hibernation is under way.
    #[error("another `dormouse` that hibernates or changes an image is running")]
    Busy,
    /// The lock that keeps two of them apart.
    #[error("{}: cannot lock it", path.display())]
    Lock {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
    /// A signal came in time.
    #[error("stopped by {0} before the jump; nothing was saved")]
    Stopped(&'static str),
    /// What the machine is cannot be found out.
    #[error("cannot examine this machine")]
    Machine,
    /// The image device was initialised again while the hibernation was being prepared.
    #[error("the image device was initialised again in the meantime; nothing was saved")]
    ImageReplaced,
}

impl Refusal for Unready {
    fn id(&self) -> &'static str {
        match self {
            Unready::Busy => "already-running",
            Unready::Lock { .. } => "needs-root",
            Unready::Stopped(_) => "stopped",
            Unready::Machine => "machine-unknown",
            Unready::ImageReplaced => "image-replaced",
        }
    }

    fn remedy(&self) -> Option<String> {
        match self {
            Unready::Busy => Some("try again when it has finished".to_owned()),
            Unready::Lock { .. } => Some("run as root".to_owned()),
            Unready::Stopped(_) | Unready::Machine | Unready::ImageReplaced => None,
        }
    }
}

/// A jump that has brought back no report, or no good one.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum JumpError {
    /// The kernel gave up before it jumped.
    #[error("nothing was saved, because the kernel could not freeze {0}")]
    Freeze(NotFrozen),
    /// It did not try.
    #[error("the jump was refused, and nothing was saved")]
    Jump(#[source] io::Error),
    /// The save kernel came back, and left no report that could be read.
    #[error("no report from the save kernel")]
    NoReport(#[source] MailboxError),
    /// The save failed, and a later boot may resume what it has left.
    #[error("{reason}; and the image could not be invalidated")]
    NotInvalidated {
        /// Why it failed.
        reason: String,
        /// Why the image could not be invalidated.
        source: Box<dyn StdError + Send + Sync>,
    },
}

impl Refusal for JumpError {
    fn id(&self) -> &'static str {
        match self {
            JumpError::Freeze(_) => "not-frozen",
            JumpError::Jump(_) => "jump-refused",
            JumpError::NoReport(_) => "no-report",
            JumpError::NotInvalidated { .. } => "image-not-invalidated",
        }
    }

    fn remedy(&self) -> Option<String> {
        let remedy = match self {
            JumpError::NotInvalidated { .. } => {
                "run `dormouse image discard` before the next boot, which would resume a session that has gone on"
            }
            JumpError::Freeze(NotFrozen::Processes(_)) => {
                "end it, or what it waits for: a filesystem whose server does not answer (`umount -f`), or a disk"
            }
            JumpError::Freeze(NotFrozen::Devices(_)) => "unload its driver, or unplug it, and try again",
            _ => return None,
        };
        Some(remedy.to_owned())
    }

    fn class(&self) -> Class {
        match self {
            JumpError::NotInvalidated { .. } => Class::DiscardByHand,
            _ => Class::Failed,
        }
    }
}

/// An error as it is reported to people and programs. Its text is one line, with what can be done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Complaint {
    /// How things are.
    #[serde(rename = "outcome")]
    pub class: Class,
    /// Its identifier, where it has one.
    pub id: Option<&'static str>,
    /// The error with its causes, in one line.
    pub message: String,
    /// What can be done.
    pub remedy: Option<String>,
}

impl Complaint {
    /// What there is to say of an error.
    #[must_use]
    pub fn of(error: &anyhow::Error) -> Complaint {
        if let Some(complaint) = error.downcast_ref::<Complaint>() {
            return complaint.clone();
        }
        let refusal = find(error);
        Complaint {
            class: refusal.map_or(Class::Failed, Refusal::class),
            id: refusal.map(Refusal::id),
            message: format!("{error:#}"),
            remedy: refusal.and_then(Refusal::remedy),
        }
    }

    /// The same of an error before which nothing was changed, whatever it is.
    #[must_use]
    pub fn refused(error: &anyhow::Error) -> Complaint {
        let complaint = Complaint::of(error);
        Complaint { class: Class::Refused, id: Some(complaint.id_or("refused")), ..complaint }
    }

    /// The identifier, or another where there is none.
    #[must_use]
    pub fn id_or(&self, other: &'static str) -> &'static str {
        self.id.unwrap_or(other)
    }
}

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        self.remedy.as_ref().map_or(Ok(()), |remedy| write!(f, "; {remedy}"))
    }
}

impl StdError for Complaint {}

#[cfg(test)]
mod tests;
