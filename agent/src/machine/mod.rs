//! What A and C know of the machine that they run on.

pub mod acpi;
pub mod arch;
pub mod compat;
mod cpu;
mod efi;
pub mod free_content;
pub mod iomem;
mod release;

use dormouse_image::{Cpu, EfiRange, Uuid};
use dormouse_linux::procfs;

pub use cpu::{IdleCpus, demand_all_cpus, of_second_kernel as cpus_of_second_kernel};
pub use free_content::free_pages;
pub use release::can_be_returned_to;

use crate::machine::acpi::AcpiRoot;
use crate::machine::iomem::Iomem;

/// The machine, and the kernel that runs on it.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Its physical address space.
    pub iomem: Iomem,
    /// Its CPU.
    pub cpu: Cpu,
    /// How many CPUs it has, whether or not the running kernel has started them.
    pub cpus_present: u32,
    /// The machine's identity by DMI; zero where it has none.
    pub product: Uuid,
    /// The running kernel's boot_params.
    pub boot_params: Vec<u8>,
    /// ACPI's root pointer, where only UEFI knows it.
    pub acpi_rsdp: Option<u64>,
    /// The same pointer, whoever knows it, and what it leads to.
    pub acpi_root: AcpiRoot,
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
        let (boot_params, acpi_rsdp) = (procfs::read("/sys/kernel/boot_params/data")?, efi::acpi_rsdp());
        Ok(Machine {
            iomem: Iomem::parse(&procfs::text("/proc/iomem")?)?,
            cpu: cpu::read()?,
            cpus_present: cpu::present()?,
            product: product_uuid(),
            acpi_root: arch::acpi_root(acpi_rsdp, &boot_params),
            boot_params,
            acpi_rsdp,
            efi: efi::runtime()?,
            cmdline: procfs::text("/proc/cmdline")?.trim().to_string(),
        })
    }
}

/// The machine's identity by DMI, as only root may read it; zero where it has none. The kernel takes firmware's
/// placeholders of all zeroes or all ones for none (drivers/firmware/dmi_scan.c, `dmi_save_uuid`).
fn product_uuid() -> Uuid {
    let text = procfs::text("/sys/class/dmi/id/product_uuid").unwrap_or_default();
    text.trim().parse().unwrap_or_default()
}

/// Whether an IOMMU is on: the kernel lists those that it drives (drivers/iommu/iommu-sysfs.c).
#[must_use]
pub fn has_iommu() -> bool {
    std::fs::read_dir("/sys/class/iommu").is_ok_and(|mut units| units.next().is_some())
}
