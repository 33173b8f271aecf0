//! Giving up memory: clean caches, and what the kernel can move to swap, until little enough is in use.
//!
//! With control groups of version 2, `memory.reclaim` has the kernel reclaim as much as is asked for, the least used
//! first. Every group has that file, the root too (Linux 6.12, mm/memcontrol.c, `memory_files`: it is not
//! `CFTYPE_NOT_ON_ROOT`; so since it came with 5.19), and what is written to the root's is for all of the machine.
//!
//! It cannot make the kernel kill a process: it calls `try_to_free_mem_cgroup_pages`, which tries and returns what it
//! has got (mm/vmscan.c), and fails with EAGAIN where that is less than was asked for. The OOM killer is called where
//! an allocation fails or a group is charged beyond its limit; nothing is charged here, and what reclaiming itself
//! allocates has the use of the reserves (`memalloc_noreclaim_save`).

use std::fs;
use std::io;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use dormouse_sys::PAGE_SIZE;
use nix::errno::Errno;

use crate::memory_watch;

/// How much is asked for at once. What one step takes cannot be bounded, and it is 3 s where a disk takes 20 MiB/s.
const STEP: u64 = 64 << 20;
/// Less is not worth a step.
const LEAST_STEP: u64 = 1 << 20;

/// How long what is on its way to swap is waited for, where the kernel has nothing else to reclaim.
const PAUSE: Duration = Duration::from_millis(100);

/// Why no more was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// No more was wanted.
    Done,
    /// There is nothing more that the kernel can give up.
    Exhausted,
    /// The time was over.
    Late,
    /// Clean caches alone can be given up: the kernel has no `memory.reclaim` at the usual place.
    CachesAlone,
}

/// What was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shrunk {
    /// Memory in use before, in bytes.
    pub before: u64,
    /// Memory in use now, in bytes.
    pub now: u64,
    /// How long it took.
    pub took: Duration,
    /// Why no more was given up.
    pub end: End,
}

/// What there is to give up, and how.
trait Kernel {
    /// Memory that is not free, in bytes.
    fn in_use(&self) -> io::Result<u64>;

    /// Gives up all clean cache, and what the kernel keeps of directories and inodes.
    fn drop_caches(&self) -> io::Result<()>;

    /// Whether it can reclaim as much as it is asked for.
    fn can_reclaim(&self) -> bool;

    /// Reclaims so many bytes, or fails with EAGAIN; of files alone, or else of everything.
    fn reclaim(&self, bytes: u64, of: Of) -> io::Result<()>;

    /// The time since some moment.
    fn clock(&self) -> Duration;

    /// Waits for [`PAUSE`].
    fn pause(&self);
}

/// What is reclaimed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Of {
    /// What is clean or can be written to its file, and can be read again from there.
    Files,
    /// What can be moved to swap, too.
    All,
}

/// The running kernel, by its files.
struct Files {
    meminfo: PathBuf,
    zoneinfo: PathBuf,
    drop_caches: PathBuf,
    reclaim: PathBuf,
    began: Instant,
}

impl Files {
    fn new() -> Files {
        Files {
            meminfo: "/proc/meminfo".into(),
            zoneinfo: "/proc/zoneinfo".into(),
            drop_caches: "/proc/sys/vm/drop_caches".into(),
            reclaim: "/sys/fs/cgroup/memory.reclaim".into(),
            began: Instant::now(),
        }
    }
}

/// What CPUs keep for themselves of free memory, in bytes, by `/proc/zoneinfo`. It is not part of `MemFree`, and may be
/// an eighth of all memory for a while after much was freed (Linux 6.12, mm/page_alloc.c,
/// `MIN_PERCPU_PAGELIST_HIGH_FRACTION`).
fn kept_by_cpus(zoneinfo: &str) -> u64 {
    let counts = zoneinfo.lines().filter_map(|line| line.trim_start().strip_prefix("count:"));
    counts.filter_map(|count| count.trim().parse::<u64>().ok()).sum::<u64>().saturating_mul(PAGE_SIZE)
}

