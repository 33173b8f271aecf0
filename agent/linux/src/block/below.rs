//! Where all bytes of a volume lie on disks, so that another kernel can write them there without what is put together
//! of the disks: through partitions, device-mapper's `linear` and `crypt`, and RAID 1 of md.
//!
//! ```text
//!   number, ranges ──linear, crypt: by the table──> ranges ──RAID 1: by the legs' offset──> runs of a disk, or of two
//! ```
//!
//! What is written there is not seen by the layers, so a layer is followed only where nothing but the one place holds
//! the bytes: no copy that is under way, no checksums beside them, no leg that is missing. Everything else is refused
//! by its name.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use dormouse_sys::device_mapper::Target;

use super::layers::{Device, DeviceKind, Layers, Leg, NoPlace, table, text};
use super::{SECTOR, node};

/// Bytes of a device: where they begin, and how many.
pub type Range = (u64, u64);

/// Where ranges lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Below {
    /// The disk or partition, or both that hold the same at the same offsets.
    pub legs: Vec<PathBuf>,
    /// The same bytes there, in the same order.
    pub ranges: Vec<Range>,
    /// What was gone through, from the top down.
    pub layers: Vec<Layer>,
}

/// Something that is put together, and was gone through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// What it is.
    pub kind: Kind,
    /// Which one it is, by what is the same in every kernel.
    pub identity: String,
    /// Its node here.
    pub node: PathBuf,
}

/// What can be gone through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// device-mapper's `linear`, in one piece or several.
    Linear,
    /// device-mapper's `crypt`.
    Crypt,
    /// RAID 1 of md.
    Raid1,
    /// A partition of what lies below.
    Partition,
}

/// Where these bytes of the block device with this number, written `major:minor`, lie.
///
/// # Errors
/// [`NoPlace`]: some of them lie nowhere, or not only there.
pub fn below(number: &str, ranges: &[Range]) -> Result<Below, NoPlace> {
    Layers { sysfs: Path::new("/sys"), table: &table }.below(number, ranges.to_vec(), 0)
}

/// The number of the block device with this node, written `major:minor`; `None` where it is none.
#[must_use]
pub fn number_of_node(path: &Path) -> Option<String> {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let metadata = fs::metadata(path).ok().filter(|metadata| metadata.file_type().is_block_device())?;
    let number = metadata.rdev();
    Some(format!("{}:{}", nix::sys::stat::major(number), nix::sys::stat::minor(number)))
}

/// What has `ranges` of the disk or partition `path` in its hands, of what is put together directly of that: all but
/// what leads elsewhere, such as another volume of the same group.
///
/// # Errors
/// It cannot be found out.
pub fn holders(path: &Path, ranges: &[Range]) -> io::Result<Vec<Layer>> {
    let number = number_of_node(path).ok_or(io::ErrorKind::NotFound)?;
    Layers { sysfs: Path::new("/sys"), table: &table }.holders(&number, ranges)
}

/// The nodes of the devices that are put together and known by this identity: one, or none.
#[must_use]
pub fn with_identity(kind: Kind, identity: &str) -> Option<PathBuf> {
    let layers = Layers { sysfs: Path::new("/sys"), table: &table };
    let entries = fs::read_dir("/sys/class/block").ok()?;
    let has_it = |directory: &PathBuf| {
        let found = match kind {
            Kind::Linear | Kind::Crypt => mapper_identity(directory),
            Kind::Raid1 => layers.array_identity(directory).ok(),
            Kind::Partition => None,
        };
        found.as_deref() == Some(identity)
    };
    let mut found = entries.flatten().map(|entry| entry.path()).filter(has_it);
    let first = found.next()?;
    found.next().is_none().then(|| node(first.file_name().unwrap_or_default()))
}

