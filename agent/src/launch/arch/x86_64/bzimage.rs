//! A bzImage, as far as a 64-bit loader needs it.
//!
//! Offsets are those of `struct setup_header` in Linux's Documentation/arch/x86/boot.rst; the file begins with
//! the boot sector, so a file offset is a `struct boot_params` offset.

use thiserror::Error;

/// Where the setup header lies in the file and in `struct boot_params`, in bytes.
pub const HEADER: usize = 0x1f1;

const BOOT_FLAG: usize = 0x1fe;
const JUMP: usize = 0x200;
const MAGIC: usize = 0x202;
const VERSION: usize = 0x206;
const KERNEL_ALIGNMENT: usize = 0x230;
const RELOCATABLE: usize = 0x234;
const XLOADFLAGS: usize = 0x236;
const CMDLINE_SIZE: usize = 0x238;
const PREF_ADDRESS: usize = 0x258;
const INIT_SIZE: usize = 0x260;
/// The header's fields up to `init_size` must be there: boot protocol 2.12.
const HEADER_END: usize = 0x264;

/// The kernel has the 64-bit entry point at 0x200 (`XLF_KERNEL_64`).
const XLF_KERNEL_64: u16 = 1;

/// The oldest boot protocol that has everything the loader uses (Linux 3.8).
pub const OLDEST_PROTOCOL: u16 = 0x020c;

/// Why a file is not a kernel that the loader can start.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum BzImageError {
    /// Not a bzImage at all.
    #[error("not an x86 bzImage: {0}")]
    NotBzImage(&'static str),
    /// Older than the fields that are needed.
    #[error("its boot protocol is {}.{:02}, the loader needs 2.12 or newer (Linux 3.8)", .0 >> 8, .0 & 0xff)]
    OldProtocol(u16),
    /// A 32-bit kernel.
    #[error("it has no 64-bit entry point (XLF_KERNEL_64); an x86-64 kernel is needed")]
    Not64Bit,
    /// A kernel that runs at one address only.
    #[error("it is not relocatable (CONFIG_RELOCATABLE)")]
    NotRelocatable,
    /// A field with a value that makes no sense.
    #[error("its setup header is damaged: {0} is {1:#x}")]
    Damaged(&'static str, u64),
}

/// A kernel that can be placed anywhere its alignment allows.
#[derive(Debug)]
pub struct BzImage<'a> {
    /// The setup header as it stands at [`HEADER`], to be copied into `struct boot_params`.
    pub header: &'a [u8],
    /// What is placed in memory: the protected-mode kernel. Its 64-bit entry is [`BzImage::ENTRY`] into it.
    pub kernel: &'a [u8],
    /// The alignment of its load address, a power of two, in bytes.
    pub alignment: u64,
    /// The memory that it needs from its load address on, to decompress itself, in bytes.
    pub init_size: u64,
    /// Where it would rather be, a physical address. It moves itself up to there from below.
    pub preferred: u64,
    /// The longest command line that it takes, in bytes, without the terminating zero.
    pub cmdline_size: u64,
}

impl<'a> BzImage<'a> {
    /// Distance of the 64-bit entry point from the load address, in bytes.
    pub const ENTRY: u64 = 0x200;

