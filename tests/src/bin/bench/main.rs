//! Measures Dormouse beside its peers, in the same run on the same data; `scripts/bench` builds everything and runs
//! this.

mod codec_tier;
mod file_tier;
mod guest_tier;
mod host;
mod page;
mod picture;
mod plot;
mod scale;
mod synthetic;
mod table;
mod timeline;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use dormouse_tests::artifacts::Artifacts;
use dormouse_tests::machine::MemorySize;

use crate::host::Host;

/// Measures Dormouse beside its peers: medians of alternating runs, as Markdown on stdout, as CSV files, and all on one
/// page, index.html.
///
/// The file tier saves and restores vmcores of real workloads on this machine's CPUs. The guest tier hibernates
/// whole guests under emulation, by Dormouse in each of its ways and by the kernel, and draws where the time goes. The
/// scaling tier varies CPUs, memory and how much of it is free. The select tier has page selection alone, on the
/// vmcores of machines of up to 1 TiB that are made up. The codec tier saves to devices of different speeds.
#[derive(Debug, Parser)]
#[command(name = "scripts/bench", args_conflicts_with_subcommands = true)]
pub(crate) struct Options {
    /// Smaller guests, fewer workloads and contenders: about 15 minutes
    #[arg(long)]
    pub(crate) quick: bool,
    /// What to measure [default: file, guest and select with --quick, everything otherwise]
    #[arg(long, value_enum, value_delimiter = ',')]
    pub(crate) tier: Vec<Tier>,
    /// Whose memory the file tier packs [default: compile and database with --quick, all otherwise]
    #[arg(long, value_enum, value_delimiter = ',')]
    pub(crate) workload: Vec<file_tier::Workload>,
    /// How large the guest tier's guests are [default: 1G with --quick, 1G and 4G otherwise]
    #[arg(long, value_delimiter = ',')]
    pub(crate) memory: Vec<MemorySize>,
    /// Only these contenders of the guest tier [default: all, some with --quick]
    #[arg(long, value_delimiter = ',')]
    pub(crate) contender: Vec<String>,
    /// How often each contender runs [default: 5 in the file tier; in the others 3 with --quick, 5 otherwise]
    #[arg(long)]
    pub(crate) runs: Option<usize>,
    /// The guests' kernel: a series of Linux, as in 6.12 or 7.2, which is built; or a directory of one
    #[arg(long, default_value = "6.12")]
    kernel: String,
    /// Where the page, the CSV files and the pictures go
    #[arg(long, default_value = "target/bench")]
    pub(crate) output: PathBuf,
    /// Where vmcores and dumps go; a tmpfs, or the disk's speed is measured with everything else
    #[arg(long, default_value = "/dev/shm", overrides_with = "scratch")]
    pub(crate) scratch: PathBuf,
    /// What the file tier runs as processes of their own, like its other contenders.
    #[command(subcommand)]
    part: Option<file_tier::Part>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Tier {
    File,
    Guest,
    Scale,
    Select,
    Codec,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("scripts/bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<()> {
    if let Some(part) = &options.part {
        return file_tier::run_part(part);
    }
    std::fs::create_dir_all(&options.output)
        .with_context(|| format!("{}: cannot be made", options.output.display()))?;
    let tiers = match options.tier.as_slice() {
        [] if options.quick => vec![Tier::File, Tier::Guest, Tier::Select],
        [] => vec![Tier::File, Tier::Guest, Tier::Scale, Tier::Select, Tier::Codec],
        some => some.to_vec(),
    };
    let mut host = Host::at_begin(Artifacts::from_environment()?.release());
    let mut sections = Vec::new();
    // What a tier that fails leaves is the page of those before it, and not the page of another run.
    let ended = tiers.into_iter().try_for_each(|tier| -> Result<()> {
        sections.push(match tier {
            Tier::File => file_tier::run(options)?,
            Tier::Guest => guest_tier::run(options)?,
            Tier::Scale => scale::run(options)?,
            Tier::Select => synthetic::run(options)?,
            Tier::Codec => codec_tier::run(options)?,
        });
        Ok(())
    });
    host.end(ended.as_ref().err());
    let path = options.output.join("index.html");
    std::fs::write(&path, page::html(&host, &sections))
        .with_context(|| format!("{}: cannot be written", path.display()))?;
    eprintln!("everything on one page: {}", path.display());
    ended
}
