//! A page of another process that keeps it in place, as root reads and writes it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;

use dormouse_sys::PAGE_SIZE;

/// The page.
#[derive(Debug)]
pub struct ForeignPage {
    memory: File,
    address: u64,
    pfn: u64,
}

impl ForeignPage {
    /// That of the process at this address of it, on a page boundary.
    ///
    /// # Errors
    /// There is no such process or page, or no right to it.
    pub fn open(process: u32, address: u64) -> io::Result<ForeignPage> {
        let memory = OpenOptions::new().read(true).write(true).open(format!("/proc/{process}/mem"))?;
        let mut entry = [0; 8];
        File::open(format!("/proc/{process}/pagemap"))?.read_exact_at(&mut entry, address / PAGE_SIZE * 8)?;
        // Bits 0 to 54 are the page frame, bit 63 says that there is one (Documentation/admin-guide/mm/pagemap.rst).
        let entry = u64::from_le_bytes(entry);
        let pfn = if entry >> 63 == 1 { entry & ((1 << 55) - 1) } else { 0 };
        Ok(ForeignPage { memory, address, pfn })
    }

    /// Its page frame number; 0 where it has none, or no right to know it.
    #[must_use]
    pub fn pfn(&self) -> u64 {
        self.pfn
    }

    /// Reads from its beginning.
    ///
    /// # Errors
    /// The process has gone.
    pub fn read(&self, bytes: &mut [u8]) -> io::Result<()> {
        self.memory.read_exact_at(bytes, self.address)
    }

    /// Writes from its beginning.
    ///
    /// # Errors
    /// The process has gone.
    pub fn write(&self, bytes: &[u8]) -> io::Result<()> {
        self.memory.write_all_at(bytes, self.address)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_page_of_this_process_is_read_and_written() {
        let page = vec![7_u8; 3 * 4096];
        let address = (page.as_ptr() as u64).next_multiple_of(PAGE_SIZE);
        let foreign = ForeignPage::open(std::process::id(), address).unwrap();
        let mut read = [0; 4];
        foreign.write(b"abcd").unwrap();
        foreign.read(&mut read).unwrap();
        assert_eq!(&read, b"abcd");
        assert!(ForeignPage::open(std::process::id(), 0).unwrap().read(&mut read).is_err());
        assert!(ForeignPage::open(u32::MAX, address).is_err());
    }
}
