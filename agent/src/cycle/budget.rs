//! Whether D's memory is enough, computed in B from what B finds: D is the same kernel in as much memory.

use dormouse_image::layout::{CHUNK_MAX, INDEX_MAX};
use dormouse_image::{PhysRange, SessionRecord};
use dormouse_linux::memory_watch;
use dormouse_linux::units::mib;
use thiserror::Error;

use crate::launch::region;
use crate::machine;
use crate::pipeline::Limits;

/// What drivers take in D beside what they take in B, in bytes for each CPU: B has `elfcorehdr=` on its command line,
/// and drivers of disks make do with one queue there (block/blk-mq.c, `blk_mq_alloc_tag_set`). NVMe's queues are the
/// largest: 1024 requests of less than 600 bytes, and rings of 80 KiB (drivers/nvme/host/pci.c).
pub(super) const QUEUE: u64 = 704 << 10;
/// What a worker needs: zstd's context, a chunk that is decoded apart, its stack.
const WORKER: u64 = (256 << 10) + CHUNK_MAX as u64;
/// Index blocks that are in use at once, each as it was read and as it was decoded.
const INDEX: u64 = 4 * 2 * INDEX_MAX as u64;
/// Windows onto memory cost page tables (`pipeline/window.rs`: 16 are kept and each worker may hold one, of 32 KiB).
const WINDOWS: u64 = 2 << 20;
/// The least reserve.
const RESERVE_LEAST: u64 = 6 << 20;
/// The reserve as a part of all memory.
const RESERVE_PART: u64 = 16;

/// What D would have, and what it needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Budget {
    /// Bytes that are available before the work begins.
    pub(super) available: u64,
    /// Bytes that D needs then, with what its drivers take beyond B's and the reserve.
    pub(super) needed: u64,
    /// The region.
    pub(super) region: PhysRange,
}

/// D would run out of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error(
    "a restore would run out of memory: it would have {} in the region and needs {}; set region.size to \"{}M\" \
     or more",
    mib(*.available), mib(*.needed), .enough >> 20
)]
pub(super) struct TooLittle {
    /// Bytes.
    pub(super) available: u64,
    /// Bytes.
    pub(super) needed: u64,
    /// The size of a region that is enough, in bytes.
    pub(super) enough: u64,
}

impl Budget {
    /// From what this kernel reports now, before a pipeline has begun. A kernel that reports nothing has enough.
    pub(super) fn measure(session: &SessionRecord, limits: Limits) -> Budget {
        let field = |name| memory_watch::field("/proc/meminfo", name).map(|kib| kib.saturating_mul(1024));
        let total = field("MemTotal:").unwrap_or(0);
        let (cpus, _) = machine::cpus_of_second_kernel();
        Budget::new(session, cpus, limits, total, field("MemAvailable:").unwrap_or(u64::MAX))
    }

    /// With so many CPUs, as much memory in all and as much available, in bytes.
    fn new(session: &SessionRecord, cpus: u32, limits: Limits, total: u64, available: u64) -> Budget {
        let queues = u64::from(cpus.max(session.cpu.online)).saturating_mul(QUEUE);
        let pipeline = of_pipeline(limits, session.ram_pages());
        let needed = pipeline.saturating_add(queues).saturating_add(reserve(total));
        Budget { available, needed, region: session.region }
    }

    /// Demands that it is enough.
    ///
    /// # Errors
    /// [`TooLittle`].
    pub(super) fn check(&self) -> Result<(), TooLittle> {
        let Budget { available, needed, region } = *self;
        match needed.checked_sub(available) {
            None | Some(0) => Ok(()),
            // What is added has pages to be managed too (a sixty-fourth), and the reserve grows by a sixteenth.
            Some(short) => {
                let enough = region.len() + short.saturating_mul(9) / 8;
                Err(TooLittle { available, needed, enough: enough.next_multiple_of(region::ALIGNMENT) })
            }
        }
    }
}

/// What must be left for the kernel at the worst moment, of so much memory in all, in bytes.
pub(super) fn reserve(total: u64) -> u64 {
    (total / RESERVE_PART).max(RESERVE_LEAST)
}

/// What a restore of so many pages allocates at most, in bytes.
pub(super) fn of_pipeline(limits: Limits, pages: u64) -> u64 {
    // A bit for each page while the index is verified, in blocks of a bitmap that may be half empty.
    let coverage = pages / 8 * 2;
    limits.memory + limits.workers() as u64 * WORKER + INDEX + WINDOWS + coverage
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use dormouse_image::PfnRange;

    const MIB: u64 = 1 << 20;

    fn session(gib: u64) -> SessionRecord {
        SessionRecord {
            region: PhysRange { start: 16 * MIB, end: 144 * MIB },
            ram: vec![PfnRange { start: 0x9000, end: 0x9000 + (gib << 18) }],
            ..SessionRecord::default()
        }
    }

    fn limits(threads: usize) -> Limits {
        Limits { threads, memory: 24 * MIB }
    }

    #[test]
    fn usual_machines_have_enough() {
        let budget = Budget::new(&session(4), 2, limits(2), 100 * MIB, 80 * MIB);
        assert_eq!(budget.check(), Ok(()), "{budget:?}");
        assert_eq!(Budget::new(&session(4), 2, limits(2), 100 * MIB, u64::MAX).check(), Ok(()));
    }

    #[test]
    fn states_a_size_that_is_enough() {
        for (cpus, available) in [(64, 80), (2, 30), (16, 50), (256, 10)] {
            let small = Budget::new(&session(64), cpus, limits(cpus as usize), 100 * MIB, available * MIB);
            let TooLittle { enough, .. } = small.check().unwrap_err();
            assert!(enough.is_multiple_of(region::ALIGNMENT) && enough > 128 * MIB);
            // A region of this size, in which what is added is available but for what manages it.
            let more = enough - 128 * MIB;
            let (total, available) = (100 * MIB + more, available * MIB + more - more / 64);
            let budget = Budget::new(&session(64), cpus, limits(cpus as usize), total, available);
            assert_eq!(budget.check(), Ok(()), "{cpus} CPUs, {available}");
        }
    }

    #[test]
    fn grows_with_memory_and_threads() {
        let of = |threads, gib: u64| of_pipeline(limits(threads), gib << 18);
        assert_eq!(of(2, 1024) - of(2, 0), 64 * MIB);
        assert!(of(16, 1) > of(2, 1));
        // No more workers than buffers.
        assert_eq!(of(1000, 1), of(22, 1));
    }
}
