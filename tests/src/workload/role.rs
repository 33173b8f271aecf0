//! How a process of the workload is asked: it answers every connection to its socket with one line of JSON.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::report::Proof;

/// What a role answers: what it keeps, and what of it does not hold any more.
#[derive(Debug)]
pub struct Answer<T> {
    /// What it keeps.
    pub evidence: T,
    /// What does not hold.
    pub fault: Option<String>,
}

/// Answers whoever asks, for ever. The socket appears when the role is ready, so this is called last.
///
/// # Errors
/// Fails where the socket cannot be made.
pub fn serve<T: Serialize>(directory: &Path, name: &str, mut answer: impl FnMut() -> Answer<T>) -> Result<()> {
    let path = socket(directory, name);
    let listener = UnixListener::bind(&path).with_context(|| format!("{}: cannot be bound", path.display()))?;
    let pid = std::process::id();
    let started = start_time(pid)?;
    for connection in listener.incoming() {
        let Answer { evidence, fault } = answer();
        let proof = Proof { fault, pid, started, evidence };
        // A client that has gone again needs no answer; the next one does.
        let _ = connection.and_then(|mut stream| stream.write_all(&serde_json::to_vec(&proof)?));
    }
    Ok(())
}

/// Asks the role `name`.
///
/// # Errors
/// Fails where no such process answers.
pub fn ask<T: for<'a> Deserialize<'a>>(directory: &Path, name: &str) -> Result<Proof<T>> {
    let path = socket(directory, name);
    let mut stream = UnixStream::connect(&path).with_context(|| format!("{}: nobody listens", path.display()))?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).with_context(|| format!("{}: no answer", path.display()))?;
    serde_json::from_str(&answer).with_context(|| format!("{}: not an answer: {answer:?}", path.display()))
}

/// Waits until the role `name` answers.
///
/// # Errors
/// Fails where it does not within `timeout`.
pub fn wait_until_ready(directory: &Path, name: &str, timeout: Duration) -> Result<()> {
    let deadline = Instant::now() + timeout;
    while UnixStream::connect(socket(directory, name)).is_err() {
        if Instant::now() >= deadline {
            bail!("the workload's {name} is not ready after {timeout:?}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Whether the role `name` was ready once; it may be gone again.
#[must_use]
pub fn was_started(directory: &Path, name: &str) -> bool {
    socket(directory, name).exists()
}

fn socket(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!("{name}.sock"))
}

/// When a process was started, in clock ticks since the boot.
fn start_time(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/stat");
    let stat = fs::read_to_string(&path).with_context(|| path.clone())?;
    // The second field is the program's name in parentheses, which may contain anything. The start time is the 22nd.
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let field = after_name.split_whitespace().nth(22 - 3).with_context(|| format!("{path}: {stat:?} is too short"))?;
    field.parse().with_context(|| format!("{path}: {field:?} is not a time"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::workload::report::Counter;

    #[test]
    fn a_role_answers_for_itself() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().to_owned();
        std::thread::spawn(move || {
            let mut count = 0;
            serve(&path, "counter", || {
                count += 1;
                Answer { evidence: Counter { count }, fault: (count > 2).then(|| "too far".to_owned()) }
            })
        });
        wait_until_ready(directory.path(), "counter", Duration::from_secs(10)).unwrap();
        let proof: Proof<Counter> = ask(directory.path(), "counter").unwrap();
        assert_eq!((proof.pid, proof.evidence.count, proof.fault), (std::process::id(), 2, None));
        assert!(proof.started > 0);
        assert_eq!(ask::<Counter>(directory.path(), "counter").unwrap().fault.unwrap(), "too far");
        assert!(ask::<Counter>(directory.path(), "nobody").is_err());
        assert!(was_started(directory.path(), "counter") && !was_started(directory.path(), "nobody"));
    }
}
