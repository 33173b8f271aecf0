//! Whether this machine is the one that an image was saved on. Pure.

use dormouse_image::{EfiRange, FirmwareKind, FirmwareRange, PfnRange, PhysRange, SessionRecord, Uuid};
use thiserror::Error;

use crate::machine::Machine;
use crate::machine::acpi::{self, UnderTables};
use crate::machine::iomem::subtract;
use crate::machine::microcode;

/// How this machine differs, with both values.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Mismatch {
    /// Another machine, of the same model perhaps.
    #[error("the image was saved on the machine {saved} (DMI product_uuid), this is {here}")]
    Identity {
        /// As it was.
        saved: Uuid,
        /// As it is.
        here: Uuid,
    },
    /// Memory that the image fills is not RAM here.
    #[error(
        "the image needs memory at {start:#x}-{end:#x}, which is not RAM on this machine now; \
         the firmware's memory map has changed since the save"
    )]
    Memory {
        /// The first byte.
        start: u64,
        /// The byte after the last.
        end: u64,
    },
    /// Something is not where the saved kernel knows it to be.
    #[error(
        "the firmware had its {what} at {start:#x}-{end:#x} when the image was saved, and no longer does ({here}); the \
         saved kernel would look for it there"
    )]
    Firmware {
        /// What it is.
        what: &'static str,
        /// The first byte.
        start: u64,
        /// The byte after the last.
        end: u64,
        /// Where it is now.
        here: String,
    },
    /// ACPI's tables have moved, and the session cannot go on with its own.
    #[error("the firmware's ACPI tables have moved since the save, and {why}")]
    Tables {
        /// Why it cannot, as a clause.
        why: String,
    },
    /// Another CPU.
    #[error("the image was saved on the CPU {saved}, this is {here}")]
    Cpu {
        /// As it was.
        saved: String,
        /// As it is.
        here: String,
    },
    /// The CPU's microcode is older.
    #[error(
        "the saved kernel runs on revision {saved:#x} of the CPU's microcode, and this boot has {here:#x}, which is \
         older; boot with the firmware that it had, or have the boot's initramfs load microcode (packages \
         intel-microcode, amd64-microcode)"
    )]
    Microcode {
        /// As it was.
        saved: u32,
        /// As it is.
        here: u32,
    },
    /// Something that the saved kernel may use is missing.
    #[error("this CPU lacks what the saved kernel may use: {missing}")]
    Features {
        /// Their names.
        missing: String,
    },
    /// Page tables of another depth.
    #[error(
        "the saved kernel uses {saved}-level paging, this one {here}; boot with{} no5lvl",
        if *.saved == 4 { "" } else { "out" }
    )]
    Paging {
        /// As it was.
        saved: u8,
        /// As it is.
        here: u8,
    },
    /// Fewer CPUs.
    #[error("the image was saved with {saved} CPUs, this machine has {here}")]
    Cpus {
        /// As it was.
        saved: u32,
        /// As it is.
        here: u32,
    },
}

impl Mismatch {
    /// Its identifier, which stays the same from version to version.
    #[must_use]
    pub fn id(&self) -> &'static str {
        match self {
            Mismatch::Identity { .. } => "machine-identity",
            Mismatch::Memory { .. } => "machine-memory",
            Mismatch::Firmware { .. } | Mismatch::Tables { .. } => "machine-firmware",
            Mismatch::Cpu { .. } => "machine-cpu",
            Mismatch::Microcode { .. } => "machine-microcode",
            Mismatch::Features { .. } => "machine-features",
            Mismatch::Paging { .. } => "machine-paging",
            Mismatch::Cpus { .. } => "machine-cpus",
        }
    }
}

impl Mismatch {
    /// Whether the machine may be what it was at the next power-on: some firmware lays memory out otherwise now and
    /// then, and another kernel's initramfs may load the microcode.
    #[must_use]
    pub fn may_return(&self) -> bool {
        matches!(
            self,
            Mismatch::Memory { .. } | Mismatch::Firmware { .. } | Mismatch::Tables { .. } | Mismatch::Microcode { .. }
        )
    }
}

