//! Memory maps of real machines: the region's place, the low memory that is swapped, what is saved, and the map that B
//! and D get. What they were published as is in `real_maps.txt`; what must be is here.

#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used)]

use dormouse::launch::arch::boot_params::{self, E820_MAX, E820Entry, E820Kind};
use dormouse::launch::region;
use dormouse::machine::acpi;
use dormouse::machine::iomem::{Iomem, subtract};
use dormouse::memory::physmem::Restorable;
use dormouse_image::{FirmwareKind, FirmwareRange, PfnRange, PhysRange, SessionRecord};

const MIB: u64 = 1 << 20;
const USUAL: u64 = 128 * MIB;
/// The firmware's and the kernel's own: below it nothing is saved.
const LOW: PfnRange = PfnRange { start: 0, end: 0x100 };

struct Map {
    name: &'static str,
    iomem: Iomem,
}

fn maps() -> Vec<Map> {
    let text = include_str!("real_maps.txt").split_once("\n\n").unwrap().1;
    let mut maps: Vec<(&str, String)> = Vec::new();
    for line in text.lines() {
        match line.contains(" : ") {
            true => maps.last_mut().unwrap().1.extend([line, "\n"]),
            false => maps.push((line, String::new())),
        }
    }
    maps.into_iter().map(|(name, text)| Map { name, iomem: Iomem::parse(&text).unwrap() }).collect()
}

fn map(name: &str) -> Iomem {
    maps().into_iter().find(|map| map.name == name).unwrap().iomem
}

fn low(iomem: &Iomem) -> Vec<(u64, u64)> {
    region::low_memory(&iomem.whole_ram()).unwrap().iter().map(|range| (range.start, range.end)).collect()
}

fn place(iomem: &Iomem, size: u64) -> PhysRange {
    region::choose(&iomem.whole_ram(), &iomem.kernel, size, None).unwrap()
}

fn of_firmware(range: &FirmwareRange) -> PfnRange {
    PhysRange { start: range.start, end: range.end }.frames()
}

fn overlap(a: &PfnRange, b: &PfnRange) -> bool {
    a.start < b.end && b.start < a.end
}

/// All of A's RAM is swapped or saved, and nothing else is; and D may write what is saved.
#[test]
fn all_ram_is_swapped_or_saved_and_nothing_else() {
    let maps = maps();
    assert_eq!(maps.len(), 20);
    for Map { name, iomem } in &maps {
        let region = place(iomem, USUAL);
        let low = region::low_memory(&iomem.whole_ram()).unwrap();
        let saved = iomem.frames_outside(&region);
        let firmware: Vec<PfnRange> = iomem.firmware.iter().map(of_firmware).collect();

        // The region is RAM throughout, and low memory too.
        assert!(region.start >= 16 * MIB && region.start.is_multiple_of(2 * MIB) && region.len() == USUAL, "{name}");
        for range in low.iter().chain([&region]) {
            assert_eq!(subtract(&[range.frames()], &iomem.ram_frames()), [], "{name}: {range}");
            assert!(!firmware.iter().any(|other| overlap(other, &range.frames())), "{name}: {range}");
        }
        // Nothing of the firmware's is saved, not even half a page.
        for range in &saved {
            assert!(!firmware.iter().any(|other| overlap(other, range)), "{name}: {range:?}");
            assert!(range.start >= LOW.end && !overlap(range, &region.frames()), "{name}: {range:?}");
        }
        // All RAM is saved or swapped, but for frames that the firmware has a part of, and those around 1 MiB.
        let mut kept: Vec<PfnRange> = low.iter().chain([&region]).map(PhysRange::frames).collect();
        kept.extend(&saved);
        kept.sort_by_key(|range| range.start);
        let kept = PfnRange::merge(kept);
        let ram = PfnRange::merge(iomem.ram.iter().map(PhysRange::frames));
        let lost = subtract(&ram, &kept);
        let is_shared = |range: &PfnRange| {
            range.pages() == 1 && firmware.iter().any(|other| overlap(other, range)) || range.end <= LOW.end
        };
        assert!(lost.iter().all(is_shared), "{name}: {lost:x?}");
        let whole = subtract(&ram, &PfnRange::merge(firmware.iter().copied()));
        assert_eq!(iomem.ram_pages(), whole.iter().map(PfnRange::pages).sum::<u64>(), "{name}");
        b_and_d(name, iomem, &low, region, &saved);
    }
}

/// At the next power-on, the tables lie three pages further down in the RAM before them: a session goes on with its
/// own.
#[test]
fn tables_may_slide_into_the_ram_before_them() {
    let mut slid = Vec::new();
    for Map { name, iomem } in maps() {
        let region = place(&iomem, USUAL);
        let saved = acpi::saved_frames(&iomem, &region);
        assert!(saved.windows(2).all(|pair| pair[0].end < pair[1].start), "{name}: {saved:x?}");
        assert_eq!(subtract(&iomem.frames_outside(&region), &saved), [], "{name}");
        let (firmware, ram) = (iomem.firmware.clone(), saved.clone());
        let session = SessionRecord { ram, region, firmware, ..SessionRecord::default() };
        let unmoved = acpi::UnderTables::of(&session, &iomem.firmware);
        assert_eq!(unmoved.by_jump, [], "{name}");

        let mut now = iomem.clone();
        let is_before = |ram: &PhysRange, range: &FirmwareRange| ram.end == range.start && ram.len() > 3 << 12;
        let is_slid = |range: &&mut FirmwareRange| range.kind == FirmwareKind::AcpiTables;
        for range in now.firmware.iter_mut().filter(is_slid) {
            let Some(before) = now.ram.iter_mut().find(|ram| is_before(ram, range)) else { continue };
            (before.end, range.start, range.end) = (before.end - 0x3000, range.start - 0x3000, range.end - 0x3000);
            now.ram.push(PhysRange { start: range.end, end: range.end + 0x3000 });
            slid.push(name);
        }
        now.ram.sort_by_key(|range| range.start);
        let root = now.firmware.iter().find(|range| range.kind == FirmwareKind::AcpiTables).map(|range| range.start);
        let root = acpi::AcpiRoot { pointer: root, table: None };
        assert_eq!(acpi::check_move(&session, &now.firmware, root), Ok(()), "{name}");
        // All that the session had is RAM or under tables.
        let under = acpi::UnderTables::of(&session, &now.firmware);
        assert_eq!(subtract(&subtract(&saved, &now.ram_frames()), &under.all()), [], "{name}");
    }
    assert!(slid.len() >= 2, "{slid:?}");
}

