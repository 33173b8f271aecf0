//! Where a CPU's microcode is: in the system's firmware files, and in the archive in which a kernel finds it before all
//! else. Pure.

use dormouse_image::Cpu;

/// The file below `/lib/firmware` (Linux 6.12, arch/x86/kernel/cpu/microcode/intel.c, `request_microcode_fw`, and
/// amd.c, `request_microcode_amd`), and the name in the archive (the same, `ucode_path`). `None` for CPUs that have
/// none.
#[must_use]
pub fn microcode_file(cpu: &Cpu) -> Option<(String, &'static str)> {
    let Cpu { family, model, stepping, .. } = cpu;
    match cpu.vendor.as_str() {
        "GenuineIntel" => Some((
            format!("intel-ucode/{family:02x}-{model:02x}-{stepping:02x}"),
            "kernel/x86/microcode/GenuineIntel.bin",
        )),
        "AuthenticAMD" if *family >= 0x15 => {
            Some((format!("amd-ucode/microcode_amd_fam{family:02x}h.bin"), "kernel/x86/microcode/AuthenticAMD.bin"))
        }
        "AuthenticAMD" => Some(("amd-ucode/microcode_amd.bin".to_owned(), "kernel/x86/microcode/AuthenticAMD.bin")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_are_the_kernels() {
        let file = |vendor: &str, family, model, stepping| {
            let cpu = Cpu { vendor: vendor.to_owned(), family, model, stepping, ..Cpu::default() };
            microcode_file(&cpu).map(|(file, _)| file)
        };
        assert_eq!(file("GenuineIntel", 6, 0x8e, 10).unwrap(), "intel-ucode/06-8e-0a");
        assert_eq!(file("AuthenticAMD", 0x19, 0x21, 0).unwrap(), "amd-ucode/microcode_amd_fam19h.bin");
        assert_eq!(file("AuthenticAMD", 0x10, 2, 3).unwrap(), "amd-ucode/microcode_amd.bin");
        assert_eq!(file("HygonGenuine", 0x18, 0, 0), None);
    }
}
