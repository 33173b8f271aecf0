//! The file tier: vmcores of real workloads, packed and unpacked by every contender on this machine's CPUs.
//!
//! ```text
//!   workloads ──> capture ──> a vmcore, kept from run to run
//!      payload, database          │
//!                                 v
//!   contenders ──────────────> measure ──> medians
//!      dormouse, bound: parts of this program as processes of their own
//! ```

mod bound;
mod capture;
mod contenders;
mod database;
mod dormouse;
mod measure;
mod payload;
mod verify;
mod workloads;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Subcommand;
use contenders::{Contender, Files};
use dormouse_tests::artifacts::Artifacts;
use dormouse_tests::machine::MemorySize;
use dormouse_tests::synthetic::Synthetic;
use measure::Measurement;

use crate::Options;
use crate::page::Section;
use crate::plot;
use crate::table::{Table, median_of, range_of};
pub(crate) use measure::{anonymous_kib, cpu_seconds};
pub(crate) use workloads::Workload;

const PAGE: usize = 4096;

/// A contender that has packed one vmcore for this long is out of turns: with fewer CPUs than threads that spin,
/// makedumpfile can take minutes where others take a second.
const PATIENCE: [Duration; 2] = [Duration::from_secs(180), Duration::from_secs(30)];

/// What is printed above the tables.
const NOTE: &str = "
Each contender packs the same vmcore from a tmpfs into a file on it, and unpacks that again; they take turns, and
medians are shown. MiB/s are of the guest's whole memory, whatever is left out of it. The disk's speed is deliberately
no part of this.

- Peak memory is anonymous memory; mapped files are page cache and not counted.
- Dormouse unpacks into memory that is mapped and touched before the clock starts, as it is in a restore kernel. The
  others unpack into a new file, whose pages the tmpfs has to find and clear.
- makedumpfile 1.7.2 packs single pages, its -d 1 leaves out pages of zeroes, -d 17 free pages too, which is what
  Dormouse leaves out. It has no way back from its format. Its --num-threads also has a thread that spins.
- Dormouse packs into an image that is there, as its place on a disk is; the others make their files.
- `codec alone` is the bound: the same pages as Dormouse's, from memory to memory, without filter, checksum or file.
  `memcpy` only copies them.";

/// Parts of the tier that run as processes of their own, like the other contenders.
#[derive(Debug, Subcommand)]
pub(crate) enum Part {
    /// Saves a vmcore to an image in a file
    #[command(hide = true)]
    Pack {
        vmcore: PathBuf,
        image: PathBuf,
        #[arg(long)]
        codec: dormouse::Codec,
        #[arg(long)]
        threads: usize,
        #[arg(long)]
        sealed: bool,
    },
    /// Restores an image into memory
    #[command(hide = true)]
    Unpack {
        image: PathBuf,
        /// A directory on a tmpfs for a file that stands for the memory
        #[arg(long)]
        scratch: PathBuf,
        #[arg(long)]
        threads: usize,
        #[arg(long)]
        sealed: bool,
        /// The vmcore to compare with
        #[arg(long)]
        compare: Option<PathBuf>,
    },
    /// Runs zstd alone over the pages of a vmcore that Dormouse stores
    #[command(hide = true)]
    Codec {
        half: bound::Half,
        vmcore: PathBuf,
        #[arg(long, allow_hyphen_values = true)]
        level: i32,
        #[arg(long)]
        threads: usize,
    },
    /// Selects the pages of a vmcore
    #[command(hide = true)]
    Select {
        vmcore: PathBuf,
        #[arg(long)]
        threads: usize,
    },
    /// Makes up the vmcore of a machine
    #[command(hide = true)]
    MakeUp {
        vmcore: PathBuf,
        #[arg(long)]
        gib: u64,
        #[arg(long)]
        used_percent: u64,
    },
}

pub(crate) fn run_part(part: &Part) -> Result<()> {
    match part {
        Part::Pack { vmcore, image, codec, threads, sealed } => {
            dormouse::pack(vmcore, image, *codec, *threads, *sealed)
        }
        Part::Unpack { image, scratch, threads, sealed, compare } => {
            dormouse::unpack(image, scratch, *threads, *sealed, compare.as_deref())
        }
        Part::Codec { half, vmcore, level, threads } => bound::run(*half, vmcore, *level, *threads),
        Part::Select { vmcore, threads } => crate::synthetic::select(vmcore, *threads),
        Part::MakeUp { vmcore, gib, used_percent } => {
            let (gib, used_percent) = (*gib, *used_percent);
            Synthetic { gib, used_percent, seed: gib }.write(vmcore).map(|_| ())
        }
    }
}