/// The memory map that B and D get shows that they may touch no more than is theirs, and D that it may write the rest.
fn b_and_d(name: &str, iomem: &Iomem, low: &[PhysRange], region: PhysRange, saved: &[PfnRange]) {
    let usable: Vec<PhysRange> = low.iter().copied().chain([region]).collect();
    let map = boot_params::memory_map(&usable, saved, &iomem.firmware);
    assert!(map.len() <= E820_MAX, "{name}: {} ranges", map.len());
    for pair in map.windows(2) {
        assert!(pair[0].range.end <= pair[1].range.start, "{name}: {pair:x?}");
    }
    let ram: u64 = map.iter().filter(|entry| entry.kind == E820Kind::Ram).map(|entry| entry.range.len()).sum();
    assert_eq!(ram, usable.iter().map(PhysRange::len).sum::<u64>(), "{name}");
    for entry in map.iter().filter(|entry| entry.kind == E820Kind::Reserved) {
        // One that begins below 1 MiB is busy, and all that is merged with it.
        assert!(entry.range.start >= MIB, "{name}: {entry:x?}");
    }
    let running: String = map.iter().map(line).collect();
    let running = Iomem::parse(&running).unwrap();
    assert!(Restorable::new(saved, &usable, &running).is_ok(), "{name}");
    assert!(Restorable::new(&[region.frames()], &[], &running).is_err(), "{name}");
}

fn line(entry: &E820Entry) -> String {
    let name = match entry.kind {
        E820Kind::Ram => "System RAM",
        E820Kind::Reserved => "Reserved",
        E820Kind::Acpi => "ACPI Tables",
        E820Kind::Nvs => "ACPI Non-volatile Storage",
        E820Kind::Unusable => "Unusable memory",
        E820Kind::Persistent => "Persistent Memory",
    };
    format!("{:08x}-{:08x} : {name}\n", entry.range.start, entry.range.end - 1)
}

#[test]
fn low_memory_is_every_piece() {
    for (name, pieces) in [
        ("bumblebee-654", &[(0x1000, 0x5_8000), (0x5_9000, 0x9_e000)][..]),
        ("matebook-e", &[(0x1000, 0x5_8000), (0x5_9000, 0x9_e000)]),
        ("i865-nvs-midpage", &[(0x1000, 0x9_f000)]),
        ("xeon-crash", &[(0x1_0000, 0x9_f000)]),
        ("starbook", &[(0x1000, 0xa_0000)]),
        ("tape-server", &[(0x1000, 0x9_7000)]),
    ] {
        assert_eq!(low(&map(name)), pieces, "{name}");
    }
}

#[test]
fn region_is_in_the_lowest_piece_that_is_long_enough() {
    for (name, mib) in [
        ("server-pmem-4G", 16),
        ("i865-nvs-midpage", 16),
        ("kvm-pmem-512M", 16),
        ("framework16", 16),
        ("am5-desktop", 16),
        ("vmware-cachyos", 16),
        ("epyc-node", 16),
    ] {
        let place = place(&map(name), USUAL);
        assert_eq!(place, PhysRange { start: mib * MIB, end: mib * MIB + USUAL }, "{name}");
    }
    // A larger one does not fit before the firmware's ranges, and begins after the last of them.
    assert_eq!(place(&map("framework16"), 256 * MIB).start, 0xa40_0000);
    assert_eq!(place(&map("am5-desktop"), 256 * MIB).start, 0xb20_0000);
    assert_eq!(place(&map("kvm-pmem-512M"), 2560 * MIB - 16 * MIB).start, 16 * MIB);
}

#[test]
fn half_pages_of_the_firmware_are_left_alone() {
    let saved = |name: &str| {
        let iomem = map(name);
        iomem.frames_outside(&place(&iomem, USUAL))
    };
    // 0x1fe41 is NVS at its beginning and RAM at its end.
    let expected = [(0x100, 0x1000), (0x9000, 0x1_fe30), (0x1_fe42, 0x1_ff30)];
    assert_eq!(saved("i865-nvs-midpage"), expected.map(|(start, end)| PfnRange { start, end }));
    // What the boot loader's data split in mid-page is RAM on both sides.
    let expected = [(0x100, 0x1000), (0x9000, 0xe04b), (0xe051, 0xfb6f), (0xffdf, 0x1_0000)];
    assert_eq!(saved("vmware-cachyos"), expected.map(|(start, end)| PfnRange { start, end }));
    // Persistent memory is no memory that is saved.
    let expected = [(0x100, 0x1000), (0x9000, 0xa_0000), (0xb_0000, 0xb_ffe0)];
    assert_eq!(saved("kvm-pmem-512M"), expected.map(|(start, end)| PfnRange { start, end }));
    let pmem = map("kvm-pmem-512M").firmware.iter().any(|range| range.kind == FirmwareKind::Persistent);
    assert!(pmem);
}
