//! `struct boot_params`, the page that a 64-bit kernel is started with.
//!
//! Offsets are those of Documentation/arch/x86/zero-page.rst (Linux 6.12). The page starts as A's own, which
//! carries the firmware's description of screen and disks, and everything that names memory is replaced.

use dormouse_image::{FirmwareKind, FirmwareRange, PfnRange, PhysRange};
use dormouse_sys::PAGE_SIZE;
use thiserror::Error;

use crate::launch::arch::bzimage::{self, BzImage};

/// The page's length in bytes.
pub const SIZE: usize = 4096;

const ACPI_RSDP: usize = 0x070;
const EXT_RAMDISK_IMAGE: usize = 0x0c0;
const EXT_RAMDISK_SIZE: usize = 0x0c4;
const EXT_CMD_LINE: usize = 0x0c8;
const EFI_INFO: std::ops::Range<usize> = 0x1c0..0x1e0;
const ALT_MEM_K: std::ops::Range<usize> = 0x1e0..0x1e4;
const E820_ENTRIES: usize = 0x1e8;
const SENTINEL: usize = 0x1ef;
const TYPE_OF_LOADER: usize = 0x210;
const LOADFLAGS: usize = 0x211;
const RAMDISK_IMAGE: usize = 0x218;
const RAMDISK_SIZE: usize = 0x21c;
const CMD_LINE: usize = 0x228;
const SETUP_DATA: std::ops::Range<usize> = 0x250..0x258;
const E820_TABLE: usize = 0x2d0;

/// "Undefined": no number is assigned to us.
const LOADER_UNDEFINED: u8 = 0xff;
/// The kernel is loaded high (bit 0); all else off, KASLR_FLAG among it.
const LOADED_HIGH: u8 = 1;

/// The most entries that the page has room for: `E820_MAX_ENTRIES_ZEROPAGE`.
pub const E820_MAX: usize = 128;
const E820_ENTRY: usize = 20;

/// Why the page could not be made.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum BootParamsError {
    /// A's own page has a wrong length.
    #[error("/sys/kernel/boot_params/data has {0} bytes, not {SIZE}")]
    WrongLength(usize),
    /// The memory map is longer than the page takes.
    #[error("the memory map has {0} ranges, the boot protocol takes {E820_MAX}")]
    TooManyRanges(usize),
}

/// A memory type of the e820 interface (ACPI 6.5, section 15, "System Address Map Interfaces").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum E820Kind {
    /// RAM that the kernel may use.
    Ram = 1,
    /// Not to be touched.
    Reserved = 2,
    /// ACPI tables, readable.
    Acpi = 3,
    /// ACPI non-volatile storage.
    Nvs = 4,
    /// RAM with errors.
    Unusable = 5,
    /// Persistent memory.
    Persistent = 7,
}

/// One range of the memory map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct E820Entry {
    /// The range, in bytes.
    pub range: PhysRange,
    /// What it is.
    pub kind: E820Kind,
}

/// The memory map of B or D, ascending: `usable` as RAM, all other RAM reserved, the firmware's ranges as they are.
///
/// RAM that is not theirs must be reserved and not absent: a hole is offered to PCI for its windows. The firmware's
/// ranges below 1 MiB are left out: a reserved range that touches one is merged with it, begins below 1 MiB and is
/// therefore busy, and `IO_STRICT_DEVMEM` then forbids all of it.
#[must_use]
pub fn memory_map(usable: &[PhysRange], other_ram: &[PfnRange], firmware: &[FirmwareRange]) -> Vec<E820Entry> {
    let mut map: Vec<E820Entry> = usable.iter().map(|range| E820Entry { range: *range, kind: E820Kind::Ram }).collect();
    map.extend(other_ram.iter().map(|frames| E820Entry {
        range: PhysRange { start: frames.start * PAGE_SIZE, end: frames.end * PAGE_SIZE },
        kind: E820Kind::Reserved,
    }));
    map.extend(firmware.iter().filter(|range| range.start >= 1 << 20).map(|range| E820Entry {
        range: PhysRange { start: range.start, end: range.end },
        kind: match range.kind {
            FirmwareKind::AcpiTables => E820Kind::Acpi,
            FirmwareKind::AcpiNvs => E820Kind::Nvs,
            FirmwareKind::Unusable => E820Kind::Unusable,
            FirmwareKind::Persistent => E820Kind::Persistent,
            _ => E820Kind::Reserved,
        },
    }));
    map.sort_by_key(|entry| entry.range.start);
    let mut merged: Vec<E820Entry> = Vec::with_capacity(map.len());
    for entry in map {
        match merged.last_mut() {
            Some(last) if last.kind == entry.kind && entry.range.start <= last.range.end => {
                last.range.end = last.range.end.max(entry.range.end);
            }
            _ => merged.push(entry),
        }
    }
    merged
}

/// What B or D is started with.
#[derive(Debug)]
pub struct Parameters<'a> {
    /// A's own page.
    pub template: &'a [u8],
    /// The memory map.
    pub memory: &'a [E820Entry],
    /// Where the initramfs lies, in bytes.
    pub initrd: PhysRange,
    /// Physical address of the command line, which ends with a zero byte.
    pub cmdline: u64,
    /// Physical address of ACPI's root pointer, where the firmware does not leave it in low memory.
    pub acpi_rsdp: Option<u64>,
}