/// What the runs of one contender took.
#[derive(Debug, Default)]
struct Runs {
    pack: Vec<Measurement>,
    unpack: Vec<Measurement>,
}

pub(crate) fn run(options: &Options) -> Result<Section> {
    let artifacts = Artifacts::from_environment()?;
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let scratch = tempfile::Builder::new().prefix("dormouse-bench.").tempdir_in(&options.scratch);
    let scratch = scratch.with_context(|| format!("{}: no directory can be made in it", options.scratch.display()))?;
    let patience = PATIENCE[usize::from(options.quick)];
    let file = |name| scratch.path().join(name);
    let files = Files {
        vmcore: file("vmcore"),
        packed: file("packed"),
        restored: file("restored"),
        scratch: scratch.path().to_owned(),
    };
    let mut csv = Table::new(&[
        "workload",
        "contender",
        "threads",
        "direction",
        "ram_mib_s",
        "bytes_out",
        "cpu_s",
        "peak_rss_mib",
        "runs",
        "ram_mib_s_min",
        "ram_mib_s_max",
    ]);
    println!("\n## Files\n{NOTE}");
    let mut section = Section::new("Files", NOTE.trim());
    let chosen = if options.workload.is_empty() { workloads::chosen(options.quick) } else { &options.workload };
    for &workload in chosen {
        let memory = workload.memory(options.quick);
        capture::vmcore(workload, memory, &artifacts, &files.vmcore)?;
        let contenders = contenders::all(options.quick);
        let kinds = verify::verify(&contenders, &files, threads)
            .with_context(|| format!("the check of {}, {memory}", workload.name()))?;
        let mut results: Vec<Runs> = contenders.iter().map(|_| Runs::default()).collect();
        for number in 1..=options.runs.unwrap_or(5) {
            eprintln!("==> {}, {memory}: run {number}", workload.name());
            for (contender, runs) in contenders.iter().zip(&mut results) {
                if runs.pack.iter().map(|run| run.seconds).sum::<f64>() > patience.as_secs_f64() {
                    continue;
                }
                match turn(*contender, &files, threads, runs) {
                    // A peer that fails has its row, with the runs that it ended.
                    Err(error) if contender.is_peer() => {
                        eprintln!("{}: {error:#}; this run does not count", contender.name());
                        clean(&files)?;
                    }
                    result => result.with_context(|| contender.name())?,
                }
            }
        }
        let mut table = Table::new(&[
            "contender",
            "threads",
            "runs",
            "pack, MiB/s",
            "output, MiB",
            "CPU, s",
            "peak, MiB",
            "unpack, MiB/s",
            "CPU, s",
            "peak, MiB",
        ]);
        for (contender, runs) in contenders.iter().zip(&results) {
            report(workload, memory, *contender, threads, &kinds, runs, &mut csv, &mut table);
        }
        section.table(&format!("{}, {memory} ({})", workload.name(), workload.about()), table);
        plots(workload, kinds.total, &contenders, &results, &mut section);
        for cost in costs_of_sealing(&contenders, &results) {
            section.note(&cost);
        }
        section.note(&format!(
            "{} pages: {} stored, {} of zeroes, {} free.",
            kinds.total,
            kinds.stored,
            kinds.total - kinds.stored - kinds.free,
            kinds.free
        ));
        for (contender, runs) in contenders.iter().zip(&results) {
            if *contender == Contender::Memcpy && !runs.pack.is_empty() {
                let what = format!("copies of memory ({})", workload.name());
                section.fact(&what, format!("{:.0} MiB/s on {threads} threads", copied_mib_s(&runs.pack)));
            }
        }
    }
    csv.write_csv(&options.output.join("file.csv"))?;
    Ok(section)
}

/// How fast each contender is in both directions, and how small what it makes is.
fn plots(workload: Workload, pages: u64, contenders: &[Contender], results: &[Runs], section: &mut Section) {
    let bars = |value: &dyn Fn(&Runs) -> Option<f64>| -> Vec<(String, f64)> {
        let named = contenders.iter().zip(results);
        named.filter_map(|(contender, runs)| Some((contender.name(), value(runs)?))).collect()
    };
    let speed = |runs: &[Measurement]| (!runs.is_empty()).then(|| median_of(runs, |run| mib_of(pages) / run.seconds));
    let (name, unit) = (workload.name(), "MiB of memory a second");
    section.picture(plot::bars(&format!("{name}: packing"), unit, &bars(&|runs| speed(&runs.pack))));
    section.picture(plot::bars(&format!("{name}: unpacking"), unit, &bars(&|runs| speed(&runs.unpack))));
    let size = |runs: &Runs| {
        let bytes = median_of(&runs.pack, |run| run.bytes.unwrap_or(0) as f64);
        (bytes > 0.0).then_some(bytes / f64::from(1 << 20))
    };
    section.picture(plot::bars(&format!("{name}: what is written"), "MiB", &bars(&size)));
}

