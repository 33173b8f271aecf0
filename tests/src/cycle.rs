//! Whole hibernations of a guest that runs the workload: save, power off, power on, resume, and what that proves.

use std::fmt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use dormouse::console::phase::Phase;
use dormouse::handoff::report::Report as AgentReport;

use crate::channel::Output;
use crate::channel::client::Request;
use crate::console::{Cursor, Line};
use crate::guest::{Ending, Guest};
use crate::machine::{MIB, MemorySize, image_disk_bytes};
use crate::qmp::SavedState;
use crate::workload::counter::CONSOLE_MARK;
use crate::workload::report::{Report, Verdict};

/// Saving and restoring gigabytes under emulation, with everything else busy, takes minutes.
const HALF_TIMEOUT: Duration = Duration::from_secs(600);
/// The stream has to deliver what was in flight, and whatever works all the time has to make progress; it takes a
/// second where nothing else is busy.
const WORK_TIMEOUT: Duration = Duration::from_secs(90);

/// Takes the console's lines as they come.
pub type Observer<'a> = &'a mut dyn FnMut(&Line);

/// For callers that do not observe.
pub fn unobserved(_: &Line) {}

/// `dormouse hibernate` came back with this in place of powering off.
#[derive(Debug)]
pub struct CameBack(pub Output);

impl fmt::Display for CameBack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Output { status, stdout, stderr } = &self.0;
        write!(f, "dormouse hibernate came back with status {status}: {stdout}{stderr}")
    }
}

impl std::error::Error for CameBack {}

/// A session that was saved and whose machine is off.
#[derive(Debug)]
pub struct Saved {
    /// The workload before.
    pub before: Report,
    /// `dormouse hibernate`, which answers after the resume.
    pub command: Request,
    /// From the command to the power-off.
    pub to_power_off: Duration,
}

/// A session that went on.
#[derive(Debug)]
pub struct WentOn {
    /// The workload before.
    pub before: Report,
    /// The workload after.
    pub after: Report,
    /// How `dormouse hibernate` ended.
    pub output: Output,
    /// From the power-on, or from the command where the power stayed on, to the first sign of life of the workload.
    pub to_first_tick: Option<Duration>,
}

impl WentOn {
    /// What the workload proves.
    #[must_use]
    pub fn proofs(&self) -> Vec<Verdict> {
        self.after.proofs_since(&self.before)
    }

    /// Demands that every proof holds.
    ///
    /// # Errors
    /// Fails with those that do not.
    pub fn demand_proofs(&self) -> Result<()> {
        let broken = self.proofs().into_iter().filter(|proof| !proof.holds);
        let broken: Vec<String> = broken.map(|proof| format!("not {}: {}", proof.claim, proof.detail)).collect();
        if broken.is_empty() { Ok(()) } else { bail!("{}", broken.join("\n")) }
    }

    /// What `dormouse hibernate --json` reported.
    ///
    /// # Errors
    /// Fails where it failed or printed something else.
    pub fn report(&self) -> Result<AgentReport> {
        if self.output.status != 0 {
            bail!("dormouse hibernate failed with {}: {}", self.output.status, self.output.stderr.trim());
        }
        let printed = || format!("dormouse hibernate --json printed {:?}", self.output.stdout);
        let mut json: serde_json::Value = serde_json::from_str(&self.output.stdout).with_context(printed)?;
        serde_json::from_value(json["report"].take()).with_context(printed)
    }
}

/// The size of the workload's file, in MiB, for a machine with this much memory.
#[must_use]
pub fn workload_megabytes(memory: MemorySize) -> u64 {
    (memory.mib / 8).min(512)
}

/// Makes a device of the guest, or what a server exports, an image device, once the guest has found it, and returns
/// what that prints.
///
/// # Errors
/// Fails where the device does not turn up or the agent refuses it.
pub fn init_image(guest: &mut Guest, device: &str) -> Result<String> {
    if device.starts_with('/') {
        guest.succeed(&format!("for try in $(seq 300); do [ -b {device} ] && break; sleep 0.1; done"))?;
    }
    if device.starts_with("nfs://") {
        let mib = image_disk_bytes(guest.config().memory) / MIB;
        return guest.succeed(&format!("dormouse image create --size {mib}M {device}"));
    }
    guest.succeed(&format!("dormouse image init {device}"))
}

/// Starts the workload.
///
/// # Errors
/// Fails where it does not start.
pub fn start_workload(guest: &mut Guest) -> Result<()> {
    let megabytes = workload_megabytes(guest.config().memory);
    guest.succeed(&format!("workload start --megabytes {megabytes}"))?;
    Ok(())
}