/// Compares what a resume depends on.
///
/// # Errors
/// The first [`Mismatch`].
pub fn check(header: &SessionRecord, machine: &Machine) -> Result<(), Mismatch> {
    identity(header.machine, machine.product)?;
    let mut needed = header.ram.clone();
    needed.extend(header.swapped().iter().map(PhysRange::frames));
    needed.sort_by_key(|range| range.start);
    // What lies under tables is seen to below, but not the region: the restore kernel runs there.
    let missing = subtract(&needed, &machine.iomem.ram_frames());
    let under = UnderTables::of(header, &machine.iomem.firmware);
    if let Some(PfnRange { start, end }) = subtract(&missing, &under.all()).first() {
        let page = dormouse_sys::PAGE_SIZE;
        return Err(Mismatch::Memory { start: start * page, end: end * page });
    }

    firmware(header, machine)?;

    let (saved, here) = (&header.cpu, &machine.cpu);
    let identity = |cpu: &dormouse_image::Cpu| (cpu.vendor.clone(), cpu.family, cpu.model, cpu.stepping);
    if identity(saved) != identity(here) {
        let name = |cpu: &dormouse_image::Cpu| {
            let (vendor, family, model, stepping) = identity(cpu);
            format!("{} ({vendor} family {family} model {model} stepping {stepping})", cpu.name)
        };
        return Err(Mismatch::Cpu { saved: name(saved), here: name(here) });
    }
    let levels = |la57| if la57 { 5 } else { 4 };
    if saved.la57 != here.la57 {
        return Err(Mismatch::Paging { saved: levels(saved.la57), here: levels(here.la57) });
    }
    // Before the features: some of them give the number of CPUs.
    if machine.cpus_present < saved.online {
        return Err(Mismatch::Cpus { saved: saved.online, here: machine.cpus_present });
    }
    // And this: a feature may be missing because of it.
    microcode::check(saved, here)?;
    let is_missing = |feature: &&str| !here.features.split(' ').any(|other| other == *feature);
    let missing: Vec<&str> = saved.features.split(' ').filter(is_missing).collect();
    if !missing.is_empty() {
        return Err(Mismatch::Features { missing: missing.join(" ") });
    }
    Ok(())
}

/// Two machines of one model have the same CPU and the same memory map. A machine without an identity can be any.
fn identity(saved: Uuid, here: Uuid) -> Result<(), Mismatch> {
    let is_known = |uuid| uuid != Uuid::default();
    match is_known(saved) && is_known(here) && saved != here {
        true => Err(Mismatch::Identity { saved, here }),
        false => Ok(()),
    }
}