impl Kernel for Files {
    fn in_use(&self) -> io::Result<u64> {
        let field = |name| memory_watch::field(&self.meminfo, name);
        match (field("MemTotal:"), field("MemFree:")) {
            (Some(total), Some(free)) => {
                let kept = kept_by_cpus(&fs::read_to_string(&self.zoneinfo)?);
                Ok(total.saturating_sub(free).saturating_mul(1024).saturating_sub(kept))
            }
            _ => Err(io::Error::other(format!("{} does not say what is in use", self.meminfo.display()))),
        }
    }

    fn drop_caches(&self) -> io::Result<()> {
        fs::write(&self.drop_caches, "3")
    }

    fn can_reclaim(&self) -> bool {
        self.reclaim.exists()
    }

    fn reclaim(&self, bytes: u64, of: Of) -> io::Result<()> {
        let swappiness = if of == Of::Files { " swappiness=0" } else { "" };
        fs::OpenOptions::new()
            .write(true)
            .open(&self.reclaim)
            .and_then(|mut file| io::Write::write_all(&mut file, format!("{bytes}{swappiness}").as_bytes()))
    }

    fn clock(&self) -> Duration {
        self.began.elapsed()
    }

    fn pause(&self) {
        sleep(PAUSE);
    }
}

/// Gives up all clean cache.
///
/// # Errors
/// The kernel does not do it, or does not say what is in use.
pub fn drop_caches() -> io::Result<Shrunk> {
    shrink(&Files::new(), |kernel| {
        nix::unistd::sync();
        kernel.drop_caches().map(|()| End::Done)
    })
}

/// Gives up memory until `size` bytes or less are in use; caches first. It takes `limit` at most, and one step more.
///
/// # Errors
/// The kernel does not say what is in use, or reports what it does not report of reclaiming.
pub fn to(size: u64, limit: Duration) -> io::Result<Shrunk> {
    shrink(&Files::new(), |kernel| {
        if kernel.in_use()? > size {
            // What is still to be written cannot be given up.
            nix::unistd::sync();
        }
        give_up(kernel, size, limit)
    })
}

fn shrink<K: Kernel>(kernel: &K, how: impl FnOnce(&K) -> io::Result<End>) -> io::Result<Shrunk> {
    let (began, before) = (kernel.clock(), kernel.in_use()?);
    let end = how(kernel)?;
    Ok(Shrunk { before, now: kernel.in_use()?, took: kernel.clock().saturating_sub(began), end })
}

fn give_up(kernel: &impl Kernel, size: u64, limit: Duration) -> io::Result<End> {
    if kernel.in_use()? <= size {
        return Ok(End::Done);
    }
    if !kernel.can_reclaim() {
        kernel.drop_caches()?;
        return Ok(if kernel.in_use()? <= size { End::Done } else { End::CachesAlone });
    }
    for of in [Of::Files, Of::All] {
        loop {
            let in_use = kernel.in_use()?;
            let excess = in_use.saturating_sub(size);
            if excess == 0 {
                return Ok(End::Done);
            }
            if kernel.clock() >= limit {
                return Ok(End::Late);
            }
            match kernel.reclaim(excess.clamp(LEAST_STEP, STEP), of) {
                Ok(()) => {}
                // It got less than that. A page that goes to swap is freed when it is written, which this does not wait
                // for: what was got is what is not in use a moment later.
                Err(error) if is(&error, Errno::EAGAIN) => {
                    kernel.pause();
                    if kernel.in_use()?.saturating_add(LEAST_STEP) > in_use {
                        break;
                    }
                }
                // An older kernel (6.1 is one) cannot be told what to reclaim, and would begin to swap at once.
                Err(error) if of == Of::Files && is(&error, Errno::EINVAL) => {
                    kernel.drop_caches()?;
                    break;
                }
                Err(error) => return Err(error),
            }
        }
    }
    Ok(if kernel.in_use()? <= size { End::Done } else { End::Exhausted })
}

fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno as i32)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::cell::{Cell, RefCell};

    use super::*;

    const MIB: u64 = 1 << 20;
    const LIMIT: Duration = Duration::from_secs(10);

    /// A machine, in MiB.
    struct Machine {
        files: Cell<u64>,
        swappable: Cell<u64>,
        /// What is being written to swap, and is freed in the next pause.
        under_way: Cell<u64>,
        rest: u64,
        is_asynchronous: bool,
        has_groups: bool,
        knows_swappiness: bool,
        /// How long it takes to reclaim a MiB of what goes to swap.
        per_mib: Duration,
        now: Cell<Duration>,
        asked: RefCell<Vec<String>>,
    }

    fn machine(files: u64, swappable: u64, rest: u64) -> Machine {
        Machine {
            files: Cell::new(files),
            swappable: Cell::new(swappable),
            under_way: Cell::default(),
            rest,
            is_asynchronous: false,
            has_groups: true,
            knows_swappiness: true,
            per_mib: Duration::ZERO,
            now: Cell::default(),
            asked: RefCell::default(),
        }
    }

    impl Machine {
        fn take(&self, from: &Cell<u64>, wanted: u64) -> u64 {
            let taken = from.get().min(wanted);
            from.set(from.get() - taken);
            taken
        }

        /// What was asked for, how it ended, and what is in use then.
        fn shrink_to(&self, mib: u64) -> (String, End, u64) {
            let shrunk = shrink(self, |kernel| give_up(kernel, mib * MIB, LIMIT)).unwrap();
            (self.asked.take().join(" "), shrunk.end, shrunk.now / MIB)
        }
    }

    impl Kernel for Machine {
        fn in_use(&self) -> io::Result<u64> {
            Ok((self.files.get() + self.swappable.get() + self.under_way.get() + self.rest) * MIB)
        }

        fn drop_caches(&self) -> io::Result<()> {
            self.asked.borrow_mut().push("drop".into());
            self.files.set(0);
            Ok(())
        }

        fn can_reclaim(&self) -> bool {
            self.has_groups
        }

        fn reclaim(&self, bytes: u64, of: Of) -> io::Result<()> {
            let wanted = bytes / MIB;
            self.asked.borrow_mut().push(format!("{of:?}:{wanted}"));
            if of == Of::Files && !self.knows_swappiness {
                return Err(Errno::EINVAL.into());
            }
            let mut got = self.take(&self.files, wanted);
            if of == Of::All {
                let out = self.take(&self.swappable, wanted - got);
                self.now.set(self.now.get() + self.per_mib * u32::try_from(out).unwrap());
                if self.is_asynchronous {
                    self.under_way.set(self.under_way.get() + out);
                } else {
                    got += out;
                }
            }
            if got < wanted { Err(Errno::EAGAIN.into()) } else { Ok(()) }
        }

        fn clock(&self) -> Duration {
            self.now.get()
        }

        fn pause(&self) {
            self.under_way.set(0);
            self.now.set(self.now.get() + PAUSE);
        }
    }

    #[test]
    fn gives_up_no_more_than_is_wanted_and_files_first() {
        assert_eq!(machine(500, 300, 200).shrink_to(1000), (String::new(), End::Done, 1000));
        assert_eq!(machine(500, 300, 200).shrink_to(900), ("Files:64 Files:36".into(), End::Done, 900));
        let all = "Files:64 Files:64 Files:64 All:64 All:36";
        assert_eq!(machine(100, 300, 200).shrink_to(400), (all.into(), End::Done, 400));
    }

    #[test]
    fn ends_where_there_is_nothing_more() {
        let tried = "Files:64 Files:64 All:64 All:64";
        assert_eq!(machine(10, 20, 200).shrink_to(100), (tried.into(), End::Exhausted, 200));
        assert_eq!(machine(0, 0, 200).shrink_to(100), ("Files:64 All:64".into(), End::Exhausted, 200));
        // The last step got less than it was asked for, and enough.
        assert_eq!(machine(0, 20, 100).shrink_to(100).1, End::Done);
    }

    #[test]
    fn waits_for_what_is_being_written_to_swap() {
        let slow = Machine { is_asynchronous: true, ..machine(0, 300, 200) };
        let asked = "Files:64 All:64 All:64 All:64 All:8";
        assert_eq!(slow.shrink_to(300), (asked.into(), End::Done, 300));
        assert_eq!(slow.clock(), PAUSE * 5);
    }

    #[test]
    fn ends_when_the_time_is_over_and_one_step_later_at_most() {
        // 20 MiB/s.
        let slow = Machine { per_mib: Duration::from_millis(50), ..machine(64, 4096, 0) };
        let shrunk = shrink(&slow, |kernel| give_up(kernel, 0, LIMIT)).unwrap();
        assert_eq!(shrunk.end, End::Late);
        let gone = shrunk.before - shrunk.now;
        assert_eq!((gone, shrunk.took), ((64 + 4 * 64) * MIB, PAUSE + Duration::from_millis(12_800)));
    }

    #[test]
    fn drops_caches_where_it_cannot_choose() {
        let old = Machine { knows_swappiness: false, ..machine(500, 300, 200) };
        assert_eq!(old.shrink_to(900), ("Files:64 drop".into(), End::Done, 500));
        let old = Machine { knows_swappiness: false, ..machine(100, 300, 200) };
        assert_eq!(old.shrink_to(490), ("Files:64 drop All:10".into(), End::Done, 490));
        let no_groups = Machine { has_groups: false, ..machine(500, 300, 200) };
        assert_eq!(no_groups.shrink_to(600), ("drop".into(), End::Done, 500));
        let no_groups = Machine { has_groups: false, ..machine(500, 300, 200) };
        assert_eq!(no_groups.shrink_to(400), ("drop".into(), End::CachesAlone, 500));
    }

    #[test]
    fn asks_the_kernel_by_its_files() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let files = Files {
            meminfo: at("meminfo"),
            zoneinfo: at("zoneinfo"),
            drop_caches: at("drop_caches"),
            reclaim: at("memory.reclaim"),
            began: Instant::now(),
        };
        assert!(files.in_use().unwrap_err().to_string().contains("meminfo does not say"));
        fs::write(at("meminfo"), "MemTotal:        3000 kB\nMemFree:         1000 kB\n").unwrap();
        let zones = "Node 0, zone   Normal\n  pages free     250\n  pagesets\n    cpu: 0\n              count: 100\n\
                     \x20             high:  200\n    cpu: 1\n              count: 25\n";
        fs::write(at("zoneinfo"), zones).unwrap();
        assert_eq!(files.in_use().unwrap(), 1500 << 10);
        files.drop_caches().unwrap();
        assert_eq!(fs::read_to_string(at("drop_caches")).unwrap(), "3");

        // A hierarchy without the memory controller, and one with it.
        assert!(!files.can_reclaim() && files.reclaim(1, Of::All).is_err() && !at("memory.reclaim").exists());
        fs::write(at("memory.reclaim"), "").unwrap();
        assert!(files.can_reclaim());
        files.reclaim(64 * MIB, Of::All).unwrap();
        assert_eq!(fs::read_to_string(at("memory.reclaim")).unwrap(), "67108864");
        files.reclaim(MIB, Of::Files).unwrap();
        assert_eq!(fs::read_to_string(at("memory.reclaim")).unwrap(), "1048576 swappiness=0");

        // Files that never change what is in use: the time is what ends it.
        assert_eq!(give_up(&files, 0, Duration::from_millis(20)).unwrap(), End::Late);
    }

    #[test]
    fn what_this_machine_has_in_use_is_known() {
        let kernel = Files::new();
        let in_use = kernel.in_use().unwrap();
        assert!(in_use > MIB);
        assert_eq!(to(u64::MAX, LIMIT).unwrap().end, End::Done);
    }
}