impl Layers<'_> {
    pub(super) fn below(&self, number: &str, ranges: Vec<Range>, depth: usize) -> Result<Below, NoPlace> {
        let device = match self.device(number, depth)? {
            Device { kind: DeviceKind::Other(refused), .. } => return Err(refused.into()),
            device => device,
        };
        match &device.kind {
            DeviceKind::Hardware(_) => {
                refuse_hardware(&device, &ranges)?;
                Ok(Below { legs: vec![device.node], ranges, layers: Vec::new() })
            }
            DeviceKind::Partition(disk, start) => {
                let identity = text(&device.directory.join("partition")).map_err(|error| unknown(&device, error))?;
                let layer = Layer { kind: Kind::Partition, identity, node: device.node.clone() };
                self.under(layer, disk, moved(&ranges, *start), depth)
            }
            DeviceKind::Mapper => self.below_mapper(number, &device, &ranges, depth),
            DeviceKind::Array => self.below_array(&device, &ranges, depth),
            DeviceKind::Loop(file, _) => Err(NoPlace::InFile { node: device.node.clone(), file: file.into() }),
            DeviceKind::Other(_) => Err(unknown(&device, io::ErrorKind::Unsupported.into())),
        }
    }

    /// What lies under `layer`.
    fn under(&self, layer: Layer, number: &str, ranges: Vec<Range>, depth: usize) -> Result<Below, NoPlace> {
        let mut below = self.below(number, ranges, depth + 1)?;
        below.layers.insert(0, layer);
        Ok(below)
    }

    fn below_mapper(&self, number: &str, device: &Device, ranges: &[Range], depth: usize) -> Result<Below, NoPlace> {
        // As people know it.
        let name = text(&device.directory.join("dm/name")).unwrap_or_default();
        let node = if name.is_empty() { device.node.clone() } else { Path::new("/dev/mapper").join(name) };
        let state = |why: String, remedy| NoPlace::State { node: node.clone(), why, remedy };
        let table = (self.table)(number).map_err(|error| unknown(device, error))?;
        let uuid = text(&device.directory.join("dm/uuid")).unwrap_or_default();
        let is_crypt = table.iter().any(|target| target.kind == "crypt");
        // lib/luks2/luks2_reencrypt.c of cryptsetup: while it works, the device has a piece for what is done, one for
        // what is not, and one on a device of its own between them.
        if is_crypt && table.len() != 1 || uuid.starts_with("CRYPT-TEMP") {
            return Err(state(
                "is being encrypted anew (crypt, reencryption)".to_owned(),
                "wait until it has finished",
            ));
        }
        if table.iter().any(|target| target.is_authenticated) {
            return Err(state(
                "is crypt with authentication, and keeps checksums beside the sectors (integrity)".to_owned(),
                "put the image on something else",
            ));
        }
        let mut lower: Option<&str> = None;
        let mut found = Vec::new();
        for range in ranges {
            for (target, (at, len)) in pieces(&table, *range).ok_or_else(|| too_short(device))? {
                let Some((below, sector)) = &target.lower else {
                    return Err(NoPlace::Target { node, kind: target.kind.clone() });
                };
                if let Some(other) = lower.filter(|other| other != below) {
                    let nodes = [other, below].map(|number| self.device(number, depth + 1).map(|device| device.node));
                    let [first, second] = nodes;
                    return Err(NoPlace::Devices { node, first: first?, second: second? });
                }
                lower = Some(below);
                let offset = sector.checked_mul(SECTOR).and_then(|start| start.checked_add(at));
                push(&mut found, (offset.ok_or_else(|| too_short(device))?, len));
            }
        }
        let kind = if is_crypt { Kind::Crypt } else { Kind::Linear };
        let identity = mapper_identity(&device.directory).unwrap_or_default();
        let lower = lower.ok_or_else(|| too_short(device))?;
        self.under(Layer { kind, identity, node: node.clone() }, lower, found, depth)
    }

    /// Both legs hold the same at the same offset of their data (Linux 6.12, drivers/md/raid1.c).
    fn below_array(&self, device: &Device, ranges: &[Range], depth: usize) -> Result<Below, NoPlace> {
        let node = || device.node.clone();
        let state = |why: String, remedy| NoPlace::State { node: node(), why, remedy };
        let md = device.directory.join("md");
        let attribute = |name: &str| text(&md.join(name)).map_err(|error| unknown(device, error));
        let level = attribute("level")?;
        if level != "raid1" {
            return Err(NoPlace::Raid { node: node(), level });
        }
        let metadata = attribute("metadata_version")?;
        if !metadata.starts_with("1.") {
            return Err(state(
                format!("is a RAID 1 (raid1) with metadata of version {metadata}, which are not known here"),
                "make it with metadata of version 1.2, or put the image on something else",
            ));
        }
        let is = |name: &str, good: &[&str]| text(&md.join(name)).is_ok_and(|text| good.contains(&text.as_str()));
        // What a kernel does not show is not so.
        let is_or_hidden = |name: &str, good: &[&str]| !md.join(name).exists() || is(name, good);
        const WAIT: &str = "wait until it has finished; `cat /proc/mdstat` shows it";
        const WHOLE: &str = "give it a second disk that is up to date; `cat /proc/mdstat` shows it";
        let in_use = ["clean", "active", "active-idle", "write-pending", "read-auto"];
        for (is_good, why, remedy) in [
            (is_or_hidden("reshape_position", &["none"]), "is a RAID 1 (raid1) whose shape is being changed", WAIT),
            (
                is("raid_disks", &["2"]),
                "is a RAID 1 (raid1) of another number of disks than two",
                "put the image on something else",
            ),
            (
                is("degraded", &["0"]),
                "is a RAID 1 (raid1) that is degraded: one of its disks is missing or not up to date",
                WHOLE,
            ),
            (
                is("sync_action", &["idle"]),
                "is a RAID 1 (raid1) whose disks are being compared or synchronised (resync)",
                WAIT,
            ),
            (
                is_or_hidden("resync_start", &["none"]),
                "is a RAID 1 (raid1) whose disks are not synchronised (resync)",
                WAIT,
            ),
            (is("array_state", &in_use), "is a RAID 1 (raid1) that is not in order", "see `cat /proc/mdstat`"),
            (
                is_or_hidden("consistency_policy", &["resync", "bitmap", "none", "unknown"]),
                "is a RAID 1 (raid1) with a journal",
                "put the image on something else",
            ),
            (
                is_or_hidden("bitmap/metadata", &["internal", "external"]) || !md.join("bitmap/metadata").exists(),
                "is a RAID 1 (raid1) that several machines share",
                "put the image on something else",
            ),
        ] {
            if !is_good {
                return Err(state(why.to_owned(), remedy));
            }
        }
        let legs = Leg::all(&md).map_err(|error| unknown(device, error))?;
        let [first, second] = &legs[..] else {
            return Err(state("is a RAID 1 (raid1) that is degraded: one of its disks is missing".to_owned(), WHOLE));
        };
        for leg in [first, second] {
            if !leg.is_in_sync()
                || ["blocked", "want_replacement", "replacement"].iter().any(|bad| leg.state.contains(bad))
            {
                return Err(state("is a RAID 1 (raid1) one of whose disks is not in order".to_owned(), WHOLE));
            }
            for list in ["bad_blocks", "unacknowledged_bad_blocks"] {
                if text(&leg.directory.join(list)).is_ok_and(|list| !list.is_empty()) {
                    return Err(state(
                        "is a RAID 1 (raid1) with a list of bad blocks that is not empty".to_owned(),
                        "replace that disk: `mdadm --examine-badblocks` shows which one it is",
                    ));
                }
            }
        }
        if first.start != second.start {
            return Err(state(
                "is a RAID 1 (raid1) whose data begin at different offsets on its disks".to_owned(),
                "make it again with disks of one size, or put the image on something else",
            ));
        }
        let mut both = Vec::new();
        for leg in [first, second] {
            let below = self.below(&leg.number, moved(ranges, leg.start), depth + 1)?;
            // Two that are encrypted hold different bytes.
            if let Some(layer) = below.layers.first() {
                return Err(state(
                    format!("is a RAID 1 (raid1) over {}, and not over disks", layer.node.display()),
                    "put the image on something else",
                ));
            }
            both.push(below);
        }
        let identity = self.array_identity(&device.directory).map_err(|error| unknown(device, error))?;
        let layers = vec![Layer { kind: Kind::Raid1, identity, node: node() }];
        let ranges = both.first().map(|below| below.ranges.clone()).unwrap_or_default();
        Ok(Below { legs: both.into_iter().flat_map(|below| below.legs).collect(), ranges, layers })
    }

    /// The UUID of the array whose directory in sysfs this is: a kernel that does not show it (before 6.x) has it in
    /// the superblock of each disk (include/uapi/linux/raid/md_p.h, `struct mdp_superblock_1`, `set_uuid`; its place:
    /// drivers/md/md.c, `super_1_load`).
    fn array_identity(&self, directory: &Path) -> io::Result<String> {
        let md = directory.join("md");
        if let Ok(uuid) = text(&md.join("uuid")) {
            return Ok(uuid);
        }
        let version = text(&md.join("metadata_version"))?;
        let legs = Leg::all(&md)?;
        let leg = legs.iter().find(|leg| leg.is_in_sync()).ok_or(io::ErrorKind::NotFound)?;
        let place = self.sysfs.join("dev/block").join(&leg.number).canonicalize()?;
        let sectors: u64 = text(&place.join("size"))?.parse().map_err(io::Error::other)?;
        let at = match version.as_str() {
            "1.0" => sectors.saturating_sub(16) & !7,
            "1.1" => 0,
            _ => 8,
        };
        let mut bytes = [0; 512];
        File::open(node(place.file_name().unwrap_or_default()))?.read_exact_at(&mut bytes, at * SECTOR)?;
        if bytes[..4] != 0xa92b_4efc_u32.to_le_bytes() {
            return Err(io::Error::other("there is no superblock of md's where it should be"));
        }
        let hex: String = bytes[16..32].iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]))
    }

    fn holders(&self, number: &str, ranges: &[Range]) -> io::Result<Vec<Layer>> {
        let directory = self.sysfs.join("dev/block").join(number).canonicalize()?;
        let mut found = Vec::new();
        let entries = match fs::read_dir(directory.join("holders")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
            entries => entries?,
        };
        for entry in entries {
            let holder = entry?.path().canonicalize()?;
            let node = node(holder.file_name().unwrap_or_default());
            let layer = |kind, identity| Layer { kind, identity, node: node.clone() };
            if holder.join("md").is_dir() {
                found.push(layer(Kind::Raid1, self.array_identity(&holder).unwrap_or_default()));
                continue;
            }
            if !holder.join("dm").is_dir() {
                // bcache, for example: of no kind that is known, and so of none that was recorded.
                found.push(layer(Kind::Linear, String::new()));
                continue;
            }
            let table = (self.table)(&text(&holder.join("dev"))?)?;
            let kind = if table.iter().any(|target| target.kind == "crypt") { Kind::Crypt } else { Kind::Linear };
            if table.iter().any(|target| leads_to(target, number, ranges)) {
                found.push(layer(kind, mapper_identity(&holder).unwrap_or_default()));
            }
        }
        Ok(found)
    }
}

