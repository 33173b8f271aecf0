//! The session record: the session that is saved, and the machine that it was saved on.
//!
//! The values and their rules are here, their bytes in [`codec`].

pub(crate) mod codec;

pub use codec::{SESSION_KINDS, SESSION_MAGIC};

use crate::error::{Block, FormatError};
use crate::layout::PFN_LIMIT;
use crate::{BLOCK, PfnRange, PhysRange, Uuid};

/// A page of the hibernating command's memory, where B and D leave their report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mailbox {
    /// The page.
    pub pfn: u64,
    /// What it starts with; a page that starts otherwise is not written.
    pub nonce: [u8; 16],
}

/// What a range of physical addresses is that is not RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FirmwareKind {
    /// Reserved.
    Reserved,
    /// ACPI tables.
    AcpiTables,
    /// ACPI non-volatile storage.
    AcpiNvs,
    /// RAM with errors.
    Unusable,
    /// Persistent memory.
    Persistent,
    /// A kind that a later version may name.
    Other(u32),
}

impl FirmwareKind {
    const NAMED: [FirmwareKind; 5] = [
        FirmwareKind::Reserved,
        FirmwareKind::AcpiTables,
        FirmwareKind::AcpiNvs,
        FirmwareKind::Unusable,
        FirmwareKind::Persistent,
    ];

    /// The e820 interface's number.
    const fn number(self) -> u32 {
        match self {
            FirmwareKind::Reserved => 2,
            FirmwareKind::AcpiTables => 3,
            FirmwareKind::AcpiNvs => 4,
            FirmwareKind::Unusable => 5,
            FirmwareKind::Persistent => 7,
            FirmwareKind::Other(number) => number,
        }
    }

    fn from_number(number: u32) -> FirmwareKind {
        let named = FirmwareKind::NAMED.into_iter().find(|kind| kind.number() == number);
        named.unwrap_or(FirmwareKind::Other(number))
    }
}

/// A range that the firmware described and that is not RAM, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FirmwareRange {
    /// The first byte.
    pub start: u64,
    /// The byte after the last.
    pub end: u64,
    /// What it is.
    pub kind: FirmwareKind,
}

/// A range of memory that the firmware's runtime services use, and where the kernel had mapped it for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EfiRange {
    /// The first byte, a physical address.
    pub start: u64,
    /// The byte after the last.
    pub end: u64,
    /// The virtual address of the first byte.
    pub mapped: u64,
}

/// Where on a disk something lies.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DiskPlace {
    /// The disk or partition, by a name that is the same in every kernel. Not empty.
    pub disk: String,
    /// The first byte on it.
    pub offset: u64,
}

/// A filesystem that was mounted, and what shows whether another system has mounted it since.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Filesystem {
    /// Its type, as in `/proc/self/mountinfo`. Like the other texts without control characters.
    pub kind: String,
    /// Its own UUID or serial number, as `blkid` shows it.
    pub uuid: String,
    /// Where it was mounted, as in `/proc/self/mountinfo`.
    pub mount: String,
    /// A digest of what a mount elsewhere changes and a session at work does not.
    pub mount_digest: u64,
    /// A digest of more, which the session itself may change: taken when nothing could change any more. `None` where it
    /// could not be taken.
    pub quiesced_digest: Option<u64>,
    /// Where its superblock lies, if that is known.
    pub superblock: Option<DiskPlace>,
}

/// A swap area that was in use.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SwapArea {
    /// Its own UUID, as `blkid` shows it, without control characters.
    pub uuid: String,
    /// As [`Filesystem::mount_digest`].
    pub mount_digest: u64,
    /// As [`Filesystem::quiesced_digest`].
    pub quiesced_digest: Option<u64>,
    /// Where its header lies, if that is known.
    pub superblock: Option<DiskPlace>,
}

/// The architecture of the saved kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Architecture {
    /// x86-64, with pages of 4096 bytes.
    #[default]
    X86_64,
}

impl Architecture {
    /// Its number in ELF files.
    #[must_use]
    pub const fn elf_machine(self) -> u16 {
        match self {
            Architecture::X86_64 => 62,
        }
    }

    /// The architecture with this number in ELF files.
    #[must_use]
    pub fn from_elf_machine(machine: u16) -> Option<Architecture> {
        (machine == Architecture::X86_64.elf_machine()).then_some(Architecture::X86_64)
    }

    /// The size of its pages, in bytes.
    #[must_use]
    pub const fn page_size(self) -> u32 {
        match self {
            Architecture::X86_64 => 4096,
        }
    }
}

/// The CPU of an x86-64 machine.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Cpu {
    /// As `vendor_id` in /proc/cpuinfo.
    pub vendor: String,
    /// As `cpu family`.
    pub family: u32,
    /// As `model`.
    pub model: u32,
    /// As `stepping`.
    pub stepping: u32,
    /// As `model name`.
    pub name: String,
    /// What it can do, by CPUID: names, separated by spaces.
    pub features: String,
    /// The revision of its microcode; 0 where it has none, or it is not known.
    pub microcode: u32,
    /// How many were running.
    pub online: u32,
    /// Whether the kernel uses 5-level paging.
    pub la57: bool,
}

