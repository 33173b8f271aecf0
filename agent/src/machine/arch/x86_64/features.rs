//! What the CPU can do, by CPUID and not by `/proc/cpuinfo`: its flags depend on the kernel that writes it, and the
//! kernel that looks for a session may be another than the one that was saved.

/// A register that CPUID answers in, as an index of its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

/// Thirty-two features.
struct Word {
    leaf: u32,
    subleaf: u32,
    register: Register,
    /// Bits that are not a feature: state that the kernel sets, or part of a number.
    ignored: u32,
    /// The features' names from bit 0 on, `-` for one that has none here.
    names: &'static str,
}

const fn word(leaf: u32, subleaf: u32, register: Register, ignored: u32, names: &'static str) -> Word {
    Word { leaf, subleaf, register, ignored, names }
}

/// What programs and kernels go by (Intel SDM volume 2A, CPUID; AMD APM volume 3, appendix E). The names are those of
/// arch/x86/include/asm/cpufeatures.h of Linux 6.12, where it has one.
const WORDS: [Word; 14] = [
    word(
        1,
        0,
        Register::Edx,
        // The local APIC, as it is switched on.
        1 << 9,
        "fpu vme de pse tsc msr pae mce cx8 apic - sep mtrr pge mca cmov pat pse36 pn clflush - dts acpi mmx fxsr \
         sse sse2 ss ht tm ia64 pbe",
    ),
    word(
        1,
        0,
        Register::Ecx,
        // OSXSAVE, which is CR4.OSXSAVE.
        1 << 27,
        "pni pclmulqdq dtes64 monitor ds_cpl vmx smx est tm2 ssse3 cid sdbg fma cx16 xtpr pdcm - pcid dca sse4_1 \
         sse4_2 x2apic movbe popcnt tsc_deadline_timer aes xsave osxsave avx f16c rdrand hypervisor",
    ),
    word(
        7,
        0,
        Register::Ebx,
        0,
        "fsgsbase tsc_adjust sgx bmi1 hle avx2 fdp_excptn_only smep bmi2 erms invpcid rtm cqm zero_fcs_fds mpx rdt_a \
         avx512f avx512dq rdseed adx smap avx512ifma - clflushopt clwb intel_pt avx512pf avx512er avx512cd sha_ni \
         avx512bw avx512vl",
    ),
    word(
        7,
        0,
        Register::Ecx,
        // OSPKE, which is CR4.PKE; and MAWAU, a number in five bits.
        1 << 4 | 0x1f << 17,
        "prefetchwt1 avx512vbmi umip pku ospke waitpkg avx512_vbmi2 shstk gfni vaes vpclmulqdq avx512_vnni \
         avx512_bitalg tme avx512_vpopcntdq - la57 - - - - - rdpid - bus_lock_detect cldemote - movdiri movdir64b \
         enqcmd sgx_lc pks",
    ),
    word(
        7,
        0,
        Register::Edx,
        0,
        "- - avx512_4vnniw avx512_4fmaps fsrm uintr - - avx512_vp2intersect srbds_ctrl md_clear rtm_always_abort - \
         tsx_force_abort serialize hybrid_cpu tsxldtrk - pconfig arch_lbr ibt - amx_bf16 avx512_fp16 amx_tile \
         amx_int8 spec_ctrl intel_stibp flush_l1d arch_capabilities core_capabilities spec_ctrl_ssbd",
    ),
    word(7, 1, Register::Eax, 0, "- - - - avx_vnni avx512_bf16 - cmpccxadd - - fzrm fsrs fsrc"),
    word(7, 1, Register::Edx, 0, ""),
    word(0xd, 1, Register::Eax, 0, "xsaveopt xsavec xgetbv1 xsaves xfd"),
    word(
        0x8000_0001,
        0,
        Register::Edx,
        // What AMD repeats of leaf 1.
        0x0183_f3ff,
        "- - - - - - - - - - - syscall - - - - - - - mp nx - mmxext - - fxsr_opt pdpe1gb rdtscp - lm 3dnowext 3dnow",
    ),
    word(
        0x8000_0001,
        0,
        Register::Ecx,
        0,
        "lahf_lm cmp_legacy svm extapic cr8_legacy abm sse4a misalignsse 3dnowprefetch osvw ibs xop skinit wdt - lwp \
         fma4 tce - nodeid_msr - tbm topoext perfctr_core perfctr_nb - bpext ptsc perfctr_llc mwaitx",
    ),
    word(0x8000_0007, 0, Register::Edx, 0, "- - - - - - - hw_pstate constant_tsc cpb"),
    word(0x8000_0008, 0, Register::Ebx, 0, "clzero irperf xsaveerptr - rdpru - - - - wbnoinvd"),
    word(
        0x8000_000a,
        0,
        Register::Edx,
        0,
        "npt lbrv svm_lock nrip_save tsc_scale vmcb_clean flushbyasid decodeassists",
    ),
    word(0x8000_0021, 0, Register::Eax, 0, ""),
];

