//! What is bound to CPUs, and would not be afterwards if the CPUs went away and came back: interrupts, and the cpusets
//! of the first kind of control groups.
//!
//! The kernel's own hibernation takes CPUs away for a while, and cpusets stay as they are (kernel/cgroup/cpuset.c,
//! `cpuhp_tasks_frozen`). Where they are taken away one by one, it is as if for good: an interrupt that only went to
//! such a CPU goes to all from then on (kernel/irq/cpuhotplug.c), and a cpuset of version 1 loses the CPU. Those of
//! version 2 remember it, and so do the masks of processes.

use std::fs;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use crate::mountinfo;

/// Where the kernel shows interrupts.
const INTERRUPTS: &str = "/proc/irq";

/// What is bound, and how.
#[derive(Debug, Default)]
pub struct CpuBindings {
    interrupts: Vec<(PathBuf, String)>,
    cpusets: Vec<Cpuset>,
}

/// A cpuset of version 1.
#[derive(Debug)]
struct Cpuset {
    cpus: PathBuf,
    value: String,
    /// Its processes, which are moved to another one when it has no CPU left.
    tasks: Vec<String>,
}

impl CpuBindings {
    /// How it is now. What cannot be read is not restored.
    #[must_use]
    pub fn read() -> CpuBindings {
        let mounts = mountinfo::read().unwrap_or_default();
        // The directory says whether it is one of cpusets.
        let roots = mounts.into_iter().filter(|mount| mount.kind == "cgroup").map(|mount| mount.point);
        CpuBindings::read_in(Path::new(INTERRUPTS), roots)
    }

    fn read_in(interrupts: &Path, roots: impl Iterator<Item = PathBuf>) -> CpuBindings {
        let masks = entries(interrupts).into_iter().map(|directory| directory.join("smp_affinity"));
        let interrupts = masks.filter_map(|path| fs::read_to_string(&path).ok().map(|mask| (path, mask))).collect();
        let mut cpusets = Vec::new();
        for root in roots {
            collect(&root, &mut cpusets);
        }
        CpuBindings { interrupts, cpusets }
    }

    /// Binds again what has changed. What cannot be bound is named in the log.
    pub fn restore(&self) {
        for (path, mask) in &self.interrupts {
            bind(path, mask);
        }
        // A directory comes before those in it, which have no CPUs but its own.
        for Cpuset { cpus, value, tasks } in &self.cpusets {
            if bind(cpus, value) {
                let all = cpus.with_file_name("tasks");
                for task in tasks {
                    // One that has ended meanwhile is no loss.
                    let _ = fs::write(&all, task);
                }
            }
        }
    }
}

/// Writes `value` where something else is now. Returns whether that was so.
fn bind(path: &Path, value: &str) -> bool {
    let now = fs::read_to_string(path).unwrap_or_default();
    if now.is_empty() || now == value {
        return false;
    }
    match fs::write(path, value.trim_end()) {
        Ok(()) => log::debug!("{}: {} again", path.display(), value.trim_end()),
        // An interrupt that the kernel manages itself.
        Err(error)
            if matches!(
                Errno::from_raw(error.raw_os_error().unwrap_or(0)),
                Errno::EACCES | Errno::EPERM | Errno::EIO
            ) => {}
        Err(error) => {
            log::warn!("{}: {error}; it stays {} and was {}", path.display(), now.trim_end(), value.trim_end());
        }
    }
    true
}

/// A directory's cpuset and those below it.
fn collect(directory: &Path, found: &mut Vec<Cpuset>) {
    let cpus = directory.join("cpuset.cpus");
    let Ok(value) = fs::read_to_string(&cpus) else { return };
    let tasks = fs::read_to_string(directory.join("tasks")).unwrap_or_default();
    // The root's is not for us to write.
    found.push(Cpuset { cpus, value, tasks: tasks.lines().map(str::to_owned).collect() });
    for below in entries(directory) {
        collect(&below, found);
    }
}

/// The directories in a directory.
fn entries(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    paths.sort();
    paths
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn binds_what_has_changed_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let at = |path: &str| directory.path().join(path);
        for path in ["irq/4", "irq/5", "cpuset/a/b"] {
            fs::create_dir_all(at(path)).unwrap();
        }
        let write = |path: &str, text: &str| fs::write(at(path), text).unwrap();
        let read = |path: &str| fs::read_to_string(at(path)).unwrap();
        write("irq/4/smp_affinity", "2\n");
        write("irq/5/smp_affinity", "3\n");
        for (path, cpus, tasks) in [("cpuset", "0-1\n", "1\n"), ("cpuset/a", "0-1\n", ""), ("cpuset/a/b", "1\n", "7\n")]
        {
            write(&format!("{path}/cpuset.cpus"), cpus);
            write(&format!("{path}/tasks"), tasks);
        }
        let bindings = CpuBindings::read_in(&at("irq"), [at("cpuset")].into_iter());
        assert_eq!((bindings.interrupts.len(), bindings.cpusets.len()), (2, 3));
        write("irq/4/smp_affinity", "1\n");
        write("cpuset/a/b/cpuset.cpus", "\n");
        write("cpuset/a/b/tasks", "");
        write("cpuset/a/tasks", "7\n");
        bindings.restore();
        assert_eq!((read("irq/4/smp_affinity").as_str(), read("irq/5/smp_affinity").as_str()), ("2", "3\n"));
        assert_eq!((read("cpuset/a/b/cpuset.cpus").as_str(), read("cpuset/a/b/tasks").as_str()), ("1", "7"));
        assert_eq!(read("cpuset/a/tasks"), "7\n");
    }
}
