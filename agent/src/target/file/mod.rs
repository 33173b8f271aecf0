//! An image in a file: making one, and seeing to it that what B will write without the filesystem is that file and
//! nothing else.
//!
//! ```text
//!   file ──FIEMAP──> extents ──layout──> map ───> the image's label    once, by `image create`
//!     │                                   ╫ compared with the label and with the disk before every hibernation
//!     └──fdinfo, mountinfo, sysfs───────> disk
//! ```
//!
//! In A the image is read and written through the file, past the page cache, where its filesystem is on a disk or
//! partition itself; where layers lie between, on the disks (see `target/stack.rs`). B, C and D mount nothing: they
//! find the label by its UUID and its offset on the disk, and the rest by the map in it. No answer of a filesystem is
//! believed alone (an address may be one of a volume that has disks of its own): what the file begins and ends each of
//! its pieces with must be what is on the disk there.

mod backing;
mod layout;
mod lower;

use std::fmt;
use std::fs::File;
use std::io::{IsTerminal, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, bail, ensure};
use backing::Backing;
use dormouse_image::layout::{DATA_OFFSET, DEVICE_MIN, INDEX_MAX, LABEL_MAX_EXTENTS, SLOT_OFFSETS};
use dormouse_image::{BLOCK, DiskExtent, Label, Layer, NfsFile, PhysRange};
use dormouse_linux::procfs;
use dormouse_linux::units::{mib, parse_bytes};
use dormouse_sys::fiemap;
pub use layout::Unsuitable;
use layout::disk_extents;
pub use lower::{Lower, lower, overwrite_in_place};
use nix::errno::Errno;
use nix::fcntl::{self, AT_FDCWD, AtFlags, FallocateFlags, OFlag};
use nix::sys::stat::Mode;
use nix::unistd;
use serde::Serialize;

use crate::machine::iomem::Iomem;
use crate::store::{Access, Device, Disk, ExtentMap, Image, Nfs};
use crate::target::new_label;
use crate::target::stack::Lay;

const MIB: u64 = 1 << 20;
/// The first block of a filesystem's device, which lies below the same layers as all others.
const BEGINNING: DiskExtent = DiskExtent { offset: 0, len: BLOCK as u64 };
/// What is written at once.
const PIECE: usize = 4 << 20;
/// What `auto` leaves free, at most: a filesystem that is full to the brim stops the system that it carries.
const MARGIN: u64 = 1 << 30;

/// How large a file is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// As large as an image of this machine can become.
    Auto,
    /// This many bytes.
    Bytes(u64),
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Size, String> {
        if text == "auto" {
            return Ok(Size::Auto);
        }
        let bytes = parse_bytes(text).and_then(|bytes| bytes.checked_next_multiple_of(MIB));
        let possible = bytes.filter(|bytes| (DEVICE_MIN..=i64::MAX as u64).contains(bytes));
        possible
            .map(Size::Bytes)
            .ok_or_else(|| format!("`{text}` is not the size of a file: write auto, or 16G, or 6000M"))
    }
}

/// A file that was made for the image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Created {
    /// The file.
    pub file: PathBuf,
    /// Its identity, for `UUID=`.
    pub uuid: String,
    /// Its size in bytes.
    pub bytes: u64,
    /// In how many pieces it lies.
    pub extents: usize,
    /// On which block device.
    pub device: PathBuf,
    /// On which other one it also is.
    pub mirror: Option<PathBuf>,
    /// What lies between the file and the block device, from the top down.
    pub layers: Vec<String>,
}

impl fmt::Display for Created {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Created { file, uuid, bytes, extents, device, mirror, layers } = self;
        let (file, device, size) = (file.display(), device.display(), mib(*bytes));
        let also = mirror.as_ref().map(|mirror| format!(" and of {}", mirror.display())).unwrap_or_default();
        let below = if layers.is_empty() { String::new() } else { format!(", below {}", layers.join(", ")) };
        let pieces = if *extents == 1 { "one piece".to_owned() } else { format!("{extents} pieces") };
        write!(
            f,
            "{file}: UUID={uuid}, {size}, in {pieces} of {device}{also}{below}\n\
             Set it in the policy:\n\n    [image]\n    device = \"{file}\"\n\n\
             and build both initramfs again: that of `dormouse build-initramfs`, and that of your ordinary boot, which \
             needs the policy that `dormouse config show --boot` prints."
        )
    }
}

