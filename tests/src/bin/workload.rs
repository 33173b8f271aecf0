//! The workload of guest A; see `dormouse_tests::workload`.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use dormouse_tests::workload::{self, Role, Settings, churn};

/// Keeps, in a guest, what only a resume can bring back.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start all processes and wait until they are ready.
    Start {
        #[command(flatten)]
        options: Options,
        /// Also start processes that start others and take memory, all the time.
        #[arg(long)]
        churn: bool,
    },
    /// Print what they keep as JSON; the status is 0 if all of it holds.
    Check,
    /// Take memory, which must be zero, and give it back.
    FreshMemory {
        /// How much.
        #[arg(long)]
        megabytes: u64,
    },
    /// Copy a file by copy_file_range(2), which shares its blocks where the filesystem can.
    Clone { from: PathBuf, to: PathBuf },
    /// Make a device-mapper device, and print its path.
    Map {
        name: String,
        /// Its UUID.
        #[arg(long, default_value = "")]
        uuid: String,
        /// For each of its targets: how long it is in units of 512 bytes, its kind, and its arguments.
        #[arg(required = true)]
        targets: Vec<String>,
    },
    /// Remove a device-mapper device.
    Unmap { name: String },
    /// Mount a filesystem in user space that never answers, and stay.
    SilentFilesystem { directory: PathBuf },
    /// Ask Dormouse's kernel module for what it must refuse.
    ModuleRefusals,
    /// Load by Dormouse's kernel module, with allocations that fail.
    ModuleFailures {
        /// How much.
        #[arg(long)]
        megabytes: u64,
    },
    /// Read and write a range of reserved memory by Dormouse's kernel module.
    Oldmem { start: u64, end: u64 },
    /// Be one of the processes.
    #[command(hide = true)]
    Role {
        role: Role,
        #[command(flatten)]
        options: Options,
        #[arg(long)]
        seed: u64,
    },
    /// Be a process that lives for moments.
    #[command(hide = true)]
    Child {
        #[arg(long)]
        millis: u64,
    },
}

#[derive(Debug, Args)]
struct Options {
    /// The size of the tmpfs file; the anonymous mapping has a quarter of it.
    #[arg(long)]
    megabytes: u64,
    /// A directory in which files are written and checked, all the time.
    #[arg(long)]
    files: Option<PathBuf>,
}

impl Options {
    fn settings(self, churn: bool) -> Settings {
        Settings { megabytes: self.megabytes, churn, files: self.files }
    }
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Start { options, churn } => workload::start(&options.settings(churn)).map(|()| ExitCode::SUCCESS),
        Command::Check => check(),
        Command::FreshMemory { megabytes } => workload::fresh::check(megabytes).map(|()| ExitCode::SUCCESS),
        Command::Clone { from, to } => {
            std::fs::copy(from, to).map(|_| ExitCode::SUCCESS).context("the copy cannot be made")
        }
        Command::Map { name, uuid, targets } => map(&name, &uuid, &targets),
        Command::Unmap { name } => dormouse_sys::device_mapper::remove(&name)
            .map(|()| ExitCode::SUCCESS)
            .context("the device cannot be removed"),
        Command::SilentFilesystem { directory } => workload::silent::serve(&directory).map(|()| ExitCode::SUCCESS),
        Command::ModuleRefusals => workload::module::refusals().map(|()| ExitCode::SUCCESS),
        Command::ModuleFailures { megabytes } => {
            workload::module::failing_allocations(megabytes).map(|()| ExitCode::SUCCESS)
        }
        Command::Oldmem { start, end } => workload::module::oldmem(start, end).map(|()| ExitCode::SUCCESS),
        Command::Role { role, options, seed } => role.run(&options.settings(false), seed).map(|()| ExitCode::SUCCESS),
        Command::Child { millis } => {
            churn::children::child(io::stdin().lock(), io::stdout().lock(), Duration::from_millis(millis))
                .map(ExitCode::from)
                .context("a child")
        }
    };
    done.unwrap_or_else(|error| {
        eprintln!("workload: {error:#}");
        ExitCode::FAILURE
    })
}

fn map(name: &str, uuid: &str, targets: &[String]) -> Result<ExitCode> {
    let pieces = targets.chunks(3).map(|target| match target {
        [sectors, kind, arguments] => Ok((sectors.parse()?, kind.as_str(), arguments.as_str())),
        _ => anyhow::bail!("a target is a length, a kind and arguments"),
    });
    let pieces = pieces.collect::<Result<Vec<_>>>()?;
    let made = dormouse_sys::device_mapper::create(name, uuid, &pieces).context("the device cannot be made")?;
    println!("/dev/dm-{}", made.1);
    Ok(ExitCode::SUCCESS)
}

fn check() -> Result<ExitCode> {
    let report = workload::check()?;
    println!("{}", serde_json::to_string_pretty(&report)?);
    Ok(if report.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
