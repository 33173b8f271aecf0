//! What is under a small file that is read without its filesystem by a boot that has opened what it is on: the block
//! device that carries the filesystem, assembled or not, and the pieces of it that the file consists of.

use std::fs::File;
use std::path::PathBuf;

use anyhow::Context;
use dormouse_image::DiskExtent;
use dormouse_sys::fiemap;

use super::backing::Backing;
use super::layout::disk_extents;

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
    Backing::of(file)?.prepare(file)
}

/// What is under a file, all of whose `size` bytes are written and durable.
///
/// # Errors
/// It does not lie in plain blocks, or they are not overwritten in place.
pub fn lower(file: &File, size: u64) -> anyhow::Result<Lower> {
    let under = Backing::of(file)?;
    under.refuse_attributes(file)?;
    let extents = fiemap::extents(file, LIMIT).context("the filesystem does not say where it lies (FIEMAP)")?;
    let extents = disk_extents(&extents, &under.addresses, size)?;
    Ok(Lower { node: under.device, number: under.number, extents })
}
