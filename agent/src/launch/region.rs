//! The choice of the region, and of the low memory that goes with it.

use dormouse_image::PhysRange;
use dormouse_linux::units::mib;
use thiserror::Error;

/// The region's boundaries are multiples of this: the kernel's own alignment, and a large page, in bytes.
pub const ALIGNMENT: u64 = 2 << 20;

/// Where the choice begins, in bytes: where a boot loader puts a kernel, so that D can be started by one.
pub const LOWEST: u64 = 16 << 20;

/// The beginning of low memory in a PC: the first page is the firmware's.
const LOW_START: u64 = 0x1000;
/// Its end: the video memory begins here.
const LOW_END: u64 = 0xa_0000;
/// The least low memory in one piece that a kernel can put its real-mode trampoline into.
const LOW_LEAST: u64 = 64 << 10;

/// Why the region has no place.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum RegionError {
    /// No range of RAM is long enough.
    #[error(
        "no {} of RAM in one piece at 16 MiB or above for the region; the longest piece has {}",
        mib(*.size), mib(*.longest)
    )]
    NoPlace {
        /// The region's size in bytes.
        size: u64,
        /// The longest piece, in bytes.
        longest: u64,
    },
    /// The policy's own address does not work.
    #[error("region.address {address:#x}: not all of the {} from there are RAM", mib(*.size))]
    AddressNotRam {
        /// The address that the policy gives.
        address: u64,
        /// The region's size in bytes.
        size: u64,
    },
    /// No RAM lies below 640 KiB.
    #[error("no 64 KiB of RAM below 640 KiB, which the second kernel needs to start its other CPUs")]
    NoLowMemory,
}

/// The lowest range of `size` bytes from [`LOWEST`] on that is RAM throughout and holds nothing of `kernel`, or the one
/// at `address`.
///
/// CPUs that A has parked wait in its code, and may go on there for a moment when the jump has replaced what is in the
/// region (arch/x86/kernel/smpboot.c, `mwait_play_dead`, on Intel's CPUs). So the region keeps off that code where
/// another place fits, and lies over it otherwise.
///
/// `ram` must be whole pages, ascending and merged. A range across a hole is never chosen.
///
/// # Errors
/// [`RegionError`] names what was looked for.
pub fn choose(
    ram: &[PhysRange],
    kernel: &[PhysRange],
    size: u64,
    address: Option<u64>,
) -> Result<PhysRange, RegionError> {
    let fits = |range: &PhysRange, start: u64| {
        start >= range.start && start.checked_add(size).is_some_and(|end| end <= range.end)
    };
    if let Some(start) = address {
        return match ram.iter().any(|range| fits(range, start)) {
            true => Ok(PhysRange { start, end: start + size }),
            false => Err(RegionError::AddressNotRam { address: start, size }),
        };
    }
    let start_in = |range: &PhysRange| range.start.max(LOWEST).next_multiple_of(ALIGNMENT);
    // The lowest place in a range of RAM begins with the range or after a part of the kernel.
    let starts = |range: &PhysRange| {
        let after = kernel.iter().map(|part| part.end.max(start_in(range)).next_multiple_of(ALIGNMENT));
        after.chain([start_in(range)]).collect::<Vec<u64>>()
    };
    let places = ram.iter().flat_map(|range| starts(range).into_iter().filter(|start| fits(range, *start)));
    let places = places.map(|start| PhysRange { start, end: start + size });
    let off_the_kernel = places.filter(|place| is_off(place, kernel)).min_by_key(|place| place.start);
    let anywhere = || ram.iter().find(|range| fits(range, start_in(range))).map(start_in);
    off_the_kernel.or_else(|| anywhere().map(|start| PhysRange { start, end: start + size })).ok_or_else(|| {
        let longest = ram.iter().map(|range| range.end.saturating_sub(start_in(range))).max().unwrap_or(0);
        RegionError::NoPlace { size, longest }
    })
}

/// Whether the region keeps off the running kernel's own code and data.
#[must_use]
pub fn is_off(region: &PhysRange, kernel: &[PhysRange]) -> bool {
    !kernel.iter().any(|part| part.overlaps(region))
}