/// Whether a piece of a device-mapper device may lead to `ranges` of the device with this number.
fn leads_to(target: &Target, number: &str, ranges: &[Range]) -> bool {
    let Some((lower, sector)) = &target.lower else { return true };
    let start = sector.saturating_mul(SECTOR);
    let end = start.saturating_add(target.len.saturating_mul(SECTOR));
    lower == number && ranges.iter().any(|(offset, len)| *offset < end && start < offset.saturating_add(*len))
}

/// What a device of device-mapper's is called by whoever made it, the same in every kernel: its UUID. That of
/// cryptsetup's ends with the name of the device (lib/libdevmapper.c, `dm_prepare_uuid`), which is the system's choice.
fn mapper_identity(directory: &Path) -> Option<String> {
    let attribute = |name: &str| text(&directory.join("dm").join(name)).ok().filter(|text| !text.is_empty());
    let Some(uuid) = attribute("uuid") else { return attribute("name") };
    let parts: Vec<&str> = uuid.splitn(4, '-').collect();
    match parts[..] {
        ["CRYPT", kind, id, _] if kind.starts_with("LUKS") => Some(format!("CRYPT-{kind}-{id}")),
        _ => Some(uuid),
    }
}

/// The pieces of a table that a range lies in: each with the part of the range, from the piece's beginning. `None`
/// where the table does not reach so far, or has gaps.
#[must_use]
pub fn pieces(table: &[Target], (offset, len): Range) -> Option<Vec<(&Target, Range)>> {
    let end = offset.checked_add(len)?;
    let mut found = Vec::new();
    let mut next = offset;
    while next < end {
        let bounds = |target: &Target| {
            let start = target.start.checked_mul(SECTOR)?;
            Some((start, start.checked_add(target.len.checked_mul(SECTOR)?)?))
        };
        let has_it = |target: &&Target| bounds(target).is_some_and(|(start, end)| (start..end).contains(&next));
        let target = table.iter().find(has_it)?;
        let (start, stop) = bounds(target)?;
        let part = stop.min(end) - next;
        found.push((target, (next - start, part)));
        next += part;
    }
    Some(found)
}

