//! The selection tier: how long page selection takes on machines that are larger than any that is here.
//!
//! The vmcores are made up ([`dormouse_tests::synthetic`]); on them the agent's own selection runs, in a process of its
//! own for each run.

use std::hint::black_box;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use dormouse::cycle::save::select_in;
use dormouse::memory::select::SwapMap;
use dormouse::memory::vmcore::Vmcore;
use dormouse::pipeline::Limits;
use dormouse::pipeline::seams::Fate;
use dormouse_image::PfnRange;
use dormouse_tests::synthetic::Synthetic;
use nix::sys::resource::UsageWho;
use serde::{Deserialize, Serialize};

use crate::Options;
use crate::file_tier::{anonymous_kib, cpu_seconds};
use crate::page::Section;
use crate::table::{Table, median_of};

/// GiB of memory, and the share in use in percent.
const MACHINES: [(u64, u64); 6] = [(16, 5), (64, 5), (256, 5), (1024, 5), (64, 0), (64, 50)];
/// Only those up to this size with `--quick`.
const QUICK_GIB: u64 = 64;

/// What is printed above the table.
const NOTE: &str = "
Made-up machines with Linux 6.12, page cache warm. Mcycles are the milliseconds of CPU time of all threads x GHz, with
the clock of a loop whose length in cycles is known: cores that are idle otherwise share them. Most of them go into page
faults of the file, which the agent in B does not have. Memory is the process's own at the end, without
the pages of the file that it has mapped; bytes are those of the result.";

/// What one run has to say.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Run {
    millis: f64,
    cpu_millis: f64,
    gigahertz: f64,
    free_pages: f64,
    pages: f64,
    bytes: f64,
    own_mib: f64,
}

pub(crate) fn run(options: &Options) -> Result<Section> {
    let runs = options.runs.unwrap_or(5);
    let all = Limits::of_threads(0).threads;
    let mut table =
        Table::new(&["memory_gib", "free_percent", "threads", "millis", "cpu_millis", "mcycles", "own_mib", "bytes"]);
    for (gib, used_percent) in MACHINES.into_iter().filter(|(gib, _)| !options.quick || *gib <= QUICK_GIB) {
        let file = tempfile::NamedTempFile::new_in(&options.scratch)
            .with_context(|| format!("{}: no file can be made in it", options.scratch.display()))?;
        let expected = Synthetic { gib, used_percent, seed: gib }.write(file.path())?;
        let mut threads = vec![1, all];
        threads.dedup();
        let mut results = vec![Vec::new(); threads.len()];
        // In turns. The first turn warms the page cache.
        for number in 0..=runs {
            for (threads, results) in threads.iter().zip(&mut results) {
                let run = start(file.path(), *threads)?;
                // Far below 2^52.
                ensure!(run.free_pages.total_cmp(&(expected as f64)).is_eq(), "{run:?}, {expected} pages are free");
                eprintln!("{gib} GiB, {used_percent} % in use, {threads} threads, run {number}: {run:?}");
                if number > 0 {
                    results.push(run);
                }
            }
        }
        for (threads, results) in threads.iter().zip(&results) {
            let of = |value: fn(&Run) -> f64| median_of(results, value);
            table.row(vec![
                gib.to_string(),
                format!("{:.1}", of(|run| 100.0 * run.free_pages / run.pages)),
                threads.to_string(),
                format!("{:.2}", of(|run| run.millis)),
                format!("{:.2}", of(|run| run.cpu_millis)),
                format!("{:.0}", of(|run| run.cpu_millis * run.gigahertz)),
                format!("{:.1}", of(|run| run.own_mib)),
                format!("{:.0}", of(|run| run.bytes)),
            ]);
        }
    }
    println!("\n## Page selection\n{NOTE}");
    table.write_csv(&options.output.join("selection.csv"))?;
    let mut section = Section::new("Page selection", NOTE.trim());
    section.table(&format!("Medians of {runs} runs"), table);
    Ok(section)
}

/// Selects in a process of its own.
fn start(vmcore: &Path, threads: usize) -> Result<Run> {
    let program = std::env::current_exe().context("this program")?;
    let mut command = Command::new(program);
    command.arg("select").arg(vmcore).arg("--threads").arg(threads.to_string());
    let output = command.output().with_context(|| format!("{command:?} cannot be started"))?;
    ensure!(output.status.success(), "{command:?} failed: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).with_context(|| format!("{command:?} printed something else"))
}

/// Selects the pages of a vmcore, and prints what that took.
pub(crate) fn select(vmcore: &Path, threads: usize) -> Result<()> {
    let vmcore = Vmcore::open(vmcore)?;
    let ram = vmcore.frames();
    let (began, cpu_before) = (Instant::now(), cpu_seconds(UsageWho::RUSAGE_SELF)?);
    let selection = select_in(&vmcore, ram, &SwapMap::nothing(), Fate::Leave, threads)?;
    let (seconds, cpu) = (began.elapsed().as_secs_f64(), cpu_seconds(UsageWho::RUSAGE_SELF)? - cpu_before);
    let own_kib = anonymous_kib("/proc/self/status").context("the memory of this process")?;
    let pages: u64 = ram.iter().map(PfnRange::pages).sum();
    selection.check(0, pages)?;
    // All far below 2^52.
    let run = Run {
        millis: seconds * 1e3,
        cpu_millis: cpu * 1e3,
        gigahertz: gigahertz(),
        free_pages: selection.free_pages() as f64,
        pages: pages as f64,
        bytes: selection.bytes() as f64,
        own_mib: own_kib as f64 / 1024.0,
    };
    println!("{}", serde_json::to_string(&run)?);
    Ok(())
}

/// The clock of this CPU, from the quickest of some loops of a known length: each step waits for the one before, one
/// cycle for the exclusive or and three for the multiplication on every x86-64 of the last ten years.
fn gigahertz() -> f64 {
    const STEPS: u32 = 200_000;
    let nanos = (0..20).map(|_| {
        let began = Instant::now();
        let chain =
            (0..u64::from(STEPS)).fold(black_box(1), |x: u64, step| (x ^ step).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        black_box(chain);
        began.elapsed().as_secs_f64() * 1e9
    });
    f64::from(STEPS) * 4.0 / nanos.fold(f64::INFINITY, f64::min)
}
