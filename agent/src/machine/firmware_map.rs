//! The memory map as the firmware, or the boot loader, gave it to the running kernel: before any argument changed it. A
//! kernel that was started with a confined map needs it to tell whether the machine is the session's.

use std::fs;
use std::path::Path;

use anyhow::Context;
use dormouse_linux::procfs;

use crate::machine::Machine;
use crate::machine::iomem::Iomem;

/// Where the kernel shows it (Documentation/ABI/testing/sysfs-firmware-memmap), with `CONFIG_FIRMWARE_MEMMAP`.
const DIRECTORY: &str = "/sys/firmware/memmap";

/// This machine, with the firmware's map in the place of the running kernel's. UEFI's runtime services have been told
/// where they are mapped, once for this boot, and are compared as in C: a kernel maps what it does not own of the
/// firmware's memory alike, whether it may use the rest or not.
///
/// # Errors
/// As [`read`] and [`Machine::read`].
pub fn machine() -> anyhow::Result<Machine> {
    Ok(Machine { iomem: read()?, ..Machine::read()? })
}

/// The map. Its names are those of `/proc/iomem`.
///
/// # Errors
/// The kernel does not show it, or has an entry that cannot be read.
pub fn read() -> anyhow::Result<Iomem> {
    read_from(Path::new(DIRECTORY))
}

fn read_from(directory: &Path) -> anyhow::Result<Iomem> {
    let about = || format!("{}: the kernel does not show the firmware's memory map", directory.display());
    let mut ranges = Vec::new();
    for entry in fs::read_dir(directory).with_context(about)? {
        let entry = entry.with_context(about)?.path();
        let text = |name: &str| procfs::text(entry.join(name)).map(|text| text.trim().to_owned());
        let number = |name: &str| {
            let text = text(name)?;
            u64::from_str_radix(text.trim_start_matches("0x"), 16)
                .with_context(|| format!("{}: no number: `{text}`", entry.join(name).display()))
        };
        // The end is the last byte, as in /proc/iomem.
        ranges.push((number("start")?, number("end")?, text("type")?));
    }
    ranges.sort();
    let lines = ranges.iter().map(|(start, last, kind)| format!("{start:x}-{last:x} : {kind}\n"));
    Iomem::parse(&lines.collect::<String>()).with_context(|| format!("{}", directory.display()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use dormouse_image::{FirmwareKind, FirmwareRange, PhysRange};

    #[test]
    fn a_map_is_read_in_order() {
        let directory = tempfile::tempdir().unwrap();
        let entries = [
            ("0x100000", "0x2ffdffff", "System RAM"),
            ("0x0", "0x9fbff", "System RAM"),
            ("0x2ffe0000", "0x2fffffff", "ACPI Non-volatile Storage"),
            ("0xf0000", "0xfffff", "Reserved"),
        ];
        for (number, (start, end, kind)) in entries.into_iter().enumerate() {
            let entry = directory.path().join(number.to_string());
            fs::create_dir(&entry).unwrap();
            for (name, text) in [("start", start), ("end", end), ("type", kind)] {
                fs::write(entry.join(name), format!("{text}\n")).unwrap();
            }
        }
        let map = read_from(directory.path()).unwrap();
        let range = |start, end| PhysRange { start, end };
        assert_eq!(map.ram, [range(0, 0x9fc00), range(0x10_0000, 0x2ffe_0000)]);
        let kinds = [FirmwareKind::Reserved, FirmwareKind::AcpiNvs];
        let firmware = [(0xf_0000, 0x10_0000), (0x2ffe_0000, 0x3000_0000)];
        let expected = firmware.into_iter().zip(kinds).map(|((start, end), kind)| FirmwareRange { start, end, kind });
        assert_eq!(map.firmware, expected.collect::<Vec<_>>());
        fs::write(directory.path().join("0/start"), "soon").unwrap();
        assert!(read_from(directory.path()).unwrap_err().to_string().contains("no number"));
        assert!(read_from(&directory.path().join("none")).unwrap_err().to_string().contains("does not show"));
    }
}
