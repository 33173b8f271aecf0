//! The same session hibernated in turn by the kernel itself and by Dormouse, in each of its ways, from working state to
//! working state.
//!
//! One guest is booted once, by GRUB, with a disk for Dormouse's image, one for swap, and one with files that the
//! session has read. Each run hibernates it, powers it on again, waits for the workload's first sign of life, and reads
//! the files again.

use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use dormouse::handoff::report::Half;
use dormouse_tests::artifacts::Artifacts;
use dormouse_tests::console::Line;
use dormouse_tests::cycle;
use dormouse_tests::guest::Guest;
use dormouse_tests::machine::{BootLoader, Disk, DiskKind, GuestConfig, MIB, MemorySize, image_disk_bytes};
use dormouse_tests::nbd_server::Server;
use dormouse_tests::tap::Tap;
use dormouse_tests::userland::{GuestPolicy, POLICY_ARGUMENT, POLICY_PATH, Userland};
use tempfile::NamedTempFile;

use crate::Options;
use crate::page::Section;
use crate::picture::{self, Bar};
use crate::table::{Table, median_of, range_of};
use crate::timeline::{Stage, Timeline};

/// Where the guest mounts the disk with files, and how much is on it.
const FILES: &str = "/run/files";
const FILES_MIB: u64 = 320;

/// The disks, in their order: Dormouse's image, swap, files.
const SWAP: &str = "/dev/vdb";
const FILES_DISK: &str = "/dev/vdc";

/// The first has a serial number, as real disks do, and the policy says which: a disk without one is only taken when
/// nothing else has turned up for half a second.
const IMAGE_SERIAL: &str = "image";

const PAGE: u64 = 4096;

/// Who hibernates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Contender {
    /// The kernel's own hibernation, with this compressor; `whole` lets the image have the size of memory, otherwise it
    /// is the default of two fifths, and the kernel gives up page cache and swaps out until that fits.
    Kernel { compressor: &'static str, whole: bool },
    /// Dormouse.
    Dormouse(Way),
    /// QEMU itself, from outside: it writes the machine's state to a file and goes on from there.
    Emulator,
}

/// A way of Dormouse's, with a policy of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Way {
    name: &'static str,
    compression: &'static str,
    verify: &'static str,
    /// What the session gives up first.
    shrink: Give,
    /// Whether a save kernel waits.
    warm: bool,
    /// Whether the boot loader starts the restore kernel.
    direct: bool,
    /// Whether a server on the host has the image, by NBD, and not a disk.
    nbd: bool,
}

/// What the session gives up before it is saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Give {
    Nothing,
    Cache,
    /// All but a quarter of the guest's memory, by swapping out too where caches are not enough: there is swap then.
    AllButAQuarter,
}

const COLD: Way = Way {
    name: "dormouse",
    compression: "auto",
    verify: "off",
    shrink: Give::Nothing,
    warm: false,
    direct: false,
    nbd: false,
};
const DIRECT: Way = Way { name: "dormouse direct", direct: true, ..COLD };
const BOTH: Way = Way { name: "dormouse warm direct", warm: true, direct: true, ..COLD };

const CONTENDERS: &[Contender] = &[
    Contender::Dormouse(COLD),
    Contender::Kernel { compressor: "lzo", whole: false },
    Contender::Dormouse(BOTH),
    Contender::Kernel { compressor: "lz4", whole: false },
    // Not with --quick, which has little time and takes the kernel's quickest two.
    Contender::Dormouse(Way { name: "dormouse warm", warm: true, ..COLD }),
    Contender::Kernel { compressor: "lzo", whole: true },
    Contender::Dormouse(DIRECT),
    Contender::Kernel { compressor: "lz4", whole: true },
    Contender::Dormouse(Way { name: "dormouse nbd", nbd: true, ..COLD }),
    Contender::Dormouse(Way { name: "dormouse shrink cache", shrink: Give::Cache, ..COLD }),
    Contender::Dormouse(Way { name: "dormouse shrink quarter", shrink: Give::AllButAQuarter, ..COLD }),
    Contender::Dormouse(Way { name: "dormouse zstd 1", compression: "zstd", ..COLD }),
    Contender::Dormouse(Way { name: "dormouse verify checksum", verify: "checksum", ..COLD }),
    Contender::Dormouse(Way { name: "dormouse verify memory", verify: "memory", ..COLD }),
    Contender::Emulator,
];

