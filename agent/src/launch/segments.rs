//! The loader: turns a kernel file and an initramfs into segments for `kexec_load(2)` or Dormouse's module.
//!
//! A loads B with it, C loads D; both run in the same region. From its start the region holds
//!
//! ```text
//!   kernel, init_size bytes from its alignment on
//!   free memory
//!   own pages: entry stub, boot_params, command line, ELF core header, note, bridge (reserved in the memory map)
//!   initramfs, up to the region's end
//! ```
//!
//! When context is preserved, every page of the region and of low memory belongs to some segment, so that the jump
//! swaps it out and back. Nothing here does I/O: the caller brings the files and carries out the [`Plan`].

use dormouse_image::{FirmwareRange, PfnRange, PhysRange};
use dormouse_linux::units::mib;
use dormouse_sys::kexec::Segment;
use dormouse_sys::{PAGE_SIZE, stub};
use thiserror::Error;

use crate::handoff::arguments::LoaderArguments;
use crate::launch::BRIDGE_SIZE;
use crate::launch::arch::boot_params::{self, BootParamsError, Parameters};
use crate::launch::arch::bzimage::BzImage;
use crate::launch::arch::elfcorehdr;

/// Room for the command line: `COMMAND_LINE_SIZE` of x86 (arch/x86/include/asm/setup.h), less its final zero.
const CMDLINE_MAX: usize = 2047;

/// The digits at the end of the command line that the entry stub overwrites with the jump-back entry.
const ENTRY_DIGITS: usize = 16;

/// Why a kernel cannot be loaded.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LoaderError {
    /// Kernel and initramfs need more than the region has.
    #[error("the region has {}, kernel and initramfs need {}", mib(*.region), mib(*.needed))]
    RegionTooSmall {
        /// The region's size in bytes.
        region: u64,
        /// What is needed in bytes, without any memory to work in.
        needed: u64,
    },
    /// The command line does not fit.
    #[error("the kernel command line would have {len} bytes, at most {max} are possible")]
    CommandLine {
        /// Its length.
        len: usize,
        /// What the kernel takes.
        max: usize,
    },
    /// The page that the kernel is started with.
    #[error(transparent)]
    BootParams(#[from] BootParamsError),
    /// More ranges of low memory than whoever jumps takes.
    #[error("low memory has {low} ranges: that would make {segments} segments, and {most} can be loaded")]
    TooManySegments {
        /// The ranges of low memory.
        low: usize,
        /// The segments that they would make.
        segments: usize,
        /// The most that can be loaded.
        most: usize,
    },
    /// More ranges of memory than an ELF header counts.
    #[error("the memory has {0} ranges, too many for an ELF core header")]
    TooManyRanges(usize),
}

/// What the kernel to be loaded is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Purpose {
    /// Kernel B: reads the memory of the kernel that loads it.
    Save {
        /// The memory that `/proc/vmcore` is to show.
        memory: Vec<PfnRange>,
        /// The loading kernel's VMCOREINFO.
        note: Note,
    },
    /// Kernel D: writes to memory, reads none.
    Restore,
}

/// Where an ELF note is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Note {
    /// In physical memory that the second kernel sees as the first one left it.
    InMemory(PhysRange),
    /// In these bytes, which are placed in the region.
    Copy(Vec<u8>),
}

/// What the loader works from.
#[derive(Debug)]
pub struct Request<'a> {
    /// The kernel.
    pub kernel: &'a BzImage<'a>,
    /// Its initramfs, in pieces that follow one another.
    pub initramfs: &'a [&'a [u8]],
    /// Where it runs.
    pub region: PhysRange,
    /// The low memory that it gets.
    pub low: &'a [PhysRange],
    /// All other RAM, which it must not use.
    pub other_ram: &'a [PfnRange],
    /// What else the firmware described.
    pub firmware: &'a [FirmwareRange],
    /// The loading kernel's own boot_params.
    pub boot_params: &'a [u8],
    /// ACPI's root pointer, if it must be passed on.
    pub acpi_rsdp: Option<u64>,
    /// The command line, to which the loader's own arguments are added.
    pub cmdline: &'a str,
    /// What it is for.
    pub purpose: Purpose,
    /// How many segments whoever jumps takes.
    pub most_segments: usize,
}

/// Segments, ready to be loaded.
#[derive(Debug)]
pub struct Plan {
    /// The physical address at which the jump enters.
    pub entry: u64,
    /// The segments, ascending and not overlapping.
    pub segments: Vec<Segment>,
    /// The whole command line, for the log.
    pub cmdline: String,
}

