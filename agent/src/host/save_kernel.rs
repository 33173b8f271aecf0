//! What B and D are made of: their kernel, put where the policy has it, and the initramfs that belongs to it.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use dormouse_linux::atomic_file::replace;
use dormouse_linux::block::Hardware;
use dormouse_linux::{bzimage_release, kmod, procfs};

use crate::host::initramfs::{self, devices};
use crate::launch::arch::bzimage::BzImage;
use crate::policy::{KernelPolicy, Policy};
use crate::target::{self, file};

/// The static program that becomes PID 1, where a package puts it.
pub const INIT: &str = "/usr/lib/dormouse/dormouse-init";
/// As the name of a module: those that the image device needs.
pub const AUTO: &str = "auto";
/// As the name of a module: none.
pub const NONE: &str = "none";

/// What is to be built, beyond the policy.
#[derive(Debug, Clone)]
pub struct Options {
    /// The bzImage that becomes the policy's `kernel.image` first; without it, the one that is there is used.
    pub kernel: Option<PathBuf>,
    /// Where the initramfs goes, in place of the policy's `kernel.initramfs`.
    pub output: Option<PathBuf>,
    /// The static program that becomes PID 1.
    pub init: PathBuf,
    /// Names of modules; [`AUTO`] stands for those that the image device needs, [`NONE`] for nothing.
    pub modules: Vec<String>,
    /// The modules' folder, in place of the one that belongs to the kernel.
    pub modules_dir: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Options {
        Options { kernel: None, output: None, init: INIT.into(), modules: vec![AUTO.to_owned()], modules_dir: None }
    }
}

/// Builds the initramfs, and says in words what is in it.
///
/// Kernel and initramfs are replaced only when both are ready.
///
/// # Errors
/// The kernel is none, or would replace another that is not Dormouse's copy; the image device or its modules are not there, or
/// something cannot be written. What was there stays.
pub fn run(policy: &Policy, options: &Options) -> anyhow::Result<String> {
    let init = std::fs::read(&options.init)
        .with_context(|| format!("{}: cannot read the program for PID 1", options.init.display()))?;
    let kernel = match &options.kernel {
        Some(file) => new_kernel(file, &policy.kernel.image)?.map(|bytes| (file, bytes)),
        None => None,
    };
    let modules = match module_names(policy, options)?.as_slice() {
        [] => Vec::new(),
        names => kmod::resolve(&modules_folder(policy, options)?, names)?,
    };
    let bytes = initramfs::build(&file::for_boot(policy)?, &init, &modules)?;
    let mut said = String::new();
    if let Some((file, bytes)) = &kernel {
        let target = &policy.kernel.image;
        write(target, bytes)?;
        said = format!("{}: a copy of {}\n", target.display(), file.display());
    }
    let output = options.output.as_ref().unwrap_or(&policy.kernel.initramfs);
    write(output, &bytes)?;
    let names: Vec<&str> = modules.iter().map(|module| module.file_name.as_str()).collect();
    let with = if names.is_empty() { String::new() } else { format!(", with {}", names.join(" ")) };
    Ok(format!("{said}{}: {} bytes{with}", output.display(), bytes.len()))
}

/// The names of the modules that are asked for, or that the image device needs, each with what it needs itself, in the order in
/// which they must be loaded.
///
/// # Errors
/// As [`run`].
pub fn list_modules(policy: &Policy, options: &Options) -> anyhow::Result<Vec<String>> {
    let names = module_names(policy, options)?;
    if names.is_empty() {
        return Ok(names);
    }
    Ok(kmod::order(&modules_folder(policy, options)?, &names)?)
}

/// The modules that are asked for, with what [`AUTO`] and [`NONE`] stand for in their place.
fn module_names(policy: &Policy, options: &Options) -> anyhow::Result<Vec<String>> {
    let mut names = Vec::new();
    for name in &options.modules {
        match name.as_str() {
            NONE => {}
            AUTO => {
                let place = target::find(&policy.image.device, Duration::ZERO)
                    .context("what it needs can be found out only where it is; name the modules with --modules")?;
                let device = if place.path.is_file() { file::block_device(&place.path)? } else { place.path };
                let hardware = Hardware::of_node(&device).context("what it needs cannot be found out")?;
                names.extend(devices::modules_of(&hardware, &modules_folder(policy, options)?)?);
            }
            _ => names.push(name.clone()),
        }
    }
    Ok(names)
}

/// The folder of the modules that belong to the kernel.
fn modules_folder(policy: &Policy, options: &Options) -> anyhow::Result<PathBuf> {
    if let Some(folder) = &options.modules_dir {
        return Ok(folder.clone());
    }
    let kernel = options.kernel.as_ref().unwrap_or(&policy.kernel.image);
    let cannot =
        || format!("{}: cannot tell this kernel's release; name its modules with --modules-dir", kernel.display());
    Ok(Path::new("/lib/modules").join(release_of(kernel).with_context(cannot)?))
}

/// The release of the kernel in a bzImage.
///
/// # Errors
/// The file cannot be read, or it does not say.
fn release_of(bzimage: &Path) -> anyhow::Result<String> {
    bzimage_release::of_bzimage(&procfs::head(bzimage, bzimage_release::HEAD_LEN as u64)?)
        .with_context(|| format!("{}: this is no bzImage that names its release", bzimage.display()))
}

/// The kernel in `file`, if it is another than that at `target`. What a machine boots from is not replaced by it: only at its
/// default place is `target` certainly a copy.
fn new_kernel(file: &Path, target: &Path) -> anyhow::Result<Option<Vec<u8>>> {
    let bytes = procfs::read(file)?;
    if let Err(error) = BzImage::parse(&bytes) {
        bail!("{}: it cannot be the save kernel: {error}", file.display());
    }
    match std::fs::read(target) {
        Ok(found) if found == bytes => Ok(None),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Some(bytes)),
        _ if KernelPolicy::is_own(target) => Ok(Some(bytes)),
        _ => bail!(
            "{}: the policy's kernel.image is there already, and at this place may be what the machine boots from; nothing was \
             changed. Leave kernel.image out of the policy, or set it to {}",
            target.display(),
            file.display()
        ),
    }
}

/// For its owner alone: an initramfs holds the policy.
fn write(file: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    replace(file, bytes, 0o600).with_context(|| format!("{}: cannot write it", file.display()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn another_kernel_of_the_machine_is_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let [new, boots, missing] = ["new", "boots", "missing"].map(|name| folder.path().join(name));
        let kernel = crate::launch::arch::bzimage::tests::sample(4096);
        std::fs::write(&new, &kernel).unwrap();
        std::fs::write(&boots, b"what the machine boots from").unwrap();
        let refused = new_kernel(&new, &boots).unwrap_err().to_string();
        assert!(refused.contains("kernel.image") && refused.contains("nothing was changed"), "{refused}");
        assert_eq!(new_kernel(&new, &missing).unwrap(), Some(kernel));
        // By whatever name, it is the same.
        std::os::unix::fs::symlink(&new, &missing).unwrap();
        assert_eq!(new_kernel(&new, &missing).unwrap(), None);
        assert!(new_kernel(&boots, &new).unwrap_err().to_string().contains("cannot be the save kernel"));
    }
}
