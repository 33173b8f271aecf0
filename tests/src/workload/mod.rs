//! What runs in guest A so that its survival proves a resume.
//!
//! Five processes each keep something that no file and no fresh boot could bring back, and answer on a socket of
//! their own whether it still holds:
//!
//! | role | keeps |
//! | --- | --- |
//! | `data` | the checksum of a tmpfs file of random bytes |
//! | `counter` | a number that grows ten times a second |
//! | `sender`, `receiver` | the two ends of one TCP connection with bytes in flight, checked on both ends |
//! | `mapping` | an anonymous mapping with a pattern |
//!
//! `workload start` starts them, `workload check` asks all of them. The host compares two such [`report`]s. `workload
//! fresh-memory` looks at the memory that is left.

pub mod counter;
pub mod data;
pub mod fresh;
pub mod mapping;
pub mod pattern;
pub mod report;
pub mod role;
pub mod stream;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::ValueEnum;
use serde::Deserialize;

use report::{Proof, Report};

/// Where the workload keeps its files, on a tmpfs.
pub const FOLDER: &str = "/run/workload";

/// How long `start` waits for each process to be ready. Making random data under emulation takes a while.
const START_TIMEOUT: Duration = Duration::from_secs(120);

/// What a process of the workload does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "lowercase")]
pub enum Role {
    /// Keeps the checksum of a tmpfs file.
    Data,
    /// Counts.
    Counter,
    /// Reads from the TCP connection.
    Receiver,
    /// Writes to the TCP connection.
    Sender,
    /// Keeps an anonymous mapping.
    Mapping,
}

impl Role {
    /// In the order in which they must be started: the sender connects to the receiver.
    const ALL: [Role; 5] = [Role::Data, Role::Counter, Role::Receiver, Role::Sender, Role::Mapping];

    /// The name, as on the command line and of its socket.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Role::Data => "data",
            Role::Counter => "counter",
            Role::Receiver => "receiver",
            Role::Sender => "sender",
            Role::Mapping => "mapping",
        }
    }

    /// Does it, for ever.
    ///
    /// # Errors
    /// Fails where it cannot begin. What fails later is told to whoever asks.
    pub fn run(self, megabytes: u64, seed: u64) -> Result<()> {
        match self {
            Role::Data => data::run(megabytes, seed),
            Role::Counter => counter::run(),
            Role::Receiver => stream::receive(seed),
            Role::Sender => stream::send(seed),
            Role::Mapping => mapping::run(megabytes.div_ceil(4), seed),
        }
    }
}

/// Starts all processes and waits until each one keeps what it has to.
///
/// # Errors
/// Fails where one of them cannot be started or does not become ready.
pub fn start(megabytes: u64) -> Result<()> {
    fs::create_dir_all(FOLDER).with_context(|| format!("{FOLDER}: cannot be created"))?;
    let program = std::env::current_exe().context("this program's own path")?;
    let seed = pattern::random_seed()?;
    for role in Role::ALL {
        // They live on after this process, so they must not hold the pipes of whoever started it.
        let console =
            || fs::File::options().write(true).open("/dev/console").map_or_else(|_| Stdio::null(), Stdio::from);
        Command::new(&program)
            .args(["role", role.name(), "--megabytes", &megabytes.to_string(), "--seed", &seed.to_string()])
            .stdin(Stdio::null())
            .stdout(console())
            .stderr(console())
            .spawn()
            .with_context(|| format!("the workload's {} cannot be started", role.name()))?;
        role::wait_until_ready(Path::new(FOLDER), role.name(), START_TIMEOUT)?;
    }
    Ok(())
}

/// Asks all processes.
///
/// # Errors
/// Fails where the boot's own identity cannot be read. A process that is gone is a proof that does not hold.
pub fn check() -> Result<Report> {
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").context("boot_id")?;
    // The receiver before the sender: what was received then can never be more than what was sent.
    let receiver: Proof<report::Receiver> = ask(Role::Receiver);
    let sender: Proof<report::Sender> = ask(Role::Sender);
    let in_flight = sender.evidence.sent.saturating_sub(receiver.evidence.received);
    let mut report = Report {
        ok: false,
        boot_id: boot_id.trim().to_owned(),
        data: ask(Role::Data),
        counter: ask(Role::Counter),
        mapping: ask(Role::Mapping),
        receiver,
        sender,
        in_flight,
    };
    report.ok = report.faults().is_empty();
    Ok(report)
}

fn ask<T: for<'a> Deserialize<'a> + Default>(role: Role) -> Proof<T> {
    role::ask(Path::new(FOLDER), role.name())
        .unwrap_or_else(|error| Proof { fault: Some(format!("{error:#}")), ..Proof::default() })
}
