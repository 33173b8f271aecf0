//! What an image lies on: aligned, direct, and with errors that name it.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fmt, io};

use dormouse_image::{BLOCK, Label};
use memmap2::MmapMut;
use nix::fcntl::OFlag;

use crate::store::{Extents, StoreError};

/// What a disk is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Reading.
    Read,
    /// Reading and writing, with nobody else on a block device.
    Write,
}

/// Where an image is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// A block device or a file.
    pub path: PathBuf,
    /// Where on it the image begins, in bytes. Where this is not 0, the image is in a file of a filesystem that the device carries,
    /// and is reached by the map in its label, with nothing mounted.
    pub offset: u64,
}

impl From<&Path> for Place {
    /// All of a block device or of a file.
    fn from(path: &Path) -> Place {
        Place { path: path.to_path_buf(), offset: 0 }
    }
}

impl Place {
    /// Whether it is all of a block device or of a file.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.offset == 0
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.offset {
            0 => write!(f, "{}", self.path.display()),
            offset => write!(f, "{} (from byte {offset} on)", self.path.display()),
        }
    }
}

/// An open disk: a block device, a file, or the pieces of a block device that a file consists of. Clones share the descriptor.
#[derive(Debug, Clone)]
pub struct Disk {
    file: Arc<File>,
    place: Place,
    /// Whether it is all of a block device.
    is_whole_device: bool,
    extents: Option<Extents>,
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
        let size = size / BLOCK as u64 * BLOCK as u64;
        Ok(Disk { file: Arc::new(file), place: path.into(), is_whole_device: is_block, extents: None, size })
    }

    /// Opens what lies at `place`: for an image in a file, by the map in its label.
    ///
    /// # Errors
    /// As [`Disk::open`]. For an image in a file also: there is no label at its offset, it belongs elsewhere, or its map does not fit
    /// the device.
    pub fn open_at(place: &Place, access: Access) -> Result<Disk, StoreError> {
        let device = Disk::open(&place.path, access)?;
        if place.is_whole() {
            return Ok(device);
        }
        let label = device.label_at(place.offset)?;
        let beyond = label.extents.iter().map(dormouse_image::DiskExtent::end).find(|end| *end > device.size);
        if let Some(end) = beyond {
            return Err(StoreError::Beyond { path: place.path.clone(), end, size: device.size });
        }
        let extents = Extents::new(&label.extents);
        Ok(Disk {
            place: place.clone(),
            is_whole_device: false,
            size: extents.size(),
            extents: Some(extents),
            ..device
        })
    }

    /// The label at `offset` of this device, which must be that of an image that begins there.
    ///
    /// # Errors
    /// [`StoreError::Format`], [`StoreError::Misplaced`], and those of reading.
    pub(crate) fn label_at(&self, offset: u64) -> Result<Label, StoreError> {
        let label = Label::decode(&self.read(offset, BLOCK)?);
        let label = label.map_err(|source| StoreError::Format { path: self.path().to_path_buf(), source })?;
        if label.offset() != offset {
            return Err(StoreError::Misplaced { path: self.path().to_path_buf(), offset, expected: label.offset() });
        }
        Ok(label)
    }

    /// The same file, by the path that it is to be known by.
    #[must_use]
    pub fn named(self, path: &Path) -> Disk {
        Disk { place: path.into(), ..self }
    }

    /// The path of the file or block device.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.place.path
    }

    /// Where it was found.
    #[must_use]
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Whether it is all of a block device.
    #[must_use]
    pub fn is_whole_device(&self) -> bool {
        self.is_whole_device
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
        let what = "reading";
        let Some(extents) = &self.extents else {
            let len = buffer.len();
            return self.file.read_exact_at(buffer, offset).map_err(|source| self.io(what, offset, len, source));
        };
        for (at, part) in
            extents.pieces(offset, buffer.len()).ok_or_else(|| self.past_end(what, offset, buffer.len()))?
        {
            let len = part.len();
            self.file.read_exact_at(&mut buffer[part], at).map_err(|source| self.io(what, at, len, source))?;
        }
        Ok(())
    }

    /// Writes `buffer`, which must be aligned to pages and whole blocks long, at `offset`.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn write(&self, offset: u64, buffer: &[u8]) -> Result<(), StoreError> {
        let what = "writing";
        let Some(extents) = &self.extents else {
            return self
                .file
                .write_all_at(buffer, offset)
                .map_err(|source| self.io(what, offset, buffer.len(), source));
        };
        for (at, part) in
            extents.pieces(offset, buffer.len()).ok_or_else(|| self.past_end(what, offset, buffer.len()))?
        {
            let len = part.len();
            self.file.write_all_at(&buffer[part], at).map_err(|source| self.io(what, at, len, source))?;
        }
        Ok(())
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
        self.file.sync_data().map_err(|source| StoreError::Flush { path: self.path().to_path_buf(), source })
    }

    fn io(&self, what: &'static str, offset: u64, len: usize, source: io::Error) -> StoreError {
        StoreError::Io { path: self.path().to_path_buf(), what, offset, len, source }
    }

    fn past_end(&self, what: &'static str, offset: u64, len: usize) -> StoreError {
        self.io(what, offset, len, io::Error::new(io::ErrorKind::UnexpectedEof, "the image's file ends before"))
    }
}
