//! The workload of guest A; see `dormouse_tests::workload`.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use dormouse_tests::workload::{self, Role};

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
        /// The size of the tmpfs file; the anonymous mapping has a quarter of it.
        #[arg(long)]
        megabytes: u64,
    },
    /// Print what they keep as JSON; the status is 0 if all of it holds.
    Check,
    /// Take memory, which must be zero, and give it back.
    FreshMemory {
        /// How much.
        #[arg(long)]
        megabytes: u64,
    },
    /// Be one of the processes.
    #[command(hide = true)]
    Role {
        role: Role,
        #[arg(long)]
        megabytes: u64,
        #[arg(long)]
        seed: u64,
    },
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Start { megabytes } => workload::start(megabytes).map(|()| true),
        Command::Check => check(),
        Command::FreshMemory { megabytes } => workload::fresh::check(megabytes).map(|()| true),
        Command::Role { role, megabytes, seed } => role.run(megabytes, seed).map(|()| true),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("workload: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn check() -> Result<bool> {
    let report = workload::check()?;
    println!("{}", serde_json::to_string_pretty(&report)?);
    Ok(report.ok)
}
