//! What the doctor looks at: facts as they are, without a judgement.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use dormouse_image::State;
use dormouse_linux::disk::DiskIdentity;
use dormouse_linux::kernel_config::KernelConfig;
use dormouse_linux::system::{self, Uname};
use dormouse_linux::{block, bzimage_release, kernels, kexec_loads, memory_watch};
use dormouse_sys::module::DEVICE;
use nix::errno::Errno;

use crate::cycle::disk;
use crate::cycle::jump::{self as jumper, NoModule};
use crate::cycle::keys;
use crate::cycle::last::Last;
use crate::cycle::module_file;
use crate::cycle::refusal::Unsealed;
use crate::cycle::region_size::{Needs, TooSmall};
use crate::cycle::warm;
use crate::filesystems::Mounted;
use crate::host::boot_initramfs::Tool;
use crate::host::doctor::boot_loader::LoaderFacts;
use crate::host::doctor::devices::DeviceFacts;
use crate::host::doctor::drivers::Drivers;
use crate::host::doctor::mounted;
use crate::host::doctor::next_boot::NextBoot;
use crate::host::doctor::sealed::SealedFacts;
use crate::host::initramfs::needs;
use crate::host::map_history::{self, History};
use crate::host::systemd::{self, Routing};
use crate::launch::arch::bzimage::BzImage;
use crate::machine::iomem::{Iomem, IomemError};
use crate::policy::{self, Policy, PolicyError};
use crate::store::{Access, StoreError};
use crate::target::{self, Target, TargetError, device, signature};

/// Why something could not be seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Unseen {
    /// Only root sees it.
    NeedsRoot,
    /// What went wrong.
    Because(String),
}

/// What is known of the machine, its kernel and what is installed.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    pub(super) machine: String,
    pub(super) release: String,
    /// `ID` and `ID_LIKE` of os-release(5).
    pub(super) distribution: String,
    pub(super) config: Option<KernelConfig>,
    /// The kernel's own answer to whether it can be returned to, where it could be asked.
    pub(super) jump: Result<bool, Unseen>,
    /// Dormouse's own module.
    pub(super) module: ModuleFacts,
    pub(super) cmdline: String,
    /// `/sys/power/disk`, which a kernel without hibernation does not have.
    pub(super) power_disk: Option<String>,
    pub(super) has_vmcoreinfo: bool,
    /// `/sys/kernel/security/lockdown`.
    pub(super) lockdown: Option<String>,
    pub(super) secure_boot: Option<bool>,
    pub(super) load_disabled: bool,
    /// `kernel.kexec_load_limit_reboot`; `None` without a limit.
    pub(super) load_limit: Option<u64>,
    pub(super) is_loaded: bool,
    pub(super) is_crash_loaded: bool,
    pub(super) memory: Memory,
    pub(super) iomem: Result<Iomem, IomemError>,
    /// How large the region is to be; `None` without a policy.
    pub(super) region_size: Option<Result<u64, TooSmall>>,
    /// The memory maps of the last boots, where they are recorded.
    pub(super) maps: Option<History>,
    pub(super) mounted: Result<Mounted, Unseen>,
    pub(super) drivers: Drivers,
    pub(super) policy: Result<Policy, PolicyFault>,
    /// When the policy or one of its drop-ins was changed last.
    pub(super) policy_changed: Option<SystemTime>,
    pub(super) image: Option<Result<ImageFacts, Unseen>>,
    pub(super) save_kernel: Option<Result<SaveKernel, Unseen>>,
    pub(super) save_initramfs: Option<Result<SystemTime, Unseen>>,
    /// When `/usr/lib/dormouse/dormouse-init` was installed.
    pub(super) agent_changed: Option<SystemTime>,
    pub(super) tool: Option<Tool>,
    pub(super) hook: Result<(), String>,
    pub(super) boot_initramfs: Option<(PathBuf, SystemTime)>,
    pub(super) resume: Option<Last>,
    pub(super) next_boot: NextBoot,
    pub(super) loader: LoaderFacts,
    pub(super) swap: Swap,
    pub(super) systemd: Option<Systemd>,
    pub(super) is_efi: bool,
    pub(super) devices: DeviceFacts,
    pub(super) sealed: SealedFacts,
}