/// Makes the plan.
///
/// # Errors
/// [`LoaderError`].
pub fn plan(request: &Request<'_>) -> Result<Plan, LoaderError> {
    let layout = Layout::new(request)?;
    let own = layout.own;
    let mut usable = request.low.to_vec();
    usable.push(PhysRange { start: request.region.start, end: own.range.start });
    usable.push(PhysRange { start: own.range.end, end: request.region.end });
    let memory_map = boot_params::memory_map(&usable, request.other_ram, request.firmware);

    let (cmdline, digits) = command_line(request, &own)?;
    let parameters = Parameters {
        template: request.boot_params,
        memory: &memory_map,
        initrd: layout.initramfs,
        cmdline: own.cmdline,
        acpi_rsdp: request.acpi_rsdp,
    };
    let mut pages = vec![0; to_len(own.bridge - own.range.start)];
    let mut place = |at: u64, bytes: &[u8]| {
        let at = to_len(at - own.range.start);
        pages[at..at + bytes.len()].copy_from_slice(bytes);
    };
    let kernel_entry = layout.kernel.start + BzImage::ENTRY;
    place(own.stub, &stub::entry(digits.map(|at| own.cmdline + at), own.boot_params, kernel_entry));
    place(own.boot_params, &boot_params::build(request.kernel, &parameters)?);
    place(own.cmdline, cmdline.as_bytes());
    if let Purpose::Save { memory, note } = &request.purpose {
        let note = match note {
            Note::InMemory(range) => *range,
            Note::Copy(bytes) => {
                place(own.note, bytes);
                PhysRange { start: own.note, end: own.note + bytes.len() as u64 }
            }
        };
        let header = elfcorehdr::build(memory, note).ok_or(LoaderError::TooManyRanges(memory.len()))?;
        place(own.elfcorehdr, &header);
    }

    let mut segments = vec![
        Segment { start: layout.kernel.start, size: layout.kernel.len(), data: request.kernel.kernel.to_vec() },
        Segment { start: own.range.start, size: own.range.len(), data: pages },
        Segment {
            start: layout.initramfs.start,
            size: request.region.end - layout.initramfs.start,
            data: request.initramfs.concat(),
        },
    ];
    // Without a swap there is nothing to preserve: what has no content is not loaded.
    if matches!(request.purpose, Purpose::Save { .. }) {
        fill(&mut segments, request.region);
        segments.extend(request.low.iter().map(|low| Segment { start: low.start, size: low.len(), data: Vec::new() }));
        segments.sort_by_key(|segment| segment.start);
    }
    if segments.len() > request.most_segments {
        let (low, most) = (request.low.len(), request.most_segments);
        return Err(LoaderError::TooManySegments { low, segments: segments.len(), most });
    }
    Ok(Plan { entry: own.stub, segments, cmdline })
}

/// Where everything lies.
#[derive(Debug)]
struct Layout {
    kernel: PhysRange,
    initramfs: PhysRange,
    own: OwnPages,
}

/// The pages that are the loader's own, each a physical address.
#[derive(Debug, Clone, Copy)]
struct OwnPages {
    range: PhysRange,
    stub: u64,
    boot_params: u64,
    cmdline: u64,
    elfcorehdr: u64,
    note: u64,
    bridge: u64,
}

impl Layout {
    fn new(request: &Request<'_>) -> Result<Layout, LoaderError> {
        let region = request.region;
        let too_small = |needed| LoaderError::RegionTooSmall { region: region.len(), needed };
        let kernel_start = region.start.next_multiple_of(request.kernel.alignment);
        let kernel_size = request.kernel.init_size.next_multiple_of(PAGE_SIZE);
        let initramfs_len = request.initramfs.iter().map(|piece| piece.len() as u64).sum::<u64>();
        let initramfs_size = initramfs_len.next_multiple_of(PAGE_SIZE);
        let (header, note) = match &request.purpose {
            Purpose::Save { memory, note } => {
                let header = (64 + 56 * (memory.len() as u64 + 1)).next_multiple_of(PAGE_SIZE);
                let note = match note {
                    Note::InMemory(_) => 0,
                    Note::Copy(bytes) => (bytes.len() as u64).next_multiple_of(PAGE_SIZE),
                };
                (header, note)
            }
            Purpose::Restore => (0, 0),
        };
        let own_size = (3 * PAGE_SIZE + header + note).next_multiple_of(BRIDGE_SIZE) + BRIDGE_SIZE;

        let needed = (kernel_start - region.start) + kernel_size + own_size + BRIDGE_SIZE + initramfs_size;
        if needed > region.len() {
            return Err(too_small(needed));
        }
        let initramfs = region.end - initramfs_size;
        // The bridge is aligned to its size, and so are the own pages as a whole.
        let own = (initramfs - own_size) / BRIDGE_SIZE * BRIDGE_SIZE;
        let elfcorehdr = own + 3 * PAGE_SIZE;
        Ok(Layout {
            kernel: PhysRange { start: kernel_start, end: kernel_start + kernel_size },
            initramfs: PhysRange { start: initramfs, end: initramfs + initramfs_len },
            own: OwnPages {
                range: PhysRange { start: own, end: own + own_size },
                stub: own,
                boot_params: own + PAGE_SIZE,
                cmdline: own + 2 * PAGE_SIZE,
                elfcorehdr,
                note: elfcorehdr + header,
                bridge: own + own_size - BRIDGE_SIZE,
            },
        })
    }
}

