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
//! Three more, which must be asked for, work all the time and count their operations and errors:
//!
//! | role | does, and checks |
//! | --- | --- |
//! | `files` | writes, syncs, reads, renames and deletes files in a directory |
//! | `children` | starts processes that live for moments and answer through a pipe |
//! | `memory` | takes memory in random sizes, fills it and gives it back |
//!
//! `workload start` starts them, `workload check` asks all of them. The host compares two such [`report`]s. `workload
//! fresh-memory` looks at the memory that is left.

pub mod churn;
pub mod counter;
pub mod data;
pub mod fresh;
pub mod hardware;
pub mod mapping;
pub mod module;
pub mod pattern;
pub mod report;
pub mod role;
pub mod silent;
pub mod stream;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::ValueEnum;
use report::{Proof, Report, Work};
use serde::{Deserialize, Serialize};

/// Where the workload keeps its files, on a tmpfs.
pub const DIRECTORY: &str = "/run/workload";

/// How long `start` waits for each process to be ready. Making random data under emulation takes a while.
const START_TIMEOUT: Duration = Duration::from_secs(120);

/// What the processes are told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The size of the tmpfs file in MiB; the anonymous mapping and the memory that comes and goes have a quarter of
    /// it.
    pub megabytes: u64,
    /// Whether some of them start processes and take memory all the time.
    pub churn: bool,
    /// The directory in which one of them works on files all the time, if one shall.
    pub files: Option<PathBuf>,
}

/// What a process of the workload does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[value(rename_all = "lowercase")]
#[serde(rename_all = "lowercase")]
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
    /// Writes files and checks them, all the time.
    Files,
    /// Starts processes and checks how they end, all the time.
    Children,
    /// Takes memory and checks it, all the time.
    Memory,
}

impl Role {
    /// Those that every workload has, in the order in which they must be started: the sender connects to the receiver.
    const KEEPING: [Role; 5] = [Role::Data, Role::Counter, Role::Receiver, Role::Sender, Role::Mapping];
    /// Those that work all the time.
    const CHURNING: [Role; 3] = [Role::Files, Role::Children, Role::Memory];

    /// The name, as on the command line and of its socket.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Role::Data => "data",
            Role::Counter => "counter",
            Role::Receiver => "receiver",
            Role::Sender => "sender",
            Role::Mapping => "mapping",
            Role::Files => "files",
            Role::Children => "children",
            Role::Memory => "memory",
        }
    }

    /// Does it, for ever.
    ///
    /// # Errors
    /// Fails where it cannot begin. What fails later is in the answer to a query.
    pub fn run(self, settings: &Settings, seed: u64) -> Result<()> {
        let quarter = settings.megabytes.div_ceil(4);
        match self {
            Role::Data => data::run(settings.megabytes, seed),
            Role::Counter => counter::run(),
            Role::Receiver => stream::receive(seed),
            Role::Sender => stream::send(seed),
            Role::Mapping => mapping::run(quarter, seed),
            Role::Files => churn::files::run(settings.files.as_deref().context("no directory for files")?, seed),
            Role::Children => churn::children::run(seed),
            Role::Memory => churn::memory::run(quarter, seed),
        }
    }

    /// Whether a workload with these settings has it.
    fn is_wanted(self, settings: &Settings) -> bool {
        match self {
            Role::Files => settings.files.is_some(),
            Role::Children | Role::Memory => settings.churn,
            _ => true,
        }
    }
}

/// Starts all processes that are wanted and waits until each one is ready.
///
/// # Errors
/// Fails where one of them cannot be started or does not become ready.
pub fn start(settings: &Settings) -> Result<()> {
    fs::create_dir_all(DIRECTORY).with_context(|| format!("{DIRECTORY}: cannot be created"))?;
    let program = std::env::current_exe().context("this program's own path")?;
    let seed = pattern::random_seed()?;
    for role in Role::KEEPING.into_iter().chain(Role::CHURNING).filter(|role| role.is_wanted(settings)) {
        // They live on after this process, so they must not hold the pipes of whoever started it.
        let console =
            || fs::File::options().write(true).open("/dev/console").map_or_else(|_| Stdio::null(), Stdio::from);
        let mut command = Command::new(&program);
        command.args([
            "role",
            role.name(),
            "--megabytes",
            &settings.megabytes.to_string(),
            "--seed",
            &seed.to_string(),
        ]);
        if let Some(directory) = &settings.files {
            command.arg("--files").arg(directory);
        }
        command
            .stdin(Stdio::null())
            .stdout(console())
            .stderr(console())
            .spawn()
            .with_context(|| format!("the workload's {} cannot be started", role.name()))?;
        role::wait_until_ready(Path::new(DIRECTORY), role.name(), START_TIMEOUT)?;
    }
    Ok(())
}

/// Asks all processes.
///
/// # Errors
/// Fails where the boot's own identity cannot be read. A process that is gone is a proof that does not hold.
pub fn check() -> Result<Report> {
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").context("boot_id")?;
    let online_cpus = fs::read_to_string("/sys/devices/system/cpu/online").context("online CPUs")?;
    // The receiver before the sender: what was received then can never be more than what was sent.
    let receiver: Proof<report::Receiver> = ask(Role::Receiver);
    let sender: Proof<report::Sender> = ask(Role::Sender);
    let in_flight = sender.evidence.sent.saturating_sub(receiver.evidence.received);
    let mut report = Report {
        ok: false,
        boot_id: boot_id.trim().to_owned(),
        online_cpus: online_cpus.trim().to_owned(),
        hardware: hardware::Hardware::read(),
        data: ask(Role::Data),
        counter: ask(Role::Counter),
        mapping: ask(Role::Mapping),
        receiver,
        sender,
        in_flight,
        churn: Role::CHURNING
            .into_iter()
            .filter(|role| role::was_started(Path::new(DIRECTORY), role.name()))
            .map(|role| Work { role, proof: ask(role) })
            .collect(),
    };
    report.ok = report.faults().is_empty();
    Ok(report)
}

fn ask<T: for<'a> Deserialize<'a> + Default>(role: Role) -> Proof<T> {
    role::ask(Path::new(DIRECTORY), role.name())
        .unwrap_or_else(|error| Proof { fault: Some(format!("{error:#}")), ..Proof::default() })
}
