//! Which of A's kernel arguments B and D need too.

use dormouse_linux::kernel_args::arguments;

/// How an argument of A's is recognised as one that B and D need too. Dashes and underscores are the same.
enum Inherited {
    /// The whole name.
    Name(&'static str),
    /// The beginning of the name: a module's parameters.
    Prefix(&'static str),
}

/// What B and D take over from A's command line: where to print messages, and what it takes to run on this
/// hardware at all. Everything else (root filesystem, mitigations, memory limits) is A's own business.
const INHERITED: [Inherited; 20] = [
    // Where the messages go.
    Inherited::Name("console"),
    Inherited::Name("earlyprintk"),
    // B and D must use the paging mode that the bridge was built for.
    Inherited::Name("no5lvl"),
    // Work-arounds for firmware and buses, without which the disk may not be found.
    Inherited::Name("acpi"),
    Inherited::Name("pci"),
    Inherited::Name("iommu"),
    Inherited::Name("intel_iommu"),
    Inherited::Name("amd_iommu"),
    // Work-arounds for clocks and interrupt controllers.
    Inherited::Name("tsc"),
    Inherited::Name("clocksource"),
    Inherited::Name("hpet"),
    Inherited::Name("noapic"),
    Inherited::Name("nolapic_timer"),
    Inherited::Name("no_timer_check"),
    Inherited::Name("nox2apic"),
    // Memory encryption must be as A has it, or A's pages read as noise.
    Inherited::Name("mem_encrypt"),
    // Quirks of storage drivers.
    Inherited::Prefix("nvme."),
    Inherited::Prefix("nvme_core."),
    Inherited::Prefix("usb_storage."),
    Inherited::Prefix("libata."),
];

/// The arguments of A that B and D must get as well, as written, in A's order.
pub fn inherited(cmdline_of_a: &str) -> Vec<&str> {
    arguments(cmdline_of_a)
        .take_while(|argument| argument.name != "--")
        .filter(|argument| argument.is_closed())
        .filter(|argument| {
            let name = argument.name.replace('-', "_");
            INHERITED.iter().any(|known| match known {
                Inherited::Name(whole) => name == *whole,
                Inherited::Prefix(beginning) => name.starts_with(beginning),
            })
        })
        .map(|argument| argument.raw)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inherits_arguments_of_the_table_only() {
        let line = "BOOT_IMAGE=/vmlinuz root=/dev/vda1 ro quiet console=tty0 console=ttyS0,115200 consoleblank=0 \
                    acpi=strict acpi_rsdp=0x1000 no5lvl intel_iommu=on pci=nomsi,noaer pcie_aspm=off \
                    usb-storage.quirks=0bc2:331a:u nvme_core.default_ps_max_latency_us=0 nvme.poll_queues=2 \
                    libata.force=noncq mem=4G mitigations=off dormouse.mode=save tsc=reliable";
        let expected = [
            "console=tty0",
            "console=ttyS0,115200",
            "acpi=strict",
            "no5lvl",
            "intel_iommu=on",
            "pci=nomsi,noaer",
            "usb-storage.quirks=0bc2:331a:u",
            "nvme_core.default_ps_max_latency_us=0",
            "nvme.poll_queues=2",
            "libata.force=noncq",
            "tsc=reliable",
        ];
        assert_eq!(inherited(line), expected);
    }

    #[test]
    fn quotes_are_kept_and_open_ones_left_out() {
        assert_eq!(inherited("\"console=ttyS0\" pci=\"a b\""), ["\"console=ttyS0\"", "pci=\"a b\""]);
        assert!(inherited("pci=\"nomsi quiet").is_empty());
    }

    #[test]
    fn arguments_for_init_are_not_inherited() {
        assert_eq!(inherited("hpet=disable -- console=ttyS1"), ["hpet=disable"]);
    }
}