/// How many of them take part with --quick.
const QUICK: usize = 4;

impl Contender {
    fn name(self) -> String {
        match self {
            Contender::Kernel { compressor, whole } => {
                format!("kernel {compressor}, image_size {}", if whole { "max" } else { "default" })
            }
            Contender::Dormouse(way) => way.name.to_owned(),
            Contender::Emulator => "QEMU migration to a file".to_owned(),
        }
    }

    /// Whether there is swap while it hibernates.
    fn swaps(self) -> bool {
        match self {
            Contender::Kernel { .. } => true,
            Contender::Dormouse(way) => way.shrink == Give::AllButAQuarter,
            Contender::Emulator => false,
        }
    }

    /// The same without what a table of comma-separated values cannot have.
    fn plain_name(self) -> String {
        self.name().replace(',', "")
    }
}

impl Way {
    /// Where the guest has its policy.
    fn path(self) -> String {
        if self == COLD { POLICY_PATH.to_owned() } else { format!("/etc/{}.toml", self.name.replace(' ', "-")) }
    }

    /// With the image on this disk, or with this server.
    fn policy(self, disk: &str, server: &str, memory: MemorySize) -> GuestPolicy {
        let Way { compression, verify, shrink, warm, direct, nbd, .. } = self;
        let shrink = match shrink {
            Give::Nothing => "none".to_owned(),
            Give::Cache => "cache".to_owned(),
            Give::AllButAQuarter => format!("{}M", memory.mib / 4),
        };
        let image = match nbd {
            true => format!("device = \"{server}\"\ntrust_server = true\n"),
            false => format!("device = \"{disk}\"\ndisk = \"virtio serial={IMAGE_SERIAL}\"\n"),
        };
        let text = format!(
            "[image]\n{image}\
             [save]\ncompression = \"{compression}\"\nverify = \"{verify}\"\nshrink = \"{shrink}\"\nwarm = {warm}\n\
             [resume]\ndirect = {direct}\n"
        );
        GuestPolicy { path: self.path(), text }
    }
}

/// What one run measured.
#[derive(Debug, Clone)]
struct Run {
    stages: Vec<(Stage, f64)>,
    command_to_off: f64,
    on_to_tick: f64,
    reread: f64,
    image_bytes: u64,
    pages_saved: u64,
    /// What B and D say of themselves.
    halves: Option<(Half, Half)>,
    /// Of QEMU's own state: whether each page has a place of its own in it.
    is_mapped: Option<bool>,
}

impl Run {
    /// From working state to working state.
    fn sum(&self) -> f64 {
        self.command_to_off + self.on_to_tick + self.reread
    }
}

