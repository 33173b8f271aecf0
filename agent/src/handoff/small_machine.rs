//! What B and D are told of where they run: a kernel whose memory is a small piece of a machine must not take the room
//! that the whole machine would be given. Facts are those of Linux 6.12, unless said otherwise.

use dormouse_linux::kernel_args::arguments;

use crate::machine::Buses;

/// Room for bounce buffers where an IOMMU is on: 2048 slabs of 2 KiB (include/linux/swiotlb.h, `IO_TLB_SHIFT`).
const FEW_BOUNCE_BUFFERS: &str = "swiotlb=2048";
/// None otherwise. The kernel makes them, 64 MiB by default, where memory that the machine may have ends above 4 GiB
/// (arch/x86/kernel/pci-dma.c, `pci_swiotlb_detect`), which the SRAT announces (drivers/acpi/numa/srat.c). All that B
/// and D do I/O with lies in the region. Below 4 GiB every device reaches it. Above, there is no memory below 4 GiB
/// from which buffers could be taken (`swiotlb_memblock_alloc`), and a device that does not reach it fails in B
/// already.
const NO_BOUNCE_BUFFERS: &str = "swiotlb=noforce";
/// Where the kernel that is left uses no MSI: a device that the second kernel has switched to it goes on so, since the
/// other one puts back what it knows of a device, and it knows nothing of MSI (drivers/pci/msi/msi.c,
/// `pci_restore_msi_state`). Its interrupts would be lost.
const NO_MSI: &str = "pci=nomsi";

/// The arguments, each with the reason for it. A kernel that does not know one passes it on to its PID 1.
const ARGUMENTS: [&str; 7] = [
    // One node: no SRAT is read (arch/x86/mm/numa.c, `x86_numa_init`), and nothing is kept for each node.
    "numa=off",
    // A's DIMMs, which ACPI announces, are not added as memory (drivers/acpi/acpi_memhotplug.c).
    "acpi_no_memhotplug",
    // Nor does memory that a driver adds become the allocator's (mm/memory_hotplug.c).
    "memhp_default_state=offline",
    // Kexec handover keeps scratch memory of twice what the boot takes (Linux 6.16 and newer, kernel/kexec_handover.c).
    "kho=off",
    // The allocator keeps free memory for huge pages (mm/khugepaged.c, `set_recommended_min_free_kbytes`).
    "transparent_hugepage=never",
    // What is kept for contiguous allocations is nothing to the kernel's own (kernel/dma/contiguous.c, mm/hugetlb.c).
    "cma=0",
    "hugetlb_cma=0",
];

/// The arguments of a second kernel in a machine with these buses, but for those that `policys` has.
///
/// Bounce buffers: an IOMMU lets external devices (Thunderbolt) reach whole pages of their own only, and what shares a
/// page is copied (drivers/iommu/dma-iommu.c, `dev_use_swiotlb`).
pub fn small_machine(buses: Buses, policys: &str) -> Vec<&'static str> {
    let bounce = if buses.has_iommu { FEW_BOUNCE_BUFFERS } else { NO_BOUNCE_BUFFERS };
    let msi = (!buses.uses_msi).then_some(NO_MSI);
    let name = |argument: &str| argument.split('=').next().unwrap_or_default().replace('-', "_");
    let is_policys = |own: &&str| arguments(policys).any(|argument| argument.name.replace('-', "_") == name(own));
    std::iter::once(bounce).chain(ARGUMENTS).filter(|own| !is_policys(own)).chain(msi).collect()
}

/// The argument of a second kernel that keeps CPUs from running in it, if there is one: no restore can do without them.
pub fn limit_of_cpus(policys: &str) -> Option<&str> {
    const LIMITS: [&str; 6] = ["nr_cpus", "maxcpus", "possible_cpus", "nosmt", "nosmp", "nolapic"];
    arguments(policys).find(|argument| LIMITS.contains(&&*argument.name.replace('-', "_"))).map(|argument| argument.raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    const USUAL: Buses = Buses { has_iommu: false, uses_msi: true };

    #[test]
    fn bounce_buffers_for_an_iommu_alone() {
        assert_eq!(small_machine(USUAL, "")[..2], ["swiotlb=noforce", "numa=off"]);
        let with_iommu = small_machine(Buses { has_iommu: true, ..USUAL }, "");
        assert_eq!(with_iommu[0], "swiotlb=2048");
        assert_eq!(with_iommu.len(), 8);
    }

    #[test]
    fn msi_only_where_the_first_kernel_uses_it() {
        let without = Buses { uses_msi: false, ..USUAL };
        assert!(!small_machine(USUAL, "").contains(&"pci=nomsi"));
        assert_eq!(small_machine(without, "").last(), Some(&"pci=nomsi"));
        // `pci=` adds up.
        assert_eq!(small_machine(without, "pci=realloc").last(), Some(&"pci=nomsi"));
    }

    #[test]
    fn policys_own_arguments_count() {
        let own = small_machine(USUAL, "quiet swiotlb=4096 numa=fake=2 memhp-default-state=online");
        assert_eq!(own, ["acpi_no_memhotplug", "kho=off", "transparent_hugepage=never", "cma=0", "hugetlb_cma=0"]);
    }

    #[test]
    fn finds_limits_of_cpus() {
        assert_eq!(limit_of_cpus("quiet nr_cpus=1 panic=1"), Some("nr_cpus=1"));
        assert_eq!(limit_of_cpus("nosmt=force"), Some("nosmt=force"));
        assert_eq!(limit_of_cpus("possible-cpus=4"), Some("possible-cpus=4"));
        assert_eq!(limit_of_cpus("quiet nolapic_timer isolcpus=1"), None);
    }

    #[test]
    fn short_enough_for_a_command_line() {
        assert!(small_machine(USUAL, "").join(" ").len() < 200);
    }
}
