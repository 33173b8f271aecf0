//! A process with an anonymous mapping that holds a pattern. Where the machine has swap, a part of it is swapped out
//! whenever nobody looks.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use memmap2::MmapMut;
use nix::mount::{MsFlags, mount};

use super::report::Mapping;
use super::role::{self, Answer};
use super::{DIRECTORY, pattern};

/// What is swapped out at once: areas may be small.
const SWAPPED_AT_ONCE: u64 = 16 << 20;

/// Fills the mapping and keeps it, for ever.
///
/// # Errors
/// Fails where there is no memory for it, or swap is in use and nothing can be swapped out.
pub fn run(megabytes: u64, seed: u64) -> Result<()> {
    let bytes = megabytes << 20;
    let group = if has_swap() { Some(Group::enter()?) } else { None };
    let mut mapping =
        MmapMut::map_anon(usize::try_from(bytes)?).with_context(|| format!("{bytes} bytes cannot be mapped"))?;
    pattern::fill(&mut mapping, seed, 0);
    let swap_out = || {
        if let Some(group) = &group {
            group.swap_out(bytes.min(SWAPPED_AT_ONCE));
        }
    };
    swap_out();
    // The address is evidence only; nothing is read through it.
    let address = u64::try_from(mapping.as_ptr().addr())?;
    role::serve(Path::new(DIRECTORY), "mapping", || {
        // Before it is looked at, which brings it back.
        let swapped = swapped();
        let fault = pattern::mismatch(&mapping, seed, 0)
            .map(|place| format!("the word {place} of {} is not the pattern's", bytes / 8));
        swap_out();
        Answer { evidence: Mapping { bytes, address, swapped }, fault }
    })
}

fn has_swap() -> bool {
    fs::read_to_string("/proc/swaps").is_ok_and(|areas| areas.lines().count() > 1)
}

/// The bytes of this process that are in swap.
fn swapped() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmSwap:"));
    let kib = line.and_then(|rest| rest.split_whitespace().next()).and_then(|kib| kib.parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}

/// A control group that holds this process alone, so that the kernel can be asked for its memory.
struct Group(PathBuf);

impl Group {
    fn enter() -> Result<Self> {
        let root = Path::new(DIRECTORY).join("cgroup");
        let group = root.join("mapping");
        fs::create_dir_all(&root).with_context(|| format!("{}: cannot be created", root.display()))?;
        mount(Some("cgroup2"), &root, Some("cgroup2"), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("{}: control groups cannot be mounted", root.display()))?;
        let write = |path: PathBuf, text: &str| {
            fs::write(&path, text).with_context(|| format!("{}: cannot be written", path.display()))
        };
        write(root.join("cgroup.subtree_control"), "+memory")?;
        fs::create_dir_all(&group).with_context(|| format!("{}: cannot be created", group.display()))?;
        write(group.join("cgroup.procs"), &std::process::id().to_string())?;
        Ok(Group(group))
    }

    /// How much of it the kernel takes is its own decision; what it took is evidence.
    fn swap_out(&self, bytes: u64) {
        let _ = fs::write(self.0.join("memory.reclaim"), bytes.to_string());
    }
}
