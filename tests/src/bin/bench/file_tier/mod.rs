//! The file tier: vmcores of real workloads, saved and restored by every contender on this machine's processor.

mod capture;
mod database;
mod payload;
mod workloads;

use anyhow::{Context, Result};
use clap::Subcommand;
use dormouse_tests::artifacts::Artifacts;

use crate::Options;
use workloads::Workload;

/// Parts of the tier that run as processes of their own, like the other contenders.
#[derive(Debug, Subcommand)]
pub(crate) enum Part {
    /// Puts a workload's vmcore into a file, capturing it where there is none yet
    Capture { workload: Workload, mib: u64, output: std::path::PathBuf },
}

pub(crate) fn run_part(part: &Part) -> Result<()> {
    match part {
        Part::Capture { workload, mib, output } => {
            let artifacts = Artifacts::from_environment()?;
            capture::vmcore(*workload, dormouse_tests::machine::MemorySize { mib: *mib }, &artifacts, output)
        }
    }
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let artifacts = Artifacts::from_environment()?;
    for workload in Workload::ALL {
        let path = options.scratch.join(workload.name());
        capture::vmcore(workload, workload.memory(options.quick), &artifacts, &path).context("x")?;
    }
    Ok(())
}