/// The module that jumps where the kernel cannot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct ModuleFacts {
    /// Whether the running kernel's modules have it.
    pub(super) is_installed: bool,
    /// The releases of other kernels whose modules have it.
    pub(super) others: Vec<String>,
    /// Why it cannot jump: as it reports itself, where it is loaded and root asks; else as its file shows.
    pub(super) fault: Option<NoModule>,
}

impl ModuleFacts {
    /// Looks, and loads nothing.
    fn read(release: &str) -> ModuleFacts {
        let can_be_asked = system::is_root() && Path::new(DEVICE).exists();
        ModuleFacts {
            is_installed: jumper::is_installed(release),
            others: jumper::others(release),
            fault: if can_be_asked { jumper::open(release).err() } else { module_file::fault(release) },
        }
    }
}

/// Bytes.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Memory {
    pub(super) total: u64,
    pub(super) free: u64,
    pub(super) available: u64,
    /// Room in swap areas.
    pub(super) swap_free: u64,
}

/// Why there is no policy.
#[derive(Debug, Clone)]
pub(super) struct PolicyFault {
    pub(super) is_missing: bool,
    pub(super) text: String,
}

/// The image device.
#[derive(Debug, Clone)]
pub(super) struct ImageFacts {
    pub(super) target: Target,
    pub(super) size: u64,
    pub(super) is_busy: bool,
    /// Why it must be sealed and is not.
    pub(super) unsealed: Option<Unsealed>,
    /// When it was made; `None` where it is none.
    pub(super) made: Option<SystemTime>,
    /// Its state, and the reason for that; or why it is not an image, or not where the save kernel would look for it.
    pub(super) state: Result<(State, String), String>,
    /// The disk that it lies on, and the one that this boot's initramfs looks for it on; where they are known.
    pub(super) disk: Option<DiskIdentity>,
    pub(super) expected: Option<DiskIdentity>,
}

/// The kernel that saves and restores.
#[derive(Debug, Clone)]
pub(super) struct SaveKernel {
    /// Why the loader would not take it.
    pub(super) fault: Option<String>,
    pub(super) release: Option<String>,
    pub(super) changed: SystemTime,
    pub(super) config: Option<KernelConfig>,
    /// Whether the modules that belong to it are installed.
    pub(super) has_modules: bool,
    /// Whether Dormouse's own is among them.
    pub(super) has_module: bool,
}

/// Swap space, and what the kernel's own hibernation would do with it.
#[derive(Debug, Clone, Default)]
pub(super) struct Swap {
    /// Bytes that are free, without zram.
    pub(super) free: u64,
    /// Whether `/sys/power/resume` names a device.
    pub(super) is_resume_set: bool,
    /// Whether that device holds a session that the kernel's own hibernation has saved.
    pub(super) has_session: bool,
    /// `Active(anon)`, which logind compares with it, in bytes.
    pub(super) active_anon: u64,
}

/// systemd.
#[derive(Debug, Clone, Default)]
pub(super) struct Systemd {
    pub(super) routing: Routing,
    pub(super) version: Option<u32>,
    /// `AllowHibernation=`, where it is set.
    pub(super) is_allowed: Option<bool>,
}

