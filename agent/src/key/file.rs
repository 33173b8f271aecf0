//! A secret in a file: two blocks of a filesystem that is encrypted as a whole, which the boot opens before it resumes.
//!
//! ```text
//!      0   DMSECRET, 8 reserved, the secret (32 bytes)        written once
//!   4096   DMEXPECT, 8 reserved, a save's identity (16)       before each jump; zero while the session goes on
//! ```
//!
//! A reads and writes the file through its filesystem, past the page cache, so that C finds the same by reading the
//! blocks of the device below, with nothing mounted. Whether they are still where the slot says is looked at before
//! each hibernation.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, bail, ensure};
use dormouse_image::{BLOCK, FileKey, Uuid};
use dormouse_linux::block;

use crate::key::{KeyError, Secret};
use crate::store::{Access, Disk};
use crate::target::file::{self, Lower};

const SECRET_MAGIC: [u8; 8] = *b"DMSECRET";
const EXPECTED_MAGIC: [u8; 8] = *b"DMEXPECT";
/// Where both have their content.
const CONTENT: usize = 16;
/// The length of the file.
const SIZE: u64 = 2 * BLOCK as u64;

/// Makes a file with a new secret. Returns where it is, and whether that is encrypted as a whole.
///
/// # Errors
/// [`KeyError::File`]: nothing is left of it then.
pub(super) fn make(path: &Path) -> Result<(FileKey, bool), KeyError> {
    let secret = Secret::random()?;
    let failed = |source| KeyError::File { path: path.to_owned(), source };
    let is_there = path.symlink_metadata().is_ok();
    create(path, &secret)
        .inspect_err(|_| {
            if !is_there {
                let _ = std::fs::remove_file(path);
            }
        })
        .map_err(failed)
}

fn create(path: &Path, secret: &Secret) -> anyhow::Result<(FileKey, bool)> {
    let directory = path.parent().context("it has no directory")?;
    std::fs::create_dir_all(directory).with_context(|| format!("{}: cannot be made", directory.display()))?;
    let mut file = File::options().read(true).write(true).create_new(true).mode(0o400).open(path);
    let file = file.as_mut().map_err(|error| anyhow::anyhow!("it cannot be made: {error}"))?;
    file::overwrite_in_place(file)?;
    let secret = block_of(&SECRET_MAGIC, secret.bytes());
    file.write_all(&secret)?;
    file.write_all(&block_of(&EXPECTED_MAGIC, &[0; 16]))?;
    file.sync_all()?;
    File::open(directory)?.sync_all()?;
    let lower = file::lower(file, SIZE)?;
    let place = place_of(&lower)?;
    compare(file, path, &lower, &place)?;
    Ok((place, block::is_encrypted(&lower.number)))
}

/// A block that begins with this and is zero otherwise.
fn block_of(magic: &[u8; 8], content: &[u8]) -> zeroize::Zeroizing<Vec<u8>> {
    let mut block = zeroize::Zeroizing::new(vec![0; BLOCK]);
    block[..8].copy_from_slice(magic);
    block[CONTENT..CONTENT + content.len()].copy_from_slice(content);
    block
}

/// The content of a block, if it is such a one.
fn content<const N: usize>(block: &[u8], magic: &[u8; 8]) -> Option<[u8; N]> {
    let (found, rest) = block.split_first_chunk::<8>()?;
    let (content, _) = rest.get(CONTENT - 8..)?.split_first_chunk::<N>()?;
    (found == magic).then_some(*content)
}

/// Where both blocks of a file are.
fn place_of(lower: &Lower) -> anyhow::Result<FileKey> {
    let device = block::stable_name(&lower.number).with_context(|| {
        format!(
            "it is on {}, which has no name by which a boot would find it: neither a partition's nor a mapped device's",
            lower.node.display()
        )
    })?;
    let block = BLOCK as u64;
    let mut blocks = lower.extents.iter().flat_map(|extent| (0..extent.len / block).map(|n| extent.offset + n * block));
    match (blocks.next(), blocks.next(), blocks.next()) {
        (Some(secret), Some(expected), None) => Ok(FileKey { device, secret, expected }),
        _ => bail!("it does not have two blocks"),
    }
}

/// Demands that what the filesystem shows is what is on the device.
fn compare(file: &File, path: &Path, lower: &Lower, place: &FileKey) -> anyhow::Result<()> {
    let metadata = file.metadata().context("it cannot be looked at")?;
    ensure!(metadata.len() == SIZE, "it has {} bytes, and not {SIZE}", metadata.len());
    let (shown, device) = (Disk::open(path, Access::Read)?, Disk::open(&lower.node, Access::Read)?);
    for (at, on_device) in [(0, place.secret), (BLOCK as u64, place.expected)] {
        ensure!(
            shown.read(at, BLOCK)?[..] == device.read(on_device, BLOCK)?[..],
            "byte {at} of it is not at byte {on_device} of {}, where its filesystem says it is",
            lower.node.display()
        );
    }
    Ok(())
}

/// Opens a key file that is still where its slot says.
fn open(path: &Path, place: &FileKey, is_writable: bool) -> anyhow::Result<Disk> {
    let file = File::open(path).context("it cannot be opened")?;
    let lower = file::lower(&file, SIZE)?;
    let here = place_of(&lower)?;
    ensure!(
        here == *place,
        "it has been moved, and no boot would find it; remove the key (`dormouse key remove`) and add it again"
    );
    compare(&file, path, &lower, place)?;
    Ok(Disk::open(path, if is_writable { Access::Write } else { Access::Read })?)
}

