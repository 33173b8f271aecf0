//! Where D is when a boot loader starts it, and how its command line keeps it there. Pure.
//!
//! The loader puts a kernel at the address that it prefers, and the kernel moves its initramfs into memory that it may
//! use. Its command line makes reserved what is not the region or low memory: of what the firmware calls RAM alone, so
//! that all else stays what it is.
//!
//! ```text
//!   low memory      | firmware's | A's RAM  | region: kernel, memory to work in | bridge | A's RAM
//!   RAM             | left out   | reserved | RAM                               | reserved ...
//! ```

use dormouse_image::PhysRange;
use dormouse_linux::kernel_args::join;
use dormouse_linux::units::mib;
use thiserror::Error;

use crate::handoff::arguments::LoaderArguments;
use crate::launch::BRIDGE_SIZE;
use crate::launch::arch::bzimage::BzImage;
use crate::machine::iomem::Iomem;

/// Room for the command line: `COMMAND_LINE_SIZE` of x86 (arch/x86/include/asm/setup.h), less its final zero, and less
/// what GRUB puts before it: `BOOT_IMAGE=` and a path.
const CMDLINE_MAX: usize = 2047 - 127;

/// Where low memory ends, for the boot loader: `0xa0000` to 1 MiB is no RAM.
const LOW_END: u64 = 0xa_0000;
/// Where other memory begins.
const HIGH_START: u64 = 1 << 20;
/// To what the end of RAM is rounded up.
const ROUND: u64 = 2 << 20;

/// Why a boot loader cannot start D.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum NotDirect {
    /// It would not be in the region.
    #[error(
        "the region begins at {region:#x}, and a boot loader puts the restore kernel at {preferred:#x}, where this \
         session's own kernel or other memory lies"
    )]
    Elsewhere {
        /// Where the region begins.
        region: u64,
        /// Where the kernel is put.
        preferred: u64,
    },
    /// It would not fit there.
    #[error(
        "the region has {} above the address of the kernel, which needs {} with its initramfs",
        mib(*.room), mib(*.needed)
    )]
    TooSmall {
        /// What there is.
        room: u64,
        /// What it needs.
        needed: u64,
    },
    /// The command line is too long.
    #[error("the restore kernel's command line would have {len} bytes, at most {CMDLINE_MAX} are possible")]
    CommandLine {
        /// Its length.
        len: usize,
    },
}

/// The command line of a D that a boot loader starts with `kernel` and initramfs of `initramfs` bytes, on the machine
/// whose session has this region. `common` is what it gets however it is started.
///
/// # Errors
/// [`NotDirect`].
pub(super) fn command_line(
    common: &str,
    kernel: &BzImage<'_>,
    initramfs: u64,
    region: PhysRange,
    iomem: &Iomem,
) -> Result<String, NotDirect> {
    let bridge = (region.end - BRIDGE_SIZE) / BRIDGE_SIZE * BRIDGE_SIZE;
    if kernel.preferred < region.start || kernel.preferred >= bridge {
        return Err(NotDirect::Elsewhere { region: region.start, preferred: kernel.preferred });
    }
    // The initramfs as it was loaded, and unpacked.
    let (room, needed) = (bridge - kernel.preferred, kernel.init_size + 2 * initramfs);
    if needed > room {
        return Err(NotDirect::TooSmall { room, needed });
    }
    let end = iomem.ram.iter().map(|range| range.end).max().unwrap_or(0).next_multiple_of(ROUND);
    let mut arguments = vec![common.to_owned(), "nokaslr".to_owned()];
    arguments.extend(confinement(region.start, bridge, end));
    arguments.push(LoaderArguments { entry: None, bridge: Some(bridge) }.to_string());
    let line = join(arguments.iter().map(String::as_str));
    if line.len() > CMDLINE_MAX { Err(NotDirect::CommandLine { len: line.len() }) } else { Ok(line) }
}

/// The arguments that confine a kernel (Documentation/admin-guide/kernel-parameters.txt, `memmap=`): of a range, type 1
/// (RAM) becomes type 2 (reserved), or type 2 is left out.
fn confinement(region: u64, bridge: u64, end: u64) -> Vec<String> {
    let reserved = |range: PhysRange| {
        let len = range.end.checked_sub(range.start).filter(|len| *len > 0)?;
        Some(format!("memmap={len:#x}%{:#x}-1+2", range.start))
    };
    // What the firmware has reserved below 1 MiB would be merged with the memory above, begin below 1 MiB, and
    // therefore be busy, so that /dev/mem gives nothing of it (`IO_STRICT_DEVMEM`).
    let left_out = format!("memmap={:#x}%{LOW_END:#x}-2", HIGH_START - LOW_END);
    let below = reserved(PhysRange { start: HIGH_START, end: region });
    let above = reserved(PhysRange { start: bridge, end });
    // After these there is no RAM above the bridge for the kernel to drop: it is for GRUB, which on BIOS puts the
    // initramfs below this address.
    let limit = format!("mem={bridge:#x}");
    [Some(left_out), below, above, Some(limit)].into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::launch::arch::bzimage::tests::sample;

    const MIB: u64 = 1 << 20;
    const REGION: PhysRange = PhysRange { start: 16 * MIB, end: 144 * MIB };
    const IOMEM: &str = "00001000-0009fbff : System RAM\n00100000-3ffdffff : System RAM\n\
                         3ffe0000-3fffffff : Reserved\n100000000-17fffffff : System RAM\n";

    fn of(region: PhysRange, initramfs: u64) -> Result<String, NotDirect> {
        let file = sample(8192);
        let kernel = BzImage::parse(&file).unwrap();
        command_line("console=ttyS0", &kernel, initramfs, region, &Iomem::parse(IOMEM).unwrap())
    }

    #[test]
    fn all_but_region_and_low_memory_becomes_reserved() {
        let expected = "console=ttyS0 nokaslr memmap=0x60000%0xa0000-2 memmap=0xf00000%0x100000-1+2 \
                        memmap=0x177008000%0x8ff8000-1+2 mem=0x8ff8000 dormouse.bridge=0x8ff8000";
        assert_eq!(of(REGION, 3 * MIB).unwrap(), expected);
    }

    #[test]
    fn a_region_elsewhere_is_the_other_way() {
        let region = |start: u64| PhysRange { start: start * MIB, end: (start + 128) * MIB };
        let elsewhere = |start: u64| NotDirect::Elsewhere { region: start * MIB, preferred: 16 * MIB };
        assert_eq!(of(region(18), MIB), Err(elsewhere(18)));
        assert_eq!(of(PhysRange { start: 8 * MIB, end: 16 * MIB }, MIB), Err(elsewhere(8)));
        // From below the address it is in it too.
        assert!(
            of(PhysRange { start: 8 * MIB, end: 144 * MIB }, MIB).unwrap().contains("memmap=0x700000%0x100000-1+2")
        );
        // A kernel of 16 MiB.
        assert!(matches!(of(REGION, 60 * MIB), Err(NotDirect::TooSmall { .. })));
    }

    #[test]
    fn a_line_that_a_loader_cannot_give_is_refused() {
        let file = sample(8192);
        let (kernel, iomem) = (BzImage::parse(&file).unwrap(), Iomem::parse(IOMEM).unwrap());
        let line = command_line(&"x".repeat(1900), &kernel, MIB, REGION, &iomem);
        assert!(matches!(line, Err(NotDirect::CommandLine { len: 1901.. })));
    }
}
