//! The image on a guest's disk file, as the host reads it: by the `dormouse` command, and by the format alone.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use dormouse_image::{BLOCK, Commit, Extent, Header, IndexBlock, layout, newest};

use crate::artifacts::Artifacts;

/// A chunk of an image: where it lies, and which pages it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredChunk {
    /// Offset in the file, in bytes.
    pub offset: u64,
    /// Length in the file, in bytes.
    pub stored_len: u32,
    /// Its pages.
    pub extents: Vec<Extent>,
}

/// Runs `dormouse image` with `arguments` on a disk file, and returns what it prints.
///
/// # Errors
/// Fails where the command does.
pub fn command(artifacts: &Artifacts, arguments: &[&str], file: &Path) -> Result<String> {
    let output = Command::new(artifacts.binary("dormouse"))
        .arg("image")
        .args(arguments)
        .arg(file)
        .output()
        .context("dormouse cannot be started")?;
    if !output.status.success() {
        bail!("dormouse image {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    String::from_utf8(output.stdout).context("dormouse image prints text")
}

/// The image's commit record.
///
/// # Errors
/// Fails where the file has none.
pub fn commit(file: &Path) -> Result<Commit> {
    commit_at(file, 0)
}

/// The commit record of an image that begins at this byte of the file.
///
/// # Errors
/// Fails where the file has none there.
pub fn commit_at(file: &Path, start: u64) -> Result<Commit> {
    let file = open(file)?;
    let [first, second] = layout::SLOT_OFFSETS.map(|offset| read(&file, start + offset, BLOCK));
    Ok(newest(&first?, &second?).context("the commit record")?.0)
}

/// Writes a commit record into both slots, as the one that follows what they hold.
///
/// # Errors
/// Fails where it would be none, or cannot be written.
pub fn write_commit(path: &Path, commit: &Commit) -> Result<()> {
    let bytes = Commit { seq: commit.seq + 1, ..commit.clone() }.encode().context("the commit record")?;
    layout::SLOT_OFFSETS.iter().try_for_each(|slot| write(path, &bytes, *slot))
}

/// The image's header.
///
/// # Errors
/// Fails where the file has none.
pub fn header(path: &Path) -> Result<Header> {
    let locator = commit(path)?.header;
    let bytes = read(&open(path)?, locator.offset, usize::try_from(locator.len)?)?;
    Header::decode(&bytes).context("the header")
}

/// All that an image records of pages: the runs that it restores as zeroes, and its chunks in the order of the device.
///
/// # Errors
/// Fails where a part of the index cannot be read.
pub fn pages(path: &Path) -> Result<(Vec<Extent>, Vec<StoredChunk>)> {
    let (mut zero, mut chunks) = (Vec::new(), Vec::new());
    let (file, mut locator) = (open(path)?, commit(path)?.last_index);
    while locator.is_some() {
        let bytes = read(&file, locator.offset, usize::try_from(locator.len)?)?;
        let index = IndexBlock::decode(&bytes, locator.offset).context("an index block")?;
        zero.extend(&index.zero);
        chunks.extend(index.chunks().map(|view| StoredChunk {
            offset: view.chunk.offset,
            stored_len: view.chunk.stored_len,
            extents: view.extents.to_vec(),
        }));
        locator = index.prev;
    }
    chunks.sort_by_key(|chunk| chunk.offset);
    Ok((zero, chunks))
}

/// A stored chunk from the middle of the image's last index block.
///
/// # Errors
/// Fails where the image has none.
pub fn some_chunk(path: &Path) -> Result<StoredChunk> {
    let locator = commit(path)?.last_index;
    let bytes = read(&open(path)?, locator.offset, usize::try_from(locator.len)?)?;
    let index = IndexBlock::decode(&bytes, locator.offset).context("the last index block")?;
    let view = index.chunks().nth(index.chunks().len() / 2).context("the last index block describes no chunk")?;
    let (offset, stored_len) = (view.chunk.offset, view.chunk.stored_len);
    Ok(StoredChunk { offset, stored_len, extents: view.extents.to_vec() })
}

/// Changes every bit of one byte of a file.
///
/// # Errors
/// Fails where it cannot be read or written.
pub fn flip_byte(path: &Path, offset: u64) -> Result<()> {
    let flipped: Vec<u8> = read(&open(path)?, offset, 1)?.iter().map(|byte| !byte).collect();
    write(path, &flipped, offset)
}

fn open(path: &Path) -> Result<File> {
    File::open(path).with_context(|| format!("{}: cannot be opened", path.display()))
}

fn write(path: &Path, bytes: &[u8], offset: u64) -> Result<()> {
    let write = || File::options().write(true).open(path)?.write_all_at(bytes, offset);
    write().with_context(|| format!("{}: cannot be written", path.display()))
}

fn read(file: &File, offset: u64, len: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, offset).with_context(|| format!("{len} bytes at {offset}"))?;
    Ok(bytes)
}