/// The secret in a file, which is still where its slot says.
///
/// # Errors
/// [`KeyError::File`].
pub(super) fn secret(path: &Path, place: &FileKey) -> Result<Secret, KeyError> {
    let read = || -> anyhow::Result<Secret> {
        let disk = open(path, place, false)?;
        secret_in(&disk, 0)?.context("it holds no secret")
    };
    read().map_err(|source| KeyError::File { path: path.to_owned(), source })
}

/// Notes in a file which save is expected.
///
/// # Errors
/// [`KeyError::File`].
pub(super) fn expect(path: &Path, place: &FileKey, save_id: Uuid) -> Result<(), KeyError> {
    let write = || -> anyhow::Result<()> {
        let disk = open(path, place, true)?;
        disk.write_copy(BLOCK as u64, &block_of(&EXPECTED_MAGIC, &save_id.0))?;
        disk.flush()?;
        // It is still overwritten in place.
        drop(open(path, place, false)?);
        Ok(())
    };
    write().map_err(|source| KeyError::File { path: path.to_owned(), source })
}

/// Removes a key file, whose secret is overwritten first.
///
/// # Errors
/// [`KeyError::File`]. One that is gone is no error.
pub(super) fn destroy(path: &Path) -> Result<(), KeyError> {
    if !path.exists() {
        return Ok(());
    }
    let destroy = || -> anyhow::Result<()> {
        let disk = Disk::open(path, Access::Write)?;
        disk.write_copy(0, &vec![0; usize::try_from(disk.size().min(SIZE))?])?;
        disk.flush()?;
        Ok(std::fs::remove_file(path)?)
    };
    destroy().map_err(|source| KeyError::File { path: path.to_owned(), source })
}

/// The secret at a place of a device, if there is one.
fn secret_in(disk: &Disk, offset: u64) -> anyhow::Result<Option<Secret>> {
    let mut block = disk.read(offset, BLOCK)?;
    let secret = content(&block, &SECRET_MAGIC).map(Secret::new);
    // The page goes back to the kernel, which clears it for the next process and not before.
    zeroize::Zeroize::zeroize(&mut block[..]);
    Ok(secret)
}

/// What the blocks of a key file hold, read below its filesystem.
#[derive(Debug)]
pub struct Found {
    pub(super) secret: Secret,
    pub(super) expected: Uuid,
}

/// Looks at the place that a slot names, on a device that has its name.
///
/// # Errors
/// There is no such device, or no secret at that place.
pub(super) fn find(place: &FileKey) -> anyhow::Result<Found> {
    let nodes = block::named(&place.device);
    ensure!(!nodes.is_empty(), "the device of the key file ({}) is not there", place.device);
    let mut why = None;
    for node in &nodes {
        match look(node, place) {
            Ok(found) => return Ok(found),
            Err(error) => why = Some(error),
        }
    }
    Err(why.unwrap_or_else(|| anyhow::anyhow!("no secret is found")))
}

fn look(node: &Path, place: &FileKey) -> anyhow::Result<Found> {
    let none = |offset| format!("{} has no secret at byte {offset}: the key file was moved", node.display());
    let disk = Disk::open(node, Access::Read)?;
    let secret = secret_in(&disk, place.secret)?.with_context(|| none(place.secret))?;
    let expected = content(&disk.read(place.expected, BLOCK)?, &EXPECTED_MAGIC).map(Uuid);
    Ok(Found { secret, expected: expected.with_context(|| none(place.expected))? })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use dormouse_image::DiskExtent;

    use super::*;

    fn device() -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        file
    }

    #[test]
    fn both_blocks_are_read_below_the_filesystem() {
        let device = device();
        let disk = Disk::open(device.path(), Access::Write).unwrap();
        let place = FileKey { device: String::new(), secret: 4096, expected: 65536 };
        let error = look(device.path(), &place).unwrap_err().to_string();
        assert!(error.contains("no secret at byte 4096"), "{error}");
        disk.write_copy(4096, &block_of(&SECRET_MAGIC, &[9; 32])).unwrap();
        let error = look(device.path(), &place).unwrap_err().to_string();
        assert!(error.contains("no secret at byte 65536"), "{error}");
        disk.write_copy(65536, &block_of(&EXPECTED_MAGIC, &[7; 16])).unwrap();
        let found = look(device.path(), &place).unwrap();
        assert_eq!((found.secret.bytes(), found.expected), (&[9; 32], Uuid([7; 16])));
        assert!(!format!("{found:?}").contains("9, 9"));
        // Past the end.
        assert!(look(device.path(), &FileKey { secret: 1 << 20, ..place.clone() }).is_err());
        let error = find(&FileKey { device: "dm:LVM-none".into(), ..place }).unwrap_err().to_string();
        assert!(error.contains("(dm:LVM-none) is not there"), "{error}");
    }

    #[test]
    fn rejects_a_file_on_what_a_boot_does_not_find() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a/key");
        // Whatever the tests run on has no name of a partition's, or is no filesystem of ours.
        if let Err(error) = make(&path) {
            assert!(matches!(error, KeyError::File { .. }), "{error}");
            assert!(!path.exists());
        }
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, "other").unwrap();
        assert!(make(&path).is_err());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "other");
    }

    #[test]
    fn a_place_is_two_blocks_of_a_named_device() {
        let lower = |extents: &[(u64, u64)]| Lower {
            node: "/dev/none".into(),
            number: "0:0".into(),
            extents: extents.iter().map(|&(offset, len)| DiskExtent { offset, len }).collect(),
        };
        let error = place_of(&lower(&[(4096, 8192)])).unwrap_err().to_string();
        assert!(error.contains("no name by which a boot would find it"), "{error}");
    }
}
