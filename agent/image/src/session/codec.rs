//! The session record's bytes: a fixed part, then tagged records for everything of variable length.

use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{
    Architecture, Cpu, DiskPlace, EfiRange, Filesystem, FirmwareKind, FirmwareRange, Mailbox, SessionRecord, SwapArea,
};
use crate::block::{self, Frame};
use crate::error::{Block, FormatError};
use crate::layout::SESSION_MAX;
use crate::record::{Kind, RecordError, Records, Writer};
use crate::{PfnRange, PhysRange, Uuid};

/// The first eight bytes of a session record.
pub const SESSION_MAGIC: [u8; 8] = *b"DMRECORD";

/// The kinds of records in a session record and in a header, in the order in which they are written.
pub const SESSION_KINDS: &[Kind] = &[
    kind::RAM,
    kind::LOW,
    kind::FIRMWARE,
    kind::EFI,
    kind::FILESYSTEMS,
    kind::SWAP_AREAS,
    kind::X86_CPU,
    kind::KERNEL_RELEASE,
    kind::KERNEL_VERSION,
    kind::HOSTNAME,
    kind::CMDLINE,
    kind::MICROCODE,
];

mod kind {
    use crate::record::Kind;
    use crate::version::MICROCODE as SINCE_MICROCODE;

    pub(super) const RAM: Kind = Kind::mandatory(1, "saved memory", 0);
    pub(super) const LOW: Kind = Kind::mandatory(2, "low memory", 0);
    pub(super) const FIRMWARE: Kind = Kind::mandatory(3, "firmware ranges", 0);
    pub(super) const EFI: Kind = Kind::mandatory(4, "EFI ranges", 0);
    pub(super) const FILESYSTEMS: Kind = Kind::mandatory(5, "filesystems", 0);
    pub(super) const SWAP_AREAS: Kind = Kind::mandatory(6, "swap areas", 0);
    pub(super) const X86_CPU: Kind = Kind::mandatory(7, "x86 CPU", 0);
    pub(super) const KERNEL_RELEASE: Kind = Kind::mandatory(8, "kernel release", 0);
    pub(super) const KERNEL_VERSION: Kind = Kind::mandatory(9, "kernel version", 0);
    pub(super) const HOSTNAME: Kind = Kind::mandatory(10, "host name", 0);
    pub(super) const CMDLINE: Kind = Kind::mandatory(11, "command line", 0);
    pub(super) const MICROCODE: Kind = Kind::skippable(12, "microcode", SINCE_MICROCODE);
}

/// The type of a swap area's entry.
const SWAP: &str = "swap";

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawSession {
    image: [u8; 16],
    save_id: [u8; 16],
    boot_id: [u8; 16],
    machine: [u8; 16],
    mailbox_nonce: [u8; 16],
    created_unix: U64,
    region_start: U64,
    region_end: U64,
    /// 0 for none: page 0 belongs to the firmware.
    mailbox_pfn: U64,
    elf_machine: U16,
    reserved: [u8; 2],
    page_size: U32,
    cpus_online: U32,
    records: U32,
    reserved_too: [u8; 32],
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

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawCpu {
    family: U32,
    model: U32,
    stepping: U32,
    /// 4 or 5.
    paging_levels: U32,
    vendor_len: U32,
    name_len: U32,
    features_len: U32,
    reserved: U32,
}

/// A filesystem or a swap area.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawFilesystem {
    /// Of the whole entry, a multiple of 8.
    len: U32,
    kind_len: U16,
    uuid_len: U16,
    mount_len: U16,
    disk_len: U16,
    /// Whether there is a quiesced digest.
    flags: U32,
    mount_digest: U64,
    quiesced_digest: U64,
    superblock: U64,
    reserved: [u8; 16],
}

const QUIESCED: u32 = 1;

const SESSION: usize = size_of::<RawSession>();
const RANGE: usize = size_of::<RawRange>();
const FIRMWARE: usize = size_of::<RawFirmware>();
const EFI: usize = size_of::<RawEfi>();
const CPU: usize = size_of::<RawCpu>();
const FILESYSTEM: usize = size_of::<RawFilesystem>();
const _: () = assert!(SESSION == 160 && RANGE == 16 && FIRMWARE == 24 && EFI == 24 && CPU == 32 && FILESYSTEM == 56);

