//! A block device, or a file that stands for one: aligned, direct, and with errors that name it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dormouse_image::BLOCK;
use memmap2::MmapMut;
use nix::fcntl::OFlag;

use super::StoreError;

/// What a disk is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Reading.
    Read,
    /// Reading and writing, with nobody else on a block device.
    Write,
}

/// An open disk. Clones share the descriptor.
#[derive(Debug, Clone)]
pub struct Disk {
    file: Arc<File>,
    path: PathBuf,
    size: u64,
}

impl Disk {
    /// Opens a block device or a regular file.
    ///
    /// I/O goes past the page cache where the filesystem allows it: the image must not push out what is being saved, and
    /// what is read must be what is on the device.
    ///
    /// # Errors
    /// [`StoreError::Open`], [`StoreError::Busy`].
    pub fn open(path: &Path, access: Access) -> Result<Disk, StoreError> {
        let failed = |source: io::Error| match source.raw_os_error() {
            Some(errno) if errno == nix::errno::Errno::EBUSY as i32 => StoreError::Busy { path: path.to_path_buf() },
            _ => StoreError::Open { path: path.to_path_buf(), source },
        };
        let kind = std::fs::metadata(path).map_err(failed)?.file_type();
        let is_block = kind.is_block_device();
        if !is_block && !kind.is_file() {
            return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, "it is no block device and no file")));
        }
        let mut flags = OFlag::O_CLOEXEC;
        if is_block && access == Access::Write {
            // On a block device, O_EXCL without O_CREAT refuses one that is mounted, swap, or part of another.
            flags |= OFlag::O_EXCL;
        }
        let open = |flags: OFlag| {
            OpenOptions::new().read(true).write(access == Access::Write).custom_flags(flags.bits()).open(path)
        };
        let file = match open(flags | OFlag::O_DIRECT) {
            // A tmpfs, for example, has no direct I/O.
            Err(error) if error.raw_os_error() == Some(nix::errno::Errno::EINVAL as i32) => open(flags),
            result => result,
        };
        let file = file.map_err(failed)?;
        let size = match is_block {
            true => dormouse_sys::blockdev::size(&file).map_err(failed)?,
            false => file.metadata().map_err(failed)?.len(),
        };
        Ok(Disk { file: Arc::new(file), path: path.to_path_buf(), size: size / BLOCK as u64 * BLOCK as u64 })
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its size in bytes, in whole blocks.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Reads `len` bytes at `offset`, both whole blocks.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn read(&self, offset: u64, len: usize) -> Result<MmapMut, StoreError> {
        let mut buffer = MmapMut::map_anon(len).map_err(|source| self.io("reading", offset, len, source))?;
        self.read_into(offset, &mut buffer)?;
        Ok(buffer)
    }

    /// Fills `buffer`, which must be aligned to pages and whole blocks long, from `offset`.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn read_into(&self, offset: u64, buffer: &mut [u8]) -> Result<(), StoreError> {
        self.file.read_exact_at(buffer, offset).map_err(|source| self.io("reading", offset, buffer.len(), source))
    }

    /// Writes `buffer`, which must be aligned to pages and whole blocks long, at `offset`.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn write(&self, offset: u64, buffer: &[u8]) -> Result<(), StoreError> {
        self.file.write_all_at(buffer, offset).map_err(|source| self.io("writing", offset, buffer.len(), source))
    }

    /// Writes bytes that lie anywhere, whole blocks of them.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn write_copy(&self, offset: u64, bytes: &[u8]) -> Result<(), StoreError> {
        let mut buffer =
            MmapMut::map_anon(bytes.len()).map_err(|source| self.io("writing", offset, bytes.len(), source))?;
        buffer.copy_from_slice(bytes);
        self.write(offset, &buffer)
    }

    /// Makes everything written so far durable, past the device's own cache.
    ///
    /// # Errors
    /// [`StoreError::Flush`].
    pub fn flush(&self) -> Result<(), StoreError> {
        self.file.sync_data().map_err(|source| StoreError::Flush { path: self.path.clone(), source })
    }

    fn io(&self, what: &'static str, offset: u64, len: usize, source: io::Error) -> StoreError {
        StoreError::Io { path: self.path.clone(), what, offset, len, source }
    }
}
