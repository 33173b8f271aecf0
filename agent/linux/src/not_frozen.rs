//! What keeps the kernel from freezing the machine, by what it logs about it.
//!
//! Linux 6.12: kernel/power/process.c, `try_to_freeze_tasks`, logs each thread that did not freeze
//! (kernel/sched/core.c, `sched_show_task`), after `/sys/power/pm_freeze_timeout`, which is 20 s.
//! drivers/base/power/main.c, `pm_dev_err`, logs each device, kernel/cpu.c each CPU.

use std::fmt;

/// What could not be frozen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotFrozen {
    /// Processes, or threads of them.
    Processes(Vec<Process>),
    /// Devices or CPUs, as the kernel names them, with the error.
    Devices(Vec<String>),
    /// The log has not a line about it.
    Unknown,
}

/// A process or a thread.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its name, which the kernel cuts to 15 bytes.
    pub name: String,
    /// Its number, where the line has it.
    pub pid: Option<u32>,
}

/// How many are named.
const NAMED: usize = 8;

impl NotFrozen {
    /// Finds it in lines of the kernel's log since before the attempt.
    #[must_use]
    pub fn find(lines: &[String]) -> NotFrozen {
        let failed = lines.iter().position(|line| line.contains("refusing to freeze"));
        if let Some(at) = failed {
            let mut processes: Vec<Process> = Vec::new();
            for process in lines[at..].iter().filter_map(|line| process(line)) {
                if !processes.contains(&process) {
                    processes.push(process);
                }
            }
            if !processes.is_empty() {
                return NotFrozen::Processes(processes);
            }
        }
        let devices: Vec<String> = lines.iter().filter_map(|line| device(line)).collect();
        if devices.is_empty() { NotFrozen::Unknown } else { NotFrozen::Devices(devices) }
    }
}

/// `task:fusermount3     state:D stack:0     pid:123   tgid:123   ppid:1      flags:0x00004006`
fn process(line: &str) -> Option<Process> {
    let (name, rest) = line.strip_prefix("task:")?.split_once(" state:")?;
    let pid = rest.split_once(" pid:").and_then(|(_, rest)| rest.split_whitespace().next()?.parse().ok());
    Some(Process { name: name.trim_end().to_owned(), pid })
}

/// `i915 0000:00:02.0: PM: failed to freeze async: error -16`, or `Error taking CPU1 down: -16`, or what Dormouse's own
/// module says of a CPU (agent/module/main.c).
fn device(line: &str) -> Option<String> {
    let is_device = line.contains("failed to freeze") && line.contains(": error -");
    // A prefix of printk's own, if any, says no more.
    let text = line.strip_prefix("PM: ").unwrap_or(line).replace(": PM: ", ": ");
    let text = text.strip_prefix("dormouse: ").map_or(text.clone(), str::to_owned);
    let is_cpu = text.starts_with("Error taking CPU") || (text.starts_with("CPU ") && text.contains("taken down"));
    (is_device || is_cpu).then_some(text)
}

impl fmt::Display for NotFrozen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NotFrozen::Unknown => f.write_str("all processes or devices; see `dmesg` for which"),
            NotFrozen::Processes(processes) => {
                f.write_str(if processes.len() == 1 { "a process: " } else { "processes: " })?;
                list(f, processes)
            }
            NotFrozen::Devices(devices) => {
                f.write_str(if devices.len() == 1 { "a device: " } else { "devices: " })?;
                list(f, devices)
            }
        }
    }
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        self.pid.map_or(Ok(()), |pid| write!(f, " (pid {pid})"))
    }
}

fn list<T: fmt::Display>(f: &mut fmt::Formatter<'_>, items: &[T]) -> fmt::Result {
    for (number, item) in items.iter().take(NAMED).enumerate() {
        write!(f, "{}{item}", if number > 0 { ", " } else { "" })?;
    }
    let more = items.len().saturating_sub(NAMED);
    if more > 0 { write!(f, " and {more} more") } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(text: &str) -> NotFrozen {
        NotFrozen::find(&text.lines().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn names_processes() {
        let found = find(
            "PM: suspend of devices complete\n\
             Freezing user space processes failed after 20.008 seconds (2 tasks refusing to freeze, wq_busy=0):\n\
             task:stat            state:D stack:0     pid:310   tgid:310   ppid:300    flags:0x00004006\n\
             Call Trace:\n\
             task:stat            state:D stack:0     pid:310   tgid:310   ppid:300    flags:0x00004006\n\
             task:my own thing    state:R  running task     stack:0     pid:9 tgid:9 ppid:1\n\
             Restarting tasks ... done.\n",
        );
        assert_eq!(found.to_string(), "processes: stat (pid 310), my own thing (pid 9)");
        // What follows the state may have become a record of its own.
        let found = find("x (1 tasks refusing to freeze, wq_busy=0):\ntask:ls              state:D\n");
        assert_eq!(found.to_string(), "a process: ls");
    }

    #[test]
    fn names_devices_and_cpus() {
        let found = find("virtio-pci 0000:00:05.0: PM: failed to freeze: error -16\nPM: Some devices failed\n");
        assert_eq!(found.to_string(), "a device: virtio-pci 0000:00:05.0: failed to freeze: error -16");
        let found = find("usb 1-1: PM: failed to freeze async: error -110\nError taking CPU3 down: -16\n");
        assert_eq!(
            found.to_string(),
            "devices: usb 1-1: failed to freeze async: error -110, Error taking CPU3 down: -16"
        );
        let found = find("dormouse: CPU 1 cannot be taken down: error -11\nCPU 1 is now offline\n");
        assert_eq!(found.to_string(), "a device: CPU 1 cannot be taken down: error -11");
    }

    #[test]
    fn a_log_without_a_line_names_nothing() {
        assert_eq!(find("task:ls state:D stack:0 pid:1\nFreezing user space processes\n"), NotFrozen::Unknown);
        assert_eq!(find("x (1 tasks refusing to freeze, wq_busy=1):\n"), NotFrozen::Unknown);
        assert!(NotFrozen::Unknown.to_string().contains("dmesg"));
    }

    #[test]
    fn a_long_list_is_cut() {
        let tasks: String = (0..20).map(|pid| format!("task:p state:D stack:0 pid:{pid} tgid:1\n")).collect();
        let text = find(&format!("20 tasks refusing to freeze\n{tasks}")).to_string();
        assert!(text.starts_with("processes: p (pid 0), p (pid 1)") && text.ends_with(" and 12 more"), "{text}");
    }
}