impl SessionRecord {
    /// The session record's block.
    ///
    /// # Errors
    /// [`FormatError::TooLarge`], and whatever [`SessionRecord::decode`] would find wrong with the values.
    pub fn encode(&self) -> Result<Vec<u8>, FormatError> {
        self.check(Block::Session)?;
        let mut body = Vec::new();
        self.write(Block::Session, &mut body)?;
        block::frame_since(self.since(), Block::Session, SESSION_MAGIC, &body, SESSION_MAX)
    }

    /// Reads a session record.
    ///
    /// # Errors
    /// [`FormatError`] describes what is wrong with it.
    pub fn decode(bytes: &[u8]) -> Result<SessionRecord, FormatError> {
        let frame = block::unframe(Block::Session, SESSION_MAGIC, bytes, SESSION_MAX)?;
        let session = SessionRecord::read(&frame, SESSION_KINDS, frame.body)?;
        session.check(Block::Session)?;
        Ok(session)
    }

    /// The oldest minor version that has a meaning for all that is in it.
    pub(crate) fn since(&self) -> u16 {
        if self.cpu.microcode == 0 { 0 } else { kind::MICROCODE.since }
    }

    /// Appends the fixed part and the records.
    pub(crate) fn write(&self, block: Block, body: &mut Vec<u8>) -> Result<(), FormatError> {
        let records = self.records().map_err(|error| FormatError::Record { block, error })?;
        let raw = RawSession {
            image: self.image.0,
            save_id: self.save_id.0,
            boot_id: self.boot_id.0,
            machine: self.machine.0,
            mailbox_nonce: self.mailbox.map_or([0; 16], |mailbox| mailbox.nonce),
            created_unix: self.created_unix.into(),
            region_start: self.region.start.into(),
            region_end: self.region.end.into(),
            mailbox_pfn: self.mailbox.map_or(0, |mailbox| mailbox.pfn).into(),
            elf_machine: self.architecture.elf_machine().into(),
            reserved: [0; 2],
            page_size: self.architecture.page_size().into(),
            cpus_online: self.cpu.online.into(),
            records: records.count().into(),
            reserved_too: [0; 32],
        };
        body.extend(raw.as_bytes());
        body.extend(records.into_bytes());
        Ok(())
    }

    fn records(&self) -> Result<Writer, RecordError> {
        let range = |start: u64, end: u64| RawRange { start: start.into(), end: end.into() };
        let ram: Vec<RawRange> = self.ram.iter().map(|pages| range(pages.start, pages.end)).collect();
        let low: Vec<RawRange> = self.low.iter().map(|bytes| range(bytes.start, bytes.end)).collect();
        let firmware = self.firmware.iter().map(|range| RawFirmware {
            start: range.start.into(),
            end: range.end.into(),
            kind: range.kind.number().into(),
            reserved: 0.into(),
        });
        let firmware: Vec<RawFirmware> = firmware.collect();
        let efi = self.efi.iter().map(|range| RawEfi {
            start: range.start.into(),
            end: range.end.into(),
            mapped: range.mapped.into(),
        });
        let efi: Vec<RawEfi> = efi.collect();
        let mut filesystems = Vec::new();
        for filesystem in &self.filesystems {
            write_filesystem(&kind::FILESYSTEMS, filesystem, &mut filesystems)?;
        }
        let mut swap_areas = Vec::new();
        for area in &self.swap_areas {
            let SwapArea { uuid, mount_digest, quiesced_digest, superblock } = area.clone();
            let (kind, mount) = (SWAP.to_string(), String::new());
            let entry = Filesystem { kind, uuid, mount, mount_digest, quiesced_digest, superblock };
            write_filesystem(&kind::SWAP_AREAS, &entry, &mut swap_areas)?;
        }
        let contents: [(&Kind, &[u8]); 11] = [
            (&kind::RAM, ram.as_bytes()),
            (&kind::LOW, low.as_bytes()),
            (&kind::FIRMWARE, firmware.as_bytes()),
            (&kind::EFI, efi.as_bytes()),
            (&kind::FILESYSTEMS, &filesystems),
            (&kind::SWAP_AREAS, &swap_areas),
            (&kind::X86_CPU, &cpu_bytes(&self.cpu)?),
            (&kind::KERNEL_RELEASE, self.kernel_release.as_bytes()),
            (&kind::KERNEL_VERSION, self.kernel_version.as_bytes()),
            (&kind::HOSTNAME, self.hostname.as_bytes()),
            (&kind::CMDLINE, self.cmdline.as_bytes()),
        ];
        let mut writer = Writer::new();
        for (kind, content) in contents {
            writer.push(kind, content)?;
        }
        if self.cpu.microcode != 0 {
            writer.push(&kind::MICROCODE, U32::new(self.cpu.microcode).as_bytes())?;
        }
        Ok(writer)
    }

