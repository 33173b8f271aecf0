//! The machine's physical address space as `/proc/iomem` shows it.
//!
//! The names are those of `e820_type_to_string`, arch/x86/kernel/e820.c in Linux 6.12. Only the outermost level counts
//! here: what drivers claimed inside a range does not change what the range is.

use dormouse_image::{FirmwareKind, FirmwareRange, PfnRange, PhysRange};
use dormouse_sys::PAGE_SIZE;
use thiserror::Error;

/// The running kernel's parts (arch/x86/kernel/setup.c, `setup_kernel_resources`).
const KERNEL: [&str; 4] = ["Kernel code", "Kernel rodata", "Kernel data", "Kernel bss"];

/// Why `/proc/iomem` could not be used.
#[derive(Debug, Clone, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum IomemError {
    /// A line that does not have the form `start-end : name`.
    #[error("/proc/iomem:{line}: not a range: `{text}`")]
    Malformed {
        /// Line number, from 1.
        line: usize,
        /// The line.
        text: String,
    },
    /// All addresses are zero: this process may not see them.
    #[error("/proc/iomem hides its addresses from users other than root")]
    Hidden,
    /// Memory that a driver has added, which the firmware's map does not show to the next boot.
    #[error(
        "/proc/iomem:{line}: `{name}`: memory that a driver has added (virtio-mem, persistent or CXL memory as RAM) \
         cannot be hibernated"
    )]
    DriverMemory {
        /// Line number, from 1.
        line: usize,
        /// Its name there.
        name: String,
    },
    /// It lists no System RAM.
    #[error("/proc/iomem lists no System RAM")]
    NoRam,
}

/// The address space of one machine, as its firmware described it to the running kernel.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Iomem {
    /// System RAM, in bytes as listed, ascending. Ranges may begin and end in mid-page: UEFI boots split RAM where
    /// setup_data lies.
    pub ram: Vec<PhysRange>,
    /// Everything else that the firmware described, ascending: reserved ranges, ACPI tables and the like.
    pub firmware: Vec<FirmwareRange>,
    /// Where the running kernel's own code and data are, which its list has inside RAM.
    pub kernel: Vec<PhysRange>,
}

impl Iomem {
    /// Reads the text of `/proc/iomem`.
    ///
    /// # Errors
    /// [`IomemError`] describes what is wrong with it.
    pub fn parse(text: &str) -> Result<Iomem, IomemError> {
        let mut iomem = Iomem::default();
        for (number, line) in text.lines().enumerate() {
            // Nested ranges are indented. RAM among them was added by a driver, and so was RAM with a driver's name.
            let name = line.split_once(" : ").map_or("", |(_, name)| name);
            if line.starts_with(' ') && name == "System RAM" || name.starts_with("System RAM (") {
                return Err(IomemError::DriverMemory { line: number + 1, name: name.to_string() });
            }
            if line.starts_with(' ') || line.is_empty() {
                if KERNEL.contains(&name)
                    && let Some((Some(range), _)) = self::range(line.trim_start())
                {
                    iomem.kernel.push(range);
                }
                continue;
            }
            let (range, name) =
                range(line).ok_or_else(|| IomemError::Malformed { line: number + 1, text: line.to_string() })?;
            let Some(range) = range else {
                return Err(IomemError::Hidden);
            };
            let kind = match name {
                "System RAM" => {
                    iomem.ram.push(range);
                    continue;
                }
                // Memory with a purpose of its own, which the kernel leaves to drivers; and what it has no name for.
                "Reserved" | "Soft Reserved" | "Unknown E820 type" => FirmwareKind::Reserved,
                "ACPI Tables" => FirmwareKind::AcpiTables,
                "ACPI Non-volatile Storage" => FirmwareKind::AcpiNvs,
                "Unusable memory" => FirmwareKind::Unusable,
                "Persistent Memory" | "Persistent Memory (legacy)" => FirmwareKind::Persistent,
                // What buses and drivers claim, which is not in the firmware's memory map.
                _ => continue,
            };
            iomem.firmware.push(FirmwareRange { start: range.start, end: range.end, kind });
        }
        if iomem.ram.is_empty() {
            return Err(IomemError::NoRam);
        }
        iomem.ram.sort_by_key(|range| range.start);
        iomem.firmware.sort_by_key(|range| range.start);
        Ok(iomem)
    }