/// Starts the workload with all that works without a pause, on files in the guest's directory `files` among others.
///
/// # Errors
/// Fails where it does not start.
pub fn start_workload_and_churn(guest: &mut Guest, files: &str) -> Result<()> {
    let megabytes = workload_megabytes(guest.config().memory);
    guest.succeed(&format!("workload start --megabytes {megabytes} --churn --files {files}"))?;
    Ok(())
}

/// Starts a process that keeps a save kernel by the policy at this path, unless one runs, and waits until that kernel
/// waits and fits the machine as it is.
///
/// # Errors
/// Fails where none does.
pub fn warm(guest: &mut Guest, policy: &str) -> Result<()> {
    guest.succeed(&format!(
        "kill -0 $(cat /run/keeper) 2>/dev/null || \
         {{ dormouse --config {policy} warm --now </dev/null >/run/warm.log 2>&1 & echo $! >/run/keeper; }}"
    ))?;
    let wait = "for try in $(seq 300); do [ -e /run/dormouse/warm ] && exit; kill -0 $(cat /run/keeper) || break; \
                sleep 0.2; done; cat /run/warm.log >&2; exit 1";
    guest.succeed(wait).map(drop)
}

/// Whether A's kernel has not put itself, at random, where a boot loader puts the restore kernel. Where it has, A
/// leaves the resume to an ordinary boot.
///
/// # Errors
/// Fails where the guest does not say where its kernel is.
pub fn is_beside_the_region(guest: &mut Guest) -> Result<bool> {
    // From where a boot loader puts a kernel, with some room behind a region of the usual size.
    const REGION: std::ops::Range<u64> = 16 * MIB..160 * MIB;
    let places = guest.succeed("grep ': Kernel ' /proc/iomem")?;
    let mut is_beside = true;
    for line in places.lines() {
        let ends = line.trim().split_once(' ').and_then(|(range, _)| range.split_once('-'));
        let (first, last) = ends.with_context(|| format!("/proc/iomem: {line:?}"))?;
        let [first, last] = [first, last].map(|end| u64::from_str_radix(end, 16));
        is_beside &= first? >= REGION.end || last? < REGION.start;
    }
    Ok(is_beside)
}

/// Whether a kernel prints this line as it starts, which B and D do as well unless their policy keeps them quiet.
#[must_use]
pub fn is_kernel_start(line: &Line) -> bool {
    line.text.contains("Linux version ")
}

/// Asks the workload, all of which must hold.
///
/// # Errors
/// Fails where something does not.
pub fn check_workload(guest: &mut Guest) -> Result<Report> {
    let report = ask_workload(guest)?;
    let faults = report.faults();
    if faults.is_empty() { Ok(report) } else { Err(guest.explain(anyhow!("the workload: {}", faults.join("; ")))) }
}

/// What the workload proves once it has made progress since `before`, in a session that was never away.
///
/// # Errors
/// Fails where it does not answer.
pub fn settle(guest: &mut Guest, before: &Report) -> Result<Vec<Verdict>> {
    let deadline = Instant::now() + WORK_TIMEOUT;
    loop {
        let proofs = ask_workload(guest)?.proofs_since(before);
        if Instant::now() >= deadline || proofs.iter().all(|proof| proof.holds) {
            return Ok(proofs);
        }
    }
}

fn ask_workload(guest: &mut Guest) -> Result<Report> {
    let output = guest.run("workload check")?;
    serde_json::from_str(&output.stdout)
        .with_context(|| format!("workload check printed {:?} and {:?}", output.stdout, output.stderr))
}

/// Runs `command`, a `dormouse hibernate` that powers off, and waits for that. `before` is the workload now.
///
/// # Errors
/// Fails where the command comes back instead.
pub fn save(guest: &mut Guest, before: Report, command: &str, observe: Observer<'_>) -> Result<Saved> {
    let mut cursor = guest.console().end();
    let begin = Instant::now();
    let command = guest.send(command)?;
    match guest.follow_command(command, &mut cursor, HALF_TIMEOUT, observe)? {
        Ending::PoweredOff => Ok(Saved { before, command, to_power_off: begin.elapsed() }),
        Ending::Answered(output) => {
            let explained = guest.explain(anyhow!("the power is still on"));
            Err(anyhow::Error::new(CameBack(output)).context(explained.to_string()))
        }
    }
}

/// Powers on and waits until the saved session has gone on and delivered what was in flight.
///
/// # Errors
/// Fails where another session comes up.
pub fn resume(guest: &mut Guest, saved: Saved, observe: Observer<'_>) -> Result<WentOn> {
    let cursor = guest.power_on()?;
    let begin = guest.powered_on_at();
    follow_resume(guest, saved, begin, cursor, observe)
}

