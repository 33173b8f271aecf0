//! Filesystems in a guest's disk files, made and checked on the host while the guest is off.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use tempfile::NamedTempFile;

const CHECK: &str = "/sbin/fsck.ext4";

/// Makes an empty filesystem of a kind, as `mkfs` names it, of the size of the file.
///
/// # Errors
/// Fails where the program is missing or refuses.
pub fn make(kind: &str, disk: &Path) -> Result<()> {
    let options: &[&str] = match kind {
        "ext4" => &["-q", "-F"],
        "xfs" | "btrfs" => &["-q", "-f"],
        _ => &[],
    };
    run(&format!("/sbin/mkfs.{kind}"), options, disk).map(|_| ())
}

/// Gives a disk a GPT with one partition, which sfdisk's own words describe.
///
/// # Errors
/// Fails where it cannot be written.
pub fn partition(disk: &Path, partition: &str) -> Result<()> {
    let mut sfdisk = Command::new("/sbin/sfdisk");
    let child = sfdisk.args(["--quiet", "--label", "gpt"]).arg(disk).stdin(Stdio::piped()).spawn();
    let mut child = child.context("sfdisk cannot be started; scripts/test installs it")?;
    child.stdin.take().context("sfdisk's input")?.write_all(format!("{partition}\n").as_bytes())?;
    ensure!(child.wait()?.success(), "sfdisk has failed on {}", disk.display());
    Ok(())
}

/// Makes an empty FAT filesystem with this label, of so many MiB from a sector of the disk on.
///
/// # Errors
/// Fails where the program is missing or refuses.
pub fn make_fat(disk: &Path, sector: u64, mib: u64, label: &str) -> Result<()> {
    let mut fat = Command::new("/sbin/mkfs.fat");
    fat.args(["-F", "16", "-s", "16", "-n", label, "--offset", &sector.to_string()]).arg(disk);
    let output = fat.arg((mib * 1024).to_string()).output().context("mkfs.fat cannot be started")?;
    ensure!(output.status.success(), "mkfs.fat: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

/// A file with an empty ext4 filesystem whose blocks have 4 KiB, as a large one has. A small one would have 1 KiB, and
/// a file of it would seldom lie in whole blocks of 4 KiB.
///
/// # Errors
/// Fails where it cannot be made.
pub fn ext4(bytes: u64) -> Result<NamedTempFile> {
    let file = NamedTempFile::new()?;
    file.as_file().set_len(bytes)?;
    run("/sbin/mkfs.ext4", &["-q", "-F", "-b", "4096"], file.path())?;
    Ok(file)
}

/// Demands that an ext4 filesystem is clean, and returns what the check prints.
///
/// # Errors
/// Fails where it finds anything to repair.
pub fn check_ext4(disk: &Path) -> Result<String> {
    run(CHECK, &["-f", "-n"], disk)
}

/// Demands that an XFS filesystem that was unmounted is clean.
///
/// # Errors
/// Fails where the check finds anything to repair.
pub fn check_xfs(disk: &Path) -> Result<String> {
    run("/sbin/xfs_repair", &["-n", "-f"], disk)
}

/// Demands that a btrfs filesystem is clean, checksums of data included.
///
/// # Errors
/// Fails where the check finds anything to repair.
pub fn check_btrfs(disk: &Path) -> Result<String> {
    run("/bin/btrfs", &["check", "--readonly", "--check-data-csum"], disk)
}

fn run(program: &str, options: &[&str], disk: &Path) -> Result<String> {
    let output = Command::new(program).args(options).arg(disk).output();
    let output = output.with_context(|| format!("{program} cannot be started; scripts/test installs it"))?;
    let printed = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success(),
        "{program} on {}: {}: {} {}",
        disk.display(),
        output.status,
        printed.trim(),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(printed.into_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_filesystem_is_clean_until_something_overwrites_it() {
        let disk = tempfile::NamedTempFile::new().unwrap();
        disk.as_file().set_len(16 << 20).unwrap();
        assert!(check_ext4(disk.path()).is_err(), "there is none yet");
        make("ext4", disk.path()).unwrap();
        check_ext4(disk.path()).unwrap();
        // The first group's descriptor.
        std::os::unix::fs::FileExt::write_all_at(disk.as_file(), &[0x55; 64], 4096).unwrap();
        assert!(check_ext4(disk.path()).is_err());
    }
}