/// Makes a file for the image at `path`, all of it written, so that no hibernation needs the filesystem any more.
///
/// # Errors
/// The file exists already, the filesystem will not do or does not have enough room. Nothing is left then.
pub fn create(path: &Path, size: Size) -> anyhow::Result<Created> {
    let about = || format!("image device {}", path.display());
    if let Some(text) = path.to_str().filter(|text| text.starts_with(NfsFile::SCHEME)) {
        return create_remote(&text.parse()?, size).with_context(about);
    }
    let path = &std::path::absolute(path).with_context(about)?;
    let (image, legs) = make(path, size).with_context(about)?;
    let mut legs = legs.into_iter();
    Ok(Created {
        file: path.clone(),
        uuid: image.label().uuid.to_string(),
        bytes: image.disk().size(),
        extents: image.label().extents.len(),
        device: legs.next().unwrap_or_default(),
        mirror: legs.next(),
        layers: image.label().stack.iter().map(Layer::to_string).collect(),
    })
}

/// The same on a server. Where it lies there is the server's affair.
fn create_remote(file: &NfsFile, size: Size) -> anyhow::Result<Created> {
    let size = match size {
        Size::Bytes(bytes) => bytes,
        Size::Auto => needed()?,
    };
    Nfs::create(file, size)?;
    let image = Image::create(Disk::new(Nfs::open(file, Access::Write)?), new_label(Vec::new())?)?;
    Ok(Created {
        file: file.to_string().into(),
        uuid: image.label().uuid.to_string(),
        bytes: image.disk().size(),
        extents: 1,
        device: file.host().into(),
        mirror: None,
        layers: Vec::new(),
    })
}

/// The size of an image of this machine's memory at most.
fn needed() -> anyhow::Result<u64> {
    let memory = Iomem::parse(&procfs::text("/proc/iomem")?)?.whole_ram();
    Ok(most(memory.iter().map(PhysRange::len).sum()))
}

/// Makes an image of a file that has no name before it is whole: whatever stops this, a signal or a power cut, nothing
/// is left. Says on which block devices it lies, too.
fn make(path: &Path, size: Size) -> anyhow::Result<(Image, Vec<PathBuf>)> {
    const EXISTS: &str = "the file exists already; remove it first";
    ensure!(path.symlink_metadata().is_err(), EXISTS);
    let directory = path.parent().context("a path without a directory")?;
    let directory = File::open(directory).with_context(|| format!("{}: cannot look into it", directory.display()))?;
    // Before anything is written that would be in vain.
    let backing = Backing::of(&directory)?;
    backing.lay(vec![BEGINNING])?;
    let unnamed = OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_CLOEXEC;
    let file = fcntl::openat(&directory, ".", unnamed, Mode::S_IRUSR | Mode::S_IWUSR).context("cannot make it")?;
    let file = File::from(file);
    backing.prepare(&file)?;
    let made = fill(&file, path, size)?;
    let named = unistd::linkat(AT_FDCWD, &by_descriptor(&file), AT_FDCWD, path, AtFlags::AT_SYMLINK_FOLLOW);
    named.map_err(|error| match error {
        Errno::EEXIST => anyhow::anyhow!(EXISTS),
        error => anyhow::Error::new(error).context("it is made, and cannot be given its name"),
    })?;
    file.sync_all().and_then(|()| directory.sync_all()).context("its name cannot be made durable")?;
    Ok(made)
}