    /// Reads the fixed part and the records of the kinds `kinds` from `part`, which they fill. The values' rules are
    /// still to be checked.
    pub(crate) fn read(frame: &Frame<'_>, kinds: &[Kind], part: &[u8]) -> Result<SessionRecord, FormatError> {
        let (raw, rest) = RawSession::ref_from_prefix(part).map_err(|_| FormatError::Magic(frame.block))?;
        let machine = raw.elf_machine.get();
        // First of all: the records of another architecture are others.
        let architecture =
            Architecture::from_elf_machine(machine).ok_or(FormatError::Architecture { block: frame.block, machine })?;
        if raw.page_size.get() != architecture.page_size() {
            return Err(frame.field("page size", raw.page_size.get().into(), "4096 on x86-64"));
        }
        frame.zero("a reserved field", &raw.reserved)?;
        frame.zero("a reserved field", &raw.reserved_too)?;
        let mailbox = Some(Mailbox { pfn: raw.mailbox_pfn.get(), nonce: raw.mailbox_nonce });
        let mailbox = mailbox.filter(|mailbox| mailbox.pfn != 0);
        if mailbox.is_none() {
            frame.zero("a mailbox nonce without a mailbox", &raw.mailbox_nonce)?;
        }
        let records = Records::read(kinds, frame.written, raw.records.get(), rest);
        let records = records.map_err(|error| frame.record(error))?;
        frame.zero("padding that is not zero", records.rest)?;
        let content = |kind: &Kind| records.content(kind);
        let text = |kind: &Kind| text(frame, kind.name, content(kind));
        let range = |raw: &RawRange| Ok((raw.start.get(), raw.end.get()));
        let ram = table(frame, &kind::RAM, content(&kind::RAM), range)?.into_iter();
        let low = table(frame, &kind::LOW, content(&kind::LOW), range)?.into_iter();
        Ok(SessionRecord {
            image: Uuid(raw.image),
            save_id: Uuid(raw.save_id),
            boot_id: Uuid(raw.boot_id),
            machine: Uuid(raw.machine),
            created_unix: raw.created_unix.get(),
            architecture,
            region: PhysRange { start: raw.region_start.get(), end: raw.region_end.get() },
            low: low.map(|(start, end)| PhysRange { start, end }).collect(),
            mailbox,
            ram: ram.map(|(start, end)| PfnRange { start, end }).collect(),
            firmware: table(frame, &kind::FIRMWARE, content(&kind::FIRMWARE), |raw: &RawFirmware| {
                frame.zero("a reserved field of a firmware range", raw.reserved.as_bytes())?;
                let kind = FirmwareKind::from_number(raw.kind.get());
                Ok(FirmwareRange { start: raw.start.get(), end: raw.end.get(), kind })
            })?,
            efi: table(frame, &kind::EFI, content(&kind::EFI), |raw: &RawEfi| {
                Ok(EfiRange { start: raw.start.get(), end: raw.end.get(), mapped: raw.mapped.get() })
            })?,
            filesystems: read_filesystems(frame, &kind::FILESYSTEMS, content(&kind::FILESYSTEMS))?,
            swap_areas: read_swap_areas(frame, content(&kind::SWAP_AREAS))?,
            cpu: Cpu {
                online: raw.cpus_online.get(),
                microcode: read_microcode(frame, records.get(&kind::MICROCODE))?,
                ..read_cpu(frame, content(&kind::X86_CPU))?
            },
            kernel_release: text(&kind::KERNEL_RELEASE)?,
            kernel_version: text(&kind::KERNEL_VERSION)?,
            hostname: text(&kind::HOSTNAME)?,
            cmdline: text(&kind::CMDLINE)?,
        })
    }
}

