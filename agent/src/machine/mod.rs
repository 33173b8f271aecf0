//! What A and C know of the machine that they run on.

pub mod arch;
pub mod compat;
pub mod free_content;
pub mod iomem;

use std::path::Path;

use anyhow::Context;
use dormouse_image::{Cpu, EfiRange};
use dormouse_linux::procfs;

use crate::machine::arch::features;
use crate::machine::iomem::Iomem;

/// The machine, and the kernel that runs on it.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Its physical address space.
    pub iomem: Iomem,
    /// Its processor.
    pub cpu: Cpu,
    /// The running kernel's boot_params.
    pub boot_params: Vec<u8>,
    /// ACPI's root pointer, where only UEFI knows it.
    pub acpi_rsdp: Option<u64>,
    /// What UEFI's runtime services use, and where; empty without them.
    pub efi: Vec<EfiRange>,
    /// The running kernel's command line.
    pub cmdline: String,
}

impl Machine {
    /// Reads all of it.
    ///
    /// # Errors
    /// A file that is missing or unreadable, named; most of them are for root alone.
    pub fn read() -> anyhow::Result<Machine> {
        let online = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let mut cpu = parse_cpu(&procfs::text("/proc/cpuinfo")?);
        cpu.online = u32::try_from(online)?;
        Ok(Machine {
            iomem: Iomem::parse(&procfs::text("/proc/iomem")?)?,
            cpu,
            boot_params: std::fs::read("/sys/kernel/boot_params/data")
                .context("/sys/kernel/boot_params/data: cannot read it")?,
            acpi_rsdp: std::fs::read_to_string("/sys/firmware/efi/systab")
                .ok()
                .and_then(|systab| parse_systab(&systab)),
            efi: efi_runtime(Path::new("/sys/firmware/efi/runtime-map"))?,
            cmdline: procfs::text("/proc/cmdline")?.trim().to_string(),
        })
    }
}

/// The entries of `/sys/firmware/efi/runtime-map` (Documentation/ABI/testing/sysfs-firmware-efi-runtime-map): numbers in
/// hexadecimal, one in a file. No such folder is a kernel without runtime services.
fn efi_runtime(folder: &Path) -> anyhow::Result<Vec<EfiRange>> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Ok(Vec::new()) };
    let mut ranges = Vec::new();
    for entry in entries.flatten() {
        let number = |name: &str| {
            let path = entry.path().join(name);
            let text = std::fs::read_to_string(&path).with_context(|| format!("{}: cannot read it", path.display()))?;
            let digits = text.trim().trim_start_matches("0x");
            u64::from_str_radix(digits, 16).with_context(|| format!("{}: no number: `{text}`", path.display()))
        };
        let start = number("phys_addr")?;
        let len = number("num_pages")?.saturating_mul(dormouse_sys::PAGE_SIZE);
        ranges.push(EfiRange { start, end: start.saturating_add(len), mapped: number("virt_addr")? });
    }
    ranges.sort_by_key(|range| range.start);
    Ok(ranges)
}

/// The processors that are there and do not run, as a list such as `2-3`; empty where all do.
///
/// Where this kernel came from, they wait in a loop in memory, which must not be overwritten: a processor that was started here
/// waits in this kernel's.
///
/// # Errors
/// The kernel's lists cannot be read.
pub fn idle_cpus() -> anyhow::Result<String> {
    let read = |name: &str| procfs::text(format!("/sys/devices/system/cpu/{name}"));
    Ok(idle_among(&read("present")?, &read("offline")?, &read("possible")?))
}

/// Those that are offline, but for places where one could be plugged in. What is offline and not even possible has found no
/// room in the kernel's configuration (drivers/base/cpu.c, `print_cpus_offline`).
fn idle_among(present: &str, offline: &str, possible: &str) -> String {
    let (present, possible) = (cpu_list(present), cpu_list(possible));
    let idle = cpu_list(offline).into_iter().filter(|cpu| present.contains(cpu) || !possible.contains(cpu));
    idle.map(|cpu| cpu.to_string()).collect::<Vec<_>>().join(",")
}

/// A list such as `0-3,8`.
fn cpu_list(text: &str) -> Vec<u32> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse::<u32>().ok()?..=last.parse().ok()?)
    };
    text.trim().split(',').filter_map(range).flatten().take(1 << 16).collect()
}

