//! Which kernel modules the initramfs of B and D holds: those that are named, or that the target needs.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use dormouse_linux::{bzimage_release, kmod, procfs};

use crate::host::initramfs::{carried_policy, remembered};
use crate::policy::Policy;
use crate::target::{self, Needs, TargetError};

/// The static program that becomes PID 1, where a package puts it.
pub const INIT: &str = "/usr/lib/dormouse/dormouse-init";
/// As the name of a module: those that the target needs.
pub const AUTO: &str = "auto";
/// As the name of a module: none.
pub const NONE: &str = "none";

/// What is to be built, beyond the policy.
#[derive(Debug, Clone)]
pub struct Options {
    /// The bzImage that becomes the policy's `kernel.image` first; without it, the one that exists there is used.
    pub kernel: Option<PathBuf>,
    /// The static program that becomes PID 1.
    pub init: PathBuf,
    /// Names of modules; [`AUTO`] stands for those that the target needs, [`NONE`] for nothing.
    pub modules: Vec<String>,
    /// The modules' directory, in place of the one that belongs to the kernel.
    pub modules_dir: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Options {
        Options { kernel: None, init: INIT.into(), modules: vec![AUTO.to_owned()], modules_dir: None }
    }
}

/// The names of the modules that are asked for, or that the target needs, each with what it needs itself, in the order
/// in which they must be loaded.
///
/// # Errors
/// The target or its modules cannot be found.
pub fn list_modules(policy: &Policy, options: &Options) -> anyhow::Result<Vec<String>> {
    match names(policy, options)?.as_slice() {
        [] => Ok(Vec::new()),
        names => Ok(kmod::order(&directory(policy, options)?, names)?),
    }
}

/// The same modules, read.
///
/// # Errors
/// As [`list_modules`]; a module cannot be read.
pub fn load_modules(policy: &Policy, options: &Options) -> anyhow::Result<Vec<kmod::Module>> {
    match names(policy, options)?.as_slice() {
        [] => Ok(Vec::new()),
        names => Ok(kmod::resolve(&directory(policy, options)?, names)?),
    }
}

/// The modules that are asked for, with what [`AUTO`] and [`NONE`] stand for in their place.
fn names(policy: &Policy, options: &Options) -> anyhow::Result<Vec<String>> {
    let mut names = Vec::new();
    for name in &options.modules {
        match name.as_str() {
            NONE => {}
            AUTO => names.extend(of_target(policy, options)?),
            _ => names.push(name.clone()),
        }
    }
    Ok(names)
}

/// The modules that the target needs; those that it needed the last time where it is not there.
fn of_target(policy: &Policy, options: &Options) -> anyhow::Result<Vec<String>> {
    let found = target::find(&policy.image.device, Duration::ZERO);
    let is_absent = matches!(found, Err(TargetError::NotFound { .. } | TargetError::NoFile { .. }));
    let drivers = match remembered::drivers(Path::new(remembered::FILE), policy).filter(|_| is_absent) {
        Some(drivers) => {
            remembered::warn(policy, "its modules are found as they were when an initramfs was built last");
            drivers
        }
        None => {
            let target =
                found.context("what it needs can be found out only where it is; name the modules with --modules")?;
            let drivers = target.drivers().context("what it needs cannot be found out")?;
            if let Ok(carried) = carried_policy(policy) {
                remembered::remember(Path::new(remembered::FILE), policy, &carried, &drivers);
            }
            drivers
        }
    };
    Ok(Needs::of(&drivers, &directory(policy, options)?).context("what it needs cannot be found out")?.modules)
}

/// The directory of the modules that belong to the kernel.
fn directory(policy: &Policy, options: &Options) -> anyhow::Result<PathBuf> {
    if let Some(directory) = &options.modules_dir {
        return Ok(directory.clone());
    }
    let kernel = options.kernel.as_ref().unwrap_or(&policy.kernel.image);
    let cannot =
        || format!("{}: cannot tell this kernel's release; name its modules with --modules-dir", kernel.display());
    Ok(Path::new("/lib/modules").join(release_of(kernel).with_context(cannot)?))
}

/// The release of the kernel in a bzImage.
fn release_of(bzimage: &Path) -> anyhow::Result<String> {
    bzimage_release::of_bzimage(&procfs::head(bzimage, bzimage_release::HEAD_LEN as u64)?)
        .with_context(|| format!("{}: it is not a bzImage that names its release", bzimage.display()))
}