/// Waits until the saved session has gone on in a machine that was powered on at `begin`; `cursor` is where on the
/// console to go on looking.
///
/// # Errors
/// As [`resume`].
pub fn follow_resume(
    guest: &mut Guest,
    saved: Saved,
    begin: Instant,
    mut cursor: Cursor,
    observe: Observer<'_>,
) -> Result<WentOn> {
    let mut tick = FirstTick { begin, armed: true, after: None };
    let ending = guest.follow_command(saved.command, &mut cursor, HALF_TIMEOUT, &mut |line| {
        tick.look(line);
        observe(line);
    })?;
    went_on(guest, saved.before, ending, cursor, tick, observe)
}

/// What it took QEMU to save a machine's state and to go on from it.
#[derive(Debug, Clone, Copy)]
pub struct ByEmulator {
    /// From the command until the state was written.
    pub to_power_off: Duration,
    /// From the next start until the workload's first sign of life.
    pub to_first_tick: Duration,
    /// What was written.
    pub saved: SavedState,
}

/// Has QEMU itself write the machine's state to `path`, cuts the power, and has the machine go on from there. No kernel
/// of the guest's takes part.
///
/// # Errors
/// Fails where QEMU does, and where the workload does not go on.
pub fn by_emulator(guest: &mut Guest, path: &Path) -> Result<ByEmulator> {
    check_workload(guest)?;
    let begin = Instant::now();
    let saved = guest.save_state(path)?;
    let to_power_off = begin.elapsed();
    let mut cursor = guest.go_on_from(path)?;
    let begin = guest.powered_on_at();
    let tick = guest.wait_for(&mut cursor, CONSOLE_MARK, HALF_TIMEOUT)?;
    let to_first_tick = tick.at.saturating_duration_since(begin);
    check_workload(guest)?;
    Ok(ByEmulator { to_power_off, to_first_tick, saved })
}

/// Runs `command`, a `dormouse hibernate` that does not end in a power-off, and waits until the session has gone on.
/// `before` is the workload now.
///
/// # Errors
/// Fails where the session does not go on. A command that fails is not a failure here.
pub fn stay_on(guest: &mut Guest, before: Report, command: &str, observe: Observer<'_>) -> Result<WentOn> {
    let mut cursor = guest.console().end();
    let begin = Instant::now();
    let command = guest.send(command)?;
    let mut tick = FirstTick { begin, armed: false, after: None };
    let ending = guest.follow_command(command, &mut cursor, 2 * HALF_TIMEOUT, &mut |line| {
        tick.look(line);
        observe(line);
    })?;
    went_on(guest, before, ending, cursor, tick, observe)
}

fn went_on(
    guest: &mut Guest,
    before: Report,
    ending: Ending,
    mut cursor: Cursor,
    mut tick: FirstTick,
    observe: Observer<'_>,
) -> Result<WentOn> {
    let Ending::Answered(output) = ending else {
        return Err(guest.explain(anyhow!("the machine went off in place of going on")));
    };
    let deadline = Instant::now() + WORK_TIMEOUT;
    let first = ask_workload(guest)?;
    let mut after = first.clone();
    // What was done between `before` and the jump proves nothing about the time since the return.
    let is_done = |now: &Report| now.delivered_what_was_in_flight(&before) && now.worked_since(&first);
    while !is_done(&after) && after.faults().is_empty() && Instant::now() < deadline {
        after = ask_workload(guest)?;
    }
    if after.faults().is_empty() && !after.worked_since(&first) {
        // Where each process waits goes to the serial log, whose end is shown.
        guest.run("echo 8 >/proc/sys/kernel/printk; echo w >/proc/sysrq-trigger; sleep 1")?;
        let (first, now) = (first.churn_summary(), after.churn_summary());
        return Err(guest.explain(anyhow!("no work for {WORK_TIMEOUT:?} by one of the processes: {first}, then {now}")));
    }
    for line in guest.console().since(&mut cursor) {
        tick.look(&line);
        observe(&line);
    }
    Ok(WentOn { before, after, output, to_first_tick: tick.after })
}

/// The counter's first line after it was away.
struct FirstTick {
    begin: Instant,
    /// The counter is away, or has been.
    armed: bool,
    after: Option<Duration>,
}

impl FirstTick {
    fn look(&mut self, line: &Line) {
        self.armed |= line.text.contains(&format!("dormouse: {}", Phase::SaveStart));
        if self.armed && self.after.is_none() && line.text.contains(CONSOLE_MARK) {
            self.after = Some(line.at.saturating_duration_since(self.begin));
        }
    }
}