fn text(frame: &Frame<'_>, field: &'static str, bytes: &[u8]) -> Result<String, FormatError> {
    let text = std::str::from_utf8(bytes).map_err(|_| FormatError::Text { block: frame.block, field })?;
    Ok(text.to_string())
}

/// Entries of one size.
fn table<R: FromBytes + Immutable + KnownLayout + Unaligned, T>(
    frame: &Frame<'_>,
    kind: &Kind,
    content: &[u8],
    read: impl Fn(&R) -> Result<T, FormatError>,
) -> Result<Vec<T>, FormatError> {
    let table = <[R]>::ref_from_bytes(content);
    let table = table.map_err(|_| frame.record(kind.wrong("its length is not a whole number of entries")))?;
    table.iter().map(read).collect()
}

fn cpu_bytes(cpu: &Cpu) -> Result<Vec<u8>, RecordError> {
    let len =
        |text: &str| u32::try_from(text.len()).map(U32::new).map_err(|_| kind::X86_CPU.wrong("its texts are too long"));
    let raw = RawCpu {
        family: cpu.family.into(),
        model: cpu.model.into(),
        stepping: cpu.stepping.into(),
        paging_levels: U32::new(if cpu.la57 { 5 } else { 4 }),
        vendor_len: len(&cpu.vendor)?,
        name_len: len(&cpu.name)?,
        features_len: len(&cpu.features)?,
        reserved: 0.into(),
    };
    let texts = [&cpu.vendor, &cpu.name, &cpu.features];
    Ok(texts.into_iter().fold(raw.as_bytes().to_vec(), |mut bytes, text| {
        bytes.extend(text.as_bytes());
        bytes
    }))
}

fn read_microcode(frame: &Frame<'_>, content: Option<&[u8]>) -> Result<u32, FormatError> {
    let Some(content) = content else { return Ok(0) };
    let revision = U32::read_from_bytes(content);
    Ok(revision.map_err(|_| frame.record(kind::MICROCODE.wrong("it does not have 4 bytes")))?.get())
}

/// All but the number of CPUs, and their microcode.
fn read_cpu(frame: &Frame<'_>, content: &[u8]) -> Result<Cpu, FormatError> {
    let short = || frame.record(kind::X86_CPU.wrong("it is too short"));
    let (raw, mut rest) = RawCpu::ref_from_prefix(content).map_err(|_| short())?;
    let levels = raw.paging_levels.get();
    if !matches!(levels, 4 | 5) {
        return Err(frame.field("paging levels", levels.into(), "4 or 5"));
    }
    frame.zero("a reserved field of its CPU", raw.reserved.as_bytes())?;
    let mut next = |field, len: U32| {
        let (now, later) = rest.split_at_checked(len.get() as usize).ok_or_else(short)?;
        rest = later;
        text(frame, field, now)
    };
    let cpu = Cpu {
        vendor: next("CPU vendor", raw.vendor_len)?,
        family: raw.family.get(),
        model: raw.model.get(),
        stepping: raw.stepping.get(),
        name: next("CPU name", raw.name_len)?,
        features: next("CPU features", raw.features_len)?,
        microcode: 0,
        online: 0,
        la57: levels == 5,
    };
    frame.zero("more facts of its CPU", rest)?;
    Ok(cpu)
}

