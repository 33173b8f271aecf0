//! How large the region must be: the one place where that is computed, for `region.size = "auto"`, and to refuse a size
//! that is too small before anything is frozen. B measures what is left all the same (`cycle/budget.rs`).

use std::fs::File;
use std::io::Read;
use std::path::Path;

use dormouse_linux::units::mib;
use thiserror::Error;

use crate::cycle::budget;
use crate::launch::arch::bzimage::BzImage;
use crate::launch::region;
use crate::machine;
use crate::pipeline::Limits;
use crate::policy::Policy;

const MIB: u64 = 1 << 20;
/// The least that "auto" takes: a usual kernel with a few CPUs has a good half of it left.
const LEAST: u64 = 128 * MIB;
/// What "auto" takes is a multiple of this, so that it does not change with each update of the kernel.
const STEP: u64 = 16 * MIB;
/// What a kernel takes for itself once it runs, beside its image and what grows with CPUs.
const KERNEL: u64 = 12 * MIB;
/// For each CPU that runs: its part of the per-CPU memory, its threads' stacks, what allocators keep for it.
const CPU: u64 = 768 << 10;
/// For each CPU that could be plugged in: its part of the per-CPU memory.
const PLACE_FOR_CPU: u64 = 256 << 10;
/// What a network takes: sockets' buffers, and what a driver allocates once.
const NETWORK: u64 = 16 * MIB;
/// For each CPU that runs: a driver's queues. Those of the fastest cards take more, and less where they know that they
/// are in a kernel after a crash, as which B passes (drivers/net/ethernet, `is_kdump_kernel`).
const QUEUE_OF_NETWORK: u64 = 4 * MIB;
/// What is read of a file: a kernel's setup code, which has its header, and any header of an archive's.
const BEGINNING: u64 = 256 << 10;

/// What decides about the size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Needs {
    /// What the kernel's image takes, unpacked (`init_size`), in bytes.
    pub kernel: u64,
    /// The initramfs as it is loaded, in bytes.
    pub initramfs: u64,
    /// And unpacked.
    pub unpacked: u64,
    /// CPUs that run.
    pub cpus: u32,
    /// CPUs that a kernel has room for: these, and those that could be plugged in.
    pub possible_cpus: u32,
    /// What a restore allocates at most.
    pub agent: u64,
    /// Whether they have a network: a server has the image.
    pub has_network: bool,
}

/// The region that the policy asks for is too small for B and D.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error(
    "the region has {}, and {} are needed for this kernel, its initramfs and {} CPUs", mib(*.size), mib(*.enough), .cpus
)]
pub struct TooSmall {
    /// Bytes.
    pub size: u64,
    /// Bytes.
    pub enough: u64,
    /// CPUs that run.
    pub cpus: u32,
}

impl Needs {
    /// Of the policy's kernel and initramfs on this machine, with so many pages of memory. A file that cannot be read
    /// counts as empty: what loads it says so.
    #[must_use]
    pub fn read(policy: &Policy, pages: u64) -> Needs {
        let (kernel, _) = beginning(&policy.kernel.image);
        let (initramfs, len) = beginning(&policy.kernel.initramfs);
        let (cpus, possible_cpus) = machine::cpus_of_second_kernel();
        let threads = match policy.pipeline.threads {
            0 => cpus as usize,
            threads => threads,
        };
        let limits = Limits { threads, memory: policy.pipeline.memory };
        Needs {
            kernel: BzImage::parse(&kernel).map_or(0, |kernel| kernel.init_size),
            initramfs: len,
            unpacked: unpacked(&initramfs, len),
            cpus,
            possible_cpus,
            agent: budget::of_pipeline(limits, pages),
            has_network: policy.image.device.is_remote(),
        }
    }

    /// Bytes that are enough for B and for D.
    #[must_use]
    pub fn enough(&self) -> u64 {
        let places = u64::from(self.possible_cpus.saturating_sub(self.cpus)) * PLACE_FOR_CPU;
        let network = if self.has_network { NETWORK + u64::from(self.cpus) * QUEUE_OF_NETWORK } else { 0 };
        let kernel = self.kernel + KERNEL + u64::from(self.cpus) * CPU + places + network;
        // While it is unpacked it is there twice; then modules are copied out of it, and the agent works.
        let work = self.agent + u64::from(self.cpus) * budget::QUEUE + self.unpacked / 2;
        let size = kernel + self.unpacked + work.max(self.initramfs);
        // With a page's description for each page (a sixty-fourth), and the reserve.
        let whole = size + size / 32 + budget::reserve(size);
        whole.next_multiple_of(region::ALIGNMENT)
    }

