//! `dormouse update`: the save kernel and its initramfs, brought up to date when kernels come or go and when Dormouse
//! itself changes.
//!
//! The save kernel is a copy, and its modules are in its initramfs, so that neither gets stale by itself, or is lost
//! with the kernel that it was taken from.

use std::fmt;
use std::path::{Path, PathBuf};

use dormouse_linux::kernel_config::KernelConfig;
use dormouse_linux::kernels;
use dormouse_linux::system::Uname;
use serde::Serialize;

use crate::cycle::lock::Lock;
use crate::cycle::{jump, refusal};
use crate::host::initramfs::needs::Options;
use crate::host::save_kernel::{self, Built};
use crate::policy::{Jump, KernelPolicy, Policy};

/// What was brought up to date.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Updated {
    /// The save kernel that stays as it is, where no installed kernel can take its place.
    pub kept: Option<Kept>,
    /// What was built.
    pub built: Built,
}

/// A save kernel that stays as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Kept {
    /// The save kernel.
    pub kernel: PathBuf,
    /// Why none of the installed kernels will do.
    pub unfit: Vec<String>,
}

impl fmt::Display for Updated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(Kept { kernel, unfit }) = &self.kept {
            writeln!(f, "{} stays as it is: {}", kernel.display(), unfit.join("; "))?;
        }
        write!(f, "{}", self.built)
    }
}

/// Takes the newest installed kernel that can hibernate for the save kernel, and builds its initramfs.
///
/// A save kernel that the policy has somewhere else is its owner's, and stays as it is.
///
/// # Errors
/// As [`save_kernel::run`]. What was there stays.
pub fn run(policy: &Policy) -> anyhow::Result<Updated> {
    // A hibernation reads what is about to be replaced.
    let _lock = Lock::wait_if_any()?;
    let mut options = Options::default();
    let mut kept = None;
    if KernelPolicy::is_own(&policy.kernel.image) {
        let mut unfit = Vec::new();
        let jumps_by_module = |release: &str| policy.save.jump != Jump::Kernel && jump::is_installed(release);
        match choose(Path::new("/"), jumps_by_module, &mut unfit) {
            Some(kernel) => options.kernel = Some(kernel),
            None if policy.kernel.image.exists() => kept = Some(Kept { kernel: policy.kernel.image.clone(), unfit }),
            None if unfit.is_empty() => {
                anyhow::bail!(
                    "no kernel is installed with its modules; name one: `dormouse build-initramfs --kernel FILE`"
                )
            }
            None => anyhow::bail!("no installed kernel can hibernate: {}; see `dormouse doctor`", unfit.join("; ")),
        }
    }
    Ok(Updated { kept, built: save_kernel::run(policy, &options, None)? })
}

/// The file of the newest kernel that can hibernate; why those that are newer cannot goes to `unfit`.
fn choose(root: &Path, jumps_by_module: impl Fn(&str) -> bool, unfit: &mut Vec<String>) -> Option<PathBuf> {
    kernels::releases(root).into_iter().find_map(|release| {
        let config = KernelConfig::of_installed(&release);
        match judge(&release, config.as_ref(), jumps_by_module(&release), || can_running_jump(&release)) {
            Ok(()) => kernels::file_of(root, &release).ok(),
            Err(reason) => {
                unfit.push(format!("kernel {release}: {reason}"));
                None
            }
        }
    })
}

/// Why a kernel cannot be the save kernel. It must be one that can itself be hibernated: installing another beside it,
/// to boot that now and then, is not meant to change anything here. One with Dormouse's module need not be able to
/// jump.
fn judge(
    release: &str,
    config: Option<&KernelConfig>,
    has_module: bool,
    can_jump: impl FnOnce() -> bool,
) -> Result<(), String> {
    if let Some(obstacle) = refusal::in_release(release).filter(|_| !has_module) {
        return Err(obstacle.to_string());
    }
    match config {
        Some(config) => {
            let jump = (!has_module && config.has("KEXEC_JUMP") != Some(true)).then_some("KEXEC_JUMP");
            let lacking = jump.or_else(|| config.lacking(has_module).next());
            lacking.map_or(Ok(()), |option| Err(format!("it lacks CONFIG_{option}")))
        }
        None if has_module || can_jump() => Ok(()),
        None => Err("its configuration is not installed".to_owned()),
    }
}

/// Whether this is the running kernel, and it says that it can.
fn can_running_jump(release: &str) -> bool {
    Uname::read().is_ok_and(|running| running.release == release) && jump::can_preserve_context().is_ok_and(|can| can)
}

#[cfg(test)]
mod tests {
    use super::*;
    use dormouse_linux::kernel_config::SAVE_KERNEL;

    #[test]
    fn a_save_kernel_can_be_hibernated_itself() {
        let every: String =
            ["KEXEC_JUMP"].iter().chain(&SAVE_KERNEL).map(|option| format!("CONFIG_{option}=y\n")).collect();
        let judged = |release, config: Option<&str>, can_jump| {
            judge(release, config.map(KernelConfig::new).as_ref(), false, || can_jump)
                .map_or_else(|reason| reason, |()| "fit".into())
        };
        assert_eq!(judged("6.12.117", Some(&every), false), "fit");
        let without =
            |option: &str| every.replace(&format!("CONFIG_{option}=y"), &format!("# CONFIG_{option} is not set"));
        assert_eq!(judged("6.12.117", Some(&without("KEXEC_JUMP")), true), "it lacks CONFIG_KEXEC_JUMP");
        assert_eq!(judged("6.12.117", Some(&without("PROC_VMCORE")), true), "it lacks CONFIG_PROC_VMCORE");
        assert!(judged("6.1.0-56-amd64", Some(&every), true).contains("6.1.0-56-amd64"));
        let with_module = |config: &str| judge("6.1.0-56-amd64", Some(&KernelConfig::new(config)), true, || false);
        assert_eq!(with_module(&without("KEXEC_JUMP")), Ok(()));
        assert_eq!(with_module(&without("DEVMEM")), Ok(()));
        assert_eq!(with_module(&without("PROC_VMCORE")), Err("it lacks CONFIG_PROC_VMCORE".to_owned()));
        // Where no configuration is installed, only the running kernel can be asked.
        assert_eq!(judged("6.18.1-arch1-1", None, true), "fit");
        assert_eq!(judged("6.18.1-arch1-1", None, false), "its configuration is not installed");
    }
}