impl Facts {
    /// Looks at everything. What is missing or cannot be seen is a fact too.
    pub(super) fn read(config_path: &Path) -> Facts {
        let uname = Uname::read().unwrap_or_default();
        let config = KernelConfig::of_running(&uname.release);
        let root = Path::new("/");
        let policy = Policy::load(config_path);
        let known = policy.as_ref().ok();
        let iomem = Iomem::parse(&text("/proc/iomem"));
        let tool = Tool::detect(root);
        let load_disabled = number("/proc/sys/kernel/kexec_load_disabled") == Some(1);
        // -1 is no limit, and does not parse.
        let load_limit = kexec_loads::limit();
        Facts {
            machine: uname.machine,
            distribution: distribution(&text("/etc/os-release")),
            drivers: Drivers::read(config.as_ref()),
            config,
            jump: jump(load_disabled, load_limit),
            module: ModuleFacts::read(&uname.release),
            cmdline: text("/proc/cmdline").trim().to_owned(),
            power_disk: fs::read_to_string("/sys/power/disk").ok(),
            has_vmcoreinfo: Path::new("/sys/kernel/vmcoreinfo").exists(),
            lockdown: fs::read_to_string("/sys/kernel/security/lockdown").ok(),
            secure_boot: secure_boot(),
            load_disabled,
            load_limit,
            is_loaded: number("/sys/kernel/kexec_loaded") == Some(1) && !warm::is_loaded(),
            is_crash_loaded: number("/sys/kernel/kexec_crash_loaded") == Some(1),
            memory: Memory {
                total: meminfo("MemTotal:"),
                free: meminfo("MemFree:"),
                available: meminfo("MemAvailable:"),
                swap_free: meminfo("SwapFree:"),
            },
            region_size: known.map(|policy| {
                let pages = iomem.as_ref().map_or(0, Iomem::ram_pages);
                Needs::read(policy, pages).size(policy.region.size)
            }),
            iomem,
            maps: map_history::read(),
            mounted: mounted::read(),
            policy_changed: policy_changed(config_path),
            image: known.map(image),
            save_kernel: known.map(|policy| save_kernel(&policy.kernel.image, &uname.release)),
            save_initramfs: known.map(|policy| changed(&policy.kernel.initramfs)),
            agent_changed: changed(Path::new(needs::INIT)).ok(),
            tool,
            hook: tool.map_or(Ok(()), |tool| tool.has_hook(root)),
            boot_initramfs: kernels::initramfs_of(root, &uname.release)
                .and_then(|path| changed(&path).ok().map(|time| (path, time))),
            resume: Last::resume_of_this_boot(),
            next_boot: NextBoot::read(known),
            loader: LoaderFacts::read(),
            swap: Swap::read(),
            systemd: Path::new("/run/systemd/system").exists().then(|| Systemd {
                routing: Routing::read(root),
                version: systemd::version(),
                is_allowed: allow_hibernation(root),
            }),
            is_efi: Path::new("/sys/firmware/efi").exists(),
            devices: DeviceFacts::read(known),
            sealed: SealedFacts::read(known),
            policy: policy.map_err(|error| PolicyFault {
                is_missing: matches!(error, PolicyError::Missing { .. }),
                text: format!("{:#}", anyhow::Error::from(error)),
            }),
            release: uname.release,
        }
    }
}

