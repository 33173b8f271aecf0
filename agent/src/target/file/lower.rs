//! What is under a small file that is read without its filesystem by a boot that has opened what it is on: the block
//! device that carries the filesystem, assembled or not, and the pieces of it that the file consists of.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use dormouse_image::DiskExtent;
use dormouse_linux::block;
use dormouse_sys::{btrfs, fiemap};
use nix::sys::stat::{major, minor};

use super::backing::{Backing, ext4_options, mount_of, refuse_journal, refuse_kind};
use super::layout::{Addresses, disk_extents};

/// More pieces than a file of a few blocks has.
const LIMIT: usize = 64;

/// What is under a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lower {
    /// The block device under its filesystem, by its node.
    pub node: PathBuf,
    /// The same by its number, written `major:minor`.
    pub number: String,
    /// The pieces of it, in the order of the file.
    pub extents: Vec<DiskExtent>,
}

/// Makes the filesystem overwrite a file in place, which is new and empty.
///
/// # Errors
/// It does not, or what it is on will not do.
pub fn overwrite_in_place(file: &File) -> anyhow::Result<()> {
    under(file)?.prepare(file)
}

/// What is under a file, all of whose `size` bytes are written and durable.
///
/// # Errors
/// It does not lie in plain blocks, or they are not overwritten in place.
pub fn lower(file: &File, size: u64) -> anyhow::Result<Lower> {
    let under = under(file)?;
    under.refuse_attributes(file)?;
    let extents = fiemap::extents(file, LIMIT).context("the filesystem does not say where it lies (FIEMAP)")?;
    let extents = disk_extents(&extents, &under.addresses, size)?;
    let number = number_of(&under.device)?;
    Ok(Lower { node: under.device, number, extents })
}

/// As [`Backing::of`], for whatever block device.
fn under(file: &File) -> anyhow::Result<Backing> {
    let mount = mount_of(file)?;
    refuse_kind(&mount.kind)?;
    if mount.kind == "btrfs" {
        let devices = btrfs::devices(file).context("btrfs does not say how many devices it has")?;
        ensure!(devices == 1, "it is on a btrfs of {devices} devices; it must be on one with a single device");
        let chunks =
            btrfs::chunks(file).context("btrfs does not say where its addresses are on the disk; run as root")?;
        // The number of its mount is not that of a device.
        let device = node_of(&number_of(&mount.source)?)?;
        return Ok(Backing { device, addresses: Addresses::Volume(chunks) });
    }
    let device = node_of(&mount.number)?;
    if mount.kind == "ext4" {
        refuse_journal(&ext4_options(&device))?;
    }
    Ok(Backing { device, addresses: Addresses::Disk })
}

/// The number of a block device's node.
fn number_of(node: &Path) -> anyhow::Result<String> {
    let metadata = std::fs::metadata(node).with_context(|| format!("{}: cannot be looked at", node.display()))?;
    Ok(format!("{}:{}", major(metadata.rdev()), minor(metadata.rdev())))
}

/// The node of the block device with this number.
fn node_of(number: &str) -> anyhow::Result<PathBuf> {
    let directory = Path::new("/sys/dev/block").join(number);
    let directory =
        directory.canonicalize().with_context(|| format!("block device {number}: sysfs does not have it"))?;
    Ok(block::node(directory.file_name().unwrap_or_default()))
}