    /// The size that the policy sets, or what "auto" means. All this is an estimate: where no more than an eighth is
    /// missing, B measures.
    ///
    /// # Errors
    /// [`TooSmall`]: the policy's is too small.
    pub fn size(&self, of_policy: Option<u64>) -> Result<u64, TooSmall> {
        let enough = self.enough();
        match of_policy {
            None => Ok(enough.next_multiple_of(STEP).max(LEAST)),
            Some(size) if size < enough / 8 * 7 => Err(TooSmall { size, enough, cpus: self.cpus }),
            Some(size) => Ok(size),
        }
    }
}

/// The beginning of a file, and its whole length.
fn beginning(path: &Path) -> (Vec<u8>, u64) {
    let mut bytes = Vec::new();
    let len = File::open(path).and_then(|file| {
        let len = file.metadata()?.len();
        file.take(BEGINNING).read_to_end(&mut bytes)?;
        Ok(len)
    });
    (bytes, len.unwrap_or(0))
}

/// The length in memory of an initramfs of `len` bytes that begins so: what its compression says, or four times its
/// length where that says nothing.
fn unpacked(beginning: &[u8], len: u64) -> u64 {
    let is_archive = beginning.starts_with(b"07070");
    match zstd::zstd_safe::get_frame_content_size(beginning) {
        Ok(Some(unpacked)) => unpacked,
        _ if is_archive => len,
        _ => len.saturating_mul(4),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// A test kernel with two CPUs.
    const SMALL: Needs = Needs {
        kernel: 24 * MIB,
        initramfs: 2 * MIB,
        unpacked: 6 * MIB,
        cpus: 2,
        possible_cpus: 2,
        agent: 36 * MIB,
        has_network: false,
    };

    /// A distribution's kernel with as many CPUs.
    fn distribution(cpus: u32) -> Needs {
        let limits = Limits { threads: cpus as usize, memory: 24 * MIB };
        let agent = budget::of_pipeline(limits, 64 << 18);
        Needs {
            kernel: 56 * MIB,
            unpacked: 14 * MIB,
            initramfs: 5 * MIB,
            cpus,
            possible_cpus: cpus,
            agent,
            has_network: false,
        }
    }

    #[test]
    fn auto_is_128_mib_at_least_and_grows_with_cpus() {
        assert_eq!(SMALL.size(None), Ok(128 * MIB));
        let sizes: Vec<u64> = [16, 32, 64, 256].map(|cpus| distribution(cpus).size(None).unwrap() / MIB).to_vec();
        assert!(sizes.is_sorted() && sizes.iter().all(|size| size.is_multiple_of(16)), "{sizes:?}");
        assert!((160..256).contains(&sizes[1]) && sizes[3] < 1024, "{sizes:?}");
        let with_places = Needs { possible_cpus: 512, ..distribution(16) };
        assert!(with_places.enough() > distribution(16).enough());
        let with_network = Needs { has_network: true, ..SMALL };
        assert!(with_network.enough() >= SMALL.enough() + 24 * MIB && with_network.size(None).unwrap() <= 160 * MIB);
    }

    #[test]
    fn sizes_of_the_policy_stay_or_are_refused() {
        let enough = SMALL.enough();
        for size in [enough, enough / 8 * 7] {
            assert_eq!(SMALL.size(Some(size)), Ok(size));
        }
        assert_eq!(SMALL.size(Some(512 * MIB)), Ok(512 * MIB));
        let size = enough / 8 * 7 - MIB;
        let refused = SMALL.size(Some(size)).unwrap_err();
        assert_eq!(refused, TooSmall { size, enough, cpus: 2 });
        assert!(distribution(32).size(Some(128 * MIB)).is_err());
    }

    #[test]
    fn length_of_an_initramfs() {
        assert_eq!(unpacked(b"070701 and so on", 1000), 1000);
        assert_eq!(unpacked(&[0x1f, 0x8b, 8, 0], 1000), 4000);
        assert_eq!(unpacked(&[], 0), 0);
        let compressed = zstd::bulk::compress(&[7; 100_000], 3).unwrap();
        assert_eq!(unpacked(&compressed[..20], compressed.len() as u64), 100_000);
    }

    #[test]
    fn only_the_beginning_of_a_file_is_read() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        std::io::Write::write_all(&mut file, b"070701").unwrap();
        file.as_file().set_len(10 << 20).unwrap();
        let (bytes, len) = beginning(file.path());
        assert!(bytes.starts_with(b"070701") && bytes.len() as u64 == BEGINNING);
        assert_eq!(len, 10 << 20);
        assert_eq!(beginning(Path::new("/nonexistent")), (Vec::new(), 0));
    }
}
