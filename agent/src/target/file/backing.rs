//! What is under a file: the filesystem, and the block device that carries it.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use dormouse_image::DiskExtent;
use dormouse_linux::block::{self, below};
use dormouse_linux::mountinfo::{self, Mount};
use dormouse_linux::procfs;
use dormouse_sys::btrfs;
use dormouse_sys::fiemap::{self, attribute};

use crate::target::file::layout::Addresses;
use crate::target::stack::{self, Lay};

/// What carries the filesystem that a file is on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Backing {
    /// The block device, by its node.
    pub(super) device: PathBuf,
    /// Its number, written `major:minor`.
    pub(super) number: String,
    /// The filesystem's type.
    pub(super) kind: String,
    /// What the filesystem's addresses are addresses of.
    pub(super) addresses: Addresses,
}

impl Backing {
    /// Finds out what `file` is on.
    ///
    /// # Errors
    /// It is on something that cannot be written without being mounted.
    pub(super) fn of(file: &File) -> anyhow::Result<Backing> {
        let mount = mount_of(file)?;
        refuse_kind(&mount.kind)?;
        if mount.kind != "btrfs" {
            let device = node_of(&mount.number)?;
            if mount.kind == "ext4" {
                refuse_journal(&ext4_options(&device))?;
            }
            return Ok(Backing { device, number: mount.number, kind: mount.kind, addresses: Addresses::Disk });
        }
        let devices = btrfs::devices(file).context("btrfs does not say how many devices it has")?;
        ensure!(
            devices == 1,
            "it is on a btrfs of {devices} devices; a file for the image must be on one with a single device"
        );
        // The number of its mount is not that of a device.
        let number = below::number_of_node(&mount.source).context("its filesystem has no block device")?;
        let device = node_of(&number)?;
        let chunks =
            btrfs::chunks(file).context("btrfs does not say where its addresses are on the disk; run as root")?;
        Ok(Backing { device, number, kind: mount.kind, addresses: Addresses::Volume(chunks) })
    }

    /// Whether the block device is put together of others.
    pub(super) fn is_put_together(&self) -> bool {
        stack::is_put_together(&self.number)
    }

    /// Where pieces of the block device lie on disks.
    ///
    /// # Errors
    /// They lie in a way that cannot be followed.
    pub(super) fn lay(&self, pieces: Vec<DiskExtent>) -> anyhow::Result<Lay> {
        const WILL_NOT_DO: &str = "its filesystem will not do";
        if self.is_put_together() {
            return Lay::of_pieces(&self.number, Some(&self.kind), &pieces).context(WILL_NOT_DO);
        }
        Ok(Lay { legs: vec![self.device.clone()], extents: pieces, layers: Vec::new() })
    }

    /// Makes the filesystem overwrite a file in place, which is new and empty. btrfs writes elsewhere otherwise, and
    /// keeps checksums that it would miss.
    pub(super) fn prepare(&self, file: &File) -> anyhow::Result<()> {
        if self.addresses == Addresses::Disk {
            return Ok(());
        }
        let change =
            || fiemap::set_attributes(file, fiemap::attributes(file)? & !attribute::COMPRESSED | attribute::NO_COW);
        change().context("copy on write cannot be switched off for it (chattr +C)")
    }

    /// Refuses a file that is kept otherwise than as plain blocks, or not overwritten in place.
    pub(super) fn refuse_attributes(&self, file: &File) -> anyhow::Result<()> {
        let attributes = fiemap::attributes(file).context("its attributes cannot be read")?;
        let refused = [
            (attribute::JOURNAL_DATA, "its content goes through the journal (chattr -j changes that)"),
            (attribute::ENCRYPTED, "it is encrypted"),
            (attribute::COMPRESSED, "it is compressed"),
        ];
        if let Some((_, why)) = refused.iter().find(|(attribute, _)| attributes & attribute != 0) {
            bail!("{why}");
        }
        if self.addresses != Addresses::Disk && attributes & attribute::NO_COW == 0 {
            bail!(
                "btrfs writes each change of it elsewhere and keeps checksums of it (chattr +C changes that for an \
                 empty file)"
            );
        }
        Ok(())
    }
}