    /// Reads a kernel file.
    ///
    /// # Errors
    /// [`BzImageError`] says what is wrong with it.
    pub fn parse(file: &'a [u8]) -> Result<BzImage<'a>, BzImageError> {
        if file.get(BOOT_FLAG..BOOT_FLAG + 2) != Some(&[0x55, 0xaa]) {
            return Err(BzImageError::NotBzImage("no boot sector"));
        }
        if file.get(MAGIC..MAGIC + 4) != Some(b"HdrS") {
            return Err(BzImageError::NotBzImage("no setup header"));
        }
        let version = u16_at(file, VERSION)?;
        if version < OLDEST_PROTOCOL {
            return Err(BzImageError::OldProtocol(version));
        }
        if u16_at(file, XLOADFLAGS)? & XLF_KERNEL_64 == 0 {
            return Err(BzImageError::Not64Bit);
        }
        if file.get(RELOCATABLE).is_none_or(|flag| *flag == 0) {
            return Err(BzImageError::NotRelocatable);
        }

        // The header ends where the jump at its start goes (boot.rst, "the setup header's end").
        let jump = usize::from(*file.get(JUMP + 1).ok_or(BzImageError::NotBzImage("cut short"))?);
        let end = JUMP + 2 + jump;
        let header = file.get(HEADER..end).ok_or(BzImageError::NotBzImage("cut short"))?;
        if end < HEADER_END {
            return Err(BzImageError::Damaged("the header's end", end as u64));
        }
        // Zero stands for four, for the sake of ancient boot loaders.
        let setup_sectors = match file.get(HEADER).copied().unwrap_or(0) {
            0 => 4,
            sectors => usize::from(sectors),
        };
        let kernel = file
            .get((setup_sectors + 1) * 512..)
            .filter(|kernel| kernel.len() as u64 > Self::ENTRY)
            .ok_or(BzImageError::NotBzImage("no kernel after the setup code"))?;

        let alignment = u64::from(u32_at(file, KERNEL_ALIGNMENT)?);
        if !alignment.is_power_of_two() || !(4096..=1 << 30).contains(&alignment) {
            return Err(BzImageError::Damaged("kernel_alignment", alignment));
        }
        let init_size = u64::from(u32_at(file, INIT_SIZE)?);
        if init_size < kernel.len() as u64 {
            return Err(BzImageError::Damaged("init_size", init_size));
        }
        Ok(BzImage {
            header,
            kernel,
            alignment,
            init_size,
            preferred: u64_at(file, PREF_ADDRESS)?,
            cmdline_size: u64::from(u32_at(file, CMDLINE_SIZE)?),
        })
    }
}

fn bytes<const N: usize>(file: &[u8], offset: usize) -> Result<[u8; N], BzImageError> {
    file.get(offset..offset + N).and_then(|bytes| bytes.try_into().ok()).ok_or(BzImageError::NotBzImage("cut short"))
}

fn u16_at(file: &[u8], offset: usize) -> Result<u16, BzImageError> {
    bytes(file, offset).map(u16::from_le_bytes)
}

fn u32_at(file: &[u8], offset: usize) -> Result<u32, BzImageError> {
    bytes(file, offset).map(u32::from_le_bytes)
}

fn u64_at(file: &[u8], offset: usize) -> Result<u64, BzImageError> {
    bytes(file, offset).map(u64::from_le_bytes)
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    /// A file with the smallest valid header and `kernel_len` bytes of kernel.
    pub(crate) fn sample(kernel_len: usize) -> Vec<u8> {
        let mut file = vec![0; 2 * 512 + kernel_len];
        file[HEADER] = 1;
        file[BOOT_FLAG..BOOT_FLAG + 2].copy_from_slice(&[0x55, 0xaa]);
        file[JUMP..JUMP + 2].copy_from_slice(&[0xeb, 0x6a]);
        file[MAGIC..MAGIC + 4].copy_from_slice(b"HdrS");
        file[VERSION..VERSION + 2].copy_from_slice(&0x020f_u16.to_le_bytes());
        file[KERNEL_ALIGNMENT..KERNEL_ALIGNMENT + 4].copy_from_slice(&0x20_0000_u32.to_le_bytes());
        file[RELOCATABLE] = 1;
        file[XLOADFLAGS..XLOADFLAGS + 2].copy_from_slice(&0x7f_u16.to_le_bytes());
        file[CMDLINE_SIZE..CMDLINE_SIZE + 4].copy_from_slice(&2047_u32.to_le_bytes());
        file[PREF_ADDRESS..PREF_ADDRESS + 8].copy_from_slice(&0x100_0000_u64.to_le_bytes());
        file[INIT_SIZE..INIT_SIZE + 4].copy_from_slice(&(16_u32 << 20).to_le_bytes());
        file
    }

    #[test]
    fn a_kernel_is_read() {
        let file = sample(8192);
        let bz = BzImage::parse(&file).unwrap();
        assert_eq!((bz.kernel.len(), bz.header.len()), (8192, 0x26c - HEADER));
        assert_eq!((bz.alignment, bz.init_size, bz.preferred), (0x20_0000, 16 << 20, 0x100_0000));
        assert_eq!(bz.cmdline_size, 2047);
    }

    #[test]
    fn files_that_cannot_be_started_are_refused_with_the_reason() {
        type Change = fn(&mut Vec<u8>);
        let cases: [(Change, BzImageError); 8] = [
            (|f| f.truncate(100), BzImageError::NotBzImage("no boot sector")),
            (|f| f[MAGIC] = 0, BzImageError::NotBzImage("no setup header")),
            (|f| f[VERSION] = 0x0b, BzImageError::OldProtocol(0x020b)),
            (|f| f[XLOADFLAGS] = 0, BzImageError::Not64Bit),
            (|f| f[RELOCATABLE] = 0, BzImageError::NotRelocatable),
            (|f| f[KERNEL_ALIGNMENT] = 1, BzImageError::Damaged("kernel_alignment", 0x20_0001)),
            (|f| f[INIT_SIZE + 3] = 0, BzImageError::Damaged("init_size", 0)),
            (|f| f.truncate(1024), BzImageError::NotBzImage("no kernel after the setup code")),
        ];
        for (change, expected) in cases {
            let mut file = sample(8192);
            change(&mut file);
            // A header of 16 MiB init_size becomes 0 only when the whole field is cleared.
            if expected == BzImageError::Damaged("init_size", 0) {
                file[INIT_SIZE..INIT_SIZE + 4].fill(0);
            }
            assert_eq!(BzImage::parse(&file).unwrap_err(), expected);
        }
    }

    proptest! {
        #[test]
        fn no_file_makes_it_panic(
            flips in proptest::collection::vec((0_usize..1600, any::<u8>()), 0..8), len in 0_usize..1600,
        ) {
            let mut file = sample(600);
            for (at, value) in flips {
                if let Some(byte) = file.get_mut(at) { *byte = value; }
            }
            file.truncate(len);
            let _ = BzImage::parse(&file);
        }
    }
}