fn text(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn number(path: &str) -> Option<u64> {
    text(path).trim().parse().ok()
}

fn meminfo(name: &str) -> u64 {
    memory_watch::field("/proc/meminfo", name).unwrap_or(0).saturating_mul(1024)
}

fn distribution(os_release: &str) -> String {
    let value = |name: &str| {
        let line = os_release.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        line.unwrap_or_default().trim_matches(['"', '\'']).to_owned()
    };
    format!("{} {}", value("ID"), value("ID_LIKE")).trim().to_owned()
}

/// Asks the kernel, unless the question would be refused or counted.
fn jump(load_disabled: bool, load_limit: Option<u64>) -> Result<bool, Unseen> {
    if !system::is_root() {
        return Err(Unseen::NeedsRoot);
    }
    if load_disabled || load_limit.is_some() {
        return Err(Unseen::Because("kexec_load is limited".to_owned()));
    }
    match jumper::can_preserve_context() {
        // Without CONFIG_KEXEC it is without CONFIG_KEXEC_JUMP too.
        Err(error) if error.raw_os_error() == Some(Errno::ENOSYS as i32) => Ok(false),
        answer => answer.map_err(|error| Unseen::Because(format!("kexec_load: {error}"))),
    }
}

/// The variable `SecureBoot` of the UEFI specification (3.3): one byte, after four of attributes.
fn secure_boot() -> Option<bool> {
    let path = "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c";
    fs::read(path).ok()?.get(4).map(|byte| *byte == 1)
}

fn seen(error: &std::io::Error, path: &Path) -> Unseen {
    match error.kind() {
        std::io::ErrorKind::PermissionDenied => Unseen::NeedsRoot,
        _ => Unseen::Because(format!("{}: {error}", path.display())),
    }
}

fn changed(path: &Path) -> Result<SystemTime, Unseen> {
    fs::metadata(path).and_then(|metadata| metadata.modified()).map_err(|error| seen(&error, path))
}

/// When the policy was changed: one of its files, or the directory of its drop-ins, from which one may have been
/// removed.
fn policy_changed(config: &Path) -> Option<SystemTime> {
    let mut files = policy::files(config);
    files.push(policy::drop_in_dir(config));
    files.iter().filter_map(|path| changed(path).ok()).max()
}

fn image(policy: &Policy) -> Result<ImageFacts, Unseen> {
    let of_target = |error: TargetError| match &error {
        TargetError::Store(StoreError::Open { source, .. })
            if source.kind() == std::io::ErrorKind::PermissionDenied =>
        {
            Unseen::NeedsRoot
        }
        _ => Unseen::Because(format!("{:#}", anyhow::Error::from(error))),
    };
    let target = target::find(&policy.image.device, Duration::ZERO).map_err(|error| match error {
        // A name is looked up on the devices themselves, which only root reads.
        TargetError::NotFound { .. } if !system::is_root() => Unseen::NeedsRoot,
        error => of_target(error),
    })?;
    target.link().map_err(of_target)?;
    target.refuse_virtual().map_err(|error| Unseen::Because(format!("{:#}", anyhow::Error::from(error))))?;
    // As `dormouse hibernate` opens it: that refuses one which is in use.
    let (blocks, is_busy) = match target.blocks(Access::Write) {
        Err(TargetError::Store(StoreError::Busy { .. })) => (target.blocks(Access::Read).map_err(of_target)?, true),
        blocks => (blocks.map_err(of_target)?, false),
    };
    let size = blocks.size();
    drop(blocks);
    let (mut made, mut unsealed) = (None, None);
    let state = target.open(Access::Read).and_then(|image| {
        made = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(image.label().created_unix));
        unsealed = Unsealed::refuse(&image.label().stack, keys::seals(policy)).err();
        target.check(&image)?;
        Ok((image.commit().state, image.commit().reason.clone()))
    });
    let state = state.map_err(|error| format!("{:#}", anyhow::Error::from(error)));
    let (disk, expected) = (target.disk(), disk::expected(policy));
    Ok(ImageFacts { target, size, is_busy, unsealed, made, state, disk, expected })
}

fn save_kernel(path: &Path, running: &str) -> Result<SaveKernel, Unseen> {
    let changed = changed(path)?;
    let file = fs::read(path).map_err(|error| seen(&error, path))?;
    let release = bzimage_release::of_bzimage(&file);
    let config = release.as_deref().and_then(|release| match release == running {
        true => KernelConfig::of_running(release),
        false => KernelConfig::of_installed(release),
    });
    let modules = release.as_deref().map(|release| Path::new("/lib/modules").join(release));
    Ok(SaveKernel {
        fault: BzImage::parse(&file).err().map(|error| error.to_string()),
        has_modules: modules.is_some_and(|directory| directory.exists()),
        has_module: release.as_deref().is_some_and(jumper::is_installed),
        release,
        changed,
        config,
    })
}

