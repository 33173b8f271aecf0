//! Runs the cases: chooses them by tier and name, starts them in the order of the list, several at once, and times
//! each.
//!
//! libtest would run them in alphabetical order, in which the longest start last and run alone.

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use clap::{Parser, ValueEnum};

/// How much is run. Each tier includes those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Tier {
    /// One cycle of each kind, for a newcomer: no Debian guests.
    Quick,
    /// What every change must pass.
    Standard,
    /// The whole matrix: also variants that take long and rarely find anything that the others do not.
    All,
}

/// One end-to-end case.
#[derive(Debug)]
pub(crate) struct Case {
    /// The smallest tier that runs it.
    pub(crate) tier: Tier,
    /// Its module and function.
    pub(crate) name: &'static str,
    /// The case itself.
    pub(crate) run: fn() -> Result<()>,
}

/// End-to-end cases: whole machines under QEMU. `scripts/test` builds what they need.
#[derive(Debug, Parser)]
struct Options {
    /// The cases of this tier and of those before it.
    #[arg(long, value_enum, default_value_t = Tier::All)]
    tier: Tier,
    /// Number of cases that run at once.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..))]
    threads: u8,
    /// Print the names of the cases and run none.
    #[arg(long)]
    list: bool,
    /// Only cases whose name contains one of these.
    names: Vec<String>,
}

/// Runs those of `cases` that the command line asks for.
pub(crate) fn main(cases: &[Case]) -> ExitCode {
    let options = Options::parse();
    let is_named = |case: &Case| options.names.is_empty() || options.names.iter().any(|name| case.name.contains(name));
    let chosen: Vec<&Case> = cases.iter().filter(|case| case.tier <= options.tier && is_named(case)).collect();
    let mut seen = HashSet::new();
    if let Some(twice) = cases.iter().find(|case| !seen.insert(case.name)) {
        eprintln!("error: {} is listed twice", twice.name);
        return ExitCode::FAILURE;
    }
    if chosen.is_empty() {
        eprintln!("error: no case's name contains {:?}; --list prints the names", options.names);
        return ExitCode::from(2);
    }
    if options.list {
        chosen.iter().for_each(|case| println!("{}", case.name));
        return ExitCode::SUCCESS;
    }
    let begin = Instant::now();
    let failed = run(&chosen, usize::from(options.threads));
    if !failed.is_empty() {
        println!("failures:");
        failed.iter().for_each(|name| println!("    {name}"));
    }
    // In libtest's format, so that one pattern counts the tests of every binary.
    let result = if failed.is_empty() { "ok" } else { "FAILED" };
    let (passed, seconds) = (chosen.len() - failed.len(), begin.elapsed().as_secs());
    println!("test result: {result}. {passed} passed; {} failed; finished in {seconds} s", failed.len());
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs the cases, `threads` at once, and returns the names of those that failed.
fn run(cases: &[&Case], threads: usize) -> Vec<&'static str> {
    println!("running {} cases, {threads} at once", cases.len());
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let begin = Instant::now();
                    let result = catch_unwind(AssertUnwindSafe(case.run));
                    let result = result.unwrap_or_else(|_| Err(anyhow!("it panicked; the message is above")));
                    report(case, begin.elapsed(), &result);
                    if result.is_err() {
                        failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(case.name);
                    }
                }
            });
        }
    });
    failed.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Prints one line for a case, and why it failed.
fn report(case: &Case, took: Duration, result: &Result<()>) {
    let seconds = took.as_secs();
    match result {
        Ok(()) => println!("ok     {seconds:5} s  {}", case.name),
        Err(error) => println!("FAILED {seconds:5} s  {}\n{error:#}", case.name),
    }
}
