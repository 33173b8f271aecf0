//! A disk with systemd-boot on it, for a machine with UEFI.
//!
//! ```text
//!   2  EFI system partition              systemd-boot; and the host's: kernel, initramfs, entry of the ordinary boot
//!   3  extended boot loader partition    /boot of the guest, on FAT: what Dormouse puts there
//! ```
//!
//! The places are those of [`crate::grub`]. No guest mounts the second partition, so the host can change how a machine
//! boots whose session is hibernated.

use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};

use crate::filesystem;
use crate::grub::{BOOT, BOOT_MIB, HOST, HOST_MIB, on_partition, put, run, table};

/// systemd-boot itself, from the package systemd-boot-efi.
const PROGRAM: &str = "/usr/lib/systemd/boot/efi/systemd-bootx64.efi";
/// What the guest's entry has beside its options. No other file says which entry is the default.
const ENTRY: &str = "title The guest\nlinux /vmlinuz\ninitrd /initramfs\n";

/// Makes such a disk of an empty file, whose `/boot` has what is in the directory `boot`.
///
/// # Errors
/// Fails where a program is missing or refuses.
pub(crate) fn make(disk: &Path, boot: &Path) -> Result<()> {
    filesystem::partition(disk, &table("BC13C2FF-59E6-4262-A352-B275FD6F7172"))?;
    for (start, mib, label) in [(HOST, HOST_MIB, "ESP"), (BOOT, BOOT_MIB, "XBOOTLDR")] {
        filesystem::make_fat(disk, start, mib, label)?;
        for folder in ["::/loader", "::/loader/entries"] {
            run(on_partition("mmd", disk, start).arg(folder))?;
        }
    }
    for folder in ["::/EFI", "::/EFI/BOOT"] {
        run(on_partition("mmd", disk, HOST).arg(folder))?;
    }
    put(disk, Path::new(PROGRAM), "EFI/BOOT/BOOTX64.EFI")?;
    for file in boot.read_dir().context("/boot")? {
        run(on_partition("mcopy", disk, BOOT).arg(file?.path()).arg("::/"))?;
    }
    Ok(())
}

/// Gives the kernel of the ordinary boot its command line, and the menu the seconds that it is shown for.
///
/// # Errors
/// Fails where mcopy does.
pub(crate) fn put_arguments(disk: &Path, line: &str, menu_seconds: Option<u32>) -> Result<()> {
    let texts = [
        ("loader/entries/guest.conf", format!("{ENTRY}options {line}\n")),
        ("loader/loader.conf", format!("timeout {}\n", menu_seconds.unwrap_or(0))),
    ];
    for (path, text) in texts {
        let mut file = tempfile::NamedTempFile::new().with_context(|| path.to_owned())?;
        file.write_all(text.as_bytes()).with_context(|| path.to_owned())?;
        put(disk, file.path(), path)?;
    }
    Ok(())
}

/// A file of the guest's `/boot`, as a boot loader sees it; `None` where there is none.
///
/// # Errors
/// Fails where mtype cannot be started.
pub fn boot_file(disk: &Path, path: &str) -> Result<Option<Vec<u8>>> {
    let mut mtype = on_partition("mtype", disk, BOOT);
    let output = mtype.arg(format!("::/{path}")).output().context("mtype (mtools); scripts/test installs it")?;
    Ok(output.status.success().then_some(output.stdout))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs::{self, File};

    use super::*;
    use crate::grub::DISK_BYTES;

    #[test]
    fn a_disk_has_the_loader_and_the_files_of_boot() {
        let directory = tempfile::tempdir().unwrap();
        let (disk, boot) = (directory.path().join("disk"), directory.path().join("boot"));
        File::create_new(&disk).unwrap().set_len(DISK_BYTES).unwrap();
        fs::create_dir(&boot).unwrap();
        fs::write(boot.join("config"), "a kernel's").unwrap();
        make(&disk, &boot).unwrap();
        put_arguments(&disk, "quiet noresume", None).unwrap();
        assert_eq!(boot_file(&disk, "config").unwrap().unwrap(), b"a kernel's");
        assert_eq!(boot_file(&disk, "loader/entries/a.conf").unwrap(), None);
        let mut mtype = on_partition("mtype", &disk, HOST);
        let output = mtype.arg("::/loader/entries/guest.conf").output().unwrap();
        assert!(String::from_utf8(output.stdout).unwrap().ends_with("options quiet noresume\n"));
    }
}
