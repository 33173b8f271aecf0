//! The CPU's microcode. What a kernel has found at boot (features, ways around faults) may rest on it, and a saved
//! kernel does not look again: an older one may lack what it uses.
//!
//! The revisions of one CPU ascend: kernels load only what is newer by this number (Linux 6.12,
//! arch/x86/kernel/cpu/microcode/intel.c, `scan_microcode`, and amd.c, `apply_microcode_amd`). Those of different CPUs
//! have nothing in common.

use dormouse_image::Cpu;
use dormouse_linux::procfs;

use crate::machine::arch;
use crate::machine::compat::Mismatch;

/// The revision in the running kernel; 0 where there is none, or the kernel does not name it.
#[must_use]
pub fn revision() -> u32 {
    procfs::text("/proc/cpuinfo").map_or(0, |text| arch::identify(&text).microcode)
}

/// Whether the same CPU has here what a saved kernel had, in [`Cpu::microcode`]. A newer one will do: the session's
/// kernel has not asked for what that adds. One that was not recorded is not compared.
pub(super) fn check(saved: &Cpu, here: &Cpu) -> Result<(), Mismatch> {
    let (saved, here) = (saved.microcode, here.microcode);
    if here < saved { Err(Mismatch::Microcode { saved, here }) } else { Ok(()) }
}

/// Demands it of the running kernel, for the kernel that restores.
///
/// # Errors
/// [`Mismatch::Microcode`].
pub fn demand(saved: &Cpu) -> Result<(), Mismatch> {
    check(saved, &Cpu { microcode: revision(), ..Cpu::default() })
}

/// What is to be reported where the session finds a newer one than it was saved with.
#[must_use]
pub fn newer(saved: &Cpu, here: &Cpu) -> Option<String> {
    let (saved, here) = (saved.microcode, here.microcode);
    (saved != 0 && here > saved)
        .then(|| format!("the CPU's microcode is newer now: revision {here:#x}, and {saved:#x} when it was saved"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpu(microcode: u32) -> Cpu {
        Cpu { microcode, ..Cpu::default() }
    }

    #[test]
    fn rejects_an_older_revision_alone() {
        let refused = |saved, here| Err(Mismatch::Microcode { saved, here });
        assert_eq!(check(&cpu(0xf4), &cpu(0xf4)), Ok(()));
        assert_eq!(check(&cpu(0xf4), &cpu(0xf8)), Ok(()));
        assert_eq!(check(&cpu(0xf4), &cpu(0xf3)), refused(0xf4, 0xf3));
        // A CPU of AMD's, and one beyond what is positive as a signed number.
        assert_eq!(check(&cpu(0x0a20_120e), &cpu(0x0a20_1205)), refused(0x0a20_120e, 0x0a20_1205));
        assert_eq!(check(&cpu(0x7fff_ffff), &cpu(0x8000_0000)), Ok(()));
        // None is loaded here; it was not recorded.
        assert_eq!(check(&cpu(0xf4), &cpu(0)), refused(0xf4, 0));
        assert_eq!(check(&cpu(0), &cpu(0xf4)), Ok(()));
        assert_eq!(check(&cpu(0), &cpu(0)), Ok(()));
    }

    #[test]
    fn reports_a_newer_revision() {
        let text = newer(&cpu(0xf4), &cpu(0xf8)).unwrap_or_default();
        assert!(text.contains("revision 0xf8, and 0xf4"), "{text}");
        for (saved, here) in [(0xf4, 0xf4), (0xf4, 0xf3), (0, 0xf4), (0, 0)] {
            assert_eq!(newer(&cpu(saved), &cpu(here)), None);
        }
    }
}