    /// The page frames of [`Iomem::whole_ram`]. A frame that is partly RAM is none of them: the kernel never uses it
    /// (arch/x86/kernel/e820.c, `e820__memblock_setup` trims memory to whole pages, Linux 6.12 and 7.2), and the rest
    /// of it, such as ACPI's, is the firmware's to write.
    #[must_use]
    pub fn ram_frames(&self) -> Vec<PfnRange> {
        PfnRange::merge(self.whole_ram().iter().map(PhysRange::frames))
    }

    /// How many page frames of System RAM there are.
    #[must_use]
    pub fn ram_pages(&self) -> u64 {
        self.ram_frames().iter().map(PfnRange::pages).sum()
    }

    /// The page frames of System RAM from 1 MiB on, but for those of `region`: what a second kernel in that region must
    /// leave alone. Below 1 MiB, memory belongs to the firmware and to the real-mode code of the kernel, which reserves
    /// all of it (arch/x86/realmode/init.c, `reserve_real_mode`).
    #[must_use]
    pub fn frames_outside(&self, region: &PhysRange) -> Vec<PfnRange> {
        let low = PfnRange { start: 0, end: (1 << 20) / PAGE_SIZE };
        subtract(&self.ram_frames(), &[low, region.frames()])
    }

    /// The page frames that are reserved, ascending and merged.
    #[must_use]
    pub fn reserved_frames(&self) -> Vec<PfnRange> {
        let reserved = self.firmware.iter().filter(|range| range.kind == FirmwareKind::Reserved);
        PfnRange::merge(reserved.map(|range| PhysRange { start: range.start, end: range.end }.frames()))
    }

    /// The ranges that are System RAM as a whole, ascending, rounded to whole pages and merged.
    ///
    /// A frame that two ranges share, with nothing of the firmware's in it, is whole: the split was made by the kernel.
    #[must_use]
    pub fn whole_ram(&self) -> Vec<PhysRange> {
        let mut bytes: Vec<PhysRange> = Vec::new();
        for range in &self.ram {
            match bytes.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => bytes.push(*range),
            }
        }
        bytes
            .iter()
            .filter_map(|range| {
                // A range that begins in the last page of the address space has no whole page.
                let start = range.start.checked_next_multiple_of(PAGE_SIZE)?;
                Some(PhysRange { start, end: range.end / PAGE_SIZE * PAGE_SIZE })
            })
            .filter(|range| range.start < range.end)
            .collect()
    }
}

/// The parts of `ranges` that lie in none of `holes`. Both must ascend and not overlap.
#[must_use]
pub fn subtract(ranges: &[PfnRange], holes: &[PfnRange]) -> Vec<PfnRange> {
    let mut left = Vec::new();
    for range in ranges {
        let mut start = range.start;
        for hole in holes {
            if hole.end <= start || hole.start >= range.end {
                continue;
            }
            if hole.start > start {
                left.push(PfnRange { start, end: hole.start });
            }
            start = hole.end;
        }
        if start < range.end {
            left.push(PfnRange { start, end: range.end });
        }
    }
    left
}

