//! The machine that a benchmark runs on, as far as it explains figures.

use std::process::Command;

use dormouse_linux::{memory_watch, procfs};

/// Flags of the CPU that matter for what is measured: vectors, ciphers, copies by `rep movsb`.
const FLAGS: [&str; 6] = ["avx2", "avx512f", "aes", "vaes", "erms", "fsrm"];

/// What is known of it. What cannot be found out is left out.
#[derive(Debug, Default)]
pub(crate) struct Host {
    facts: Vec<(&'static str, String)>,
}

impl Host {
    /// At the beginning of a run, whose guests have this kernel.
    pub(crate) fn at_begin(guest_kernel: &str) -> Host {
        let cpuinfo = procfs::text("/proc/cpuinfo").unwrap_or_default();
        let flags = field(&cpuinfo, "flags").unwrap_or_default();
        let has = |flag: &str| flags.split(' ').any(|other| other == flag);
        let found = FLAGS.map(|flag| if has(flag) { flag.to_owned() } else { format!("no {flag}") });
        let ram = memory_watch::field("/proc/meminfo", "MemTotal:");
        let virtual_machine = if has("hypervisor") { "a virtual machine" } else { "none seen" };
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let mut host = Host::default();
        host.add("measured", said_by("date", &["-u", "+%Y-%m-%d %H:%M UTC"]));
        host.add("Dormouse", Some(env!("CARGO_PKG_VERSION").to_owned()));
        host.add("commit", said_by("git", &["describe", "--always", "--dirty"]));
        host.add("CPU", field(&cpuinfo, "model name"));
        host.add("its flags", Some(found.join(", ")));
        host.add("CPUs", Some(cpus.to_string()));
        host.add("memory", ram.map(|kib| format!("{} MiB", kib / 1024)));
        host.add("virtualisation", Some(virtual_machine.to_owned()));
        host.add("kernel", procfs::text("/proc/sys/kernel/osrelease").ok());
        host.add("guests' kernel", Some(format!("Linux {guest_kernel}, under emulation")));
        host.add("emulator", said_by("qemu-system-x86_64", &["--version"]));
        host.add("load at the beginning", load());
        host
    }

    /// At its end, which `error` may have brought early.
    pub(crate) fn end(&mut self, error: Option<&anyhow::Error>) {
        self.add("load at the end", load());
        self.add("ended early, by", error.map(|error| format!("{error:#}")));
    }

    /// What and its value.
    pub(crate) fn facts(&self) -> impl Iterator<Item = (&str, String)> {
        self.facts.iter().map(|(what, value)| (*what, value.clone()))
    }

    fn add(&mut self, what: &'static str, value: Option<String>) {
        self.facts.extend(value.map(|value| (what, value.trim().to_owned())));
    }
}

/// The value of the first line `name : value`.
fn field(text: &str, name: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let (found, value) = line.split_once(':')?;
        (found.trim() == name).then(|| value.trim().to_owned())
    })
}

/// Processes that wanted to run in the last minute, on average.
fn load() -> Option<String> {
    let text = procfs::text("/proc/loadavg").ok()?;
    text.split(' ').next().map(str::to_owned)
}

/// The first line that a program prints, if it is there.
fn said_by(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok().filter(|output| output.status.success())?;
    String::from_utf8_lossy(&output.stdout).lines().next().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let text = "model\t\t: 1\nmodel name\t: A CPU\nflags\t\t: a b\n";
        assert_eq!(field(text, "model name").as_deref(), Some("A CPU"));
        assert_eq!(field(text, "name"), None);
    }

    #[test]
    fn this_machine_is_described() {
        let mut host = Host::at_begin("6.12");
        host.end(None);
        let facts: Vec<&str> = host.facts.iter().map(|(what, _)| *what).collect();
        for what in ["CPU", "CPUs", "memory", "kernel", "load at the end"] {
            assert!(facts.contains(&what), "{facts:?}");
        }
    }
}