/// Makes the page.
///
/// # Errors
/// [`BootParamsError`].
pub fn build(kernel: &BzImage<'_>, parameters: &Parameters<'_>) -> Result<Vec<u8>, BootParamsError> {
    if parameters.template.len() != SIZE {
        return Err(BootParamsError::WrongLength(parameters.template.len()));
    }
    let Some(entries) = u8::try_from(parameters.memory.len()).ok().filter(|n| usize::from(*n) <= E820_MAX) else {
        return Err(BootParamsError::TooManyRanges(parameters.memory.len()));
    };
    let mut page = parameters.template.to_vec();
    page[bzimage::HEADER..0x290].fill(0);
    page[bzimage::HEADER..bzimage::HEADER + kernel.header.len()].copy_from_slice(kernel.header);

    page[TYPE_OF_LOADER] = LOADER_UNDEFINED;
    page[LOADFLAGS] = LOADED_HIGH;
    page[SENTINEL] = 0;
    // Linked lists and tables of the loader's that A has freed or made its own.
    page[SETUP_DATA].fill(0);
    // Without efi_info the kernel makes no runtime calls: the firmware is A's.
    page[EFI_INFO].fill(0);
    page[ALT_MEM_K].fill(0);

    put_split(&mut page, RAMDISK_IMAGE, EXT_RAMDISK_IMAGE, parameters.initrd.start);
    put_split(&mut page, RAMDISK_SIZE, EXT_RAMDISK_SIZE, parameters.initrd.end - parameters.initrd.start);
    put_split(&mut page, CMD_LINE, EXT_CMD_LINE, parameters.cmdline);
    if let Some(rsdp) = parameters.acpi_rsdp {
        page[ACPI_RSDP..ACPI_RSDP + 8].copy_from_slice(&rsdp.to_le_bytes());
    }

    page[E820_ENTRIES] = entries;
    page[E820_TABLE..E820_TABLE + E820_MAX * E820_ENTRY].fill(0);
    for (entry, place) in parameters.memory.iter().zip(page[E820_TABLE..].chunks_exact_mut(E820_ENTRY)) {
        place[..8].copy_from_slice(&entry.range.start.to_le_bytes());
        place[8..16].copy_from_slice(&(entry.range.end - entry.range.start).to_le_bytes());
        place[16..].copy_from_slice(&(entry.kind as u32).to_le_bytes());
    }
    Ok(page)
}

/// Stores a value whose low and high halves have a field each.
fn put_split(page: &mut [u8], low: usize, high: usize, value: u64) {
    let bytes = value.to_le_bytes();
    page[low..low + 4].copy_from_slice(&bytes[..4]);
    page[high..high + 4].copy_from_slice(&bytes[4..]);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn phys(start: u64, end: u64) -> PhysRange {
        PhysRange { start, end }
    }

    #[test]
    fn memory_map_reserves_other_memory_and_omits_low_firmware_ranges() {
        let firmware = [
            FirmwareRange { start: 0xf_0000, end: 0x10_0000, kind: FirmwareKind::Reserved },
            FirmwareRange { start: 0x900_0000, end: 0x901_0000, kind: FirmwareKind::AcpiTables },
            FirmwareRange { start: 0x901_0000, end: 0x902_0000, kind: FirmwareKind::Reserved },
            FirmwareRange { start: 0x902_0000, end: 0x903_0000, kind: FirmwareKind::Reserved },
        ];
        let other = [PfnRange { start: 0x100, end: 0x1000 }, PfnRange { start: 0x2000, end: 0x9000 }];
        let map = memory_map(&[phys(0x1000, 0x9f000), phys(0x100_0000, 0x200_0000)], &other, &firmware);
        let expected = [
            (0x1000, 0x9f000, E820Kind::Ram),
            (0x10_0000, 0x100_0000, E820Kind::Reserved),
            (0x100_0000, 0x200_0000, E820Kind::Ram),
            (0x200_0000, 0x900_0000, E820Kind::Reserved),
            (0x900_0000, 0x901_0000, E820Kind::Acpi),
            (0x901_0000, 0x903_0000, E820Kind::Reserved),
        ];
        let expected = expected.map(|(start, end, kind)| E820Entry { range: phys(start, end), kind });
        assert_eq!(map, expected);
    }

    #[test]
    fn page_names_our_memory_only() {
        let file = crate::launch::arch::bzimage::tests::sample(8192);
        let kernel = BzImage::parse(&file).unwrap();
        let e820 = [E820Entry { range: phys(0x1000, 0x9f000), kind: E820Kind::Ram }];
        let parameters = Parameters {
            template: &[0xaa; SIZE],
            memory: &e820,
            initrd: phys(0x1_2345_0000, 0x1_2346_0000),
            cmdline: 0x77_0000,
            acpi_rsdp: Some(0x7f00_0014),
        };
        let page = build(&kernel, &parameters).unwrap();
        let u32_at = |at: usize| u32::from_le_bytes(page[at..at + 4].try_into().unwrap());
        assert_eq!((u32_at(RAMDISK_IMAGE), u32_at(EXT_RAMDISK_IMAGE)), (0x2345_0000, 1));
        assert_eq!((u32_at(RAMDISK_SIZE), u32_at(CMD_LINE)), (0x1_0000, 0x77_0000));
        assert_eq!((page[E820_ENTRIES], u32_at(E820_TABLE), u32_at(E820_TABLE + 16)), (1, 0x1000, 1));
        assert_eq!(&page[0x202..0x206], b"HdrS");
        assert!(page[SETUP_DATA].iter().chain(&page[EFI_INFO]).all(|byte| *byte == 0));
        assert_eq!(page[0], 0xaa, "the screen is A's");

        assert_eq!(
            build(&kernel, &Parameters { template: &[0; 7], ..parameters }).unwrap_err(),
            BootParamsError::WrongLength(7)
        );
        let many = [e820[0]; 129];
        assert_eq!(
            build(&kernel, &Parameters { template: &[0; SIZE], memory: &many, ..parameters }).unwrap_err(),
            BootParamsError::TooManyRanges(129)
        );
    }
}