/// ACPI's storage, and what UEFI's runtime services use, must be where they were: the saved kernel has their addresses.
/// ACPI's tables may have moved if they alone have ([`acpi`]). Other reserved ranges may change: nothing reads them.
fn firmware(header: &SessionRecord, machine: &Machine) -> Result<(), Mismatch> {
    let places = |mut ranges: Vec<(u64, u64)>| {
        ranges.dedup();
        let texts: Vec<String> = ranges.iter().map(|(start, end)| format!("{start:#x}-{end:#x}")).collect();
        if texts.is_empty() { "there is none".to_string() } else { format!("now at {}", texts.join(", ")) }
    };
    if let Err(why) = acpi::check_move(header, &machine.iomem.firmware, machine.acpi_root) {
        return Err(Mismatch::Tables { why });
    }
    let is_nvs = |range: &&FirmwareRange| range.kind == FirmwareKind::AcpiNvs;
    let here = || machine.iomem.firmware.iter().filter(is_nvs);
    // Neighbours may be listed as one.
    let covered = |range: &FirmwareRange| here().any(|here| here.start <= range.start && range.end <= here.end);
    if let Some(range) = header.firmware.iter().filter(is_nvs).find(|range| !covered(range)) {
        let here = places(here().map(|here| (here.start, here.end)).collect());
        return Err(Mismatch::Firmware { what: "ACPI NVS memory", start: range.start, end: range.end, here });
    }
    if let Some(EfiRange { start, end, .. }) = header.efi.iter().find(|range| !machine.efi.contains(range)) {
        let here = places(machine.efi.iter().map(|here| (here.start, here.end)).collect());
        let what = "UEFI runtime services";
        return Err(Mismatch::Firmware { what, start: *start, end: *end, here });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::machine::acpi::AcpiRoot;
    use crate::machine::iomem::Iomem;
    use dormouse_image::Cpu;

    fn cpu() -> Cpu {
        Cpu {
            vendor: "V".into(),
            family: 6,
            features: "fpu lm nx".into(),
            microcode: 0xf4,
            online: 2,
            ..Cpu::default()
        }
    }

    fn machine() -> Machine {
        let iomem = "00001000-0009fbff : System RAM\n00100000-2fffffff : System RAM\n\
                     30000000-3000ffff : ACPI Tables\n30010000-3001ffff : ACPI Non-volatile Storage\n\
                     30020000-3002ffff : Reserved\n";
        Machine {
            iomem: Iomem::parse(iomem).unwrap(),
            cpu: Cpu { online: 1, ..cpu() },
            cpus_present: 2,
            product: Uuid([3; 16]),
            boot_params: Vec::new(),
            acpi_rsdp: None,
            acpi_root: AcpiRoot::default(),
            efi: vec![EfiRange { start: 0x3002_0000, end: 0x3002_4000, mapped: 0xffff_fffe_ff00_0000 }],
            cmdline: String::new(),
        }
    }

    fn header() -> SessionRecord {
        SessionRecord {
            machine: Uuid([3; 16]),
            region: PhysRange { start: 0x100_0000, end: 0x900_0000 },
            low: vec![PhysRange { start: 0x1000, end: 0x9f000 }],
            ram: vec![PfnRange { start: 0x100, end: 0x1000 }, PfnRange { start: 0x9000, end: 0x3_0000 }],
            firmware: machine().iomem.firmware,
            efi: machine().efi,
            cpu: cpu(),
            ..SessionRecord::default()
        }
    }

    #[test]
    fn the_same_machine_matches_and_so_does_a_larger_one() {
        assert_eq!(check(&header(), &machine()), Ok(()));
        let mut larger = machine();
        larger.iomem.ram.push(PhysRange { start: 1 << 32, end: 2 << 32 });
        larger.iomem.firmware[2].end += 0x1000;
        larger.iomem.firmware[0].end += 0x1000;
        larger.cpus_present = 4;
        larger.cpu.features.push_str(" new");
        larger.cpu.microcode += 1;
        assert_eq!(check(&header(), &larger), Ok(()));
    }

    #[test]
    fn accepts_a_machine_without_an_identity() {
        let mut nameless = machine();
        nameless.product = Uuid::default();
        assert_eq!(check(&header(), &nameless), Ok(()));
        let nameless = SessionRecord { machine: Uuid::default(), ..header() };
        assert_eq!(check(&nameless, &machine()), Ok(()));
    }

    #[test]
    fn each_difference_is_named() {
        type Change = fn(&mut Machine);
        let cases: [(Change, &str, &str); 14] = [
            (|m| m.product = Uuid([4; 16]), "machine-identity", "this is 04040404-"),
            (|m| m.iomem.ram[1].end = 0x2fff_f000, "machine-memory", "0x2ffff000-0x30000000"),
            (|m| m.cpu.model = 1, "machine-cpu", "model 1"),
            (|m| m.cpu.la57 = true, "machine-paging", "uses 4-level paging, this one 5; boot with no5lvl"),
            (|m| m.cpu.features = "fpu nx".into(), "machine-features", "may use: lm"),
            (|m| m.cpu.microcode = 0xf3, "machine-microcode", "this boot has 0xf3, which is older"),
            (
                |m| (m.cpu.microcode, m.cpu.features) = (0, "fpu nx".into()),
                "machine-microcode",
                "revision 0xf4 of the CPU's microcode",
            ),
            (|m| m.cpus_present = 1, "machine-cpus", "2 CPUs, this machine has 1"),
            (|m| m.iomem.ram.remove(0).end = 0, "machine-memory", "0x1000-0x9f000"),
            (
                |m| m.iomem.firmware[0].start += 0x1000,
                "machine-firmware",
                "ACPI tables have moved since the save, and the image does not hold them",
            ),
            (|m| m.iomem.firmware.truncate(1), "machine-firmware", "ACPI NVS memory at 0x30010000-0x30020000"),
            (|m| m.efi[0].mapped += 0x1000, "machine-firmware", "UEFI runtime services at 0x30020000-0x30024000"),
            (|m| m.efi[0].end -= 0x1000, "machine-firmware", "now at 0x30020000-0x30023000"),
            (|m| m.efi.clear(), "machine-firmware", "there is none"),
        ];
        for (change, id, expected) in cases {
            let mut machine = machine();
            change(&mut machine);
            let error = check(&header(), &machine).unwrap_err();
            assert!(error.id() == id && error.to_string().contains(expected), "{id}: {error}");
        }
    }
}