pub(crate) fn run(options: &Options) -> Result<Section> {
    let runs = options.runs.unwrap_or(if options.quick { 3 } else { 5 });
    let artifacts = Artifacts::from_environment()?;
    let memories: Vec<MemorySize> = match options.memory.as_slice() {
        [] if options.quick => vec!["1G".parse()?],
        [] => vec!["1G".parse()?, "4G".parse()?],
        some => some.to_vec(),
    };
    let contenders: Vec<Contender> = match options.contender.as_slice() {
        [] if options.quick => CONTENDERS[..QUICK].to_vec(),
        [] => CONTENDERS.to_vec(),
        names => CONTENDERS.iter().filter(|one| names.contains(&one.plain_name())).copied().collect(),
    };
    ensure!(!contenders.is_empty(), "there is no such contender: {}", list_of(CONTENDERS));
    let mut tables = Tables::new();
    let mut section = Section::new(
        "Whole hibernations",
        "One guest, hibernated by each contender in turn and powered on again. Its memory is the host's before it is\n\
         powered on, so that the host's page faults are nobody's.",
    );
    let mut is_mapped = None;
    for memory in memories {
        let workload = format!("session and files {memory}");
        let (mut guest, _far) = start(&artifacts, memory, &contenders)?;
        let contenders = those_of(&mut guest, &contenders)?;
        let mut results: Vec<Vec<Run>> = vec![Vec::new(); contenders.len()];
        for number in 0..runs {
            // Another one begins each time, so that none always follows the same one.
            for place in 0..contenders.len() {
                let turn = (place + number) % contenders.len();
                let (contender, results) = (contenders[turn], &mut results[turn]);
                let run = hibernate(&mut guest, contender)
                    .with_context(|| format!("{workload}, {}, run {}", contender.name(), number + 1))?;
                eprintln!("{workload}, run {}: {}: {run:.2?}", number + 1, contender.name());
                results.push(run);
            }
        }
        let mut bars = Vec::new();
        is_mapped = results.iter().flatten().find_map(|run| run.is_mapped).or(is_mapped);
        for (contender, runs) in contenders.iter().zip(&results) {
            tables.add(&workload, *contender, runs);
            if let Some(run) = middle(runs) {
                bars.push(Bar { name: contender.name(), stages: run.stages.clone() });
            }
        }
        let title = format!(
            "Linux {}, {memory}, 2 CPUs, {FILES_MIB} MiB of files, under emulation: each one's middle run of {runs}",
            artifacts.release()
        );
        let path = options.output.join(format!("guest-{memory}.svg"));
        let svg = picture::svg(&title, &bars);
        std::fs::write(&path, &svg).with_context(|| format!("{}: cannot be written", path.display()))?;
        eprintln!("where the time goes: {}", path.display());
        section.picture(svg);
    }
    let heading = format!("Guest tier: medians of {runs} alternating runs, 2 CPUs, under emulation");
    section.table(&heading, tables.readable);
    section.note(&format!(
        "The sum is from working state to working state: the command, the boot, and reading {FILES_MIB} MiB of files \
         that were in memory before. With its default image_size the kernel gives up page cache, and pays when it is \
         read again; so does Dormouse with save.shrink. Every contender is booted by GRUB.{}",
        about_emulator(is_mapped)
    ));
    tables.results.write_csv(&options.output.join("guest.csv"))?;
    tables.stages.write_csv(&options.output.join("guest-stages.csv"))?;
    Ok(section)
}

/// What is to be known of QEMU's own way, if it took part: whether its state was mapped.
fn about_emulator(is_mapped: Option<bool>) -> String {
    let Some(is_mapped) = is_mapped else { return String::new() };
    let how = match is_mapped {
        true => "with mapped-ram and multifd",
        false => "as one stream: mapped-ram needs QEMU 9.0 or later",
    };
    format!(
        " But for QEMU's migration, which writes the machine's state from outside to a file where the disks are, \
         {how}. It needs no kernel for that: nothing is powered off, and nothing boots."
    )
}

/// What is printed and written.
struct Tables {
    results: Table,
    stages: Table,
    readable: Table,
}

/// What guest.csv says of each contender, before the stages of its middle run.
const RESULTS: [&str; 14] = [
    "workload",
    "contender",
    "command_to_off_s",
    "on_to_tick_s",
    "reread_s",
    "image_bytes",
    "pages_saved",
    "runs",
    "command_to_off_s_min",
    "command_to_off_s_max",
    "on_to_tick_s_min",
    "on_to_tick_s_max",
    "save_s",
    "restore_s",
];

