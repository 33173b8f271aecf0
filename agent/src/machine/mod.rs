//! What A and C know of the machine that they run on.

pub mod acpi;
pub mod arch;
pub mod compat;
mod cpu;
mod efi;
pub mod firmware_map;
pub mod free_content;
pub mod iomem;
pub mod microcode;
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

/// How devices reach memory and signal: what a second kernel must do as this one does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buses {
    /// An IOMMU is on.
    pub has_iommu: bool,
    /// Some device of PCI signals by MSI.
    pub uses_msi: bool,
}

impl Buses {
    /// Reads them. The kernel lists the IOMMUs that it drives (drivers/iommu/iommu-sysfs.c), and with each device the
    /// message-signalled interrupts that it was given (drivers/base/core.c and kernel/irq/msi.c, `msi_irqs`).
    #[must_use]
    pub fn read() -> Buses {
        let entries = |path: &str| std::fs::read_dir(path).into_iter().flatten().flatten();
        Buses {
            has_iommu: entries("/sys/class/iommu").next().is_some(),
            uses_msi: entries("/sys/bus/pci/devices").any(|device| device.path().join("msi_irqs").exists()),
        }
    }
}
