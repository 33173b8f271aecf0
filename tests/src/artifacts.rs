//! Where the parts of a guest are found on the host.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::debian::{Encrypted, Suite};

/// Dormouse's own package, from `scripts/package deb`.
pub const PACKAGE_VARIABLE: &str = "DORMOUSE_DEB";
/// The package of its kernel module, from `scripts/package dkms`.
pub const MODULE_PACKAGE_VARIABLE: &str = "DORMOUSE_DKMS_DEB";
/// The directory of the static binaries, from `cargo build --release`.
pub const BINARIES_VARIABLE: &str = "DORMOUSE_BIN";

const BUSYBOX: &str = "/bin/busybox";
/// The checkout.
const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// A kernel that guests can run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum KernelName {
    /// The test kernel, unless the demonstration was given another one.
    #[default]
    Test,
    /// The test kernel's configuration with Linux 7.2.
    Linux7_2,
    /// The test kernel with what distributions switch on.
    Big,
    /// The test kernel with Dormouse's own module.
    Module,
    /// The same, which checks itself, and without `/dev/mem`.
    Debug,
    /// Debian 12's own.
    Bookworm,
    /// Debian 13's own.
    Trixie,
    /// Debian 13's own newest one.
    TrixieBackports,
}

impl KernelName {
    /// The environment variable that names its directory, and the script that makes it.
    fn variable(self) -> (&'static str, &'static str) {
        match self {
            KernelName::Test => ("DORMOUSE_KERNEL", "scripts/build-kernel"),
            KernelName::Linux7_2 => ("DORMOUSE_KERNEL_7_2", "scripts/build-kernel 7.2"),
            KernelName::Big => ("DORMOUSE_KERNEL_BIG", "scripts/build-kernel --big"),
            KernelName::Module => ("DORMOUSE_KERNEL_MODULE", "scripts/build-module --kernel"),
            KernelName::Debug => ("DORMOUSE_KERNEL_DEBUG", "scripts/build-module --kernel"),
            KernelName::Bookworm => ("DORMOUSE_KERNEL_BOOKWORM", "scripts/stock-kernel bookworm"),
            KernelName::Trixie => ("DORMOUSE_KERNEL_TRIXIE", "scripts/stock-kernel trixie"),
            KernelName::TrixieBackports => {
                ("DORMOUSE_KERNEL_TRIXIE_BACKPORTS", "scripts/stock-kernel trixie-backports")
            }
        }
    }

    fn open(self) -> Result<Kernel> {
        let (variable, script) = self.variable();
        let directory = std::env::var_os(variable).map(PathBuf::from);
        let directory = directory.with_context(|| {
            format!("{variable} is not set: scripts/test and scripts/demo set it to what {script} prints")
        })?;
        Kernel::open(directory)
    }
}

/// A kernel with its modules, in a directory as `scripts/build-kernel` makes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    directory: PathBuf,
    release: String,
}

impl Kernel {
    /// Finds it in a directory.
    ///
    /// # Errors
    /// Fails where a part is missing.
    pub fn open(directory: PathBuf) -> Result<Self> {
        let path = directory.join("release");
        let release = std::fs::read_to_string(&path).with_context(|| {
            format!("{}: cannot be read; scripts/build-kernel and scripts/stock-kernel make it", path.display())
        })?;
        let kernel = Kernel { directory, release: release.trim().to_owned() };
        if !kernel.bzimage().is_file() {
            bail!("{}: missing; scripts/build-kernel and scripts/stock-kernel make it", kernel.bzimage().display());
        }
        Ok(kernel)
    }

    /// The kernel itself.
    #[must_use]
    pub fn bzimage(&self) -> PathBuf {
        self.directory.join("bzImage")
    }

    /// Its configuration.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.directory.join("config")
    }

    /// Its release, as `uname -r` prints it.
    #[must_use]
    pub fn release(&self) -> &str {
        &self.release
    }

    /// Its modules.
    #[must_use]
    pub fn modules(&self) -> PathBuf {
        self.directory.join("lib/modules").join(&self.release)
    }

    /// Whether Dormouse's own module is among them, where DKMS puts it.
    #[must_use]
    pub fn has_module(&self) -> bool {
        self.modules().join("updates/dkms/dormouse.ko").is_file()
    }
}