/// `start-end : name`, with an end that is the last byte. `None` for the range `0-0`, which stands for a hidden one.
fn range(line: &str) -> Option<(Option<PhysRange>, &str)> {
    let (range, name) = line.split_once(" : ")?;
    let (start, last) = range.split_once('-')?;
    let start = u64::from_str_radix(start, 16).ok()?;
    let last = u64::from_str_radix(last, 16).ok()?;
    // The last byte of the address space is the end of what fits.
    let end = last.saturating_add(1);
    if end <= start {
        return None;
    }
    if last == 0 {
        return Some((None, name));
    }
    Some((Some(PhysRange { start, end }), name))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    const PC: &str = "\
00000000-00000fff : Reserved
00001000-0009fbff : System RAM
0009fc00-0009ffff : Reserved
000a0000-000bffff : PCI Bus 0000:00
000f0000-000fffff : Reserved
  000f0000-000fffff : System ROM
00100000-2ffdffff : System RAM
  01000000-01ffffff : Kernel code
2ffe0000-2fffffff : Reserved
fee00000-fee00fff : Local APIC
100000000-17fffffff : System RAM
";

    fn phys(start: u64, end: u64) -> PhysRange {
        PhysRange { start, end }
    }

    fn pfn(start: u64, end: u64) -> PfnRange {
        PfnRange { start, end }
    }

    #[test]
    fn a_pc_is_read() {
        let iomem = Iomem::parse(PC).unwrap();
        assert_eq!(iomem.ram, [phys(0x1000, 0x9fc00), phys(0x10_0000, 0x2ffe_0000), phys(1 << 32, 6 << 30)]);
        assert_eq!(iomem.firmware.len(), 4);
        assert_eq!(iomem.ram_frames(), [pfn(1, 0x9f), pfn(0x100, 0x2ffe0), pfn(1 << 20, 6 << 18)]);
        assert_eq!(iomem.whole_ram()[0], phys(0x1000, 0x9f000));
    }

    #[test]
    fn ranges_that_setup_data_splits_in_mid_page_are_whole() {
        let text = "3d000000-3d70b017 : System RAM\n3d70b018-3d748057 : System RAM\n3d748058-3e000fff : System RAM\n";
        let iomem = Iomem::parse(text).unwrap();
        assert_eq!(iomem.ram_frames(), [pfn(0x3d000, 0x3e001)]);
        assert_eq!(iomem.whole_ram(), [phys(0x3d00_0000, 0x3e00_1000)]);
    }

    #[test]
    fn kinds_of_memory_by_their_names() {
        let kinds = [
            ("Reserved", Some(FirmwareKind::Reserved)),
            ("ACPI Tables", Some(FirmwareKind::AcpiTables)),
            ("ACPI Non-volatile Storage", Some(FirmwareKind::AcpiNvs)),
            ("Unusable memory", Some(FirmwareKind::Unusable)),
            ("Persistent Memory", Some(FirmwareKind::Persistent)),
            ("Persistent Memory (legacy)", Some(FirmwareKind::Persistent)),
            // B and D must not take these for holes.
            ("Soft Reserved", Some(FirmwareKind::Reserved)),
            ("Unknown E820 type", Some(FirmwareKind::Reserved)),
            ("PCI Bus 0000:00", None),
        ];
        for (name, kind) in kinds {
            let text = format!("00100000-1fffffff : System RAM\n20000000-2fffffff : {name}\n  20000000-20000fff : a\n");
            let iomem = Iomem::parse(&text).unwrap();
            assert_eq!(iomem.firmware.iter().map(|range| range.kind).next(), kind, "{name}");
            // Nothing of it is saved.
            assert_eq!(iomem.ram_frames(), [pfn(0x100, 0x2_0000)], "{name}");
            assert_eq!(iomem.whole_ram(), [phys(0x10_0000, 0x2000_0000)], "{name}");
        }
    }

    #[test]
    fn kernel_is_found_inside_ram() {
        let text = format!("{PC}  1200000-16fffff : Kernel data\n    01300000-013fffff : Kernel bss\n");
        let iomem = Iomem::parse(&text).unwrap();
        let expected = [phys(0x100_0000, 0x200_0000), phys(0x120_0000, 0x170_0000), phys(0x130_0000, 0x140_0000)];
        assert_eq!(iomem.kernel, expected);
    }

    #[test]
    fn memory_for_a_purpose_is_reserved() {
        let iomem = Iomem::parse(&format!("{PC}180000000-1ffffffff : Soft Reserved\n  180000000-1ffffffff : dax0.0\n"));
        assert_eq!(iomem.unwrap().reserved_frames().last(), Some(&pfn(6 << 18, 8 << 18)));
    }

    /// An i865 of 2004: ACPI's storage ends where RAM goes on, in mid-page. The firmware may write all of that page.
    #[test]
    fn page_that_acpi_and_ram_share_is_not_ram() {
        let text = "00100000-1fe2ffff : System RAM\n1fe30000-1fe4149f : ACPI Non-volatile Storage\n\
                    1fe414a0-1ff2ffff : System RAM\n1ff30000-1ff3ffff : ACPI Tables\n";
        let iomem = Iomem::parse(text).unwrap();
        assert_eq!(iomem.ram_frames(), [pfn(0x100, 0x1fe30), pfn(0x1fe42, 0x1ff30)]);
        let region = phys(0x100_0000, 0x900_0000);
        assert_eq!(iomem.frames_outside(&region).last(), Some(&pfn(0x1fe42, 0x1ff30)));
        // The same for what ends there, and for a reserved range within a page.
        let text = "00100000-00200fff : System RAM\n00201000-00201c00 : System RAM\n00201c01-00204fff : Reserved\n\
                    00205000-00206233 : System RAM\n00206234-00206343 : Reserved\n00206344-00208fff : System RAM\n";
        let frames = Iomem::parse(text).unwrap().ram_frames();
        assert_eq!(frames, [pfn(0x100, 0x201), pfn(0x205, 0x206), pfn(0x207, 0x209)]);
    }

    #[test]
    fn ram_may_end_with_the_address_space() {
        let iomem = Iomem::parse("00001000-00002fff : System RAM\nfffffffffffff001-ffffffffffffffff : System RAM\n");
        assert_eq!(iomem.unwrap().whole_ram(), [phys(0x1000, 0x3000)]);
    }

    #[test]
    fn memory_that_a_driver_added_is_refused() {
        for added in ["  180000000-1ffffffff : System RAM (kmem)", "    180000000-1ffffffff : System RAM"] {
            let error = Iomem::parse(&format!("{PC}140000000-1ffffffff : Persistent Memory\n{added}\n")).unwrap_err();
            assert!(matches!(error, IomemError::DriverMemory { line: 13, .. }), "{error}");
        }
    }

    #[test]
    fn a_second_kernel_leaves_all_but_its_region_alone() {
        let outside = Iomem::parse(PC).unwrap().frames_outside(&phys(0x100_0000, 0x900_0000));
        assert_eq!(outside, [pfn(0x100, 0x1000), pfn(0x9000, 0x2ffe0), pfn(1 << 20, 6 << 18)]);
    }

    #[test]
    fn rejects_hidden_empty_and_malformed_lists() {
        assert_eq!(Iomem::parse("00000000-00000000 : System RAM\n"), Err(IomemError::Hidden));
        assert_eq!(Iomem::parse("00001000-00001fff : Reserved\n"), Err(IomemError::NoRam));
        for bad in [
            "zz-1 : System RAM",
            "1000 : System RAM",
            "2000-1000 : System RAM",
            "1000-2000",
            "ffffffffffffffff-ffffffffffffffff : System RAM",
        ] {
            assert!(matches!(Iomem::parse(bad), Err(IomemError::Malformed { line: 1, .. })), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_an_error_or_a_map(text in "[0-9a-f: \\-\nSystemRAM]{0,200}") {
            let _ = Iomem::parse(&text);
        }

        #[test]
        fn subtracting_agrees_with_a_set(
            ranges in ascending(), holes in ascending(),
        ) {
            let within = |list: &[PfnRange], at: u64| list.iter().any(|range| (range.start..range.end).contains(&at));
            let left = subtract(&ranges, &holes);
            for at in 0..400 {
                prop_assert_eq!(within(&left, at), within(&ranges, at) && !within(&holes, at));
            }
        }
    }

    fn ascending() -> impl Strategy<Value = Vec<PfnRange>> {
        proptest::collection::vec((1_u64..20, 1_u64..20), 0..10).prop_map(|steps| {
            let mut at = 0;
            steps
                .into_iter()
                .map(|(gap, len)| {
                    let start = at + gap;
                    at = start + len;
                    PfnRange { start, end: at }
                })
                .collect()
        })
    }
}
