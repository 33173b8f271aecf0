//! What the guests whose memory is measured were doing.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use dormouse_tests::guest::Guest;
use dormouse_tests::machine::{MIB, MemorySize};

/// Where the payload disk is mounted in the guest.
const ROOT: &str = "/run/payload";
/// Filling a database under emulation takes this long at most.
const FILL_TIMEOUT: Duration = Duration::from_secs(900);
/// Compilers have grown as large as they must be after this long at most.
const COMPILE_TIMEOUT: Duration = Duration::from_secs(400);

/// What a guest does before its memory is captured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Workload {
    /// A machine that has just been started: an empty database server that waits, its programs in the page cache.
    Idle,
    /// A source tree in the page cache, and compilers at work.
    Compile,
    /// An in-memory database, half of it random bytes and half of it structured text.
    Database,
    /// A machine that has compiled and served a database, and does nothing any more: most memory is free, and full of
    /// what was there.
    Freed,
}

/// The workloads that are measured.
pub(super) fn chosen(quick: bool) -> &'static [Workload] {
    if quick {
        &[Workload::Compile, Workload::Database]
    } else {
        &[Workload::Idle, Workload::Compile, Workload::Database, Workload::Freed]
    }
}

impl Workload {
    /// What the guest has done, in a few words.
    pub(super) fn about(self) -> &'static str {
        match self {
            Workload::Idle => "started, and an empty database that waits",
            Workload::Compile => "a source tree in the page cache, compilers at work",
            Workload::Database => "an in-memory database, half random bytes and half JSON",
            Workload::Freed => "after compilers and a database: most memory is free",
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Workload::Idle => "idle",
            Workload::Compile => "compile",
            Workload::Database => "database",
            Workload::Freed => "freed",
        }
    }

    /// The guest's memory.
    pub(super) fn memory(self, quick: bool) -> MemorySize {
        let mib = match self {
            _ if quick => 1024,
            Workload::Idle => 4096,
            Workload::Compile | Workload::Database | Workload::Freed => 2048,
        };
        MemorySize { mib }
    }

    /// Bytes that the database is filled with; what it takes of the memory is a little more.
    pub(super) fn data_bytes(self, memory: MemorySize) -> u64 {
        match self {
            Workload::Idle | Workload::Compile => 0,
            Workload::Database => memory.bytes() * 45 / 100,
            Workload::Freed => memory.bytes() / 4,
        }
    }

    /// Folders of the kernel's source that the guest has.
    pub(super) fn source_directories(self, memory: MemorySize) -> Vec<&'static str> {
        let mut directories = match self {
            Workload::Idle | Workload::Database => Vec::new(),
            Workload::Compile | Workload::Freed => {
                vec!["include", "kernel", "mm", "fs", "lib", "net", "tools/lib", "tools/include", "tools/arch/x86"]
            }
        };
        if !directories.is_empty() && memory.bytes() > 1024 * MIB {
            directories.extend(["drivers/net", "drivers/media", "sound"]);
        }
        directories
    }

    /// Brings a guest that has just booted, with the payload on its second disk, to the state in which it is captured.
    pub(super) fn run(self, guest: &mut Guest) -> Result<()> {
        mount(guest)?;
        match self {
            Workload::Idle => {
                start_database(guest)?;
                succeed_in_root(guest, "cat /usr/bin/* /usr/lib/x86_64-linux-gnu/* >/dev/null")?;
                // Whatever the start has left to do is done by then.
                std::thread::sleep(Duration::from_secs(5));
            }
            Workload::Compile => {
                read_sources(guest)?;
                compile(guest)?;
            }
            Workload::Database => {
                start_database(guest)?;
                fill_database(guest)?;
            }
            Workload::Freed => {
                read_sources(guest)?;
                start_database(guest)?;
                fill_database(guest)?;
                compile(guest)?;
                succeed_in_root(guest, "killall compile cc1 redis-server; sleep 5")?;
                guest.succeed(&format!("rm -rf {ROOT}/objects/* && sync && echo 3 >/proc/sys/vm/drop_caches"))?;
            }
        }
        Ok(())
    }
}

fn mount(guest: &mut Guest) -> Result<()> {
    let disk = guest.config().disk_path(1)?;
    guest.succeed(&format!(
        "mkdir -p {ROOT} && mount -t ext4 {disk} {ROOT} && mount -t proc proc {ROOT}/proc && \
         mount -t devtmpfs devtmpfs {ROOT}/dev && mount -t tmpfs tmpfs {ROOT}/tmp"
    ))?;
    Ok(())
}

/// A command for the payload's own shell.
fn in_root(command: &str) -> String {
    format!("busybox chroot {ROOT} /bin/sh -c '{command}'")
}

fn succeed_in_root(guest: &mut Guest, command: &str) -> Result<String> {
    guest.succeed(&in_root(command))
}

/// Reads every file of the source tree, which the page cache keeps.
fn read_sources(guest: &mut Guest) -> Result<()> {
    let request = guest.send(&in_root("find /source -type f -exec cat {} + >/dev/null"))?;
    match guest.answer(request, FILL_TIMEOUT)? {
        output if output.status == 0 => Ok(()),
        output => bail!("the guest cannot read its source tree: {}", output.stderr.trim()),
    }
}

fn start_database(guest: &mut Guest) -> Result<()> {
    succeed_in_root(
        guest,
        "redis-server --port 0 --unixsocket /tmp/redis.sock --save \"\" --appendonly no --daemonize yes >/dev/null",
    )?;
    succeed_in_root(
        guest,
        "for try in $(seq 100); do redis-cli -s /tmp/redis.sock ping && exit; sleep 0.1; done; exit 1",
    )?;
    Ok(())
}

fn fill_database(guest: &mut Guest) -> Result<()> {
    let request = guest.send(&in_root("redis-cli -s /tmp/redis.sock --pipe </data.resp"))?;
    let output = guest.answer(request, FILL_TIMEOUT)?;
    if output.status != 0 || !output.stdout.contains("errors: 0") {
        bail!("the guest's database cannot be filled: {} {}", output.stdout.trim(), output.stderr.trim());
    }
    // What was only read once, to fill it, would not be in a database server's page cache.
    guest.succeed("echo 1 >/proc/sys/vm/drop_caches")?;
    Ok(())
}

/// Starts compilers, and returns in the midst of it: when something has been compiled and they hold much memory.
fn compile(guest: &mut Guest) -> Result<()> {
    for order in ["-S", "-Sr"] {
        succeed_in_root(guest, &format!("compile {order} </dev/null >/objects/log{order} 2>&1 &"))?;
    }
    let heap_of_compilers = "for process in $(pidof cc1); do \
         sed -n \"s/^RssAnon:[^0-9]*\\([0-9]*\\) kB/\\1/p\" /proc/$process/status; done; ls /objects/*.o | wc -l";
    let deadline = Instant::now() + COMPILE_TIMEOUT;
    loop {
        std::thread::sleep(Duration::from_millis(500));
        // A compiler may be gone before its status is read.
        let output = guest.run(&in_root(heap_of_compilers))?.stdout;
        let mut numbers: Vec<u64> = output.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        let objects = numbers.pop().context("the guest does not count its object files")?;
        let heap_kib: u64 = numbers.iter().sum();
        if objects >= 2 && heap_kib >= 80 << 10 {
            return Ok(());
        }
        if Instant::now() > deadline {
            let log = succeed_in_root(guest, "tail -n 5 /objects/log*")?;
            bail!("the guest compiles too slowly: {objects} objects, {heap_kib} KiB in compilers; they say {log:?}");
        }
    }
}
