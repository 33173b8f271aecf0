//! What UEFI uses at runtime, and where it has put ACPI's root pointer.

use std::fs;
use std::path::Path;

use anyhow::Context;
use dormouse_image::EfiRange;
use dormouse_linux::procfs;
use dormouse_sys::PAGE_SIZE;

/// The root pointer of ACPI, where UEFI knows it.
pub(super) fn acpi_rsdp() -> Option<u64> {
    parse_systab(&procfs::text("/sys/firmware/efi/systab").ok()?)
}

/// What UEFI's runtime services use; empty without them.
///
/// # Errors
/// The kernel's list has an entry that cannot be read.
pub(super) fn runtime() -> anyhow::Result<Vec<EfiRange>> {
    runtime_map(Path::new("/sys/firmware/efi/runtime-map"))
}

/// The entries of `/sys/firmware/efi/runtime-map` (Documentation/ABI/testing/sysfs-firmware-efi-runtime-map): numbers
/// in hexadecimal, one in a file. A kernel without runtime services does not have this directory.
fn runtime_map(dir: &Path) -> anyhow::Result<Vec<EfiRange>> {
    let Ok(entries) = fs::read_dir(dir) else { return Ok(Vec::new()) };
    let mut ranges = Vec::new();
    for entry in entries.flatten() {
        let number = |name: &str| {
            let path = entry.path().join(name);
            let text = procfs::text(&path)?;
            let digits = text.trim().trim_start_matches("0x");
            u64::from_str_radix(digits, 16).with_context(|| format!("{}: no number: `{text}`", path.display()))
        };
        let start = number("phys_addr")?;
        let len = number("num_pages")?.saturating_mul(PAGE_SIZE);
        ranges.push(EfiRange { start, end: start.saturating_add(len), mapped: number("virt_addr")? });
    }
    ranges.sort_by_key(|range| range.start);
    Ok(ranges)
}

/// The ACPI 2.0 root pointer in the text of `/sys/firmware/efi/systab`, or else the older one.
fn parse_systab(systab: &str) -> Option<u64> {
    let entry = |name| systab.lines().find_map(|line| line.strip_prefix(name));
    let address = entry("ACPI20=").or_else(|| entry("ACPI="))?;
    u64::from_str_radix(address.trim().strip_prefix("0x")?, 16).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn runtime_services_are_read() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(runtime_map(&dir.path().join("none")).unwrap(), []);
        for (entry, start) in [("0", "0x7e0000"), ("1", "0x3000")] {
            let entry = dir.path().join(entry);
            fs::create_dir(&entry).unwrap();
            for (name, text) in [("phys_addr", start), ("num_pages", "0x2"), ("virt_addr", "0xfffffffeffe00000")] {
                fs::write(entry.join(name), format!("{text}\n")).unwrap();
            }
        }
        let range = |start| EfiRange { start, end: start + 0x2000, mapped: 0xffff_fffe_ffe0_0000 };
        assert_eq!(runtime_map(dir.path()).unwrap(), [range(0x3000), range(0x7e_0000)]);
        fs::write(dir.path().join("0/phys_addr"), "soon").unwrap();
        assert!(runtime_map(dir.path()).unwrap_err().to_string().contains("phys_addr"));
    }

    #[test]
    fn prefers_the_newer_root_pointer() {
        assert_eq!(parse_systab("SMBIOS=0x1\nACPI=0x2\nACPI20=0x3f77e014\n"), Some(0x3f77_e014));
        assert_eq!(parse_systab("SMBIOS=0x1\n"), None);
    }
}
