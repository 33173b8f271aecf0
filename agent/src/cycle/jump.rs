//! Who makes the jump into the save kernel: the running kernel, where it can and can be returned to, or Dormouse's own
//! module.

use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

use dormouse_linux::{hibernation_events, kernels, kmod};
use dormouse_sys::kexec;
use dormouse_sys::module::{self, DEVICE, Module};
use nix::errno::Errno;
use thiserror::Error;

use crate::cycle::refusal::{self, Obstacle};
use crate::cycle::{module_file, warm};
use crate::handoff::places::MODULE;
use crate::launch::{Loaded, SecondKernel};
use crate::policy::Jump;

/// Who jumps.
#[derive(Debug)]
pub(crate) enum Jumper {
    /// The kernel.
    Kernel,
    /// The module, open.
    Module(Module),
}

impl Jumper {
    /// How many segments it takes.
    pub(crate) fn most_segments(&self) -> usize {
        match self {
            Jumper::Kernel => kexec::MAX_SEGMENTS,
            Jumper::Module(_) => module::MAX_SEGMENTS,
        }
    }

    /// Loads a save kernel.
    ///
    /// # Errors
    /// It was refused.
    pub(crate) fn load(self, kernel: SecondKernel) -> Result<Loaded, Obstacle> {
        match self {
            Jumper::Kernel => kernel.load().map_err(|error| Obstacle::of_load(&error)),
            Jumper::Module(module) => kernel.load_by(module).map_err(|error| Obstacle::of_module(&error)),
        }
    }
}

/// Why the module cannot jump.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum NoModule {
    /// There is none for the running kernel.
    #[error("Dormouse's kernel module is not installed for it")]
    Missing,
    /// There is one, for other kernels.
    #[error("Dormouse's kernel module was built for Linux {0}, and not for this kernel")]
    OtherKernel(String),
    /// The kernel demands a signature of modules.
    #[error("this kernel takes signed modules only, and Dormouse's is not signed with a key that it knows")]
    Unsigned,
    /// The kernel refused it.
    #[error("the kernel does not load Dormouse's kernel module: {0}")]
    NotLoaded(String),
    /// It is another version's.
    #[error("Dormouse's kernel module is of another version than this program")]
    OtherVersion,
    /// Another process uses it.
    #[error("{DEVICE} is in use")]
    Busy,
    /// Nothing can freeze processes for it.
    #[error("the module needs /dev/snapshot, and this kernel lacks CONFIG_HIBERNATION_SNAPSHOT_DEV")]
    NoSnapshot,
    /// Pages would change places without the keys that they are encrypted with.
    #[error("memory is encrypted (SME, SEV or TDX)")]
    Encrypted,
    /// The hypervisor has the tables that would be exchanged.
    #[error("this is a Xen PV guest")]
    Paravirtual,
    /// Lockdown.
    #[error("lockdown forbids the jump into another kernel")]
    LockedDown,
    /// The CPU on which the session would go on is not the one that is running.
    #[error("CPU 0 is offline, on which the session would go on")]
    NoBootCpu,
    /// Whatever else.
    #[error("{DEVICE} cannot be used: {0}")]
    Other(String),
}