/// Appends an entry.
fn write_filesystem(kind: &Kind, filesystem: &Filesystem, bytes: &mut Vec<u8>) -> Result<(), RecordError> {
    let Filesystem { kind: type_name, uuid, mount, mount_digest, quiesced_digest, superblock } = filesystem;
    let (disk, offset) = superblock.as_ref().map_or(("", 0), |place| (place.disk.as_str(), place.offset));
    let texts = [type_name.as_str(), uuid, mount, disk];
    let len = texts.iter().map(|text| text.len()).sum::<usize>().next_multiple_of(8) + FILESYSTEM;
    let too_long = || kind.wrong("a text has more than 65535 bytes");
    let text_len = |text: &str| u16::try_from(text.len()).map(U16::new).map_err(|_| too_long());
    let raw = RawFilesystem {
        len: u32::try_from(len).map_err(|_| too_long())?.into(),
        kind_len: text_len(type_name)?,
        uuid_len: text_len(uuid)?,
        mount_len: text_len(mount)?,
        disk_len: text_len(disk)?,
        flags: U32::new(if quiesced_digest.is_some() { QUIESCED } else { 0 }),
        mount_digest: (*mount_digest).into(),
        quiesced_digest: quiesced_digest.unwrap_or(0).into(),
        superblock: offset.into(),
        reserved: [0; 16],
    };
    let end = bytes.len() + len;
    bytes.extend(raw.as_bytes());
    texts.iter().for_each(|text| bytes.extend(text.as_bytes()));
    bytes.resize(end, 0);
    Ok(())
}

fn read_filesystems(frame: &Frame<'_>, kind: &Kind, mut content: &[u8]) -> Result<Vec<Filesystem>, FormatError> {
    let mut filesystems = Vec::new();
    while !content.is_empty() {
        let wrong = || frame.record(kind.wrong("an entry is longer than the record or shorter than its parts"));
        let (raw, _) = RawFilesystem::ref_from_prefix(content).map_err(|_| wrong())?;
        let len = raw.len.get() as usize;
        let (entry, later) = content.split_at_checked(len).filter(|_| len.is_multiple_of(8)).ok_or_else(wrong)?;
        content = later;
        let mut rest = entry.get(FILESYSTEM..).ok_or_else(wrong)?;
        let mut next = |field, len: U16| {
            let (now, later) = rest.split_at_checked(len.get().into()).ok_or_else(wrong)?;
            rest = later;
            text(frame, field, now)
        };
        let [type_name, uuid] = [next("filesystem's type", raw.kind_len)?, next("filesystem's UUID", raw.uuid_len)?];
        let [mount, disk] = [next("mount point", raw.mount_len)?, next("filesystem's disk", raw.disk_len)?];
        frame.zero("more facts of a filesystem", rest)?;
        frame.zero("a reserved field of a filesystem", &raw.reserved)?;
        let flags = raw.flags.get();
        if flags & !QUIESCED != 0 {
            return Err(frame.newer("an unknown flag of a filesystem"));
        }
        if flags & QUIESCED == 0 {
            frame.zero("a digest without its flag", raw.quiesced_digest.as_bytes())?;
        }
        let offset = raw.superblock.get();
        filesystems.push(Filesystem {
            kind: type_name,
            uuid,
            mount,
            mount_digest: raw.mount_digest.get(),
            quiesced_digest: (flags & QUIESCED != 0).then(|| raw.quiesced_digest.get()),
            superblock: (!disk.is_empty() || offset != 0).then_some(DiskPlace { disk, offset }),
        });
    }
    Ok(filesystems)
}

fn read_swap_areas(frame: &Frame<'_>, content: &[u8]) -> Result<Vec<SwapArea>, FormatError> {
    let entries = read_filesystems(frame, &kind::SWAP_AREAS, content)?;
    if entries.iter().any(|entry| entry.kind != SWAP || !entry.mount.is_empty()) {
        return Err(frame.record(kind::SWAP_AREAS.wrong("an entry is not of type swap, or has a mount point")));
    }
    let area = |Filesystem { uuid, mount_digest, quiesced_digest, superblock, .. }| SwapArea {
        uuid,
        mount_digest,
        quiesced_digest,
        superblock,
    };
    Ok(entries.into_iter().map(area).collect())
}