/// The MiB of so many pages.
fn mib_of(pages: u64) -> f64 {
    // Far below 2^52.
    (pages * PAGE as u64) as f64 / f64::from(1 << 20)
}

/// How much a second was written; as much was read.
fn copied_mib_s(runs: &[Measurement]) -> f64 {
    // Far below 2^52.
    median_of(runs, |run| run.bytes.unwrap_or(0) as f64 / f64::from(1 << 20) / run.seconds)
}

/// Says, for each contender that is also there sealed, how its speed is then.
fn costs_of_sealing(contenders: &[Contender], results: &[Runs]) -> Vec<String> {
    let of = |wanted: Contender| {
        let found = contenders.iter().zip(results).find(|(contender, _)| **contender == wanted);
        found.map(|(_, runs)| runs)
    };
    let cost = |contender: &Contender| {
        let (plain, sealed) = of(*contender).zip(contender.sealed().and_then(of))?;
        let ratio = |of: fn(&Runs) -> &Vec<Measurement>| {
            median_of(of(plain), |run| run.seconds) / median_of(of(sealed), |run| run.seconds)
        };
        let (pack, unpack) = (ratio(|runs| &runs.pack), ratio(|runs| &runs.unpack));
        Some(format!("{} sealed: {pack:.2} times the speed to pack, {unpack:.2} to unpack.", contender.name()))
    };
    contenders.iter().filter_map(cost).collect()
}

/// One turn of one contender.
fn turn(contender: Contender, files: &Files, threads: usize, runs: &mut Runs) -> Result<()> {
    contender.prepare(files)?;
    let mut pack = measure::measure(&mut contender.pack(files, threads)?)?;
    if pack.bytes.is_none() {
        pack.bytes = Some(std::fs::metadata(&files.packed).context("the packed file")?.len());
    }
    runs.pack.push(pack);
    if let Some(mut command) = contender.unpack(files, threads)? {
        runs.unpack.push(measure::measure(&mut command)?);
    }
    clean(files)
}

/// Removes what a turn has left.
fn clean(files: &Files) -> Result<()> {
    for path in [&files.packed, &files.restored] {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("{}: cannot be removed", path.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

#[expect(clippy::too_many_arguments, reason = "a row is made of all that is known of it")]
fn report(
    workload: Workload,
    memory: MemorySize,
    contender: Contender,
    threads: usize,
    kinds: &verify::Kinds,
    runs: &Runs,
    csv: &mut Table,
    table: &mut Table,
) {
    // All of these are far below 2^52.
    let mib = mib_of(kinds.total);
    let bytes = median_of(&runs.pack, |run| run.bytes.unwrap_or(0) as f64);
    let is_bound = matches!(contender, Contender::Codec(_) | Contender::Memcpy);
    let (pack_threads, unpack_threads) = contender.threads(threads);
    let mut cells = vec![contender.name(), pack_threads.to_string(), runs.pack.len().to_string()];
    for (direction, threads, runs) in [("pack", pack_threads, &runs.pack), ("unpack", unpack_threads, &runs.unpack)] {
        if runs.is_empty() {
            cells.extend(["-"; 3].map(str::to_owned));
            continue;
        }
        let (slowest, quickest) = range_of(runs, |run| mib / run.seconds);
        let speed = format!("{:.0}", median_of(runs, |run| mib / run.seconds));
        let cpu = format!("{:.2}", median_of(runs, |run| run.cpu_seconds));
        // The bound has all pages in memory, which says nothing.
        let peak = if is_bound { String::new() } else { format!("{:.0}", median_of(runs, |run| run.peak_mib)) };
        let bytes = if direction == "pack" { bytes } else { mib * f64::from(1 << 20) };
        csv.row(vec![
            format!("{} {memory}", workload.name()),
            contender.name(),
            threads.to_string(),
            direction.to_owned(),
            speed.clone(),
            format!("{bytes:.0}"),
            cpu.clone(),
            peak.clone(),
            runs.len().to_string(),
            format!("{slowest:.0}"),
            format!("{quickest:.0}"),
        ]);
        cells.push(speed);
        if direction == "pack" {
            cells.push(format!("{:.0}", bytes / f64::from(1 << 20)));
        }
        cells.extend([cpu, if is_bound { "-".to_owned() } else { peak }]);
    }
    table.row(cells);
}