impl Tables {
    fn new() -> Tables {
        Tables {
            results: Table::new(&[&RESULTS[..], &Stage::ALL.map(Stage::column)].concat()),
            stages: Table::new(&["workload", "contender", "stage", "seconds"]),
            readable: Table::new(&[
                "workload",
                "contender",
                "command to off, s",
                "on to tick, s",
                "reread, s",
                "sum, s",
                "image, MiB",
                "pages saved",
                "bytes per page",
            ]),
        }
    }

    fn add(&mut self, workload: &str, contender: Contender, runs: &[Run]) {
        let of = |value: fn(&Run) -> f64| median_of(runs, value);
        // Sizes are far below 2^52.
        let image = of(|run| run.image_bytes as f64);
        let pages = of(|run| run.pages_saved as f64);
        let (off, on, reread) = (of(|run| run.command_to_off), of(|run| run.on_to_tick), of(|run| run.reread));
        // Of the kernel's own there are none.
        let half = |of: fn(&(Half, Half)) -> &Half| {
            let halves: Vec<_> = runs.iter().filter_map(|run| run.halves.as_ref()).collect();
            if halves.is_empty() {
                String::new()
            } else {
                format!("{:.2}", median_of(&halves, |both| of(both).seconds))
            }
        };
        let (off_min, off_max) = range_of(runs, |run| run.command_to_off);
        let (on_min, on_max) = range_of(runs, |run| run.on_to_tick);
        let mut results = vec![
            workload.to_owned(),
            contender.plain_name(),
            format!("{off:.2}"),
            format!("{on:.2}"),
            format!("{reread:.2}"),
            format!("{image:.0}"),
            format!("{pages:.0}"),
            runs.len().to_string(),
            format!("{off_min:.2}"),
            format!("{off_max:.2}"),
            format!("{on_min:.2}"),
            format!("{on_max:.2}"),
            half(|(save, _)| save),
            half(|(_, restore)| restore),
        ];
        results.extend(Stage::ALL.map(|stage| column_of(runs, stage)));
        self.results.row(results);
        self.readable.row(vec![
            workload.to_owned(),
            contender.name(),
            format!("{off:.2}"),
            format!("{on:.2}"),
            format!("{reread:.2}"),
            format!("{:.2}", off + on + reread),
            format!("{:.0}", image / MIB as f64),
            format!("{pages:.0}"),
            format!("{:.0}", image / pages.max(1.0)),
        ]);
        for (stage, seconds) in middle(runs).iter().flat_map(|run| &run.stages) {
            let name = stage.name().replace(',', "");
            self.stages.row(vec![workload.to_owned(), contender.plain_name(), name, format!("{seconds:.2}")]);
        }
    }
}

/// The seconds of a stage in the middle run; nothing where it has none.
fn column_of(runs: &[Run], stage: Stage) -> String {
    let stages = middle(runs).into_iter().flat_map(|run| &run.stages);
    let seconds: Vec<f64> = stages.filter(|(other, _)| *other == stage).map(|(_, seconds)| *seconds).collect();
    if seconds.is_empty() { String::new() } else { format!("{:.2}", seconds.iter().sum::<f64>()) }
}

/// The run whose sum is in the middle, so that its stages add up.
fn middle(runs: &[Run]) -> Option<&Run> {
    let mut sorted: Vec<&Run> = runs.iter().collect();
    sorted.sort_by(|a, b| a.sum().total_cmp(&b.sum()));
    sorted.get(sorted.len() / 2).copied()
}

/// Those of the contenders that this guest's kernel has.
fn those_of(guest: &mut Guest, contenders: &[Contender]) -> Result<Vec<Contender>> {
    let mut there = Vec::new();
    for contender in contenders {
        if let Contender::Kernel { compressor, .. } = contender {
            let output = guest.run(&format!("echo {compressor} >/sys/module/hibernate/parameters/compressor"))?;
            if output.status != 0 {
                eprintln!("without {}: the guest's kernel does not have it", contender.name());
                continue;
            }
        }
        there.push(*contender);
    }
    Ok(there)
}

