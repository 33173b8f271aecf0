//! What a process takes: time, CPU time, memory.

use std::fs::File;
use std::io::{Read, Seek};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use dormouse::handoff::spent::Spent;
use nix::sys::resource::{Usage, UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use serde::{Deserialize, Serialize};

/// How often memory is looked at.
const SAMPLE: Duration = Duration::from_millis(10);

/// What one run took.
#[derive(Debug, Clone, Copy)]
pub(super) struct Measurement {
    pub(super) seconds: f64,
    /// User and system, all threads.
    pub(super) cpu_seconds: f64,
    /// The most anonymous memory, in MiB. What a process has mapped of files is page cache, and not counted.
    pub(super) peak_mib: f64,
    /// Bytes written, if the process has printed so.
    pub(super) bytes: Option<u64>,
}

/// What a part of the tier says of itself, as one line of JSON: it knows better what was preparation.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(super) struct Printed {
    pub(super) seconds: Option<f64>,
    pub(super) cpu_seconds: Option<f64>,
    pub(super) bytes: Option<u64>,
    /// What Dormouse's threads spent their time on: for who runs a part by hand.
    pub(super) spent: Option<Spent>,
}

impl Printed {
    pub(super) fn print(&self) -> Result<()> {
        println!("{}", serde_json::to_string(self)?);
        Ok(())
    }
}

/// Time and CPU time of this process since a moment.
#[derive(Debug)]
pub(super) struct Clock {
    began: Instant,
    cpu: f64,
}

impl Clock {
    pub(super) fn start() -> Result<Clock> {
        Ok(Clock { began: Instant::now(), cpu: cpu_seconds(UsageWho::RUSAGE_SELF)? })
    }

    /// What has passed, to be printed with `bytes` written.
    pub(super) fn stop(&self, bytes: Option<u64>) -> Result<Printed> {
        let (seconds, cpu) = (self.began.elapsed().as_secs_f64(), cpu_seconds(UsageWho::RUSAGE_SELF)?);
        Ok(Printed { seconds: Some(seconds), cpu_seconds: Some(cpu - self.cpu), bytes, spent: None })
    }
}

/// Runs a command that must succeed to its end. No other child may be running at the same time.
pub(super) fn measure(command: &mut Command) -> Result<Measurement> {
    let mut output = tempfile::tempfile().context("a file for a command's output")?;
    let errors = tempfile::tempfile().context("a file for a command's errors")?;
    command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(errors.try_clone()?);
    let cpu_before = cpu_seconds(UsageWho::RUSAGE_CHILDREN)?;
    let began = Instant::now();
    let mut child = command.spawn().with_context(|| format!("{command:?} cannot be started"))?;
    let (status, ended) = (format!("/proc/{}/status", child.id()), AtomicBool::new(false));
    let (exit, seconds, peak_kib) = std::thread::scope(|scope| {
        let sampler = scope.spawn(|| {
            let mut peak = 0;
            while !ended.load(Ordering::Relaxed) {
                peak = peak.max(anonymous_kib(&status).unwrap_or(0));
                std::thread::sleep(SAMPLE);
            }
            peak
        });
        let exit = child.wait();
        let seconds = began.elapsed().as_secs_f64();
        ended.store(true, Ordering::Relaxed);
        (exit, seconds, sampler.join().unwrap_or(0))
    });
    let exit = exit.with_context(|| format!("{command:?}"))?;
    if !exit.success() {
        bail!("{command:?} failed ({exit}): {}{}", text(output), text(errors));
    }
    let cpu = cpu_seconds(UsageWho::RUSAGE_CHILDREN)? - cpu_before;
    output.rewind()?;
    let printed: Printed = serde_json::from_str(text(output).trim()).unwrap_or_default();
    Ok(Measurement {
        seconds: printed.seconds.unwrap_or(seconds),
        cpu_seconds: printed.cpu_seconds.unwrap_or(cpu),
        // A process has less than 2^52 KiB.
        peak_mib: peak_kib as f64 / 1024.0,
        bytes: printed.bytes,
    })
}

/// User and system time so far.
pub(crate) fn cpu_seconds(who: UsageWho) -> Result<f64> {
    let usage: Usage = getrusage(who).context("the CPU time used")?;
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    // Far below 2^52.
    Ok(micros as f64 / 1e6)
}

/// The anonymous memory that a process has now.
pub(crate) fn anonymous_kib(status: &str) -> Option<u64> {
    let text = std::fs::read_to_string(status).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

/// What was written to a file, from its beginning; nothing where that cannot be read.
fn text(mut file: File) -> String {
    let mut bytes = Vec::new();
    let read = file.rewind().and_then(|()| file.read_to_end(&mut bytes));
    read.map(|_| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_process_is_measured() {
        let script = "x=$(head -c 30000000 /dev/zero | tr '\\0' a); sleep 0.2; echo '{\"bytes\": 7}'";
        let run = measure(Command::new("sh").args(["-c", script])).unwrap();
        assert!(run.seconds >= 0.2, "{run:?}");
        assert!(run.cpu_seconds > 0.0 && run.cpu_seconds < run.seconds * 8.0, "{run:?}");
        assert!((28.0..300.0).contains(&run.peak_mib), "{run:?}");
        assert_eq!(run.bytes, Some(7));
    }

    #[test]
    fn own_figures_hold_and_failures_are_reported() {
        let run = measure(Command::new("sh").args(["-c", "echo '{\"seconds\": 0.5, \"cpu_seconds\": 0.25}'"])).unwrap();
        assert!(run.seconds.total_cmp(&0.5).is_eq() && run.cpu_seconds.total_cmp(&0.25).is_eq(), "{run:?}");
        let error = measure(Command::new("sh").args(["-c", "echo why >&2; exit 3"])).unwrap_err().to_string();
        assert!(error.contains("why") && error.contains('3'), "{error}");
    }
}
