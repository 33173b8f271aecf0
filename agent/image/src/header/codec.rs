//! The header's bytes: a fixed part, then tagged records for everything of variable length.

use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{Cpu, EfiRange, Filesystem, FirmwareKind, FirmwareRange, HEADER_MAGIC, Header, Mailbox, field};
use crate::error::{Block, FormatError};
use crate::layout::HEADER_MAX;
use crate::{PfnRange, PhysRange, Uuid, block};

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawHeader {
    image: [u8; 16],
    save_id: [u8; 16],
    boot_id: [u8; 16],
    mailbox_nonce: [u8; 16],
    created_unix: U64,
    entry: U64,
    region_start: U64,
    region_end: U64,
    low_start: U64,
    low_end: U64,
    /// 0 for none: page 0 belongs to the firmware.
    mailbox_pfn: U64,
    cpu_family: U32,
    cpu_model: U32,
    cpu_stepping: U32,
    cpu_online: U32,
    /// 4 or 5.
    paging_levels: U32,
    records: U32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawRecord {
    kind: U16,
    flags: U16,
    len: U32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawRange {
    start: U64,
    end: U64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawFirmware {
    start: U64,
    end: U64,
    kind: U32,
    reserved: U32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawEfi {
    start: U64,
    end: U64,
    mapped: U64,
}

const RECORD: usize = size_of::<RawRecord>();
const RANGE: usize = size_of::<RawRange>();
const FIRMWARE: usize = size_of::<RawFirmware>();
const EFI: usize = size_of::<RawEfi>();
const _: () = assert!(size_of::<RawHeader>() == 144 && RECORD == 8 && RANGE == 16 && FIRMWARE == 24 && EFI == 24);

/// The kinds of records, in the order in which they are written. All are mandatory.
mod kind {
    pub(super) const RAM: u16 = 1;
    pub(super) const FIRMWARE: u16 = 2;
    pub(super) const CPU_VENDOR: u16 = 3;
    pub(super) const CPU_NAME: u16 = 4;
    pub(super) const CPU_FEATURES: u16 = 5;
    pub(super) const KERNEL_RELEASE: u16 = 6;
    pub(super) const KERNEL_VERSION: u16 = 7;
    pub(super) const HOSTNAME: u16 = 8;
    pub(super) const CMDLINE: u16 = 9;
    pub(super) const EFI: u16 = 10;
    pub(super) const FILESYSTEMS: u16 = 11;
    pub(super) const LAST: u16 = FILESYSTEMS;
}

/// A reader that does not know a record with this flag may skip it.
const MAY_IGNORE: u16 = 1;

impl Header {
    /// The header's block.
    ///
    /// # Errors
    /// [`FormatError::TooLarge`], and whatever [`Header::decode`] would find wrong with the values.
    pub fn encode(&self) -> Result<Vec<u8>, FormatError> {
        self.check()?;
        let ram: Vec<u8> = self
            .ram
            .iter()
            .flat_map(|range| RawRange { start: range.start.into(), end: range.end.into() }.as_bytes().to_vec())
            .collect();
        let firmware: Vec<u8> = self
            .firmware
            .iter()
            .flat_map(|range| {
                RawFirmware {
                    start: range.start.into(),
                    end: range.end.into(),
                    kind: U32::new(range.kind.number()),
                    reserved: U32::new(0),
                }
                .as_bytes()
                .to_vec()
            })
            .collect();
        let efi: Vec<u8> = self
            .efi
            .iter()
            .flat_map(|range| {
                let (start, end, mapped) = (range.start.into(), range.end.into(), range.mapped.into());
                RawEfi { start, end, mapped }.as_bytes().to_vec()
            })
            .collect();
        let filesystems: String = self.filesystems.iter().map(Filesystem::to_line).collect();
        let records: [(u16, &[u8]); kind::LAST as usize] = [
            (kind::RAM, &ram),
            (kind::FIRMWARE, &firmware),
            (kind::CPU_VENDOR, self.cpu.vendor.as_bytes()),
            (kind::CPU_NAME, self.cpu.name.as_bytes()),
            (kind::CPU_FEATURES, self.cpu.features.as_bytes()),
            (kind::KERNEL_RELEASE, self.kernel_release.as_bytes()),
            (kind::KERNEL_VERSION, self.kernel_version.as_bytes()),
            (kind::HOSTNAME, self.hostname.as_bytes()),
            (kind::CMDLINE, self.cmdline.as_bytes()),
            (kind::EFI, &efi),
            (kind::FILESYSTEMS, filesystems.as_bytes()),
        ];
        let raw = RawHeader {
            image: self.image.0,
            save_id: self.save_id.0,
            boot_id: self.boot_id.0,
            mailbox_nonce: self.mailbox.map_or([0; 16], |mailbox| mailbox.nonce),
            created_unix: self.created_unix.into(),
            entry: self.entry.into(),
            region_start: self.region.start.into(),
            region_end: self.region.end.into(),
            low_start: self.low.start.into(),
            low_end: self.low.end.into(),
            mailbox_pfn: self.mailbox.map_or(0, |mailbox| mailbox.pfn).into(),
            cpu_family: self.cpu.family.into(),
            cpu_model: self.cpu.model.into(),
            cpu_stepping: self.cpu.stepping.into(),
            cpu_online: self.cpu.online.into(),
            paging_levels: U32::new(if self.cpu.la57 { 5 } else { 4 }),
            records: U32::new(kind::LAST.into()),
        };
        let mut body = raw.as_bytes().to_vec();
        for (kind, bytes) in records {
            let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
            body.extend(RawRecord { kind: kind.into(), flags: U16::new(0), len: len.into() }.as_bytes());
            body.extend(bytes);
            body.resize(body.len().next_multiple_of(8), 0);
        }
        block::seal(Block::Header, HEADER_MAGIC, &body, HEADER_MAX)
    }

    /// Reads a header.
    ///
    /// # Errors
    /// [`FormatError`] says what is wrong with it.
    pub fn decode(bytes: &[u8]) -> Result<Header, FormatError> {
        let body = block::open(Block::Header, HEADER_MAGIC, bytes, HEADER_MAX)?;
        let (raw, mut rest) = RawHeader::ref_from_prefix(body).map_err(|_| FormatError::Magic(Block::Header))?;
        let levels = raw.paging_levels.get();
        if !matches!(levels, 4 | 5) {
            return Err(field("paging levels", levels.into(), "4 or 5"));
        }
        let mut header = Header {
            image: Uuid(raw.image),
            save_id: Uuid(raw.save_id),
            boot_id: Uuid(raw.boot_id),
            created_unix: raw.created_unix.get(),
            entry: raw.entry.get(),
            region: PhysRange { start: raw.region_start.get(), end: raw.region_end.get() },
            low: PhysRange { start: raw.low_start.get(), end: raw.low_end.get() },
            mailbox: Some(Mailbox { pfn: raw.mailbox_pfn.get(), nonce: raw.mailbox_nonce })
                .filter(|mailbox| mailbox.pfn != 0),
            cpu: Cpu {
                family: raw.cpu_family.get(),
                model: raw.cpu_model.get(),
                stepping: raw.cpu_stepping.get(),
                online: raw.cpu_online.get(),
                la57: levels == 5,
                ..Cpu::default()
            },
            ..Header::default()
        };
        let mut seen = [false; kind::LAST as usize + 1];
        for _ in 0..raw.records.get() {
            let record = Record::split(rest)?;
            let kind = record.kind;
            rest = record.rest;
            match seen.get_mut(usize::from(kind)).filter(|_| kind != 0) {
                Some(seen) if *seen => {
                    return Err(FormatError::Record { kind, why: "is there twice" });
                }
                Some(seen) => *seen = true,
                None if record.flags & MAY_IGNORE != 0 => continue,
                None => {
                    return Err(FormatError::Record { kind, why: "is unknown to this version" });
                }
            }
            header.set(kind, record.content)?;
        }
        if let Some(kind) = (1..=kind::LAST).find(|kind| !seen[usize::from(*kind)]) {
            return Err(FormatError::Record { kind, why: "is missing" });
        }
        header.check()?;
        Ok(header)
    }

    fn set(&mut self, kind: u16, content: &[u8]) -> Result<(), FormatError> {
        let text = |field| {
            let text = std::str::from_utf8(content);
            text.map(str::to_string).map_err(|_| FormatError::Text { block: Block::Header, field })
        };
        match kind {
            kind::RAM => {
                self.ram = table(kind, content, RANGE, |bytes| {
                    let (raw, _) = RawRange::ref_from_prefix(bytes).ok()?;
                    Some(PfnRange { start: raw.start.get(), end: raw.end.get() })
                })?;
            }
            kind::FIRMWARE => {
                self.firmware = table(kind, content, FIRMWARE, |bytes| {
                    let (raw, _) = RawFirmware::ref_from_prefix(bytes).ok()?;
                    let kind = FirmwareKind::from_number(raw.kind.get());
                    Some(FirmwareRange { start: raw.start.get(), end: raw.end.get(), kind })
                })?;
            }
            kind::CPU_VENDOR => self.cpu.vendor = text("cpu vendor")?,
            kind::CPU_NAME => self.cpu.name = text("cpu name")?,
            kind::CPU_FEATURES => self.cpu.features = text("cpu features")?,
            kind::KERNEL_RELEASE => self.kernel_release = text("kernel release")?,
            kind::KERNEL_VERSION => self.kernel_version = text("kernel version")?,
            kind::HOSTNAME => self.hostname = text("host name")?,
            kind::CMDLINE => self.cmdline = text("command line")?,
            kind::EFI => {
                self.efi = table(kind, content, EFI, |bytes| {
                    let (raw, _) = RawEfi::ref_from_prefix(bytes).ok()?;
                    Some(EfiRange { start: raw.start.get(), end: raw.end.get(), mapped: raw.mapped.get() })
                })?;
            }
            kind::FILESYSTEMS => {
                let why = "has a line that describes no filesystem";
                let lines = text("filesystems")?;
                let parsed = lines.split_terminator('\n').map(Filesystem::from_line).collect::<Option<_>>();
                self.filesystems = parsed.ok_or(FormatError::Record { kind, why })?;
            }
            _ => {
                return Err(FormatError::Record { kind, why: "is unknown to this version" });
            }
        }
        Ok(())
    }
}

impl Filesystem {
    /// Its line in the record: type, UUID, the two digests in hexadecimal (`-` for none), the mount point; with tabs
    /// between them.
    fn to_line(&self) -> String {
        let still = self.still.map_or_else(|| "-".to_string(), |digest| format!("{digest:016x}"));
        format!("{}\t{}\t{:016x}\t{still}\t{}\n", self.kind, self.uuid, self.steady, self.mount)
    }

    fn from_line(line: &str) -> Option<Filesystem> {
        let fields: Vec<&str> = line.split('\t').collect();
        let &[kind, uuid, steady, still, mount] = fields.as_slice() else { return None };
        let [kind, uuid, mount] = [kind, uuid, mount].map(str::to_string);
        Some(Filesystem {
            kind,
            uuid,
            mount,
            steady: digest(steady)?,
            still: if still == "-" { None } else { Some(digest(still)?) },
        })
    }
}

/// Sixteen lower-case hexadecimal digits.
fn digest(text: &str) -> Option<u64> {
    let digits = text.len() == 16 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if digits { u64::from_str_radix(text, 16).ok() } else { None }
}

/// One record, and the bytes behind it.
struct Record<'a> {
    kind: u16,
    flags: u16,
    content: &'a [u8],
    rest: &'a [u8],
}

impl Record<'_> {
    fn split(bytes: &[u8]) -> Result<Record<'_>, FormatError> {
        let truncated = |needed| FormatError::Truncated { block: Block::Header, needed, got: bytes.len() };
        let (raw, rest) = RawRecord::ref_from_prefix(bytes).map_err(|_| truncated(RECORD))?;
        let len = raw.len.get() as usize;
        let padded = len.next_multiple_of(8);
        Ok(Record {
            kind: raw.kind.get(),
            flags: raw.flags.get(),
            content: rest.get(..len).ok_or_else(|| truncated(RECORD + len))?,
            rest: rest.get(padded..).ok_or_else(|| truncated(RECORD + padded))?,
        })
    }
}

fn table<T>(kind: u16, content: &[u8], size: usize, read: impl Fn(&[u8]) -> Option<T>) -> Result<Vec<T>, FormatError> {
    let why = "is no whole number of entries";
    if !content.len().is_multiple_of(size) {
        return Err(FormatError::Record { kind, why });
    }
    content.chunks_exact(size).map(|bytes| read(bytes).ok_or(FormatError::Record { kind, why })).collect()
}
