//! Which pages of a stopped kernel matter.
//!
//! A page that the kernel's page allocator holds free is not stored: nothing reads it before writing it. It is left
//! alone in the restore too, unless the kernel has `init_on_free`, or may have: then it expects its free pages to be
//! zero, and they are restored as zeroes ([`crate::machine::free_content`]). Nothing else is left out, and whatever is
//! uncertain is stored.
//!
//! The kernel's own data say which pages those are: its `struct page` array, found from VMCOREINFO through its page
//! tables. Some of that data lies in the region, whose content the jump has swapped out; [`swap_map`] knows where to.

mod address_space;
mod frames;
mod free;
mod layout;
pub mod swap_map;
mod zones;

use std::io;

use dormouse_image::{PfnRange, PhysRange};
use thiserror::Error;

pub use free::{Selection, select};
pub use layout::KernelLayout;
pub use swap_map::SwapMap;

/// Why the pages cannot be told apart. Then all of them are stored.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SelectError {
    /// VMCOREINFO lacks something.
    #[error("VMCOREINFO has no {0}")]
    Missing(&'static str),
    /// VMCOREINFO has an impossible value.
    #[error("VMCOREINFO's {0} is {1}")]
    Value(&'static str, u64),
    /// Memory cannot be read.
    #[error("memory at {address:#x} cannot be read")]
    Memory {
        /// Its physical address.
        address: u64,
        /// What went wrong.
        source: io::Error,
    },
    /// An address that the kernel's page tables do not map.
    #[error("the kernel's page tables do not map {0:#x}")]
    Unmapped(u64),
    /// The list of swapped pages was not found.
    #[error("no list of swapped pages hangs off the kexec control page at {0:#x}")]
    NoSwapMap(u64),
    /// The list of swapped pages leads out of memory.
    #[error("the list of swapped pages names page frame {0:#x}, which is not RAM")]
    Holder(u64),
    /// The kernel checks a pattern in its free pages.
    #[error("the kernel may check a pattern in its free pages (page_poison or debug_pagealloc on its command line)")]
    Poisoning,
    /// The kernel did not report what it expects of its free pages.
    #[error("the kernel did not report its free pages")]
    NothingSaid,
    /// The free pages do not add up.
    #[error("{found} free pages were found, the kernel counted {expected}")]
    Count {
        /// Pages found.
        found: u64,
        /// Pages that the kernel counted.
        expected: u64,
    },
}

/// The stopped kernel's memory by physical address, with the swapped pages where it left them.
pub trait Physical {
    /// Calls `look` with memory from physical address `address` on: `len` bytes, or fewer where less is contiguous, but
    /// at least up to the end of the page.
    ///
    /// # Errors
    /// The memory is not part of what was saved.
    fn look<T>(&self, address: u64, len: u64, look: impl FnOnce(&[u8]) -> T) -> Result<T, SelectError>;

    /// Fills `bytes` from physical address `address`; the range must not cross a page.
    ///
    /// # Errors
    /// As [`Physical::look`], and where the range crosses a page.
    fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), SelectError> {
        let copied = self.look(address, bytes.len() as u64, |found| {
            found.get(..bytes.len()).map(|found| bytes.copy_from_slice(found))
        })?;
        let source = io::ErrorKind::UnexpectedEof;
        copied.ok_or_else(|| SelectError::Memory { address, source: source.into() })
    }
}

/// Reads a little-endian word of 64 bits.
pub(super) fn word(memory: &impl Physical, address: u64) -> Result<u64, SelectError> {
    let mut bytes = [0; 8];
    memory.read(address, &mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

/// What the jump has swapped: the region and low memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Swapped<'a> {
    /// Low memory, in bytes.
    pub low: &'a [PhysRange],
    /// The region, in bytes.
    pub region: PhysRange,
}

impl Swapped<'_> {
    /// Both, low memory first.
    pub(crate) fn ranges(&self) -> Vec<PfnRange> {
        self.low.iter().chain([&self.region]).map(PhysRange::frames).collect()
    }
}

#[cfg(test)]
mod tests;