/// The files that guests are made of.
#[derive(Debug, Clone)]
pub struct Artifacts {
    kernel: Kernel,
    binaries: PathBuf,
}

impl Artifacts {
    /// Finds the test kernel and the binaries by their variables.
    ///
    /// # Errors
    /// Fails where one is not set or a file is missing, and names the script that provides it.
    pub fn from_environment() -> Result<Self> {
        let artifacts = Artifacts { kernel: KernelName::Test.open()?, binaries: variable(BINARIES_VARIABLE)? };
        for path in [
            artifacts.binary("dormouse"),
            artifacts.binary("dormouse-init"),
            artifacts.binary("workload"),
            artifacts.binary("command-server"),
            artifacts.busybox(),
        ] {
            if !path.is_file() {
                bail!("{}: missing; scripts/test and scripts/demo provide it", path.display());
            }
        }
        Ok(artifacts)
    }

    /// The same with another test kernel.
    #[must_use]
    pub fn with_kernel(mut self, kernel: Kernel) -> Self {
        self.kernel = kernel;
        self
    }

    /// The same with the kernel that an option names: a directory, or a series, which is what the environment has.
    ///
    /// # Errors
    /// Fails where a directory of a kernel is not one.
    pub fn with_option(self, kernel: &str) -> Result<Self> {
        let directory = Path::new(kernel);
        if directory.is_dir() { Ok(self.with_kernel(Kernel::open(directory.to_owned())?)) } else { Ok(self) }
    }

    /// A kernel.
    ///
    /// # Errors
    /// Fails where its variable is not set or a part of it is missing.
    pub fn kernel(&self, name: KernelName) -> Result<Kernel> {
        if name == KernelName::Test { Ok(self.kernel.clone()) } else { name.open() }
    }

    /// The root filesystem of a Debian guest, from `scripts/build-debian`.
    ///
    /// # Errors
    /// Fails where its variable is not set.
    pub fn debian(&self, suite: Suite) -> Result<PathBuf> {
        variable(suite.variable())
    }

    /// The root filesystem of a Debian guest that boots Debian's own kernel, from `scripts/build-debian --stock`.
    ///
    /// # Errors
    /// Fails where its variable is not set.
    pub fn stock_debian(&self, suite: Suite) -> Result<PathBuf> {
        variable(&suite.stock_variable())
    }

    /// The disk of an encrypted Debian guest, from `scripts/build-debian --encrypted` or `--encrypted-btrfs`.
    ///
    /// # Errors
    /// Fails where its variable is not set.
    pub fn encrypted_debian(&self, kind: Encrypted) -> Result<PathBuf> {
        variable(&kind.variable())
    }

    /// Dormouse's package for Debian.
    ///
    /// # Errors
    /// Fails where its variable is not set.
    pub fn package(&self) -> Result<PathBuf> {
        variable(PACKAGE_VARIABLE)
    }

    /// The package of Dormouse's kernel module, for DKMS.
    ///
    /// # Errors
    /// Fails where its variable is not set.
    pub fn module_package(&self) -> Result<PathBuf> {
        variable(MODULE_PACKAGE_VARIABLE)
    }

    /// The test kernel.
    #[must_use]
    pub fn bzimage(&self) -> PathBuf {
        self.kernel.bzimage()
    }

    /// The test kernel's release, as `uname -r` prints it.
    #[must_use]
    pub fn release(&self) -> &str {
        self.kernel.release()
    }

    /// The test kernel's modules.
    #[must_use]
    pub fn modules(&self) -> PathBuf {
        self.kernel.modules()
    }

    /// A binary of this workspace.
    #[must_use]
    pub fn binary(&self, name: &str) -> PathBuf {
        self.binaries.join(name)
    }

    /// The shell and tools of guest A.
    #[must_use]
    pub fn busybox(&self) -> PathBuf {
        PathBuf::from(BUSYBOX)
    }

    /// A file of the checkout.
    #[must_use]
    pub fn source(&self, path: &str) -> PathBuf {
        Path::new(ROOT).join(path)
    }
}

/// The path in an environment variable.
fn variable(name: &str) -> Result<PathBuf> {
    let path = std::env::var_os(name).map(PathBuf::from);
    path.with_context(|| format!("{name} is not set: run scripts/test or scripts/demo, which set it"))
}