impl Swap {
    fn read() -> Swap {
        // Name, type, size, used (both in KiB), priority.
        let swaps = text("/proc/swaps");
        let free = swaps.lines().skip(1).filter(|line| !line.starts_with("/dev/zram")).map(|line| {
            let mut fields = line.split_whitespace().skip(2).map(|field| field.parse::<u64>().unwrap_or(0));
            let (size, used) = (fields.next().unwrap_or(0), fields.next().unwrap_or(0));
            size.saturating_sub(used).saturating_mul(1024)
        });
        let device =
            Some(text("/sys/power/resume").trim().to_owned()).filter(|number| !["", "0:0"].contains(&&**number));
        Swap {
            free: free.sum(),
            has_session: device.as_deref().is_some_and(has_session),
            is_resume_set: device.is_some(),
            active_anon: meminfo("Active(anon):"),
        }
    }
}

/// Whether the block device with this number holds a session of the kernel's own hibernation.
fn has_session(number: &str) -> bool {
    let Some(device) = fs::canonicalize(Path::new("/sys/dev/block").join(number)).ok() else { return false };
    let Some(path) = device.file_name().map(block::node) else { return false };
    device::foreign(&path).is_ok_and(|found| found.is_some_and(|found| found.name == signature::SUSPENDED))
}

/// The last `AllowHibernation=` of sleep.conf(5) and its drop-ins, in systemd's order: a drop-in counts more than the
/// file, and of two with one name the one in /etc.
fn allow_hibernation(root: &Path) -> Option<bool> {
    let places = ["usr/lib/systemd", "usr/local/lib/systemd", "run/systemd", "etc/systemd"];
    let main = places.iter().rev().map(|place| root.join(place).join("sleep.conf")).find(|path| path.exists());
    let mut drop_ins = std::collections::BTreeMap::new();
    for place in places {
        let Ok(entries) = fs::read_dir(root.join(place).join("sleep.conf.d")) else { continue };
        let conf = entries.flatten().map(|entry| entry.path());
        let conf = conf.filter(|path| path.extension().is_some_and(|extension| extension == "conf"));
        drop_ins.extend(conf.filter_map(|path| Some((path.file_name()?.to_owned(), path))));
    }
    let mut texts =
        main.into_iter().chain(drop_ins.into_values()).filter_map(|path| fs::read_to_string(path).ok()).rev();
    texts.find_map(|text| last_allow(&text))
}

fn last_allow(text: &str) -> Option<bool> {
    let value = |line: &str| match line.trim().strip_prefix("AllowHibernation")?.trim_start().strip_prefix('=')?.trim()
    {
        "1" | "yes" | "y" | "true" | "t" | "on" => Some(true),
        "0" | "no" | "n" | "false" | "f" | "off" => Some(false),
        _ => None,
    };
    text.lines().rev().find_map(value)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn facts_can_be_read_on_any_machine() {
        let facts = Facts::read(Path::new("/nonexistent/dormouse.toml"));
        assert!(!facts.release.is_empty() && facts.memory.total > facts.memory.free, "{facts:?}");
        assert!(facts.policy.unwrap_err().is_missing);
        assert!(facts.image.is_none());
    }

    #[test]
    fn reads_the_distribution() {
        assert_eq!(distribution("NAME=x\nID=debian\n"), "debian");
        assert_eq!(distribution("ID=\"linuxmint\"\nID_LIKE=\"ubuntu debian\"\n"), "linuxmint ubuntu debian");
        assert_eq!(distribution(""), "");
    }

    #[test]
    fn the_last_allow_hibernation_counts() {
        let directory = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = directory.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        assert_eq!(allow_hibernation(directory.path()), None);
        write("etc/systemd/sleep.conf", "[Sleep]\n#AllowHibernation=yes\n");
        assert_eq!(allow_hibernation(directory.path()), None);
        write("usr/lib/systemd/sleep.conf.d/50-vendor.conf", "[Sleep]\nAllowHibernation = no\n");
        assert_eq!(allow_hibernation(directory.path()), Some(false));
        write("etc/systemd/sleep.conf.d/50-vendor.conf", "");
        assert_eq!(allow_hibernation(directory.path()), None);
        write("etc/systemd/sleep.conf.d/60-mine.conf", "AllowHibernation=no\nAllowHibernation=yes\n");
        assert_eq!(allow_hibernation(directory.path()), Some(true));
    }
}
