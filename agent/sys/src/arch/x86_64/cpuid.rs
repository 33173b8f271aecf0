//! The CPUID instruction.
#![allow(unsafe_code)]

use std::arch::x86_64::__cpuid_count;

/// What CPUID reports in `leaf` and `subleaf`: EAX, EBX, ECX, EDX. Zeroes where the CPU has no such leaf.
#[must_use]
pub fn read(leaf: u32, subleaf: u32) -> [u32; 4] {
    // Basic and extended leaves are counted apart (Intel SDM volume 2A, CPUID).
    // Safe from Rust 1.94 on.
    #[allow(unused_unsafe)]
    // SAFETY: every x86-64 CPU has the instruction; it changes nothing but the registers that it answers in.
    let highest = unsafe { __cpuid_count(leaf & 0x8000_0000, 0) }.eax;
    if leaf > highest {
        return [0; 4];
    }
    #[allow(unused_unsafe)]
    // SAFETY: as above.
    let answer = unsafe { __cpuid_count(leaf, subleaf) };
    [answer.eax, answer.ebx, answer.ecx, answer.edx]
}

#[cfg(test)]
mod tests {
    use super::read;

    #[test]
    fn this_cpu_runs_64_bit_programs() {
        assert_ne!(read(0x8000_0001, 0)[3] & 1 << 29, 0, "long mode");
        assert_eq!(read(0x7fff_ffff, 0), [0; 4]);
    }
}
