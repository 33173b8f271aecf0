//! The same session hibernated in turn by the kernel itself and by Dormouse, from working state to working state.
//!
//! One guest is booted once, with a disk for Dormouse's image, one for swap, and one with files that the session has
//! read. Each run hibernates it, powers it on again, waits for the workload's first sign of life, and reads the files
//! again.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use dormouse_tests::artifacts::Artifacts;
use dormouse_tests::console::Line;
use dormouse_tests::cycle::{self, unobserved};
use dormouse_tests::guest::Guest;
use dormouse_tests::machine::{Disk, DiskKind, GuestConfig, MIB, image_disk_bytes};
use dormouse_tests::userland::{GuestPolicy, Userland};

use crate::Options;
use crate::table::{Table, median_of};

/// Where the guest mounts the disk with files, and how much is on it.
const FILES: &str = "/run/files";
const FILES_MIB: u64 = 320;

/// The disks, in their order: Dormouse's image, swap, files.
const SWAP: &str = "/dev/vdb";
const FILES_DISK: &str = "/dev/vdc";

const PAGE: u64 = 4096;

/// Who hibernates.
#[derive(Debug, Clone, Copy)]
enum Contender {
    /// The kernel's own hibernation, with this compressor; `whole` lets the image have the size of memory, otherwise it
    /// is the default of two fifths, and the kernel gives up page cache and swaps out until that fits.
    Kernel { compressor: &'static str, whole: bool },
    /// Dormouse, with the policy at this path.
    Dormouse { name: &'static str, policy: &'static str },
}

const CONTENDERS: &[Contender] = &[
    Contender::Dormouse { name: "dormouse auto", policy: "/etc/dormouse.toml" },
    Contender::Kernel { compressor: "lzo", whole: false },
    Contender::Kernel { compressor: "lzo", whole: true },
    Contender::Dormouse { name: "dormouse zstd 1", policy: "/etc/zstd.toml" },
    Contender::Kernel { compressor: "lz4", whole: false },
    Contender::Kernel { compressor: "lz4", whole: true },
    // Not with --quick, which has little time.
    Contender::Dormouse { name: "dormouse auto verify checksum", policy: "/etc/checksum.toml" },
    Contender::Dormouse { name: "dormouse auto verify memory", policy: "/etc/memory.toml" },
];

/// How many of them take part with --quick.
const QUICK: usize = 6;

impl Contender {
    fn name(self) -> String {
        match self {
            Contender::Kernel { compressor, whole } => {
                format!("kernel {compressor} image_size {}", if whole { "max" } else { "default" })
            }
            Contender::Dormouse { name, .. } => name.to_owned(),
        }
    }
}

/// What one run measured.
#[derive(Debug, Clone, Copy)]
struct Run {
    command_to_off: f64,
    on_to_tick: f64,
    reread: f64,
    image_bytes: u64,
    pages_saved: u64,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let runs = options.runs.unwrap_or(if options.quick { 3 } else { 5 });
    let artifacts = Artifacts::from_environment()?;
    let memories: &[&str] = if options.quick { &["1G"] } else { &["1G", "2G"] };
    let contenders = if options.quick { &CONTENDERS[..QUICK] } else { CONTENDERS };
    let mut table = Table::new(&[
        "workload",
        "contender",
        "command_to_off_s",
        "on_to_tick_s",
        "reread_s",
        "image_bytes",
        "pages_saved",
    ]);
    let mut readable = Table::new(&[
        "workload",
        "contender",
        "command to off, s",
        "on to tick, s",
        "reread, s",
        "sum, s",
        "image, MiB",
        "pages saved",
        "bytes per page",
    ]);
    for memory in memories {
        let workload = format!("session and files {memory}");
        let mut guest = start(&artifacts, memory)?;
        let mut results: Vec<Vec<Run>> = vec![Vec::new(); contenders.len()];
        for number in 0..runs {
            // Another one begins each time, so that none always follows the same one.
            for place in 0..contenders.len() {
                let turn = (place + number) % contenders.len();
                let (contender, results) = (&contenders[turn], &mut results[turn]);
                let run = hibernate(&mut guest, *contender)
                    .with_context(|| format!("{workload}, {}, run {}", contender.name(), number + 1))?;
                eprintln!("{workload}, run {}: {}: {run:?}", number + 1, contender.name());
                results.push(run);
            }
        }
        for (contender, runs) in contenders.iter().zip(&results) {
            let of = |value: fn(&Run) -> f64| median_of(runs, value);
            // Sizes are far below 2^52.
            let image = of(|run| run.image_bytes as f64);
            let pages = of(|run| run.pages_saved as f64);
            let (off, on, reread) = (of(|run| run.command_to_off), of(|run| run.on_to_tick), of(|run| run.reread));
            table.row(vec![
                workload.clone(),
                contender.name(),
                format!("{off:.2}"),
                format!("{on:.2}"),
                format!("{reread:.2}"),
                format!("{image:.0}"),
                format!("{pages:.0}"),
            ]);
            readable.row(vec![
                workload.clone(),
                contender.name(),
                format!("{off:.2}"),
                format!("{on:.2}"),
                format!("{reread:.2}"),
                format!("{:.2}", off + on + reread),
                format!("{:.0}", image / MIB as f64),
                format!("{pages:.0}"),
                format!("{:.0}", image / pages.max(1.0)),
            ]);
        }
    }
    readable.print(&format!("Guest tier: medians of {runs} alternating runs, 2 CPUs, under emulation"));
    println!(
        "\nThe sum is from working state to working state: the command, the boot, and reading {FILES_MIB} MiB of files \
         that were in memory before. With its default image_size the kernel gives up page cache, and pays when it is \
         read again."
    );
    table.write_csv(&options.output.join("guest.csv"))
}

/// A guest that is up with everything.
fn start(artifacts: &Artifacts, memory: &str) -> Result<Guest> {
    let mut config = GuestConfig::new(2, memory.parse()?);
    let disk = |bytes| Disk { kind: DiskKind::Virtio, bytes };
    config.disks.push(disk(image_disk_bytes(config.memory)));
    config.disks.push(disk(2 * FILES_MIB * MIB));
    // The kernel looks for its own image there at every boot, before the initramfs runs.
    config.kernel_arguments.push(format!("resume={SWAP}"));
    let image = config.disk_path(0)?;
    let policy =
        |compression: &str| format!("[image]\ndevice = \"{image}\"\n[save]\ncompression = \"{compression}\"\n");
    let userland = Userland {
        policies: vec![
            GuestPolicy::standard(policy("auto")),
            GuestPolicy { path: "/etc/zstd.toml".to_owned(), text: policy("zstd") },
            GuestPolicy { path: "/etc/checksum.toml".to_owned(), text: policy("auto") + "verify = \"checksum\"\n" },
            GuestPolicy { path: "/etc/memory.toml".to_owned(), text: policy("auto") + "verify = \"memory\"\n" },
        ],
        ..Userland::default()
    };
    let mut guest = Guest::new(config, &userland, artifacts)?;
    make_files(&guest.disk_file(2))?;
    guest.boot()?;
    cycle::init_image(&mut guest, &image)?;
    guest.succeed(&format!(
        "mkswap {SWAP} && mkdir -p {FILES} && mount -t ext4 {FILES_DISK} {FILES} && \
         cat /sys/power/image_size >/run/image_size && echo shutdown >/sys/power/disk"
    ))?;
    cycle::start_workload(&mut guest)?;
    Ok(guest)
}

/// An ext4 filesystem with real files in `disk`: libraries and headers of this machine.
fn make_files(disk: &Path) -> Result<()> {
    let directory = tempfile::tempdir().context("a directory for the guest's files")?;
    let script = format!(
        "find /usr/lib/x86_64-linux-gnu /usr/include -type f -size -8M -printf '%s %p\n' | LC_ALL=C sort -k 2 | \
         awk '{{ sum += $1; if (sum > {}) exit; sub(/^[0-9]+ /, \"\"); print }}' | \
         cpio --quiet -pdm {directory} && mke2fs -q -F -t ext4 -N 65536 -d {directory} {disk}",
        FILES_MIB * MIB,
        directory = directory.path().display(),
        disk = disk.display(),
    );
    let output = Command::new("sh").arg("-c").arg(&script).output().context("sh")?;
    ensure!(output.status.success(), "the guest's files: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

/// One hibernation and all that comes after it.
fn hibernate(guest: &mut Guest, contender: Contender) -> Result<Run> {
    // Everything as before: nothing in swap, the files in memory.
    read_files(guest)?;
    let command = match contender {
        Contender::Kernel { compressor, whole } => {
            let size =
                if whole { guest.config().memory.bytes().to_string() } else { "$(cat /run/image_size)".to_owned() };
            guest.succeed(&format!(
                "echo {compressor} >/sys/module/hibernate/parameters/compressor && \
                 echo {size} >/sys/power/image_size && swapon {SWAP}"
            ))?;
            "sync && echo disk >/sys/power/state".to_owned()
        }
        Contender::Dormouse { policy, .. } => format!("dormouse --config {policy} hibernate --then poweroff --json"),
    };
    let before = cycle::check_workload(guest)?;
    let mut printed = Printed::default();
    let saved = cycle::save(guest, before, &command, &mut |line| printed.look(line))?;
    let command_to_off = saved.to_power_off.as_secs_f64();
    let went_on = cycle::resume(guest, saved, &mut unobserved)?;
    went_on.demand_proofs().map_err(|error| guest.explain(error))?;
    let on_to_tick = went_on.to_first_tick.context("no sign of life")?.as_secs_f64();
    let (image_bytes, pages_saved) = match contender {
        Contender::Dormouse { .. } => {
            let report = went_on.report()?;
            (report.image_bytes, report.stored_pages)
        }
        Contender::Kernel { .. } => {
            ensure!(went_on.output.status == 0, "{:?}", went_on.output);
            printed.kernel()?
        }
    };
    let reread = read_files(guest)?.as_secs_f64();
    if matches!(contender, Contender::Kernel { .. }) {
        guest.succeed(&format!("swapoff {SWAP}"))?;
    }
    Ok(Run { command_to_off, on_to_tick, reread, image_bytes, pages_saved })
}

/// Reads all files, and says how long that took.
fn read_files(guest: &mut Guest) -> Result<Duration> {
    let begin = Instant::now();
    guest.succeed(&format!("find {FILES} -type f -exec cat {{}} + >/dev/null"))?;
    Ok(begin.elapsed())
}

/// What the kernel says of its own hibernation (kernel/power/snapshot.c and swap.c, Linux 6.12).
#[derive(Debug, Default)]
struct Printed {
    pages: Option<u64>,
    kbytes: Option<u64>,
}

impl Printed {
    fn look(&mut self, line: &Line) {
        let number_behind = |mark: &str| {
            let (_, rest) = line.text.split_once(mark)?;
            rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
        };
        self.pages = number_behind("Image created (").or(self.pages);
        self.kbytes = number_behind("Image size after compression: ").or(self.kbytes);
    }

    /// Bytes and pages of its image.
    fn kernel(&self) -> Result<(u64, u64)> {
        match (self.kbytes, self.pages) {
            (Some(kbytes), Some(pages)) if pages * PAGE >= kbytes => Ok((kbytes * 1024, pages)),
            _ => bail!("the kernel's words about its image: {self:?}"),
        }
    }
}
