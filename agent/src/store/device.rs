//! Blocks of a whole block device, or of a file: direct, and without anybody else on the device.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;

use dormouse_image::BLOCK;
use nix::errno::Errno;
use nix::fcntl::OFlag;

use crate::store::{Blocks, StoreError};

/// Why there are no blocks at a path.
pub(crate) const NEITHER: &str = "it is neither a block device nor a file";

/// What blocks are opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Reading.
    Read,
    /// Reading and writing, with nobody else on a block device.
    Write,
}

/// All of a block device, or all of a regular file.
#[derive(Debug)]
pub struct Device {
    file: File,
    name: String,
    is_block_device: bool,
    size: u64,
}

impl Device {
    /// Opens a block device or a regular file.
    ///
    /// I/O goes past the page cache where the filesystem allows it: the image must not push out what is being saved,
    /// and what is read must be what is on the device.
    ///
    /// # Errors
    /// [`StoreError::Open`], [`StoreError::Busy`].
    pub fn open(path: &Path, access: Access) -> Result<Device, StoreError> {
        Device::open_with(path, access, access == Access::Write)
    }

    /// The same of a block device that something put together of it holds, which must be known to leave these blocks
    /// alone.
    ///
    /// # Errors
    /// [`StoreError::Open`].
    pub fn open_held(path: &Path, access: Access) -> Result<Device, StoreError> {
        Device::open_with(path, access, false)
    }

    fn open_with(path: &Path, access: Access, is_exclusive: bool) -> Result<Device, StoreError> {
        let name = path.display().to_string();
        let failed = |source: io::Error| match source.raw_os_error() {
            Some(errno) if errno == Errno::EBUSY as i32 => StoreError::Busy { name: name.clone() },
            _ => StoreError::Open { name: name.clone(), source },
        };
        let kind = std::fs::metadata(path).map_err(failed)?.file_type();
        let is_block_device = kind.is_block_device();
        if !is_block_device && !kind.is_file() {
            return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, NEITHER)));
        }
        let mut flags = OFlag::O_CLOEXEC;
        if is_block_device && is_exclusive {
            // On a block device, O_EXCL without O_CREAT refuses one that is mounted, swap, or part of another.
            flags |= OFlag::O_EXCL;
        }
        let open = |flags: OFlag| {
            OpenOptions::new().read(true).write(access == Access::Write).custom_flags(flags.bits()).open(path)
        };
        let file = match open(flags | OFlag::O_DIRECT) {
            // A tmpfs, for example, has no direct I/O.
            Err(error) if error.raw_os_error() == Some(Errno::EINVAL as i32) => open(flags),
            result => result,
        };
        let file = file.map_err(failed)?;
        let size = match is_block_device {
            true => dormouse_sys::blockdev::size(&file).map_err(failed)?,
            false => file.metadata().map_err(failed)?.len(),
        };
        let size = size / BLOCK as u64 * BLOCK as u64;
        Ok(Device { file, name, is_block_device, size })
    }

    /// The same blocks, as messages are to call them: a file can be opened before it has its name.
    #[must_use]
    pub fn named(self, path: &Path) -> Device {
        Device { name: path.display().to_string(), ..self }
    }
}

impl Blocks for Device {
    fn name(&self) -> &str {
        &self.name
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn origin(&self) -> Option<u64> {
        self.is_block_device.then_some(0)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    /// A device that takes it is asked to forget what was there; then all of it is overwritten, which some do with no
    /// more than a note (BLKZEROOUT). A file's blocks must stay where they are: it is written.
    fn clear_at(&self, offset: u64, len: usize) -> io::Result<()> {
        let written = || self.write_at(offset, &memmap2::MmapMut::map_anon(len)?[..]);
        if !self.is_block_device {
            return written();
        }
        // Many devices do not take it.
        let _ = dormouse_sys::blockdev::discard(&self.file, offset, len as u64);
        dormouse_sys::blockdev::zero_out(&self.file, offset, len as u64).or_else(|_| written())
    }

    fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}