impl NoModule {
    /// What can be done.
    #[must_use]
    pub fn remedy(&self) -> &'static str {
        match self {
            NoModule::Missing => {
                "install the package dormouse-dkms, with the headers of the running kernel; `dkms status` shows what \
                 it has been built for"
            }
            NoModule::OtherKernel(_) => {
                "install the headers of the running kernel, which `dkms` then builds it for; where they are installed, \
                 run `dkms autoinstall` and read what it prints"
            }
            NoModule::Unsigned => {
                "enrol the key that DKMS signs with (`mokutil --import /var/lib/dkms/mok.pub`), or boot without \
                 module.sig_enforce; where Secure Boot demands it, switch Secure Boot off, which forbids the jump \
                 even to a module that is signed"
            }
            NoModule::NotLoaded(_) => "see `dmesg`, and what `dkms status` shows",
            NoModule::OtherVersion => {
                "install the same version of both packages, and unload the old one: `rmmod dormouse`"
            }
            NoModule::Busy => "try again when it has finished; `fuser -v /dev/dormouse` shows a program",
            NoModule::NoSnapshot => "boot a kernel with CONFIG_HIBERNATION_SNAPSHOT_DEV=y",
            NoModule::Encrypted => "switch memory encryption off in the firmware, or boot without mem_encrypt=on",
            NoModule::Paravirtual => "run it as a PVH or HVM guest",
            NoModule::LockedDown => "switch Secure Boot off: it forbids the jump, however it is made",
            NoModule::NoBootCpu => "bring it online: `echo 1 >/sys/devices/system/cpu/cpu0/online`",
            NoModule::Other(_) => "see `dmesg`",
        }
    }
}

/// Chooses who jumps, by the policy. The answer of the kernel is asked for in any case: whatever refuses `kexec_load`
/// in it, such as lockdown, would refuse it to the boot that resumes.
///
/// # Errors
/// What is in the way of whoever the policy wants; for `auto` what is in the way of the kernel, unless it is the module
/// that is hindered.
pub(crate) fn choose(wanted: Jump, release: &str, trust_kernel: bool) -> Result<Jumper, Obstacle> {
    let kernel =
        refusal::in_jump(&can_preserve_context()).or_else(|| refusal::in_release(release).filter(|_| !trust_kernel));
    let Choice::Module { instead_of } = judge(wanted, kernel)? else { return Ok(Jumper::Kernel) };
    open(release).map(Jumper::Module).map_err(|fault| match (instead_of, fault) {
        (Some(kernel), NoModule::Missing) => kernel,
        (_, fault) => Obstacle::NoModule(fault),
    })
}

/// Whether the running kernel can be returned to by its own jump.
///
/// # Errors
/// Those of `kexec_load(2)` that are no answer.
pub(crate) fn can_preserve_context() -> io::Result<bool> {
    if warm::is_loaded() { Ok(true) } else { kexec::can_preserve_context() }
}

/// Who is to jump, if they can.
#[derive(Debug, PartialEq, Eq)]
enum Choice {
    Kernel,
    Module {
        /// What is in the kernel's way, where the module is only the second choice.
        instead_of: Option<Obstacle>,
    },
}

fn judge(wanted: Jump, kernel: Option<Obstacle>) -> Result<Choice, Obstacle> {
    match (wanted, kernel) {
        // Not a lack of the kernel's that the module could make good.
        (_, Some(refused @ Obstacle::LoadRefused(_))) => Err(refused),
        (Jump::Module, _) => Ok(Choice::Module { instead_of: None }),
        (_, None) => Ok(Choice::Kernel),
        (Jump::Kernel, Some(obstacle)) => Err(obstacle),
        (Jump::Auto, kernel) => Ok(Choice::Module { instead_of: kernel }),
    }
}

/// Whether the running kernel's modules have it.
pub(crate) fn is_installed(release: &str) -> bool {
    kmod::has(&Path::new("/lib/modules").join(release), MODULE)
}

/// The module, loaded where it is not yet, and able to jump.
pub(crate) fn open(release: &str) -> Result<Module, NoModule> {
    let is_absent = |error: &io::Error| {
        matches!(error.raw_os_error().map(Errno::from_raw), Some(Errno::ENOENT | Errno::ENXIO | Errno::ENODEV))
    };
    let opened = match Module::open() {
        Err(error) if is_absent(&error) => {
            load(release)?;
            Module::open()
        }
        opened => opened,
    };
    let module = match opened {
        Ok(Some(module)) => module,
        Ok(None) => return Err(NoModule::OtherVersion),
        Err(error) if is_absent(&error) => return Err(NoModule::Missing),
        Err(error) if error.raw_os_error() == Some(Errno::EBUSY as i32) => {
            warm::module_of_keeper().ok_or(NoModule::Busy)?
        }
        Err(error) => return Err(NoModule::Other(error.to_string())),
    };
    let obstacles = module.obstacles().map_err(|error| NoModule::Other(error.to_string()))?;
    let found = [
        (obstacles.memory_is_encrypted(), NoModule::Encrypted),
        (obstacles.is_paravirtual(), NoModule::Paravirtual),
        (obstacles.is_locked_down(), NoModule::LockedDown),
        (obstacles.boot_cpu_is_offline(), NoModule::NoBootCpu),
        (!hibernation_events::is_supported(), NoModule::NoSnapshot),
    ];
    found.into_iter().find(|(is_so, _)| *is_so).map_or(Ok(module), |(_, fault)| Err(fault))
}