fn list_of(contenders: &[Contender]) -> String {
    contenders.iter().map(|contender| contender.plain_name()).collect::<Vec<_>>().join("; ")
}

/// A server, what it keeps, and the network to it.
struct Far {
    _server: Server,
    _kept: NamedTempFile,
    _tap: Option<Tap>,
}

/// A guest that is up with everything, and the server of those that need one, which keeps the image where the guest's
/// disks are.
fn start(artifacts: &Artifacts, memory: MemorySize, contenders: &[Contender]) -> Result<(Guest, Far)> {
    let mut config = GuestConfig::new(2, memory);
    let disk = |bytes| Disk { kind: DiskKind::Virtio, bytes };
    config.disks.push(disk(image_disk_bytes(config.memory)));
    config.disks.push(disk(2 * FILES_MIB * MIB));
    (config.boot_loader, config.menu_seconds) = (Some(BootLoader::Grub), Some(0));
    // The host's page faults are nobody's.
    config.memory_is_there = true;
    config.qemu_arguments.extend(["-set".to_owned(), format!("device.disk0-device.serial={IMAGE_SERIAL}")]);
    // The kernel looks for its own image there at every boot, before the initramfs runs.
    config.kernel_arguments.push(format!("resume={SWAP}"));
    let is_needed = contenders.iter().any(|one| matches!(one, Contender::Dormouse(way) if way.nbd));
    let tap = is_needed.then(Tap::create).transpose().unwrap_or_else(|error| {
        eprintln!("the guest's network has packets of 1500 bytes alone: {error:#}");
        None
    });
    config.link = tap.as_ref().map_or_else(|| "user,net=10.0.2.0/24".to_owned(), Tap::netdev);
    let host = tap.as_ref().map_or(Ipv4Addr::LOCALHOST, Tap::host);
    let kept = NamedTempFile::new().context("a file for the server")?;
    kept.as_file().set_len(image_disk_bytes(config.memory))?;
    let server = Server::start_at(host.into(), &["file", &format!("file={}", kept.path().display())])?;
    let (image, export) = (config.disk_path(0)?, server.url_for_guest(""));
    let mut ways: Vec<Way> = contenders
        .iter()
        .filter_map(|contender| match contender {
            Contender::Dormouse(way) => Some(*way),
            Contender::Kernel { .. } | Contender::Emulator => None,
        })
        .collect();
    // The boots go by the first, and setup by both, whoever takes part.
    let missing = [COLD, DIRECT].into_iter().filter(|way| !ways.contains(way)).collect::<Vec<_>>();
    ways.extend(missing);
    let policies = ways.iter().map(|way| way.policy(&image, &export, memory));
    let userland = Userland { policies: policies.collect(), ..Userland::default() };
    let mut guest = Guest::new(config, &userland, artifacts)?;
    make_files(&guest.disk_file(2))?;
    guest.boot()?;
    while !cycle::is_beside_the_region(&mut guest)? {
        // It would go the way of the others.
        eprintln!("the guest's kernel is where the boot loader will put the restore kernel: booting again");
        guest.cut_power();
        guest.boot()?;
    }
    cycle::init_image(&mut guest, &image)?;
    cycle::init_image(&mut guest, &export)?;
    if contenders.iter().any(|one| matches!(one, Contender::Dormouse(way) if way.direct)) {
        guest.succeed(&format!("dormouse --config {} setup --direct", DIRECT.path()))?;
    }
    guest.succeed(&format!(
        "mount -t cgroup2 cgroup2 /sys/fs/cgroup && mkswap {SWAP} && swapon {SWAP} && \
         mkdir -p {FILES} && mount -t ext4 {FILES_DISK} {FILES} && \
         cat /sys/power/image_size >/run/image_size && echo shutdown >/sys/power/disk"
    ))?;
    // It swaps out a part of itself whenever there is swap, if there is when it starts.
    cycle::start_workload(&mut guest)?;
    guest.succeed(&format!("swapoff {SWAP}"))?;
    Ok((guest, Far { _server: server, _kept: kept, _tap: tap }))
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
        Contender::Emulator => return by_emulator(guest),
        Contender::Kernel { compressor, whole } => {
            let size =
                if whole { guest.config().memory.bytes().to_string() } else { "$(cat /run/image_size)".to_owned() };
            guest.succeed(&format!(
                "echo {compressor} >/sys/module/hibernate/parameters/compressor && \
                 echo {size} >/sys/power/image_size && swapon {SWAP}"
            ))?;
            "sync && echo disk >/sys/power/state".to_owned()
        }
        Contender::Dormouse(way) => {
            if way.warm {
                cycle::warm(guest, &way.path())?;
            }
            if contender.swaps() {
                guest.succeed(&format!("swapon {SWAP}"))?;
            }
            // The boot has looked for the image on the disk alone.
            let trust = if way.nbd { "--trust-boot" } else { "" };
            format!("dormouse --config {} hibernate --then poweroff --json {trust}", way.path())
        }
    };
    let before = cycle::check_workload(guest)?;
    let mut printed = Printed::default();
    let (begin, mut off) = (Instant::now(), Timeline::begin(Stage::Prepare));
    let saved = cycle::save(guest, before, &command, &mut |line| {
        printed.look(line);
        off.look(line);
    })?;
    let command_to_off = saved.to_power_off;
    let mut stages = off.seconds_until(begin + command_to_off);
    // A boot that is the kernel's own to resume does not look for an image of Dormouse's first.
    let arguments = guest.config().kernel_arguments.clone();
    match contender {
        Contender::Kernel { .. } => guest.add_kernel_argument("rescue"),
        Contender::Dormouse(way) if way.nbd => {
            guest.add_kernel_argument(&format!("{POLICY_ARGUMENT}={}", way.path()));
        }
        Contender::Dormouse(_) | Contender::Emulator => {}
    }
    let mut on = Timeline::begin(Stage::Firmware);
    let went_on = cycle::resume(guest, saved, &mut |line| on.look(line))?;
    guest.set_kernel_arguments(arguments);
    went_on.demand_proofs().map_err(|error| guest.explain(error))?;
    let on_to_tick = went_on.to_first_tick.context("no sign of life")?;
    let begin = guest.powered_on_at();
    stages.extend(on.begun_at(begin).seconds_until(begin + on_to_tick));
    let (image_bytes, pages_saved, halves) = match contender {
        Contender::Dormouse(way) => {
            let report = went_on.report()?;
            // What it measures is what it is called.
            let was_warm = report.before.as_ref().is_some_and(|before| before.warm);
            let had_c = stages.iter().any(|(stage, _)| *stage == Stage::BootC);
            ensure!(
                was_warm == way.warm && had_c != way.direct,
                "it went another way: {:#}",
                guest.explain(anyhow!("{stages:?}"))
            );
            if way.warm {
                guest.succeed("kill $(cat /run/keeper); while [ -e /run/dormouse/warm ]; do sleep 0.1; done")?;
            }
            let restore = report.restore.context("nothing of the restore")?;
            (report.image_bytes, report.stored_pages, Some((report.save, restore)))
        }
        Contender::Kernel { .. } | Contender::Emulator => {
            ensure!(went_on.output.status == 0, "{:?}", went_on.output);
            let (image_bytes, pages_saved) = printed.kernel()?;
            (image_bytes, pages_saved, None)
        }
    };
    let reread = read_files(guest)?.as_secs_f64();
    stages.push((Stage::Reread, reread));
    if contender.swaps() {
        guest.succeed(&format!("swapoff {SWAP}"))?;
    }
    let (command_to_off, on_to_tick) = (command_to_off.as_secs_f64(), on_to_tick.as_secs_f64());
    Ok(Run { stages, command_to_off, on_to_tick, reread, image_bytes, pages_saved, halves, is_mapped: None })
}

