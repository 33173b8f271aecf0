//! Running a contender: how long, how much processor time, how much memory.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use serde::{Deserialize, Serialize};

/// How often a contender's memory is looked at.
const PERIOD: Duration = Duration::from_millis(5);

/// What the parts of this program say of themselves on their standard output.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(super) struct Said {
    /// Bytes that came out.
    pub(super) bytes: Option<u64>,
    /// Seconds, where not all of the process's life counts.
    pub(super) seconds: Option<f64>,
}

/// One run of a contender.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cost {
    pub(super) seconds: f64,
    pub(super) cpu_seconds: f64,
    /// The most anonymous memory that was resident. Mapped files are page cache, which is there anyway and can go.
    pub(super) peak_mib: f64,
    pub(super) bytes: u64,
}

/// Runs `command` to its end. Its standard output goes into `stdout` where that is given. `output` is the file that it
/// makes, unless it says itself how many bytes came out.
pub(super) fn run(command: &mut Command, stdout: Option<&Path>, output: Option<&Path>) -> Result<Cost> {
    let before = cpu_seconds()?;
    match stdout {
        Some(path) => {
            command.stdout(File::create(path).with_context(|| format!("{}: cannot be made", path.display()))?);
        }
        None => {
            command.stdout(Stdio::piped());
        }
    }
    let log = tempfile::NamedTempFile::new().context("a file for what a contender says")?;
    command.stdin(Stdio::null()).stderr(log.reopen()?);
    let began = Instant::now();
    let mut child = command.spawn().with_context(|| format!("{command:?} cannot be started"))?;
    let status_file = format!("/proc/{}/status", child.id());
    let mut peak_kib = 0;
    let status = loop {
        peak_kib = peak_kib.max(anonymous_kib(&status_file));
        match child.try_wait()? {
            Some(status) => break status,
            None => std::thread::sleep(PERIOD),
        }
    };
    let wall = began.elapsed().as_secs_f64();
    let mut text = String::new();
    if let Some(mut pipe) = child.stdout.take() {
        std::io::Read::read_to_string(&mut pipe, &mut text)?;
    }
    if !status.success() {
        let said = std::fs::read_to_string(log.path()).unwrap_or_default();
        bail!("{command:?} failed: {} {}", text.trim(), said.trim());
    }
    let said: Said = serde_json::from_str(text.trim()).unwrap_or_default();
    let made = || output.and_then(|path| path.metadata().ok()).map(|file| file.len());
    Ok(Cost {
        seconds: said.seconds.unwrap_or(wall),
        cpu_seconds: cpu_seconds()? - before,
        // Far below 2^52.
        peak_mib: peak_kib as f64 / 1024.0,
        bytes: said.bytes.or_else(made).unwrap_or(0),
    })
}

/// Processor time of all children that have ended.
fn cpu_seconds() -> Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Ok(Duration::from_micros(micros.unsigned_abs()).as_secs_f64())
}

fn anonymous_kib(status: &str) -> u64 {
    let text = std::fs::read_to_string(status).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse().ok()).unwrap_or(0)
}