/// A path that leads to an open file, whether it has a name or not (open(2), `O_TMPFILE`).
fn by_descriptor(file: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// Makes an image of a file that is new and empty, and will be at `path`.
fn fill(file: &File, path: &Path, size: Size) -> anyhow::Result<(Image, Vec<PathBuf>)> {
    let size = room(file, size)?;
    fcntl::fallocate(file, FallocateFlags::empty(), 0, i64::try_from(size)?).map_err(|error| match error {
        Errno::ENOSPC => {
            anyhow::anyhow!("{} do not fit into its filesystem; name less with --size", mib(size))
        }
        error => anyhow::Error::new(error).context("no room can be reserved for it"),
    })?;
    let disk = Disk::new(Device::open(&by_descriptor(file), Access::Write)?.named(path));
    write_zeroes(&disk)?;
    file.sync_all().context("it cannot be made durable")?;

    let lay = lay_out(file, disk.size())?;
    // What no label can say is not used as a map either.
    let label = lay.label()?;
    if lay.bypasses_encryption() {
        mark_and_watch(&disk, &lay)?;
    } else {
        lay.legs.iter().try_for_each(|leg| mark_and_compare(&disk, leg, &label.extents))?;
    }
    if !lay.layers.is_empty() {
        // From here on nothing goes through the file any more.
        let image = Image::create(lay.open(Access::Write)?, label)?;
        read_back(&lay, image.label())?;
        return Ok((image, lay.legs));
    }
    let image = Image::create(disk, label)?;
    lay.legs.iter().try_for_each(|leg| compare(image.disk(), leg, &image.label().extents))?;
    Ok((image, lay.legs))
}

/// Demands to find on each disk what has just been written there.
fn read_back(lay: &Lay, label: &Label) -> anyhow::Result<()> {
    for leg in lay.open(Access::Read)?.legs() {
        let found = Image::open(leg)?;
        ensure!(found.label() == label, "{}: what was written there is not what it has", found.disk());
    }
    Ok(())
}

/// The same as [`mark_and_compare`] where a layer encrypts: what is on the disk is not what is in the file, but changes
/// with it, and back again.
fn mark_and_watch(file: &Disk, lay: &Lay) -> anyhow::Result<()> {
    let nonce = procfs::random()?;
    let legs = lay.open(Access::Read)?.legs();
    for offset in ends(&lay.extents) {
        let look = || legs.iter().map(|leg| leg.read(offset, BLOCK)).collect::<Result<Vec<_>, _>>();
        let before = look()?;
        let mark = [nonce.as_slice(), &offset.to_le_bytes(), &[0; 8]].concat();
        file.write_copy(offset, &mark.repeat(BLOCK / mark.len()))?;
        file.flush()?;
        let during = look()?;
        file.write_copy(offset, &[0; BLOCK])?;
        file.flush()?;
        let after = look()?;
        let is_there = before.iter().zip(&during).all(|(before, during)| before[..] != during[..])
            && before.iter().zip(&after).all(|(before, after)| before[..] == after[..]);
        ensure!(
            is_there,
            "byte {offset} of the file is not where its layers say it is: something between them moves data"
        );
    }
    Ok(())
}

/// Where a file of `size` bytes lies.
fn lay_out(file: &File, size: u64) -> anyhow::Result<Lay> {
    let backing = Backing::of(file)?;
    backing.refuse_attributes(file)?;
    // More cannot be used; those that touch count once.
    let limit = 64 * LABEL_MAX_EXTENTS;
    let extents = fiemap::extents(file, limit).context("the filesystem does not say where it lies (FIEMAP)")?;
    let pieces = disk_extents(&extents, &backing.addresses, size)?;
    backing.lay(pieces)
}

/// Where a file lies whose filesystem is on layers; `None` for any other file.
///
/// # Errors
/// It lies in a way that cannot be followed.
pub(super) fn lay(path: &Path) -> anyhow::Result<Option<Lay>> {
    let file = File::open(path)?;
    if !backing::is_below_layers(&file) {
        return Ok(None);
    }
    let size = file.metadata()?.len() / BLOCK as u64 * BLOCK as u64;
    lay_out(&file, size).map(Some)
}

/// Where the filesystem of a directory begins, of one that is on layers; `None` for any other.
///
/// # Errors
/// It lies in a way that cannot be followed.
pub(super) fn lay_of_directory(path: &Path) -> anyhow::Result<Option<Lay>> {
    let directory = File::open(path)?;
    if !backing::is_below_layers(&directory) {
        return Ok(None);
    }
    Backing::of(&directory)?.lay(vec![BEGINNING]).map(Some)
}

/// How large the file becomes, in bytes.
fn room(file: &File, size: Size) -> anyhow::Result<u64> {
    if let Size::Bytes(bytes) = size {
        return Ok(bytes);
    }
    let needed = needed()?;
    let filesystem = nix::sys::statvfs::fstatvfs(file).context("its filesystem does not say how much room it has")?;
    let block = filesystem.fragment_size();
    let free = filesystem.blocks_available().saturating_mul(block);
    let margin = (filesystem.blocks().saturating_mul(block) / 20).min(MARGIN);
    ensure!(
        needed.saturating_add(margin) <= free,
        "an image of this machine's memory takes {} at most; {} are free in the filesystem, of which {} should stay \
         so. Most images are much smaller: name a size with --size; one that turns out too small costs nothing but \
         the hibernation",
        mib(needed),
        mib(free),
        mib(margin)
    );
    Ok(needed)
}

/// The size of an image of this many bytes of memory, none of which compress, in bytes.
///
/// A chunk that does not become smaller is stored as it is. Index entries take at most 536 bytes for a chunk of 256
/// KiB, all of whose pages lie apart, and a piece of 768 KiB or more loses less than a block: together less than a
/// 64th.
#[must_use]
pub fn most(memory: u64) -> u64 {
    let front = DATA_OFFSET + 2 * INDEX_MAX as u64;
    (memory + memory / 64 + front).next_multiple_of(MIB)
}

/// Writes all of the file: what is only reserved reads as zeroes in A, whatever B has written there.
fn write_zeroes(disk: &Disk) -> anyhow::Result<()> {
    let zeroes = memmap2::MmapMut::map_anon(PIECE).context("no memory")?;
    let is_watched = std::io::stderr().is_terminal();
    let mut shown = None;
    for offset in (0..disk.size()).step_by(PIECE) {
        let len = usize::try_from((disk.size() - offset).min(PIECE as u64))?;
        disk.write(offset, &zeroes[..len])?;
        let percent = offset * 100 / disk.size();
        if is_watched && shown != Some(percent) {
            shown = Some(percent);
            // Nobody misses it where it fails.
            let _ = write!(std::io::stderr(), "\r{}: {percent} % of {}", disk, mib(disk.size()));
        }
    }
    if is_watched {
        let _ = write!(std::io::stderr(), "\r\x1b[K");
    }
    Ok(disk.flush()?)
}

/// Where an image's pieces begin and end: for each, the offsets in the file of its first and of its last block.
fn ends(extents: &[DiskExtent]) -> Vec<u64> {
    let mut begin = 0;
    let ends = extents.iter().flat_map(|extent| {
        let first = begin;
        begin += extent.len;
        [first, begin - BLOCK as u64]
    });
    ends.collect()
}

/// Writes something unmistakable to both ends of each piece of a file that holds nothing yet, demands to find it on the
/// disk, and takes it away again.
fn mark_and_compare(disk: &Disk, device: &Path, extents: &[DiskExtent]) -> anyhow::Result<()> {
    let nonce = procfs::random()?;
    for offset in ends(extents) {
        let mark = [nonce.as_slice(), &offset.to_le_bytes(), &[0; 8]].concat();
        disk.write_copy(offset, &mark.repeat(BLOCK / mark.len()))?;
    }
    disk.flush()?;
    compare(disk, device, extents)?;
    for offset in ends(extents) {
        disk.write_copy(offset, &[0; BLOCK])?;
    }
    Ok(disk.flush()?)
}

/// Demands that both ends of each piece of a file, and the image's state, are on the disk where they should be.
fn compare(file: &Disk, device: &Path, extents: &[DiskExtent]) -> anyhow::Result<()> {
    let disk = Disk::open(device, Access::Read)?;
    let map = ExtentMap::new(extents);
    for offset in ends(extents).into_iter().chain(SLOT_OFFSETS) {
        let pieces = map.pieces(offset, BLOCK).context("a map that is shorter than its pieces")?;
        for (at, _) in pieces {
            let is_there = at.checked_add(BLOCK as u64).is_some_and(|end| end <= disk.size());
            if !is_there || disk.read(at, BLOCK)?[..] != file.read(offset, BLOCK)?[..] {
                bail!(
                    "byte {offset} of the file is not at byte {at} of {}, where its filesystem says it is: something \
                     between them moves data",
                    device.display()
                );
            }
        }
    }
    Ok(())
}

/// Sees to it that an image that was opened by its file still lies where its label says, and nowhere else.
///
/// # Errors
/// It does not, or not certainly.
pub(super) fn check(path: &Path, image: &Image) -> anyhow::Result<()> {
    let about = || format!("image device {}", path.display());
    let remedy = || {
        format!(
            "make it again: remove it, run `dormouse image create --size {}M {}`, and build both initramfs again",
            image.disk().size() / MIB,
            path.display()
        )
    };
    let extents = &image.label().extents;
    if extents.is_empty() {
        bail!("{}: it was made by `dormouse image init`, which is for devices; {}", about(), remedy());
    }
    let file = File::open(path).with_context(about)?;
    let lay = lay_out(&file, image.disk().size()).with_context(about)?;
    if let Some(difference) = lay.difference(image.label()) {
        bail!("{}: {difference}; {}", about(), remedy());
    }
    if !lay.layers.is_empty() {
        // It was opened on the disks themselves, where a layer may encrypt.
        return Ok(());
    }
    lay.legs.iter().try_for_each(|leg| compare(image.disk(), leg, extents)).with_context(about)
}

/// The block device under a file that no layers lie under.
///
/// # Errors
/// There is none.
pub(super) fn block_device(path: &Path) -> anyhow::Result<PathBuf> {
    let about = || format!("image device {}", path.display());
    Ok(Backing::of(&File::open(path).with_context(about)?).with_context(about)?.device)
}

#[cfg(test)]
mod tests;
