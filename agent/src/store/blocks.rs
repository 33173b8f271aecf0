//! The seam between an image and what it lies on.

use std::{fmt, io};

use dormouse_image::Remote;

/// Blocks that an image can lie on: a whole device, the extents of a file on a device, and whatever else can be read
/// and written at an offset.
///
/// Offsets and lengths are multiples of [`dormouse_image::BLOCK`], and memory is aligned to pages, so that an
/// implementation can use direct I/O without a copy. All of it may be called from several threads at once.
pub trait Blocks: fmt::Debug + Send + Sync {
    /// What messages call it.
    fn name(&self) -> &str;

    /// Its size in bytes.
    fn size(&self) -> u64;

    /// Where on its block device it begins, in bytes, which must be what an image's label says: 0 for a whole device.
    /// `None` where that cannot be known: these are the blocks of a file, reached through its filesystem.
    fn origin(&self) -> Option<u64>;

    /// What it is, where a server has it.
    fn remote(&self) -> Option<&Remote> {
        None
    }

    /// Fills `buffer` from `offset`, or fails.
    ///
    /// # Errors
    /// The device's own, and that of reading past the end.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// Writes all of `bytes` at `offset`, or fails; then any part of it may have been written.
    ///
    /// # Errors
    /// The device's own, and that of writing past the end.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Writes all of `bytes` at `offset` and makes that durable, where there is a way for it that is shorter than to
    /// write and to flush. What was written before may still be lost.
    fn write_through(&self, _offset: u64, _bytes: &[u8]) -> Option<io::Result<()>> {
        None
    }

    /// Makes `len` bytes at `offset` read as zeroes, and leaves nothing of what they were where the device allows it.
    ///
    /// # Errors
    /// As [`Blocks::write_at`].
    fn clear_at(&self, offset: u64, len: usize) -> io::Result<()> {
        let zeroes = memmap2::MmapMut::map_anon(len)?;
        self.write_at(offset, &zeroes)
    }

    /// Makes everything durable whose writing had returned before, past the device's own cache.
    ///
    /// # Errors
    /// The device's own. What was written may be lost then.
    fn flush(&self) -> io::Result<()>;
}
