//! `/proc/iomem`: what a firmware may have described.

use std::fmt::Write;

use dormouse::machine::iomem::{Iomem, subtract};
use dormouse::memory::physmem::Restorable;
use dormouse_image::{BLOCK, FirmwareKind, PfnRange, PhysRange};

use super::ascending;

const PAGE: u64 = BLOCK as u64;
/// The first page frame from 1 MiB on.
const LOW: u64 = (1 << 20) / PAGE;

/// Reads any text as a map of physical memory.
pub(super) fn run(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let mut iomem = match Iomem::parse(text) {
        Ok(iomem) => iomem,
        Err(error) => return assert!(error.to_string().starts_with("/proc/iomem")),
    };

    let ram = iomem.ram_frames();
    let reserved = iomem.reserved_frames();
    assert!(ascending(&ram) && ascending(&reserved));

    let whole = iomem.whole_ram();
    for range in &whole {
        assert!(range.start < range.end && range.start.is_multiple_of(PAGE) && range.end.is_multiple_of(PAGE));
        assert!(ram.iter().any(|ram| ram.contains(&range.frames())), "{range}");
    }

    for region in whole.iter().chain(&iomem.ram).take(8) {
        let outside = iomem.frames_outside(region);
        assert!(ascending(&outside) && subtract(&outside, &ram).is_empty());
        assert!(outside.iter().all(|range| range.start >= LOW && !overlap(range, &region.frames())));
        // What a kernel uses itself must never be written.
        assert!(outside.is_empty() || Restorable::new(&outside, &[*region], &iomem).is_err());
    }
    let own = PhysRange { start: 0, end: PAGE };
    if Restorable::new(&reserved, &[own], &iomem).is_ok() {
        assert!(reserved.iter().all(|range| !overlap(range, &own.frames())));
        assert!(iomem.ram.iter().all(|ram| reserved.iter().all(|range| !range.bytes().overlaps(ram))));
    }

    // What lies inside RAM is not written again.
    iomem.kernel.clear();
    if let Some(text) = written(&iomem) {
        assert_eq!(Iomem::parse(&text).as_ref(), Ok(&iomem), "{text}");
    }
}

fn overlap(left: &PfnRange, right: &PfnRange) -> bool {
    left.start < right.end && right.start < left.end
}

/// The map as the kernel would show it; `None` for a range that it could not show.
fn written(iomem: &Iomem) -> Option<String> {
    let ram = iomem.ram.iter().map(|range| (range.start, range.end, "System RAM"));
    let firmware = iomem.firmware.iter().map(|range| {
        let name = match range.kind {
            FirmwareKind::Reserved => "Reserved",
            FirmwareKind::AcpiTables => "ACPI Tables",
            FirmwareKind::AcpiNvs => "ACPI Non-volatile Storage",
            FirmwareKind::Unusable => "Unusable memory",
            FirmwareKind::Persistent => "Persistent Memory",
            FirmwareKind::Other(_) => "",
        };
        (range.start, range.end, name)
    });
    let mut text = String::new();
    for (start, end, name) in ram.chain(firmware) {
        let last = end.checked_sub(1).filter(|last| *last >= start && *last > 0 && !name.is_empty())?;
        writeln!(text, "{start:08x}-{last:08x} : {name}").ok()?;
    }
    Some(text)
}