/// The low memory that B and D get, and that the swap saves: every piece of RAM below 640 KiB. Firmware may leave it in
/// several. A's real-mode trampoline is in one of them (arch/x86/realmode/init.c, `reserve_real_mode`: the highest with
/// room for it), B's and D's may be in any, and without its own A loses its other CPUs.
///
/// `ram` must be whole pages, ascending and merged.
///
/// # Errors
/// [`RegionError::NoLowMemory`].
pub fn low_memory(ram: &[PhysRange]) -> Result<Vec<PhysRange>, RegionError> {
    let pieces: Vec<PhysRange> = ram
        .iter()
        .map(|range| PhysRange { start: range.start.max(LOW_START), end: range.end.min(LOW_END) })
        .filter(|range| range.start < range.end)
        .collect();
    if pieces.iter().any(|range| range.len() >= LOW_LEAST) { Ok(pieces) } else { Err(RegionError::NoLowMemory) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn range(start: u64, end: u64) -> PhysRange {
        PhysRange { start, end }
    }

    #[test]
    fn region_begins_at_16_mib() {
        let ram = [range(0x1000, 0x9f000), range(MIB, 768 * MIB)];
        assert_eq!(choose(&ram, &[], 128 * MIB, None), Ok(range(16 * MIB, 144 * MIB)));
        assert_eq!(low_memory(&ram), Ok(vec![range(0x1000, 0x9f000)]));
    }

    #[test]
    fn region_never_crosses_a_hole() {
        let ram = [range(MIB, 100 * MIB), range(101 * MIB + 4096, 400 * MIB), range(4096 * MIB, 8192 * MIB)];
        assert_eq!(choose(&ram, &[], 128 * MIB, None), Ok(range(102 * MIB, 230 * MIB)));
        assert_eq!(choose(&ram, &[], 298 * MIB, None), Ok(range(102 * MIB, 400 * MIB)));
        assert_eq!(choose(&ram, &[], 300 * MIB, None), Ok(range(4096 * MIB, 4396 * MIB)));
        assert_eq!(
            choose(&ram, &[], 8192 * MIB, None),
            Err(RegionError::NoPlace { size: 8192 * MIB, longest: 4096 * MIB })
        );
    }

    #[test]
    fn address_is_used_or_refused() {
        let ram = [range(MIB, 100 * MIB), range(200 * MIB, 400 * MIB)];
        assert_eq!(choose(&ram, &[], 64 * MIB, Some(32 * MIB)), Ok(range(32 * MIB, 96 * MIB)));
        for address in [64 * MIB, 150 * MIB, u64::MAX - 5] {
            assert_eq!(
                choose(&ram, &[], 64 * MIB, Some(address)),
                Err(RegionError::AddressNotRam { address, size: 64 * MIB })
            );
        }
    }

    #[test]
    fn region_keeps_off_the_kernel_where_it_can() {
        let ram = [range(MIB, 400 * MIB), range(4096 * MIB, 4300 * MIB)];
        let kernel = |start: u64| [range(start, start + 8 * MIB), range(start + 9 * MIB, start + 13 * MIB + 4096)];
        let at =
            |kernel: &[PhysRange], size: u64| choose(&ram, kernel, size * MIB, None).map(|place| place.start / MIB);
        // Without KASLR, it begins where the region would; elsewhere it does not matter.
        assert_eq!(at(&kernel(16 * MIB), 128), Ok(30));
        assert_eq!(at(&kernel(300 * MIB), 128), Ok(16));
        assert_eq!(at(&kernel(4200 * MIB), 128), Ok(16));
        // Between two parts of it, and before it, there is no room.
        assert_eq!(at(&kernel(100 * MIB), 128), Ok(114));
        assert_eq!(at(&kernel(100 * MIB), 84), Ok(16));
        // In another range of RAM; and where none is long enough without it, over it.
        assert_eq!(at(&kernel(210 * MIB), 200), Ok(4096));
        assert_eq!(at(&kernel(210 * MIB), 300), Ok(16));
        assert!(is_off(&range(16 * MIB, 32 * MIB), &kernel(32 * MIB)));
        assert!(!is_off(&range(16 * MIB, 33 * MIB), &kernel(32 * MIB)));
        // The policy's address counts.
        let place = choose(&ram, &kernel(16 * MIB), 128 * MIB, Some(16 * MIB));
        assert_eq!(place, Ok(range(16 * MIB, 144 * MIB)));
    }

    #[test]
    fn low_memory_under_uefi() {
        assert_eq!(low_memory(&[range(0, 0xa_0000), range(MIB, 9 * MIB)]), Ok(vec![range(0x1000, 0xa_0000)]));
        assert_eq!(low_memory(&[range(0x1000, 0x8000), range(MIB, 9 * MIB)]), Err(RegionError::NoLowMemory));
    }

    /// As UEFI firmware for Intel's CPUs leaves it, and some of its neighbours: every piece counts, however small.
    #[test]
    fn low_memory_in_pieces() {
        type Ranges = &'static [(u64, u64)];
        let cases: [(Ranges, Ranges); 4] = [
            (&[(0, 0x5_8000), (0x5_9000, 0x9_e000)], &[(0x1000, 0x5_8000), (0x5_9000, 0x9_e000)]),
            (&[(0x1000, 0x5_8000), (0x5_9000, 0x8_7000)], &[(0x1000, 0x5_8000), (0x5_9000, 0x8_7000)]),
            (
                &[(0, 0x6000), (0x8000, 0x9000), (0x2_0000, 0x9_f000)],
                &[(0x1000, 0x6000), (0x8000, 0x9000), (0x2_0000, 0x9_f000)],
            ),
            // The first page alone is none, and what crosses the end is cut.
            (&[(0, 0x1000), (0x2000, 0xb_0000)], &[(0x2000, 0xa_0000)]),
        ];
        for (ram, expected) in cases {
            let ranges =
                |pairs: &[(u64, u64)]| pairs.iter().map(|(start, end)| range(*start, *end)).collect::<Vec<_>>();
            let ram = [ranges(ram), vec![range(MIB, 768 * MIB)]].concat();
            assert_eq!(low_memory(&ram), Ok(ranges(expected)), "{ram:?}");
        }
        let crumbs: Vec<_> = (0..9).map(|piece| range(piece * 0x1_0000 + 0x1000, piece * 0x1_0000 + 0x9000)).collect();
        assert_eq!(low_memory(&crumbs), Err(RegionError::NoLowMemory));
    }
}
