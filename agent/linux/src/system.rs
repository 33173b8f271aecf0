//! The name of the running kernel and the rights of this process.

use std::ffi::OsStr;

use anyhow::Context;

/// What uname(2) reports.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Uname {
    /// The kernel's release, as `uname -r` prints it.
    pub release: String,
    /// Its build, as `uname -v` prints it.
    pub version: String,
    /// The name of this host.
    pub nodename: String,
    /// The architecture, as `uname -m` prints it.
    pub machine: String,
}

impl Uname {
    /// Asks the kernel.
    ///
    /// # Errors
    /// It does not answer, which no kernel does.
    pub fn read() -> anyhow::Result<Uname> {
        let found = nix::sys::utsname::uname().context("uname")?;
        let string = |text: &OsStr| text.to_string_lossy().into_owned();
        Ok(Uname {
            release: string(found.release()),
            version: string(found.version()),
            nodename: string(found.nodename()),
            machine: string(found.machine()),
        })
    }
}

/// Whether this process is root's.
#[must_use]
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::procfs;

    #[test]
    fn the_release_is_the_kernels() {
        let release = procfs::text("/proc/sys/kernel/osrelease").unwrap();
        assert_eq!(Uname::read().unwrap().release, release.trim());
    }
}
