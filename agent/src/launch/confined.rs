//! Whether a kernel that a boot loader has started is where its command line was to keep it. Pure.

use dormouse_image::PhysRange;
use thiserror::Error;

use crate::machine::iomem::Iomem;

/// It is not.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("this kernel has {what} at {start:#x}-{end:#x}, which is not in the session's region {region}")]
pub struct NotConfined {
    what: &'static str,
    start: u64,
    end: u64,
    region: PhysRange,
}

/// Demands that all memory of the running kernel lies in `region` or `low`, and the kernel itself in `region`. What
/// the boot loader has put elsewhere, such as the initramfs, the kernel has moved into memory of its own by now.
///
/// # Errors
/// [`NotConfined`].
pub fn demand_confined(running: &Iomem, region: PhysRange, low: &[PhysRange]) -> Result<(), NotConfined> {
    let is_in = |part: &PhysRange, whole: &PhysRange| whole.start <= part.start && part.end <= whole.end;
    let refuse = |what, part: &PhysRange| Err(NotConfined { what, start: part.start, end: part.end, region });
    if let Some(part) = running.kernel.iter().find(|part| !is_in(part, &region)) {
        return refuse("its own code or data", part);
    }
    let is_allowed = |part: &&PhysRange| is_in(part, &region) || low.iter().any(|low| is_in(part, low));
    match running.whole_ram().iter().find(|part| !is_allowed(part)) {
        Some(part) => refuse("memory", part),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const REGION: PhysRange = PhysRange { start: 0x100_0000, end: 0x900_0000 };
    const LOW: [PhysRange; 1] = [PhysRange { start: 0x1000, end: 0x9_f000 }];

    fn demand(text: &str) -> Result<(), String> {
        demand_confined(&Iomem::parse(text).unwrap(), REGION, &LOW).map_err(|error| error.to_string())
    }

    #[test]
    fn memory_outside_the_region_is_refused() {
        let confined = "00000000-00000fff : Reserved\n00001000-0009fbff : System RAM\n\
                        00100000-00ffffff : Reserved\n01000000-08ff7fff : System RAM\n\
                        \x20 01000000-017fffff : Kernel code\n08ff8000-3ffdffff : Reserved\n";
        assert_eq!(demand(confined), Ok(()));
        let all = "00001000-0009fbff : System RAM\n00100000-3ffdffff : System RAM\n";
        assert!(demand(all).unwrap_err().contains("memory at 0x100000-0x3ffe0000"));
        let more = format!("{confined}100000000-13fffffff : System RAM\n");
        assert!(demand(&more).unwrap_err().contains("memory at 0x100000000-0x140000000"));
        let moved = "01000000-08ff7fff : System RAM\n20000000-2fffffff : System RAM\n\
                     \x20 20000000-20ffffff : Kernel code\n";
        assert!(demand(moved).unwrap_err().contains("its own code or data at 0x20000000"));
    }
}