/// How many pages the kernel's page allocator holds free now; 0 where it does not say.
#[must_use]
pub fn free_pages() -> u64 {
    let text = std::fs::read_to_string("/proc/vmstat").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("nr_free_pages "));
    line.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
}

/// The first processor of `/proc/cpuinfo`.
///
/// A kernel that runs with 4 levels of page tables clears `la57` there (arch/x86/kernel/cpu/common.c,
/// `setup_clear_cpu_cap(X86_FEATURE_LA57)`), so the flag tells the mode and not only the ability.
fn parse_cpu(cpuinfo: &str) -> Cpu {
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
        online: 0,
        la57: has_la57,
    }
}

/// The ACPI 2.0 root pointer in the text of `/sys/firmware/efi/systab`, or else the older one.
fn parse_systab(systab: &str) -> Option<u64> {
    let entry = |name| systab.lines().find_map(|line| line.strip_prefix(name));
    let address = entry("ACPI20=").or_else(|| entry("ACPI="))?;
    u64::from_str_radix(address.trim().strip_prefix("0x")?, 16).ok()
}

/// Whether a kernel with this release, as `uname -r` gives it, survives being returned to.
///
/// Kernels before Linux kernel commit 07fa619f2a40 ("x86/kexec: Restore GDT on return from ::preserve_context kexec", in
/// v6.13 and v6.12.5) do not load their descriptor table again on the way back, and hang: the session would be lost. There is
/// no way to ask a kernel for it, hence the one version check of this program.
#[must_use]
pub fn can_be_returned_to(release: &str) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse::<u32>().unwrap_or(0));
    let mut next = || numbers.next().unwrap_or(0);
    let version = (next(), next(), next());
    version >= (6, 12, 5)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_processor_is_read() {
        let cpu = parse_cpu(
            "processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 15\nmodel\t\t: 107\n\
             model name\t: QEMU TCG CPU version 2.5+\nstepping\t: 1\nflags\t\t: fpu la57 lm\n\nprocessor\t: 1\n",
        );
        assert_eq!((cpu.vendor.as_str(), cpu.family, cpu.model, cpu.stepping), ("AuthenticAMD", 15, 107, 1));
        assert!(cpu.la57);
        assert!(!parse_cpu("flags : fpu la57x\n").la57);
    }

    #[test]
    fn firmware_and_kernel_addresses_are_read() {
        assert_eq!(parse_systab("SMBIOS=0x1\nACPI=0x2\nACPI20=0x3f77e014\n"), Some(0x3f77_e014));
        assert_eq!(parse_systab("SMBIOS=0x1\n"), None);
    }

    #[test]
    fn runtime_services_are_read() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(efi_runtime(&folder.path().join("none")).unwrap(), []);
        for (entry, start) in [("0", "0x7e0000"), ("1", "0x3000")] {
            let entry = folder.path().join(entry);
            std::fs::create_dir(&entry).unwrap();
            for (name, text) in [("phys_addr", start), ("num_pages", "0x2"), ("virt_addr", "0xfffffffeffe00000")] {
                std::fs::write(entry.join(name), format!("{text}\n")).unwrap();
            }
        }
        let range = |start| EfiRange { start, end: start + 0x2000, mapped: 0xffff_fffe_ffe0_0000 };
        assert_eq!(efi_runtime(folder.path()).unwrap(), [range(0x3000), range(0x7e_0000)]);
        std::fs::write(folder.path().join("0/phys_addr"), "soon").unwrap();
        assert!(efi_runtime(folder.path()).unwrap_err().to_string().contains("phys_addr"));
    }

    #[test]
    fn processors_that_do_not_run_are_found() {
        assert_eq!(idle_among("0-3\n", "\n", "0-3\n"), "");
        assert_eq!(idle_among("0-3", "2-3", "0-3"), "2,3");
        // Places for more.
        assert_eq!(idle_among("0-1", "2-7", "0-7"), "");
        // More than the kernel has room for.
        assert_eq!(idle_among("0-1", "2-3", "0-1"), "2,3");
    }

    #[test]
    fn kernels_before_the_fix_are_known_by_their_version() {
        for release in ["6.12.5", "6.12.117", "6.13.0-rc1", "7.0.1-arch1-1", "6.14"] {
            assert!(can_be_returned_to(release), "{release}");
        }
        for release in ["6.12.4", "6.12.0-55.el10", "6.1.0-30-amd64", "5.15.0", "6.12", "custom"] {
            assert!(!can_be_returned_to(release), "{release}");
        }
    }
}