/// The whole command line, and where in it the entry stub writes.
fn command_line(request: &Request<'_>, own: &OwnPages) -> Result<(String, Option<u64>), LoaderError> {
    let mut arguments = LoaderArguments { entry: None, bridge: Some(own.bridge) };
    let mut line = format!("{} nokaslr", request.cmdline);
    let mut digits = None;
    if matches!(request.purpose, Purpose::Save { .. }) {
        line += &format!(" elfcorehdr={:#x}", own.elfcorehdr);
        arguments.entry = Some(0);
    }
    line += &format!(" {arguments}");
    if arguments.entry.is_some() {
        digits = Some((line.len() - ENTRY_DIGITS) as u64);
    }
    let max = CMDLINE_MAX.min(to_len(request.kernel.cmdline_size));
    if line.len() > max {
        return Err(LoaderError::CommandLine { len: line.len(), max });
    }
    Ok((line, digits))
}

/// Adds segments without data for every part of `region` that no segment covers. `segments` ascend in the region.
fn fill(segments: &mut Vec<Segment>, region: PhysRange) {
    let mut next = region.start;
    let mut gaps = Vec::new();
    for segment in segments.iter() {
        if segment.start > next {
            gaps.push(Segment { start: next, size: segment.start - next, data: Vec::new() });
        }
        next = segment.start + segment.size;
    }
    if next < region.end {
        gaps.push(Segment { start: next, size: region.end - next, data: Vec::new() });
    }
    segments.extend(gaps);
}

