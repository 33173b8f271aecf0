//! What B and D are made of: their kernel, put where the policy has it, and the initramfs that belongs to it.

use std::fmt;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use dormouse_linux::atomic_file::replace;
use dormouse_linux::procfs;
use serde::Serialize;

use crate::host::initramfs::needs::{self, Options};
use crate::host::initramfs::{self, carried_policy};
use crate::launch::arch::bzimage::BzImage;
use crate::policy::{KernelPolicy, Policy};

/// What was built.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Built {
    /// The save kernel, where it was replaced.
    pub kernel: Option<Copied>,
    /// The initramfs.
    pub initramfs: PathBuf,
    /// Its size.
    pub bytes: usize,
    /// The files of the modules in it, in the order of loading.
    pub modules: Vec<String>,
}

/// A save kernel that was put where the policy has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Copied {
    /// What it is a copy of.
    pub from: PathBuf,
    /// Where it is.
    pub to: PathBuf,
}

impl fmt::Display for Built {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(Copied { from, to }) = &self.kernel {
            writeln!(f, "{}: a copy of {}", to.display(), from.display())?;
        }
        write!(f, "{}: {} bytes", self.initramfs.display(), self.bytes)?;
        match self.modules.as_slice() {
            [] => Ok(()),
            modules => write!(f, ", with {}", modules.join(" ")),
        }
    }
}

/// Builds the initramfs, to `output` in place of the policy's `kernel.initramfs` where that is given.
///
/// Kernel and initramfs are replaced only when both are ready.
///
/// # Errors
/// The kernel is not one, or would replace another that is not Dormouse's copy; the image device or its modules are
/// missing, or something cannot be written. What was there stays.
pub fn run(policy: &Policy, options: &Options, output: Option<&Path>) -> anyhow::Result<Built> {
    let init = std::fs::read(&options.init)
        .with_context(|| format!("{}: cannot read the program for PID 1", options.init.display()))?;
    let kernel = match &options.kernel {
        Some(file) => new_kernel(file, &policy.kernel.image)?.map(|bytes| (file, bytes)),
        None => None,
    };
    let modules = needs::load_modules(policy, options)?;
    let bytes = initramfs::build(&carried_policy(policy)?, &init, &modules)?;
    let kernel = match kernel {
        Some((from, bytes)) => {
            write(&policy.kernel.image, &bytes)?;
            Some(Copied { from: from.clone(), to: policy.kernel.image.clone() })
        }
        None => None,
    };
    let output = output.unwrap_or(&policy.kernel.initramfs);
    write(output, &bytes)?;
    let modules = modules.all().map(|module| module.file_name.clone()).collect();
    Ok(Built { kernel, initramfs: output.to_owned(), bytes: bytes.len(), modules })
}

/// The kernel in `file`, if it is another than that at `target`. What a machine boots from is not replaced by it: only
/// at its default place is `target` certainly a copy.
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
            "{}: the policy's kernel.image exists already, and at this place may be what the machine boots from; \
             nothing was changed. Leave kernel.image out of the policy, or set it to {}",
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
        let directory = tempfile::tempdir().unwrap();
        let [new, boots, missing] = ["new", "boots", "missing"].map(|name| directory.path().join(name));
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
