//! Hibernates one session again and again under load; `scripts/soak` builds everything and runs this.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Parser;
use dormouse::handoff::report::Outcome;
use dormouse_tests::artifacts::Artifacts;
use dormouse_tests::machine::{MIB, MemorySize};
use dormouse_tests::soak::{self, Row, Soak};
use dormouse_tests::workload::pattern;

/// Hibernates one session under QEMU again and again, under load and each time by another policy.
///
/// In the guest, processes write files, start others, take and give back memory, stream and count all the time. What
/// they prove must hold after every cycle, and their filesystem must be clean at the end. Compression, threads, memory,
/// what is left out, what follows the save and where the power is cut are drawn from the seed. The exit status is 0
/// only if every cycle went well.
#[derive(Debug, Parser)]
#[command(name = "scripts/soak")]
struct Options {
    /// How often to hibernate
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    cycles: u32,
    /// What the policies are drawn from; another one each time unless it is given
    #[arg(long)]
    seed: Option<u64>,
    /// The guest's memory, in M or G
    #[arg(long, default_value = "1G")]
    memory: MemorySize,
    /// The guest's CPUs
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
    cpus: u32,
    /// The kernel: a series of Linux, as in 6.12 or 7.2, which is built; or a directory with bzImage, config, release
    /// and lib/modules
    #[arg(long, default_value = "6.12")]
    kernel: String,
    /// Print the whole serial console
    #[arg(long)]
    verbose: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let mut rows = Vec::new();
    let seed = match options.seed.map_or_else(short_seed, Ok) {
        Ok(seed) => seed,
        Err(error) => {
            eprintln!("scripts/soak: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    let done = run(&options, seed, &mut rows);
    if let Err(error) = &done {
        eprintln!("\nscripts/soak: {error:#}\n\nThe seed is {seed}.");
    }
    println!("{} of {} cycles", rows.len(), options.cycles);
    if done.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// A seed that is not too long to type.
fn short_seed() -> Result<u64> {
    Ok(pattern::random_seed()? >> 32)
}

/// Adds the cycles that went well to `rows`.
fn run(options: &Options, seed: u64, rows: &mut Vec<Row>) -> Result<()> {
    let artifacts = Artifacts::from_environment()?.with_option(&options.kernel)?;
    println!(
        "A session of Linux {} in {} of memory on {} CPU{}, under QEMU's emulation, hibernated {} times; the seed is \
         {seed}.\n",
        artifacts.release(),
        options.memory,
        options.cpus,
        if options.cpus == 1 { "" } else { "s" },
        options.cycles
    );
    let began = Instant::now();
    let start = soak::Options { seed, cycles: options.cycles, memory: options.memory, cpus: options.cpus };
    let mut soak = Soak::start(start, &artifacts).context("the start")?;
    println!("{}", line(["cycle", "policy", "then", "save s", "restore s", "image MiB", "stored pages", "result"]));
    for _ in 0..options.cycles {
        let row = soak.cycle(&mut |line| {
            if options.verbose {
                println!("{:12}| {}", "", line.text);
            }
        })?;
        print_row(&row);
        rows.push(row);
    }
    let (last, proofs) = soak.finish().context("the end")?;
    print_totals(rows, began);
    println!("the workload: {}", last.churn_summary());
    for proof in proofs {
        println!("from beginning to end: {} ({})", proof.claim, proof.detail);
    }
    println!("the filesystem is clean");
    Ok(())
}

fn print_row(row: &Row) {
    let report = &row.report;
    let restore = report.restore.as_ref().map_or_else(|| "-".to_owned(), |half| format!("{:.2}", half.seconds));
    let cells = [
        row.number.to_string(),
        row.policy.clone(),
        row.then.to_owned(),
        format!("{:.2}", report.save.seconds),
        restore,
        report.image_bytes.div_ceil(MIB).to_string(),
        report.stored_pages.to_string(),
        row.result(),
    ];
    println!("{}", line(cells.each_ref().map(String::as_str)));
}

/// The table's cells side by side.
fn line(cells: [&str; 8]) -> String {
    let [cycle, policy, then, save, restore, image, pages, result] = cells;
    format!("{cycle:>5}  {policy:47}  {then:8}  {save:>6}  {restore:>9}  {image:>9}  {pages:>12}  {result}")
}

fn print_totals(rows: &[Row], began: Instant) {
    let count = |what: fn(&Row) -> bool| rows.iter().filter(|row| what(row)).count();
    let sum = |what: fn(&Row) -> f64| rows.iter().map(what).sum::<f64>();
    let seconds = began.elapsed().as_secs();
    println!(
        "\n{} min {} s: {} resumed after a power-off, {} of them after a power cut; {} resumed after a reboot; \
         {} returned",
        seconds / 60,
        seconds % 60,
        count(|row| row.then == "poweroff"),
        count(|row| row.cut.is_some()),
        count(|row| row.then == "reboot"),
        count(|row| row.report.outcome == Outcome::Returned),
    );
    println!(
        "saved in {:.1} s, restored in {:.1} s; {} pages stored in {} MiB of images",
        sum(|row| row.report.save.seconds),
        sum(|row| row.report.restore.as_ref().map_or(0.0, |half| half.seconds)),
        rows.iter().map(|row| row.report.stored_pages).sum::<u64>(),
        rows.iter().map(|row| row.report.image_bytes).sum::<u64>().div_ceil(MIB),
    );
}
