//! The file tier: vmcores of real workloads, saved and restored by every contender on this machine's processor.

mod capture;
mod contenders;
mod database;
mod dormouse;
mod measure;
mod payload;
mod workloads;

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Subcommand;
use dormouse_tests::artifacts::Artifacts;

use crate::Options;
use crate::table::{Table, median};
use contenders::{Contender, Files};
use measure::Cost;
use workloads::Workload;

/// Parts of the tier that run as processes of their own, like the other contenders.
#[derive(Debug, Subcommand)]
#[command(hide = true)]
pub(crate) enum Part {
    /// Save a vmcore into an image; the codec is auto, store or a level of zstd
    #[command(allow_negative_numbers = true)]
    Pack { vmcore: PathBuf, image: PathBuf, codec: String, threads: usize },
    /// Restore an image into a file that stands for memory
    Unpack { image: PathBuf, memory: PathBuf, threads: usize },
    /// Compress a vmcore's pages by the codec alone
    #[command(allow_negative_numbers = true)]
    CompressAlone { vmcore: PathBuf, level: i32, threads: usize },
    /// Decompress a vmcore's pages by the codec alone
    #[command(allow_negative_numbers = true)]
    DecompressAlone { vmcore: PathBuf, memory: PathBuf, level: i32, threads: usize },
}

pub(crate) fn run_part(part: &Part) -> Result<()> {
    let said = match part {
        Part::Pack { vmcore, image, codec, threads } => {
            dormouse::pack(vmcore, image, dormouse::compression(codec)?, *threads)?
        }
        Part::Unpack { image, memory, threads } => dormouse::unpack(image, memory, *threads)?,
        Part::CompressAlone { vmcore, level, threads } => dormouse::compress_alone(vmcore, *level, *threads)?,
        Part::DecompressAlone { vmcore, memory, level, threads } => {
            dormouse::decompress_alone(vmcore, memory, *level, *threads)?
        }
    };
    println!("{}", serde_json::to_string(&said)?);
    Ok(())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    Save,
    Restore,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let artifacts = Artifacts::from_environment()?;
    let runs = options.runs.unwrap_or(5);
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let header = ["workload", "contender", "threads", "direction", "ram_mib_s", "bytes_out", "cpu_s", "peak_rss_mib"];
    let mut csv = Table::new(&header);
    for workload in Workload::of(options.quick) {
        // All that a workload needs lies in one folder, which goes when its turn is over.
        let folder = tempfile::Builder::new().prefix("dormouse-bench.").tempdir_in(&options.scratch);
        let folder = folder.with_context(|| format!("{}: no folder can be made in it", options.scratch.display()))?;
        let files = Files { folder: folder.path().to_owned() };
        let memory = workload.memory(options.quick);
        capture::vmcore(workload, memory, &artifacts, &files.vmcore())?;
        Contender::Dormouse("1").save(&files, threads)?;
        let same = dormouse::verify(&files.vmcore(), &files.image(), &files.memory())?;
        eprintln!("==> {}: {same} pages came back as they were", workload.name());
        let contenders = if options.quick { contenders::QUICK } else { contenders::ALL };
        for direction in [Direction::Save, Direction::Restore] {
            let contenders: Vec<Contender> =
                contenders.iter().copied().filter(|one| direction == Direction::Save || one.restores()).collect();
            let mut costs: Vec<Vec<Cost>> = vec![Vec::new(); contenders.len()];
            for number in 0..runs {
                eprintln!("==> {}, {direction:?}: run {} of {runs}", workload.name(), number + 1);
                for (contender, costs) in contenders.iter().zip(&mut costs) {
                    costs.push(match direction {
                        Direction::Save => contender.save(&files, threads)?,
                        Direction::Restore => contender.restore(&files, threads)?,
                    });
                }
            }
            let mut readable =
                Table::new(&["contender", "threads", "RAM MiB/s", "MiB out", "CPU s", "peak MiB", "fastest/slowest s"]);
            for (contender, costs) in contenders.iter().zip(&costs) {
                let of = |value: fn(&Cost) -> f64| median(&costs.iter().map(value).collect::<Vec<_>>());
                let seconds = of(|cost| cost.seconds);
                // Bytes are far below 2^52.
                let (rate, bytes) = (memory.mib as f64 / seconds.max(1e-9), of(|cost| cost.bytes as f64));
                let (cpu, peak) = (of(|cost| cost.cpu_seconds), of(|cost| cost.peak_mib));
                let used = contender.threads(threads).to_string();
                let extreme =
                    |pick: fn(f64, f64) -> f64, from: f64| costs.iter().map(|cost| cost.seconds).fold(from, pick);
                csv.row(vec![
                    workload.name().to_owned(),
                    contender.name(),
                    used.clone(),
                    format!("{direction:?}").to_lowercase(),
                    format!("{rate:.0}"),
                    format!("{bytes:.0}"),
                    format!("{cpu:.3}"),
                    format!("{peak:.1}"),
                ]);
                readable.row(vec![
                    contender.name(),
                    used,
                    format!("{rate:.0}"),
                    format!("{:.0}", bytes / 1_048_576.0),
                    format!("{cpu:.2}"),
                    format!("{peak:.0}"),
                    format!("{:.2}/{:.2}", extreme(f64::min, f64::MAX), extreme(f64::max, 0.0)),
                ]);
            }
            readable.print(&format!(
                "File tier, {}, {memory}: {}, medians of {runs} alternating runs",
                workload.name(),
                if direction == Direction::Save { "save" } else { "restore" },
            ));
        }
    }
    println!(
        "\nInput and output lie in memory (a tmpfs), so no disk is measured. Peak memory is anonymous memory. The bound is \
         zstd alone over the pages that Dormouse stores, from memory to memory. Restores by Dormouse and the bound go to \
         memory that is there already, as D's do; those of the others into files. CPU seconds of a restore by Dormouse, of \
         the bounds include making that memory and what is restored."
    );
    csv.write_csv(&options.output.join("file.csv"))
}