fn load(release: &str) -> Result<(), NoModule> {
    if !is_installed(release) {
        return Err(elsewhere(release));
    }
    let output = Command::new("modprobe").arg(MODULE).stdin(Stdio::null()).output();
    match output {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            let complaint = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
            Err(module_file::fault(release).unwrap_or_else(|| of_modprobe(complaint)))
        }
        Err(error) => Err(NoModule::NotLoaded(format!("modprobe: {error}"))),
    }
}

/// What modprobe(8) complains of, in the words of strerror(3).
fn of_modprobe(complaint: String) -> NoModule {
    // kernel/module/signing.c, `module_sig_check` and its callees: ENOKEY, EKEYREJECTED, and EPERM under lockdown.
    let is = |words: &[&str]| words.iter().any(|words| complaint.contains(words));
    if is(&["Required key not available", "Key was rejected"]) {
        NoModule::Unsigned
    } else if is(&["Operation not permitted"]) {
        NoModule::LockedDown
    } else {
        NoModule::NotLoaded(complaint)
    }
}

/// Whether other kernels have the module, or none.
fn elsewhere(release: &str) -> NoModule {
    let others = others(release);
    if others.is_empty() { NoModule::Missing } else { NoModule::OtherKernel(others.join(", ")) }
}

/// The releases of other installed kernels whose modules have it.
pub(crate) fn others(release: &str) -> Vec<String> {
    let all = kernels::releases(Path::new("/")).into_iter();
    all.filter(|other| other != release && is_installed(other)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_refuses_a_module_for_is_named() {
        let complaint = |words: &str| of_modprobe(format!("modprobe: ERROR: could not insert 'dormouse': {words}"));
        assert_eq!(complaint("Key was rejected by service"), NoModule::Unsigned);
        assert_eq!(complaint("Required key not available"), NoModule::Unsigned);
        assert_eq!(complaint("Operation not permitted"), NoModule::LockedDown);
        assert!(matches!(complaint("Cannot allocate memory"), NoModule::NotLoaded(text) if text.contains("memory")));
    }

    #[test]
    fn the_kernel_comes_first_unless_the_policy_says_otherwise() {
        let old = || Some(Obstacle::NoReturn { release: "6.1".into() });
        let refused = || Some(Obstacle::LoadRefused(None));
        let module = |instead_of| Ok(Choice::Module { instead_of });
        assert_eq!(judge(Jump::Auto, None), Ok(Choice::Kernel));
        assert_eq!(judge(Jump::Kernel, None), Ok(Choice::Kernel));
        assert_eq!(judge(Jump::Module, None), module(None));
        assert_eq!(judge(Jump::Auto, Some(Obstacle::NoJump)), module(Some(Obstacle::NoJump)));
        assert_eq!(judge(Jump::Auto, old()), module(old()));
        assert_eq!(judge(Jump::Kernel, old()), Err(Obstacle::NoReturn { release: "6.1".into() }));
        assert_eq!(judge(Jump::Module, old()), module(None));
        for wanted in [Jump::Auto, Jump::Kernel, Jump::Module] {
            assert_eq!(judge(wanted, refused()), Err(Obstacle::LoadRefused(None)));
        }
    }
}
