//! The header: the session that is saved, and the machine that it was saved on.
//!
//! The values and their rules are here, their bytes in [`codec`].

mod codec;

use crate::error::{Block, FormatError};
use crate::layout::PFN_LIMIT;
use crate::{BLOCK, PfnRange, PhysRange, Uuid};

/// The first eight bytes of a header.
pub const HEADER_MAGIC: [u8; 8] = *b"DMHEADER";

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
    /// The byte behind the last.
    pub end: u64,
    /// What it is.
    pub kind: FirmwareKind,
}

/// A range of memory that the firmware's runtime services use, and where the kernel had mapped it for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EfiRange {
    /// The first byte, a physical address.
    pub start: u64,
    /// The byte behind the last.
    pub end: u64,
    /// The virtual address of the first byte.
    pub mapped: u64,
}

/// A filesystem that was mounted, and what tells whether somebody else has mounted it since.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Filesystem {
    /// Its type, as in `/proc/self/mountinfo`. Like the other texts without tabs and line ends.
    pub kind: String,
    /// Its own UUID or serial number, as `blkid` shows it.
    pub uuid: String,
    /// Where it was mounted, as in `/proc/self/mountinfo`.
    pub mount: String,
    /// A digest of what a mount elsewhere changes and a session at work does not.
    pub steady: u64,
    /// A digest of more, which the session itself may change: taken when it lay still. `None` where that could not be had.
    pub still: Option<u64>,
}

/// The processor.
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
    /// What it can do, as CPUID tells: names, separated by spaces.
    pub features: String,
    /// How many were running.
    pub online: u32,
    /// Whether the kernel uses 5-level paging.
    pub la57: bool,
}

/// What is saved, and what a resume is checked against.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Header {
    /// The image device's identity; must equal the label's.
    pub image: Uuid,
    /// The save's identity, random.
    pub save_id: Uuid,
    /// A's `/proc/sys/kernel/random/boot_id`.
    pub boot_id: Uuid,
    /// When A asked for it, in seconds since 1970.
    pub created_unix: u64,
    /// A's jump-back entry, a physical address. 0 where it is not known yet: in the record that A hands to B, which fills
    /// it in. An image whose header has none cannot be resumed.
    pub entry: u64,
    /// Where B ran and D must run, in bytes.
    pub region: PhysRange,
    /// Low memory, which the jump into A swaps back together with the region, in bytes.
    pub low: PhysRange,
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
    /// The processor.
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

impl Header {
    /// How many pages the image accounts for.
    #[must_use]
    pub fn ram_pages(&self) -> u64 {
        self.ram.iter().map(PfnRange::pages).sum()
    }

    /// The rules that the values must keep.
    fn check(&self) -> Result<(), FormatError> {
        let page = BLOCK as u64;
        let memory = [("region", self.region), ("low memory", self.low)];
        for (name, range) in memory {
            let aligned = range.start.is_multiple_of(page) && range.end.is_multiple_of(page);
            if range.is_empty() || !aligned || range.end > PFN_LIMIT * page {
                return Err(field(name, range.start, "whole pages, not empty, below 2^52"));
            }
        }
        if self.region.overlaps(&self.low) {
            return Err(field("low memory", self.low.start, "apart from the region"));
        }
        let mut next = 0;
        for range in &self.ram {
            if range.start < next || range.start >= range.end || range.end > PFN_LIMIT {
                return Err(field("memory", range.start, "ascending, not empty, not overlapping, below 2^40"));
            }
            next = range.end;
            if let Some((_, own)) = memory.iter().find(|(_, own)| range.bytes().overlaps(own)) {
                return Err(field("memory", own.start, "apart from the region and low memory"));
            }
        }
        if self.ram.is_empty() {
            return Err(field("memory", 0, "at least one range"));
        }
        // D jumps to the one and writes the other: both are A's own pages, which the swap leaves in place.
        let saved = |pfn: u64| self.ram.iter().any(|range| (range.start..range.end).contains(&pfn));
        if self.entry != 0 && !saved(self.entry / page) {
            return Err(field("jump-back entry", self.entry, "in the saved memory"));
        }
        if let Some(mailbox) = &self.mailbox
            && (mailbox.pfn == 0 || !saved(mailbox.pfn))
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
        for (at, text) in texts.enumerate() {
            if text.contains(char::is_control) {
                return Err(field("filesystem's text", at as u64 / 3, "without control characters"));
            }
        }
        Ok(())
    }
}

fn field(field: &'static str, value: u64, why: &'static str) -> FormatError {
    FormatError::Field { block: Block::Header, field, value, why }
}