/// What is saved, and what a resume is checked against: what the saved kernel hands to the save kernel. What only the
/// jump makes known is in the [`Header`](crate::Header).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SessionRecord {
    /// The image device's identity; must equal the label's.
    pub image: Uuid,
    /// The save's identity, random.
    pub save_id: Uuid,
    /// A's `/proc/sys/kernel/random/boot_id`.
    pub boot_id: Uuid,
    /// The machine's identity, as DMI's `product_uuid`; zero where it has none.
    pub machine: Uuid,
    /// When A was asked to hibernate, in seconds since 1970.
    pub created_unix: u64,
    /// The architecture of A's kernel.
    pub architecture: Architecture,
    /// Where B ran and D must run, in bytes.
    pub region: PhysRange,
    /// Low memory, which the jump into A swaps back together with the region, in bytes. Ascending, not overlapping.
    pub low: Vec<PhysRange>,
    /// Where the report goes, if anywhere.
    pub mailbox: Option<Mailbox>,
    /// A's memory outside `region` and `low`: the pages that the image accounts for. Ascending, not overlapping.
    pub ram: Vec<PfnRange>,
    /// What else the firmware described. Ascending by start.
    pub firmware: Vec<FirmwareRange>,
    /// What UEFI's runtime services use. Empty without them.
    pub efi: Vec<EfiRange>,
    /// The filesystems on block devices that were mounted.
    pub filesystems: Vec<Filesystem>,
    /// The swap areas that were in use.
    pub swap_areas: Vec<SwapArea>,
    /// The CPU.
    pub cpu: Cpu,
    /// A's kernel, as `uname -r`.
    pub kernel_release: String,
    /// A's kernel, as `uname -v`.
    pub kernel_version: String,
    /// A's host name.
    pub hostname: String,
    /// A's kernel command line.
    pub cmdline: String,
}

impl SessionRecord {
    /// How many pages the image accounts for.
    #[must_use]
    pub fn ram_pages(&self) -> u64 {
        self.ram.iter().map(PfnRange::pages).sum()
    }

    /// What the jump swaps, and the image therefore does not account for: low memory, and the region.
    #[must_use]
    pub fn swapped(&self) -> Vec<PhysRange> {
        self.low.iter().copied().chain([self.region]).collect()
    }

    /// Whether the image accounts for a page.
    pub(crate) fn saves(&self, pfn: u64) -> bool {
        self.ram.iter().any(|range| (range.start..range.end).contains(&pfn))
    }

    /// The rules that the values must keep.
    pub(crate) fn check(&self, block: Block) -> Result<(), FormatError> {
        let field = |field, value, why| FormatError::Field { block, field, value, why };
        let page = BLOCK as u64;
        let swapped = || [("region", &self.region)].into_iter().chain(self.low.iter().map(|low| ("low memory", low)));
        for (name, range) in swapped() {
            let aligned = range.start.is_multiple_of(page) && range.end.is_multiple_of(page);
            if range.is_empty() || !aligned || range.end > PFN_LIMIT * page {
                return Err(field(name, range.start, "whole pages, not empty, below 2^52"));
            }
        }
        if self.low.is_empty() {
            return Err(field("low memory", 0, "at least one range"));
        }
        let mut next = 0;
        for low in &self.low {
            if low.start < next || low.overlaps(&self.region) {
                return Err(field("low memory", low.start, "ascending, not overlapping, apart from the region"));
            }
            next = low.end;
        }
        let mut next = 0;
        for range in &self.ram {
            if range.start < next || range.start >= range.end || range.end > PFN_LIMIT {
                return Err(field("memory", range.start, "ascending, not empty, not overlapping, below 2^40"));
            }
            next = range.end;
        }
        if self.ram.is_empty() {
            return Err(field("memory", 0, "at least one range"));
        }
        for (_, own) in swapped() {
            // The ranges ascend: only the first that ends above the start can overlap.
            let at = self.ram.partition_point(|range| range.bytes().end <= own.start);
            if self.ram.get(at).is_some_and(|range| range.bytes().overlaps(own)) {
                return Err(field("memory", own.start, "apart from the region and low memory"));
            }
        }
        // A page of A's own, which the swap leaves in place.
        if let Some(mailbox) = &self.mailbox
            && (mailbox.pfn == 0 || !self.saves(mailbox.pfn))
        {
            return Err(field("mailbox page", mailbox.pfn, "in the saved memory, not page 0"));
        }
        let mut before = 0;
        for range in &self.firmware {
            if range.start < before || range.start >= range.end {
                return Err(field("firmware range", range.start, "ascending and not empty"));
            }
            before = range.start;
        }
        for range in &self.efi {
            if range.start >= range.end {
                return Err(field("EFI range", range.start, "not empty"));
            }
        }
        let texts = self.filesystems.iter().flat_map(|found| [&found.kind, &found.uuid, &found.mount]);
        let places = self.filesystems.iter().map(|found| &found.superblock);
        let places = places.chain(self.swap_areas.iter().map(|found| &found.superblock)).flatten();
        let texts = texts.chain(self.swap_areas.iter().map(|found| &found.uuid));
        for text in texts.chain(places.clone().map(|place| &place.disk)) {
            if let Some(control) = text.chars().find(|char| char.is_control()) {
                return Err(field("filesystem's text", u32::from(control).into(), "without control characters"));
            }
        }
        if let Some(place) = places.clone().find(|place| place.disk.is_empty()) {
            return Err(field("superblock's offset", place.offset, "0 where the disk is not known"));
        }
        Ok(())
    }
}