/// What QEMU does in the place of a hibernation.
fn by_emulator(guest: &mut Guest) -> Result<Run> {
    // Where the guest's disks are.
    let state = NamedTempFile::new().context("a file for the machine's state")?;
    let done = cycle::by_emulator(guest, state.path())?;
    let metadata = state.as_file().metadata().context("the machine's state")?;
    // Where each page has a place of its own, those that are not in it are holes.
    let image_bytes = metadata.len().min(metadata.blocks() * 512);
    let (command_to_off, on_to_tick) = (done.to_power_off.as_secs_f64(), done.to_first_tick.as_secs_f64());
    let reread = read_files(guest)?.as_secs_f64();
    let stages = vec![(Stage::Write, command_to_off), (Stage::Read, on_to_tick), (Stage::Reread, reread)];
    let pages_saved = done.saved.pages;
    let is_mapped = Some(done.saved.is_mapped);
    Ok(Run { stages, command_to_off, on_to_tick, reread, image_bytes, pages_saved, halves: None, is_mapped })
}

/// Reads all files, and says how long that took.
fn read_files(guest: &mut Guest) -> Result<Duration> {
    let begin = Instant::now();
    guest.succeed(&format!("find {FILES} -type f -exec cat {{}} + >/dev/null"))?;
    Ok(begin.elapsed())
}

