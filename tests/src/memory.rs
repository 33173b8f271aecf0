//! A guest's memory in the host's file, by page frame.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, bail};
use dormouse_image::{BLOCK, PfnRange};

use crate::machine::{GuestConfig, MIB, MachineType};

/// Pages that are read at once.
const PIECE: u64 = 256;
/// Where memory goes on that does not fit below the devices.
const FOUR_GIB: u64 = 4096 * MIB;

/// The file, and where in it memory is.
#[derive(Debug)]
pub struct Memory {
    file: File,
    /// Bytes below the hole for devices; what lies from 4 GiB on follows them in the file.
    below: u64,
}

impl Memory {
    /// Opens the memory of a machine like `config`.
    ///
    /// # Errors
    /// Fails where there is none.
    pub fn open(path: &Path, config: &GuestConfig) -> Result<Memory> {
        let file = File::open(path).with_context(|| format!("{}: cannot be opened", path.display()))?;
        Ok(Memory { file, below: below_4_gib(config.machine, config.memory.bytes()) })
    }

    /// Calls `look` with each page of `run`.
    ///
    /// # Errors
    /// Fails where it is outside the memory, and as `look` does.
    pub fn pages(&self, run: PfnRange, mut look: impl FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
        let mut bytes = vec![0; usize::try_from(PIECE)? * BLOCK];
        let mut start = run.start;
        while start < run.end {
            let end = run.end.min((start / PIECE + 1) * PIECE);
            let piece = bytes.get_mut(..usize::try_from(end - start)? * BLOCK).context("a piece is no longer")?;
            self.read(start, piece)?;
            for (pfn, page) in (start..end).zip(piece.chunks_exact(BLOCK)) {
                look(pfn, page)?;
            }
            start = end;
        }
        Ok(())
    }

    /// Reads what is from page frame `pfn` on.
    ///
    /// # Errors
    /// Fails where it is outside the memory.
    pub fn read(&self, pfn: u64, bytes: &mut [u8]) -> Result<()> {
        let offset = match pfn * BLOCK as u64 {
            address if address < self.below => address,
            address if address >= FOUR_GIB => address - FOUR_GIB + self.below,
            address => bail!("at {address:#x} there is no memory"),
        };
        self.file.read_exact_at(bytes, offset).with_context(|| format!("page frame {pfn:#x}"))
    }
}

/// How much memory QEMU puts below the hole for devices (8.x and before: hw/i386/pc_piix.c, `pc_init1`; pc_q35.c,
/// `pc_q35_init`).
fn below_4_gib(machine: MachineType, bytes: u64) -> u64 {
    let (most, otherwise) = match machine {
        MachineType::Pc => (3584 * MIB, 3072 * MIB),
        MachineType::Q35 => (2816 * MIB, 2048 * MIB),
    };
    if bytes < most { bytes } else { otherwise }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Write;

    use super::*;

    #[test]
    fn memory_goes_on_behind_the_hole() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        for word in 0..8_u64 {
            file.write_all(&word.to_le_bytes().repeat(BLOCK / 8)).unwrap();
        }
        let memory = Memory { file: file.reopen().unwrap(), below: 3 * BLOCK as u64 };
        let words = |start, end| {
            let mut words = Vec::new();
            let look = |pfn: u64, page: &[u8]| {
                words.push((pfn, u64::from(page[0])));
                Ok(())
            };
            memory.pages(PfnRange { start, end }, look).map(|()| words)
        };
        assert_eq!(words(1, 3).unwrap(), [(1, 1), (2, 2)]);
        assert_eq!(words(0x10_0000, 0x10_0002).unwrap(), [(0x10_0000, 3), (0x10_0001, 4)]);
        assert!(words(3, 4).is_err() && words(0x10_0004, 0x10_0006).is_err());
        assert_eq!(below_4_gib(MachineType::Pc, 1024 * MIB), 1024 * MIB);
        assert_eq!(below_4_gib(MachineType::Pc, 5120 * MIB), 3072 * MIB);
        assert_eq!(below_4_gib(MachineType::Q35, 3072 * MIB), 2048 * MIB);
    }
}
