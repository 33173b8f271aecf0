//! The CPU in the text of `/proc/cpuinfo`.

use dormouse_image::Cpu;

use crate::machine::arch::x86_64::features;

/// The first CPU of `/proc/cpuinfo`.
///
/// A kernel that runs with 4 levels of page tables clears `la57` there (arch/x86/kernel/cpu/common.c,
/// `setup_clear_cpu_cap(X86_FEATURE_LA57)`), so the flag is the mode and not only the ability.
pub fn identify(cpuinfo: &str) -> Cpu {
    let first = cpuinfo.split("\n\n").next().unwrap_or_default();
    let field = |name: &str| {
        let line = first.lines().find_map(|line| line.split_once(':').filter(|(key, _)| key.trim() == name));
        line.map_or("", |(_, value)| value.trim())
    };
    let number = |name| field(name).parse().unwrap_or(0);
    let has_la57 = field("flags").split(' ').any(|flag| flag == "la57");
    Cpu {
        vendor: field("vendor_id").to_string(),
        family: number("cpu family"),
        model: number("model"),
        stepping: number("stepping"),
        name: field("model name").to_string(),
        features: features::list(dormouse_sys::cpuid::read),
        // Left out where it is 0 (arch/x86/kernel/cpu/proc.c, `show_cpuinfo`).
        microcode: field("microcode").strip_prefix("0x").and_then(|hex| u32::from_str_radix(hex, 16).ok()).unwrap_or(0),
        online: 0,
        la57: has_la57,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_first_cpu() {
        let cpu = identify(
            "processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 15\nmodel\t\t: 107\n\
             model name\t: QEMU TCG CPU version 2.5+\nstepping\t: 1\nmicrocode\t: 0x1000065\nflags\t\t: fpu la57 lm\n\n\
             processor\t: 1\nmicrocode\t: 0x1000064\n",
        );
        assert_eq!((cpu.vendor.as_str(), cpu.family, cpu.model, cpu.stepping), ("AuthenticAMD", 15, 107, 1));
        assert!(cpu.la57);
        assert_eq!(cpu.microcode, 0x0100_0065);
        assert_eq!(identify("stepping\t: 1\n\nmicrocode\t: 0x5\n").microcode, 0);
        assert!(!identify("flags : fpu la57x\n").la57);
    }
}
