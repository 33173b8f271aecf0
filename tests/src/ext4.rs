//! An ext4 filesystem in a guest's disk file, made and checked on the host while the guest is off.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

const MAKE: &str = "/sbin/mkfs.ext4";
const CHECK: &str = "/sbin/fsck.ext4";

/// Makes an empty filesystem of the size of the file.
///
/// # Errors
/// Fails where the program is missing or refuses.
pub fn make(disk: &Path) -> Result<()> {
    run(MAKE, &["-q", "-F"], disk).map(|_| ())
}

/// Demands that the filesystem is clean, and returns what the check says of it.
///
/// # Errors
/// Fails where it finds anything to repair.
pub fn check(disk: &Path) -> Result<String> {
    run(CHECK, &["-f", "-n"], disk)
}

fn run(program: &str, options: &[&str], disk: &Path) -> Result<String> {
    let output = Command::new(program).args(options).arg(disk).output();
    let output = output.with_context(|| format!("{program} cannot be started; the package e2fsprogs holds it"))?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success(),
        "{program} on {}: {}: {} {}",
        disk.display(),
        output.status,
        said.trim(),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(said.into_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_filesystem_is_clean_until_something_overwrites_it() {
        let disk = tempfile::NamedTempFile::new().unwrap();
        disk.as_file().set_len(16 << 20).unwrap();
        assert!(check(disk.path()).is_err(), "there is none yet");
        make(disk.path()).unwrap();
        check(disk.path()).unwrap();
        // The first group's descriptor.
        std::os::unix::fs::FileExt::write_all_at(disk.as_file(), &[0x55; 64], 4096).unwrap();
        assert!(check(disk.path()).is_err());
    }
}
