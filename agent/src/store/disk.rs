//! What an image lies on, whichever kind of blocks that is: with memory for what is read, and errors that name it.

use std::path::Path;
use std::sync::Arc;
use std::{fmt, io};

use dormouse_image::{BLOCK, DiskExtent, Label, Remote};
use memmap2::MmapMut;

use crate::store::legs::Legs;
use crate::store::{Access, Blocks, Device, Extents, StoreError};

/// Open blocks. Clones share them.
#[derive(Debug, Clone)]
pub struct Disk {
    blocks: Arc<dyn Blocks>,
    /// The blocks of each of two that hold the same; none where there is but one.
    legs: Arc<[Disk]>,
}

impl fmt::Display for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Disk {
    /// These blocks.
    #[must_use]
    pub fn new(blocks: impl Blocks + 'static) -> Disk {
        Disk::of(Arc::new(blocks))
    }

    pub(super) fn blocks(&self) -> &dyn Blocks {
        &*self.blocks
    }

    fn of(blocks: Arc<dyn Blocks>) -> Disk {
        Disk { blocks, legs: Arc::new([]) }
    }

    /// The same blocks on several devices: what is written goes to all of them, and what is read comes from the first
    /// of those that are `readable` and answer. One of them alone is itself.
    #[must_use]
    pub(crate) fn mirror(legs: &[Disk], readable: &[usize]) -> Disk {
        match legs {
            [only] => only.clone(),
            legs => Disk { blocks: Arc::new(Legs::new(legs, readable)), legs: legs.into() },
        }
    }

    /// Each of the devices on which all of it lies.
    #[must_use]
    pub fn legs(&self) -> Vec<Disk> {
        if self.legs.is_empty() { vec![self.clone()] } else { self.legs.to_vec() }
    }

    /// The part of it that consists of these extents: those of a label, or such as can be in one.
    ///
    /// # Errors
    /// [`StoreError::Beyond`].
    pub(crate) fn extents(self, extents: &[DiskExtent]) -> Result<Disk, StoreError> {
        if let Some(end) = extents.iter().map(DiskExtent::end).find(|end| *end > self.size()) {
            return Err(StoreError::Beyond { name: self.name().to_owned(), end, size: self.size() });
        }
        Ok(Disk::new(Extents::new(self.blocks, extents)))
    }

    /// Opens a block device or a regular file, see [`Device::open`].
    ///
    /// # Errors
    /// [`StoreError::Open`], [`StoreError::Busy`].
    pub fn open(path: &Path, access: Access) -> Result<Disk, StoreError> {
        Device::open(path, access).map(Disk::new)
    }

    /// Opens an image in a file of a filesystem that is on the block device `path`, with nothing mounted: its label is
    /// at byte `offset` of the device, and has the map of the rest. At byte 0, it is all of the device.
    ///
    /// # Errors
    /// As [`Disk::open`]. For an image in a file also: its label is not at that byte, belongs elsewhere, or has a map
    /// that does not fit the device.
    pub fn open_at(path: &Path, offset: u64, access: Access) -> Result<Disk, StoreError> {
        let device = Disk::open(path, access)?;
        if offset == 0 {
            return Ok(device);
        }
        let label = device.label_at(offset)?;
        device.extents(&label.extents)
    }

    /// The label at `offset` of this device, which must be that of an image that begins there.
    ///
    /// # Errors
    /// [`StoreError::Format`], [`StoreError::Misplaced`], and those of reading.
    pub(crate) fn label_at(&self, offset: u64) -> Result<Label, StoreError> {
        let label = Label::decode(&self.read(offset, BLOCK)?);
        let label = label.map_err(|source| StoreError::Format { name: self.name().to_owned(), source })?;
        if label.offset() != offset {
            return Err(StoreError::Misplaced { name: self.name().to_owned(), offset, expected: label.offset() });
        }
        Ok(label)
    }

    /// What messages call it.
    #[must_use]
    pub fn name(&self) -> &str {
        self.blocks.name()
    }

    /// Where on its block device it begins, see [`Blocks::origin`].
    #[must_use]
    pub fn origin(&self) -> Option<u64> {
        self.blocks.origin()
    }

    /// What it is, where a server has it.
    #[must_use]
    pub fn remote(&self) -> Option<&Remote> {
        self.blocks.remote()
    }

    /// Its size in bytes, in whole blocks.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.blocks.size()
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
        let len = buffer.len();
        self.blocks.read_at(offset, buffer).map_err(|source| self.io("reading", offset, len, source))
    }

    /// Writes `bytes`, which must be aligned to pages and whole blocks long, at `offset`.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), StoreError> {
        self.blocks.write_at(offset, bytes).map_err(|source| self.io("writing", offset, bytes.len(), source))
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

    /// The same, and makes it durable. What was written before may still be lost.
    ///
    /// # Errors
    /// [`StoreError::Io`], [`StoreError::Flush`].
    pub fn write_through(&self, offset: u64, bytes: &[u8]) -> Result<(), StoreError> {
        if let Some(written) = self.blocks.write_through(offset, bytes) {
            return written.map_err(|source| self.io("writing", offset, bytes.len(), source));
        }
        self.write_copy(offset, bytes)?;
        self.flush()
    }

    /// Makes `len` bytes at `offset` read as zeroes, both whole blocks, see [`Blocks::clear_at`].
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn clear(&self, offset: u64, len: u64) -> Result<(), StoreError> {
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        self.blocks.clear_at(offset, len).map_err(|source| self.io("wiping", offset, len, source))
    }

    /// Makes everything written so far durable, past the device's own cache.
    ///
    /// # Errors
    /// [`StoreError::Flush`].
    pub fn flush(&self) -> Result<(), StoreError> {
        self.blocks.flush().map_err(|source| StoreError::Flush { name: self.name().to_owned(), source })
    }

    fn io(&self, what: &'static str, offset: u64, len: usize, source: io::Error) -> StoreError {
        StoreError::Io { name: self.name().to_owned(), what, offset, len, source }
    }
}