/// Adds a range, to the last one where that ends where it begins.
fn push(ranges: &mut Vec<Range>, (offset, len): Range) {
    match ranges.last_mut() {
        Some((start, before)) if start.checked_add(*before) == Some(offset) => *before = before.saturating_add(len),
        _ => ranges.push((offset, len)),
    }
}

fn moved(ranges: &[Range], by: u64) -> Vec<Range> {
    ranges.iter().map(|(offset, len)| (offset.saturating_add(by), *len)).collect()
}

fn unknown(device: &Device, source: io::Error) -> NoPlace {
    NoPlace::Unknown { node: device.node.clone(), source }
}

fn too_short(device: &Device) -> NoPlace {
    unknown(device, io::Error::other("its table does not reach so far"))
}

/// Refuses a disk that cannot be overwritten anywhere, and ranges that it does not have.
fn refuse_hardware(device: &Device, ranges: &[Range]) -> Result<(), NoPlace> {
    let attribute = |name: &str| text(&device.directory.join(name));
    let state = |why: &str| {
        let (node, remedy) = (device.node.clone(), "put the image on another disk");
        NoPlace::State { node, why: why.to_owned(), remedy }
    };
    if attribute("ro").is_ok_and(|text| text == "1") {
        return Err(state("cannot be written to (read-only)"));
    }
    // A partition's directory lies in its disk's.
    let zoned = attribute("queue/zoned").or_else(|_| attribute("../queue/zoned"));
    if zoned.is_ok_and(|text| text != "none") {
        return Err(state("is zoned, and cannot be overwritten in place"));
    }
    let sectors = attribute("size").map_err(|error| unknown(device, error))?;
    let size = sectors.parse::<u64>().ok().and_then(|sectors| sectors.checked_mul(SECTOR)).unwrap_or(0);
    match ranges.iter().find(|(offset, len)| offset.checked_add(*len).is_none_or(|end| end > size)) {
        Some(_) => Err(unknown(device, io::Error::other("what lies on it ends beyond its end"))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