/// What the kernel says of its own hibernation: how much it wrote before compression, and what that became
/// (kernel/power/hibernate.c, `swsusp_show_speed`, and swap.c, Linux 6.12 and 7.2).
#[derive(Debug, Default)]
struct Printed {
    wrote: Option<u64>,
    kbytes: Option<u64>,
}

impl Printed {
    fn look(&mut self, line: &Line) {
        let number_behind = |mark: &str| {
            let (_, rest) = line.text.split_once(mark)?;
            rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
        };
        self.wrote = number_behind("Wrote ").or(self.wrote);
        self.kbytes = number_behind("Image size after compression: ").or(self.kbytes);
    }

    /// Bytes and pages of its image.
    fn kernel(&self) -> Result<(u64, u64)> {
        match (self.kbytes, self.wrote) {
            (Some(kbytes), Some(wrote)) if wrote > 0 => Ok((kbytes * 1024, wrote * 1024 / PAGE)),
            _ => bail!("the kernel's words about its image: {self:?}"),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn run(write: f64) -> Run {
        Run {
            stages: vec![(Stage::Prepare, 0.5), (Stage::Write, write), (Stage::Read, 1.0), (Stage::Reread, 0.25)],
            command_to_off: 0.5 + write,
            on_to_tick: 1.0,
            reread: 0.25,
            image_bytes: 2 * MIB,
            pages_saved: 512,
            halves: None,
            is_mapped: None,
        }
    }

    #[test]
    fn a_contender_has_one_row_with_every_stage_of_its_middle_run() {
        let runs = [run(9.0), run(2.0), run(3.0)];
        let of = |stage| column_of(&runs, stage);
        assert_eq!([of(Stage::Prepare), of(Stage::Write), of(Stage::BootC)], ["0.50", "3.00", ""]);
        let mut tables = Tables::new();
        tables.add("session", Contender::Kernel { compressor: "lzo", whole: true }, &runs);
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("guest.csv");
        tables.results.write_csv(&path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split(',').collect()).collect();
        assert_eq!(rows.len(), 2, "{text}");
        assert_eq!((rows[0].len(), rows[1].len()), (RESULTS.len() + Stage::ALL.len(), rows[0].len()), "{text}");
        let write = rows[0].iter().position(|name| *name == "write_s").unwrap();
        assert_eq!(rows[1][write], "3.00");
    }

    #[test]
    fn the_note_says_which_way_qemu_went() {
        assert_eq!(about_emulator(None), "");
        assert!(about_emulator(Some(true)).contains("with mapped-ram"));
        assert!(about_emulator(Some(false)).contains("needs QEMU 9.0"));
    }
}