/// A length inside the region, which is far below what a 64-bit address space holds.
fn to_len(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::launch::arch::bzimage;
    use crate::launch::region;
    use dormouse_sys::{kexec, module};

    const MIB: u64 = 1 << 20;

    const INITRAMFS: &[&[u8]] = &[&[9; 512], &[8; 9488]];

    fn request<'a>(kernel: &'a BzImage<'a>, initramfs: &'a [&'a [u8]], purpose: Purpose) -> Request<'a> {
        Request {
            kernel,
            initramfs,
            region: PhysRange { start: 16 * MIB, end: 144 * MIB },
            low: &[PhysRange { start: 0x1000, end: 0x9f000 }],
            other_ram: &[PfnRange { start: 0x100, end: 0x1000 }, PfnRange { start: 0x9000, end: 0x3_0000 }],
            firmware: &[],
            boot_params: &[0; 4096],
            acpi_rsdp: None,
            cmdline: "console=ttyS0",
            purpose,
            most_segments: kexec::MAX_SEGMENTS,
        }
    }

    fn save() -> Purpose {
        Purpose::Save {
            memory: vec![PfnRange { start: 0x100, end: 0x1000 }, PfnRange { start: 0x9000, end: 0x3_0000 }],
            note: Note::Copy(vec![5; 5000]),
        }
    }

    #[test]
    fn save_covers_region_and_low_memory_exactly_once() {
        let file = bzimage::tests::sample(8192);
        let kernel = BzImage::parse(&file).unwrap();
        let plan = plan(&request(&kernel, INITRAMFS, save())).unwrap();
        assert!(plan.segments.len() <= kexec::MAX_SEGMENTS);
        assert_eq!((plan.segments[0].start, plan.segments[0].size), (0x1000, 0x9e000));
        let mut next = 16 * MIB;
        for segment in &plan.segments[1..] {
            assert_eq!(segment.start, next);
            assert!(segment.data.len() as u64 <= segment.size && segment.size % PAGE_SIZE == 0);
            next += segment.size;
        }
        assert_eq!(next, 144 * MIB);
        let last = plan.segments.last().unwrap();
        assert_eq!((last.data.len(), last.size), (10_000, 12_288));
        assert_eq!((last.data[511], last.data[512]), (9, 8));
    }

    #[test]
    fn every_range_of_low_memory_is_preserved() {
        let file = bzimage::tests::sample(8192);
        let kernel = BzImage::parse(&file).unwrap();
        let range = |number: u64| PhysRange { start: number * 0x2000, end: number * 0x2000 + 0x1000 };
        for count in [1_u64, 2, 9] {
            let low: Vec<PhysRange> = (1..=count).map(range).collect();
            let save = plan(&Request { low: &low, ..request(&kernel, INITRAMFS, save()) }).unwrap();
            assert!(save.segments.is_sorted_by_key(|segment| segment.start));
            let found = save.segments.iter().filter(|segment| segment.start < MIB);
            let found: Vec<PhysRange> =
                found.map(|at| PhysRange { start: at.start, end: at.start + at.size }).collect();
            assert_eq!(found, low);
            // D gets them as memory, and nothing is loaded there.
            let restore = plan(&Request { low: &low, ..request(&kernel, INITRAMFS, Purpose::Restore) }).unwrap();
            assert!(restore.segments.iter().all(|segment| segment.start >= 16 * MIB));
        }
    }

    #[test]
    fn more_pieces_of_low_memory_than_the_kernel_takes_are_for_the_module() {
        let file = bzimage::tests::sample(8192);
        let kernel = BzImage::parse(&file).unwrap();
        // Every second page below 96 KiB is the firmware's, and what follows is RAM up to 636 KiB.
        let mut ram: Vec<PhysRange> =
            (0..12).map(|piece| PhysRange { start: piece * 0x2000, end: piece * 0x2000 + 0x1000 }).collect();
        ram.extend([PhysRange { start: 0x1_8000, end: 0x9_f000 }, PhysRange { start: MIB, end: 768 * MIB }]);
        let low = region::low_memory(&ram).unwrap();
        // The first page is never taken.
        assert_eq!(low.len(), 12);
        let by = |most_segments| plan(&Request { low: &low, most_segments, ..request(&kernel, INITRAMFS, save()) });
        let error = by(kexec::MAX_SEGMENTS).unwrap_err();
        assert!(matches!(error, LoaderError::TooManySegments { low: 12, segments: 17, most: 16 }), "{error:?}");
        let save = by(module::MAX_SEGMENTS).unwrap();
        // All of it is swapped, besides all of the region.
        let swapped: u64 = save.segments.iter().map(|segment| segment.size).sum();
        assert_eq!(swapped, low.iter().map(PhysRange::len).sum::<u64>() + 128 * MIB);
        let of_low = save.segments.iter().filter(|segment| segment.start < MIB);
        let of_low: Vec<PhysRange> = of_low.map(|at| PhysRange { start: at.start, end: at.start + at.size }).collect();
        assert_eq!(of_low, low);
        // B and D get it as memory.
        let restore = plan(&Request { low: &low, ..request(&kernel, INITRAMFS, Purpose::Restore) }).unwrap();
        assert!(restore.segments.iter().all(|segment| segment.start >= 16 * MIB));
    }

    #[test]
    fn entry_stub_overwrites_the_placeholder() {
        let file = bzimage::tests::sample(8192);
        let kernel = BzImage::parse(&file).unwrap();
        let request = request(&kernel, INITRAMFS, save());
        let own = Layout::new(&request).unwrap().own;
        let (line, digits) = command_line(&request, &own).unwrap();
        let at = usize::try_from(digits.unwrap()).unwrap();
        assert_eq!(&line[at - 17..], "dormouse.entry=0x0000000000000000");
        assert!(own.bridge.is_multiple_of(BRIDGE_SIZE) && own.range.end == own.bridge + BRIDGE_SIZE);
        assert!(line.contains(&format!("elfcorehdr={:#x}", own.elfcorehdr)));
    }

    #[test]
    fn restore_loads_content_only() {
        let file = bzimage::tests::sample(8192);
        let kernel = BzImage::parse(&file).unwrap();
        let plan = plan(&request(&kernel, INITRAMFS, Purpose::Restore)).unwrap();
        assert_eq!(plan.segments.len(), 3);
        assert!(plan.segments.iter().all(|segment| !segment.data.is_empty()));
        assert!(!plan.cmdline.contains("elfcorehdr") && !plan.cmdline.contains("entry"));
    }

    #[test]
    fn rejects_what_does_not_fit() {
        let file = bzimage::tests::sample(8192);
        let kernel = BzImage::parse(&file).unwrap();
        let initramfs = vec![0; 120 << 20];
        let error = plan(&request(&kernel, &[&initramfs], save())).unwrap_err();
        assert!(matches!(error, LoaderError::RegionTooSmall { needed, .. } if needed > 136 * MIB), "{error}");
        let long = "x".repeat(2000);
        let error = plan(&Request { cmdline: &long, ..request(&kernel, &[&[1]], save()) }).unwrap_err();
        assert!(matches!(error, LoaderError::CommandLine { max: 2047, .. }), "{error}");
    }
}