/// The names of the features that `cpuid` reports, separated by spaces, in the order of the table. One without a name
/// is named by its place, such as `cpuid_7_1_edx_4`.
pub(super) fn list(cpuid: impl Fn(u32, u32) -> [u32; 4]) -> String {
    let mut list = Vec::new();
    for word in &WORDS {
        let bits = cpuid(word.leaf, word.subleaf)[word.register as usize] & !word.ignored;
        let mut names = word.names.split_whitespace();
        for bit in 0..u32::BITS {
            let name = names.next().filter(|name| *name != "-");
            if bits & 1 << bit != 0 {
                list.push(name.map_or_else(|| word.place(bit), str::to_owned));
            }
        }
    }
    list.join(" ")
}

impl Word {
    fn place(&self, bit: u32) -> String {
        let register = format!("{:?}", self.register).to_lowercase();
        format!("cpuid_{:x}_{:x}_{register}_{bit}", self.leaf, self.subleaf)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_have_names_and_state_of_the_kernel_is_left_out() {
        let answer = |leaf, subleaf| match (leaf, subleaf) {
            (1, 0) => [0xffff_ffff, 0xffff_ffff, 1 << 20 | 1 << 27, 1 | 1 << 9],
            (7, 0) => [0, 1 << 5, 1 << 4 | 1 << 16 | 1 << 18, 0],
            (7, 1) => [0, 0, 0, 1 << 4],
            (0x8000_0001, 0) => [0, 0, 1 << 31, 1 << 29 | 1],
            _ => [0; 4],
        };
        assert_eq!(list(answer), "fpu sse4_2 avx2 la57 cpuid_7_1_edx_4 lm cpuid_80000001_0_ecx_31");
    }

    /// One name too few or too many would shift all that follow.
    #[test]
    fn the_names_are_where_they_belong() {
        let at = |leaf, register: Register, name: &str| {
            let word = WORDS.iter().find(|word| word.leaf == leaf && word.subleaf == 0 && word.register == register);
            word.and_then(|word| word.names.split_whitespace().position(|other| other == name))
        };
        let places = [
            (1, Register::Edx, "pbe", 31),
            (1, Register::Edx, "sse2", 26),
            (1, Register::Ecx, "hypervisor", 31),
            (1, Register::Ecx, "aes", 25),
            (7, Register::Ebx, "avx512vl", 31),
            (7, Register::Ebx, "smap", 20),
            (7, Register::Ecx, "pks", 31),
            (7, Register::Ecx, "rdpid", 22),
            (7, Register::Edx, "spec_ctrl_ssbd", 31),
            (7, Register::Edx, "ibt", 20),
            (0x8000_0001, Register::Edx, "3dnow", 31),
            (0x8000_0001, Register::Edx, "nx", 20),
            (0x8000_0001, Register::Ecx, "mwaitx", 29),
            (0x8000_0007, Register::Edx, "constant_tsc", 8),
            (0x8000_0008, Register::Ebx, "wbnoinvd", 9),
        ];
        for (leaf, register, name, bit) in places {
            assert_eq!(at(leaf, register, name), Some(bit), "{name}");
        }
        assert!(WORDS.iter().all(|word| word.names.split_whitespace().count() <= 32));
    }

    /// This test runs on the CPU that it asks.
    #[test]
    fn this_cpu_is_an_x86_64() {
        let list = list(dormouse_sys::cpuid::read);
        for name in ["fpu", "sse2", "fxsr", "lm"] {
            assert!(list.split(' ').any(|feature| feature == name), "{list}");
        }
    }
}