/// The mount through which `file` was opened, by the number that its fdinfo has of it: a device number is not always
/// the filesystem's.
fn mount_of(file: &File) -> anyhow::Result<Mount> {
    let path = format!("/proc/self/fdinfo/{}", file.as_raw_fd());
    let text = procfs::text(&path)?;
    let id = text.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok());
    let id: u64 = id.with_context(|| format!("{path}: it has no mnt_id"))?;
    let mount = mountinfo::read()?.into_iter().find(|mount| mount.id == id);
    mount.with_context(|| format!("{}: there is no mount {id}", mountinfo::PATH))
}

/// Refuses filesystems that are not known to keep the content of a file in plain blocks.
fn refuse_kind(kind: &str) -> anyhow::Result<()> {
    match kind {
        "ext4" | "xfs" | "btrfs" => Ok(()),
        other => bail!("it is on {other}; a file for the image must be on ext4, XFS or btrfs"),
    }
}

/// All options of the ext4 on a block device, a line each. mountinfo leaves out those that the filesystem has from its
/// superblock (Linux 6.12, fs/ext4/super.c, `_ext4_show_options`).
fn ext4_options(device: &Path) -> String {
    // In names there, as in sysfs, an exclamation mark stands for a slash.
    let name = device.strip_prefix("/dev").unwrap_or(device).to_string_lossy().replace('/', "!");
    let path = format!("/proc/fs/ext4/{name}/options");
    std::fs::read_to_string(&path).unwrap_or_else(|error| {
        // Without it the disk still tells: what goes through the journal is not found where it is looked for.
        log::warn!("{path}: {error}");
        String::new()
    })
}

/// What is in the journal would be written over the image when the filesystem is mounted the next time.
fn refuse_journal(options: &str) -> anyhow::Result<()> {
    ensure!(
        !options.lines().any(|option| option == "data=journal"),
        "the filesystem is mounted with data=journal, which writes the content of files twice; mount it without"
    );
    Ok(())
}

/// The node of what a filesystem is on.
fn node_of(number: &str) -> anyhow::Result<PathBuf> {
    let place = Path::new("/sys/dev/block").join(number).canonicalize();
    let place = place.with_context(|| format!("its filesystem will not do: it has no block device ({number})"))?;
    Ok(block::node(place.file_name().unwrap_or_default()))
}

/// Whether a file is on a filesystem that could hold an image, on a block device that is put together of others.
pub(super) fn is_below_layers(file: &File) -> bool {
    let Ok(mount) = mount_of(file) else { return false };
    let number = if mount.kind == "btrfs" { below::number_of_node(&mount.source) } else { Some(mount.number) };
    refuse_kind(&mount.kind).is_ok() && number.is_some_and(|number| stack::is_put_together(&number))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_mount_of_an_open_file_is_found() {
        assert_eq!(mount_of(&File::open("/proc/version").unwrap()).unwrap().kind, "proc");
    }

    #[test]
    fn filesystems_that_will_not_do_are_refused_with_the_reason() {
        ["ext4", "xfs", "btrfs"].iter().for_each(|kind| refuse_kind(kind).unwrap());
        let error = refuse_kind("proc").unwrap_err().to_string();
        assert!(error.contains("it is on proc"), "{error}");
        // As /proc/fs/ext4 has it.
        refuse_journal("rw\nblock_validity\ndelalloc\ndata=ordered\ninode_readahead_blks=32\n").unwrap();
        let error = refuse_journal("rw\nnodelalloc\ndata=journal\n").unwrap_err().to_string();
        assert!(error.contains("data=journal"), "{error}");
    }
}
