//! Where the parts of a guest are found on the host.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::debian::Suite;

/// The directory of the test kernel, from `scripts/build-kernel`.
pub const KERNEL_VARIABLE: &str = "DORMOUSE_KERNEL";
/// Dormouse's own package, from `scripts/package deb`.
pub const PACKAGE_VARIABLE: &str = "DORMOUSE_DEB";
/// The directory of the static binaries, from `cargo build --release`.
pub const BINARIES_VARIABLE: &str = "DORMOUSE_BIN";

const BUSYBOX: &str = "/bin/busybox";
/// The checkout.
const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// The files that guests are made of.
#[derive(Debug, Clone)]
pub struct Artifacts {
    kernel: PathBuf,
    release: String,
    binaries: PathBuf,
}

impl Artifacts {
    /// Finds them by the two variables.
    ///
    /// # Errors
    /// Fails where one is not set or a file is missing, and names the script that provides it.
    pub fn from_environment() -> Result<Self> {
        let (kernel, binaries) = (variable(KERNEL_VARIABLE)?, variable(BINARIES_VARIABLE)?);
        let path = kernel.join("release");
        let release = std::fs::read_to_string(&path)
            .with_context(|| format!("{}: cannot be read; scripts/build-kernel makes it", path.display()))?;
        let artifacts = Artifacts { kernel, release: release.trim().to_owned(), binaries };
        for path in [
            artifacts.bzimage(),
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

    /// The root filesystem of a Debian guest, from `scripts/build-debian`.
    ///
    /// # Errors
    /// Fails where its variable is not set.
    pub fn debian(&self, suite: Suite) -> Result<PathBuf> {
        variable(suite.variable())
    }

    /// Dormouse's package for Debian.
    ///
    /// # Errors
    /// Fails where its variable is not set.
    pub fn package(&self) -> Result<PathBuf> {
        variable(PACKAGE_VARIABLE)
    }

    /// The kernel of A, B, C and D.
    #[must_use]
    pub fn bzimage(&self) -> PathBuf {
        self.kernel.join("bzImage")
    }

    /// The kernel's release, as `uname -r` prints it.
    #[must_use]
    pub fn release(&self) -> &str {
        &self.release
    }

    /// The kernel's modules.
    #[must_use]
    pub fn modules(&self) -> PathBuf {
        self.kernel.join("lib/modules").join(&self.release)
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
