//! One session that is hibernated again and again under load, each time by another policy.
//!
//! The load never pauses: beside the workload that keeps things, processes write files to an ext4 filesystem on a
//! second disk, start others, and take and give back memory. After every cycle all that the workload proves must hold,
//! and at the end the filesystem must be clean. What is left to chance is drawn from one seed: the policies, the order
//! in which they are used, what follows each save, and the power cuts.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use dormouse::console::phase::Phase;
use dormouse::handoff::report::{Outcome, Report as AgentReport};
use dormouse::policy::{Compression, Shrink, Then, Verify};
use dormouse_image::State;
use dormouse_linux::kmod;

use crate::artifacts::Artifacts;
use crate::console::{Cursor, Line};
use crate::cycle::{self, Observer, Saved, WentOn};
use crate::guest::{COMMAND_TIMEOUT, Guest, READY_MARK};
use crate::machine::{Disk, DiskKind, GuestConfig, MIB, MemorySize};
use crate::random::Random;
use crate::userland::{GuestPolicy, POLICY_ARGUMENT, Userland};
use crate::workload::Role;
use crate::workload::report::{Report, Verdict};
use crate::{filesystem, image};

/// Policies of a session: few enough that the guest's initramfs, which holds an initramfs for each, stays small.
const POLICIES: usize = 12;

/// The disks in their order: the image's; the one with the filesystem, which the guest mounts here; and swap.
const IMAGE_DISK: usize = 0;
const FILES_DISK: usize = 1;
const SWAP_DISK: usize = 2;
const FILES: &str = "/run/files";
const FILES_DISK_BYTES: u64 = 128 * MIB;
const SWAP_DISK_BYTES: u64 = 128 * MIB;

/// C fills its memory with 0xaa (mm/page_poison.c), so that what D does not write is neither what A left nor zero.
const LITTER: &str = "page_poison=1";

/// C and D are up after this long even with everything else busy.
const TWO_BOOTS: Duration = Duration::from_secs(300);

/// Where the power may be cut. All of it is before the point of no return.
const CUT_PHASES: [Phase; 3] = [Phase::RestoreStart, Phase::RestoreVerify, Phase::RestoreWrite];
/// How much of memory may be written by then; a quick restore is soon past it.
const MOST_PERCENT: u64 = 60;

/// What the kernel logs when something is wrong with it.
const COMPLAINTS: &[&str] = &[
    "BUG:",
    "Oops",
    "WARNING: CPU",
    "Bad page",
    "general protection fault",
    "EXT4-fs error",
    "EXT4-fs warning",
    "I/O error",
    "Out of memory",
    "blocked for more than",
];

/// What a policy that shrinks the session wants it to have in use at most: some of it goes to swap.
const SHRINK_TO: u64 = 320 * MIB;

/// How B reports that it leaves nothing out; the reason follows.
const EVERY_PAGE: &str = "storing every page: ";

/// What a soak is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// What everything is drawn from.
    pub seed: u64,
    /// How often the session can be hibernated.
    pub cycles: u32,
    /// The guest's memory.
    pub memory: MemorySize,
    /// The guest's CPUs.
    pub cpus: u32,
}

/// A policy as it was drawn: what an image is made by, and restored by.
#[derive(Debug, Clone, PartialEq, Eq)]
struct DrawnPolicy {
    compression: Compression,
    threads: u32,
    memory_mib: u64,
    skip_free: bool,
    shrink: Shrink,
    verify: Verify,
}

impl DrawnPolicy {
    /// Every key of `[save]` and `[pipeline]` has its odds here, and its line in [`DrawnPolicy::text`]. A new one is
    /// drawn last, so that the seeds keep their meaning for the others.
    fn draw(random: &mut Random) -> DrawnPolicy {
        const LEVELS: [i32; 10] = [-5, -4, -3, -2, -1, 1, 2, 3, 4, 5];
        const THREADS: [u32; 5] = [0, 1, 2, 3, 4];
        let level = random.choose(&LEVELS).copied().unwrap_or(1);
        let mut policy = DrawnPolicy {
            compression: match random.within(1..=5) {
                1 | 2 => Compression::Auto,
                3 | 4 => Compression::Zstd { level },
                _ => Compression::Store,
            },
            threads: random.choose(&THREADS).copied().unwrap_or(0),
            memory_mib: random.within(4..=48),
            skip_free: !random.one_in(4),
            shrink: if random.one_in(4) { Shrink::Cache } else { Shrink::None },
            verify: Verify::Off,
        };
        // By what was drawn already.
        if policy.shrink == Shrink::Cache && policy.memory_mib % 2 == 1 {
            policy.shrink = Shrink::To(SHRINK_TO);
        }
        let verify = usize::try_from(policy.memory_mib).unwrap_or(0) % Verify::ALL.len();
        policy.verify = Verify::ALL[verify];
        policy
    }

    /// As the guest's file has it.
    fn text(&self, device: &str) -> String {
        let compression = match self.compression {
            Compression::Auto => "compression = \"auto\"".to_owned(),
            Compression::Store => "compression = \"store\"".to_owned(),
            Compression::Zstd { level } => format!("compression = \"zstd\"\nlevel = {level}"),
        };
        let shrink = match self.shrink {
            Shrink::None => "none".to_owned(),
            Shrink::Cache => "cache".to_owned(),
            Shrink::To(size) => format!("{}M", size / MIB),
        };
        format!(
            "[image]\ndevice = \"{device}\"\n\
             [save]\n{compression}\nskip_free = {}\nshrink = \"{}\"\nverify = \"{}\"\n\
             [pipeline]\nthreads = {}\nmemory = \"{}M\"\n",
            self.skip_free, shrink, self.verify, self.threads, self.memory_mib
        )
    }

    /// The number of threads that B and D report, on a machine with this many CPUs.
    fn threads_of(&self, cpus: u32) -> u32 {
        if self.threads == 0 { cpus } else { self.threads }
    }
}

impl fmt::Display for DrawnPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.compression {
            Compression::Auto => write!(f, "auto")?,
            Compression::Store => write!(f, "store")?,
            Compression::Zstd { level } => write!(f, "zstd {level}")?,
        }
        match self.threads {
            0 => write!(f, ", every CPU")?,
            1 => write!(f, ", 1 thread")?,
            threads => write!(f, ", {threads} threads")?,
        }
        write!(f, ", {}M", self.memory_mib)?;
        let flags = [
            (!self.skip_free, ", all pages"),
            (self.shrink == Shrink::Cache, ", drop caches"),
            (matches!(self.shrink, Shrink::To(_)), ", swap out"),
            (self.verify == Verify::Checksum, ", verify checksums"),
            (self.verify == Verify::Memory, ", verify memory"),
        ];
        flags.into_iter().filter(|(is_set, _)| *is_set).try_for_each(|(_, text)| f.write_str(text))
    }
}

/// Where the guest has the policy with this number.
fn policy_path(number: usize) -> String {
    format!("/etc/soak-{number}.toml")
}

/// A moment of a restore.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    phase: Phase,
    /// How much of memory is written, in a phase that writes.
    percent: u64,
}

impl Moment {
    fn draw(random: &mut Random) -> Option<Moment> {
        let phase = random.choose(&CUT_PHASES).copied();
        let percent = random.within(0..=MOST_PERCENT);
        phase.map(|phase| Moment { phase, percent: if phase == Phase::RestoreWrite { percent } else { 0 } })
    }

    /// Whether a line of the console shows that it has come.
    fn has_come(self, line: &str) -> bool {
        let Some((_, printed)) = line.split_once(&format!("dormouse: {}: ", self.phase)) else { return false };
        let percent = printed.split_once(" %").and_then(|(percent, _)| percent.parse().ok());
        self.percent == 0 || percent.is_some_and(|percent: u64| percent >= self.percent)
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.percent {
            0 => write!(f, "{}", self.phase),
            percent => write!(f, "{} at {percent} %", self.phase),
        }
    }
}

/// A hibernation as it was drawn.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Plan {
    /// The policy that it is saved by.
    save: usize,
    /// What follows the save.
    then: Then,
    /// The policy that it is restored by, after a power-off.
    restore: usize,
    /// Whether C leaves litter in memory, after a power-off.
    litter: bool,
    /// Where the power is cut in the first restore, after a power-off.
    cut: Option<Moment>,
}

impl Plan {
    fn draw(random: &mut Random, policies: usize) -> Plan {
        let then = match random.within(1..=10) {
            1 | 2 => Then::Reboot,
            3 => Then::Return,
            _ => Then::PowerOff,
        };
        let (save, restore) = (random.place(policies), random.place(policies));
        let (litter, is_cut) = (random.one_in(2), random.one_in(8));
        let cut = Moment::draw(random).filter(|_| is_cut && then == Then::PowerOff);
        Plan { save, then, restore, litter, cut }
    }
}

/// The policies of a seed and its first plans, of which fewer are the beginning of more.
fn draw(seed: u64, cycles: u32) -> (Vec<DrawnPolicy>, Vec<Plan>) {
    let mut random = Random::new(seed);
    let policies: Vec<DrawnPolicy> = (0..POLICIES).map(|_| DrawnPolicy::draw(&mut random.branch())).collect();
    let plans = (0..cycles).map(|_| Plan::draw(&mut random.branch(), policies.len())).collect();
    (policies, plans)
}

/// A cycle that went well.
#[derive(Debug, Clone)]
pub struct Row {
    /// Its number, from 1.
    pub number: u32,
    /// The policy that the session was saved by, in short.
    pub policy: String,
    /// What followed the save.
    pub then: &'static str,
    /// What the agent reports of it.
    pub report: AgentReport,
    /// Where the power was cut in the first restore.
    pub cut: Option<Moment>,
    /// Why B left nothing out, where the policy would have had it leave out free pages.
    pub every_page: Option<String>,
}

impl Row {
    /// How it went, in words.
    #[must_use]
    pub fn result(&self) -> String {
        let mut words = if self.report.outcome == Outcome::Returned { "returned" } else { "resumed" }.to_owned();
        if let Some(moment) = self.cut {
            words += &format!(", after a power cut in {moment}");
        }
        if let Some(reason) = &self.every_page {
            words += &format!(", every page stored: {reason}");
        }
        words
    }
}

/// A session that is hibernated again and again.
#[derive(Debug)]
pub struct Soak {
    guest: Guest,
    policies: Vec<DrawnPolicy>,
    /// What is left to do.
    plans: std::vec::IntoIter<Plan>,
    /// The policy of this power-on.
    resume_by: usize,
    /// The workload at its beginning.
    first: Report,
    /// What of the console has been looked through.
    seen: Cursor,
    /// Cycles that were begun.
    cycles: u32,
}

impl Soak {
    /// Boots a guest and starts the load.
    ///
    /// # Errors
    /// Fails where something is missing, and where the guest does not come up.
    pub fn start(options: Options, artifacts: &Artifacts) -> Result<Soak> {
        let (policies, plans) = draw(options.seed, options.cycles);
        let resume_by = plans.first().map_or(0, |plan| plan.restore);
        let mut config = GuestConfig::new(options.cpus, options.memory);
        let disks = [FILES_DISK_BYTES, SWAP_DISK_BYTES].map(|bytes| Disk { kind: DiskKind::Virtio, bytes });
        config.disks.extend(disks);
        config.kernel_arguments = kernel_arguments(resume_by, false);
        let kernel = artifacts.kernel(config.kernel)?;
        config.has_module = kernel.has_module();
        // Of the second filesystem, and what it checks its blocks with. Test kernels have them built in.
        let filesystem = ["crc32c_generic", "ext4"].into_iter().filter(|name| kmod::has(&kernel.modules(), name));
        config.modules.extend(filesystem.map(str::to_owned));
        let (image, files) = (config.disk_path(IMAGE_DISK)?, config.disk_path(FILES_DISK)?);
        let swap = config.disk_path(SWAP_DISK)?;
        // Each has an initramfs of its own, which takes a while to make.
        let is_used = |number| plans.iter().any(|plan| plan.save == number || plan.restore == number);
        let used = policies.iter().enumerate().filter(|(number, _)| is_used(*number));
        let in_guest =
            used.map(|(number, policy)| GuestPolicy { path: policy_path(number), text: policy.text(&image) });
        let userland = Userland { policies: in_guest.collect(), ..Userland::default() };
        let mut guest = Guest::new(config, &userland, artifacts)?;
        filesystem::make("ext4", &guest.disk_file(FILES_DISK))?;
        let seen = guest.console().end();
        guest.boot()?;
        cycle::init_image(&mut guest, &image)?;
        guest.succeed(&format!("mkdir -p {FILES} && mount -t ext4 {files} {FILES}"))?;
        guest.succeed(&format!("mkswap {swap} && swapon {swap} && mount -t cgroup2 cgroup2 /sys/fs/cgroup"))?;
        cycle::start_workload_and_churn(&mut guest, FILES)?;
        let first = cycle::check_workload(&mut guest)?;
        ensure!(first.churn.len() == 3, "not everything of the workload was started: {}", first.churn_summary());
        Ok(Soak { guest, policies, plans: plans.into_iter(), resume_by, first, seen, cycles: 0 })
    }

    /// Hibernates once more. Gives `observe` the console's lines as they come.
    ///
    /// # Errors
    /// Fails where the session does not go on as it was, with the end of the serial log; and where all cycles are done.
    pub fn cycle(&mut self, observe: Observer<'_>) -> Result<Row> {
        let plan = self.plans.next().context("all cycles are done")?;
        self.cycles += 1;
        let row = self.hibernate(&plan, observe);
        row.with_context(|| format!("cycle {}, {}", self.cycles, self.describe(&plan)))
    }

    fn hibernate(&mut self, plan: &Plan, observe: Observer<'_>) -> Result<Row> {
        let before = cycle::check_workload(&mut self.guest)?;
        let config = policy_path(plan.save);
        let command = format!("dormouse --config {config} hibernate --then {} --json", plan.then.as_str());
        let (went_on, cut) = match plan.then {
            Then::PowerOff => {
                let saved = cycle::save(&mut self.guest, before, &command, observe)?;
                self.resume_by = plan.restore;
                self.guest.set_kernel_arguments(kernel_arguments(plan.restore, plan.litter));
                self.resume(saved, plan.cut, observe)?
            }
            Then::Reboot | Then::Return => (cycle::stay_on(&mut self.guest, before, &command, observe)?, None),
        };
        let held = went_on.demand_proofs().and_then(|()| self.demand_report(plan, &went_on));
        let report = held.map_err(|error| self.guest.explain(error))?;
        let every_page = self.look_through_console()?;
        let policy = self.policies.get(plan.save);
        Ok(Row {
            number: self.cycles,
            policy: policy.map_or_else(String::new, DrawnPolicy::to_string),
            then: plan.then.as_str(),
            report,
            cut,
            every_page: every_page.filter(|_| policy.is_some_and(|policy| policy.skip_free)),
        })
    }

    /// Powers on, and once more if the power is to be cut. Returns where it was cut too.
    fn resume(&mut self, saved: Saved, cut: Option<Moment>, observe: Observer<'_>) -> Result<(WentOn, Option<Moment>)> {
        let guest = &mut self.guest;
        let Some(moment) = cut else { return Ok((cycle::resume(guest, saved, observe)?, None)) };
        let begin = Instant::now();
        let mut cursor = guest.power_on()?;
        guest.follow(&mut cursor, TWO_BOOTS, &moment.to_string(), |line| {
            observe(line);
            // An ordinary boot is distinguished from a resume below.
            (moment.has_come(&line.text) || line.text.contains(READY_MARK)).then_some(())
        })?;
        guest.freeze()?;
        let commit = image::commit(&guest.disk_file(IMAGE_DISK))?;
        if commit.state == State::Restoring && commit.attempts == 1 {
            guest.cut_power();
            return Ok((cycle::resume(guest, saved, observe)?, Some(moment)));
        }
        // It has got further than it reported. Without an image to resume from, a cut would end the session.
        guest.thaw()?;
        Ok((cycle::follow_resume(guest, saved, begin, cursor, observe)?, None))
    }

    /// What the agent reports must be what the policies ask for.
    fn demand_report(&self, plan: &Plan, went_on: &WentOn) -> Result<AgentReport> {
        let report = went_on.report()?;
        let expected = if plan.then == Then::Return { Outcome::Returned } else { Outcome::Resumed };
        ensure!(report.outcome == expected, "not {expected:?}: {report:?}");
        let accounted = report.stored_pages + report.zero_pages + report.omitted_pages;
        ensure!(report.ram_pages == accounted, "the pages do not add up: {report:?}");
        let policy = |number| self.policies.get(number).context("no such policy");
        let (saved_by, restored_by) = (policy(plan.save)?, policy(self.resume_by)?);
        let cpus = self.guest.config().cpus;
        ensure!(report.save.threads == saved_by.threads_of(cpus), "threads of the save: {report:?}");
        ensure!(saved_by.skip_free || report.omitted_pages == 0, "free pages were left out: {report:?}");
        match (&report.restore, expected) {
            (Some(half), Outcome::Resumed) => {
                ensure!(half.threads == restored_by.threads_of(cpus), "threads of the restore: {report:?}");
            }
            (None, Outcome::Returned) => {}
            _ => bail!("a restore that was not, or was not told of: {report:?}"),
        }
        Ok(report)
    }

    /// Looks at what has come to the console since the last time. Returns why B left nothing out, if it reports that.
    fn look_through_console(&mut self) -> Result<Option<String>> {
        let lines = self.guest.console().since(&mut self.seen);
        if let Some(line) = lines.iter().find(|line| is_complaint(line)) {
            return Err(self.guest.explain(anyhow!("a kernel complains: {}", line.text)));
        }
        Ok(lines.iter().find_map(|line| Some(line.text.split_once(EVERY_PAGE)?.1.trim().to_owned())))
    }

    /// Ends the session: everything must have held from its beginning to its end, and the filesystem must be clean once
    /// it has been unmounted. Returns the workload at its end, and what it proves.
    ///
    /// # Errors
    /// Fails where that is not so.
    pub fn finish(mut self) -> Result<(Report, Vec<Verdict>)> {
        let guest = &mut self.guest;
        let last = cycle::check_workload(guest)?;
        let proofs = last.proofs_since(&self.first);
        if let Some(proof) = proofs.iter().find(|proof| !proof.holds) {
            bail!(guest.explain(anyhow!("from beginning to end: not {}: {}", proof.claim, proof.detail)));
        }
        let files = last.work(Role::Files).context("nobody wrote files")?.pid;
        guest.succeed(&format!(
            "kill {files} && for try in $(seq 300); do umount {FILES} && exit 0; sleep 0.1; done; exit 1"
        ))?;
        guest.send("poweroff -f")?;
        guest.wait_for_power_off(COMMAND_TIMEOUT)?;
        filesystem::check_ext4(&guest.disk_file(FILES_DISK)).map_err(|error| guest.explain(error))?;
        self.look_through_console()?;
        Ok((last, proofs))
    }

    /// A plan in words, for the error message of a cycle that failed.
    fn describe(&self, plan: &Plan) -> String {
        let policy = |number| self.policies.get(number).map_or_else(String::new, DrawnPolicy::to_string);
        let mut words = format!("saved by ({}), then {}", policy(plan.save), plan.then.as_str());
        match plan.then {
            Then::PowerOff => words += &format!(", restored by ({})", policy(plan.restore)),
            Then::Reboot => words += &format!(", restored by ({})", policy(self.resume_by)),
            Then::Return => {}
        }
        if let Some(moment) = plan.cut {
            words += &format!(", power cut in {moment}");
        }
        words
    }
}

fn kernel_arguments(policy: usize, litter: bool) -> Vec<String> {
    let mut arguments = vec![format!("{POLICY_ARGUMENT}={}", policy_path(policy))];
    if litter {
        arguments.push(LITTER.to_owned());
    }
    arguments
}

fn is_complaint(line: &Line) -> bool {
    COMPLAINTS.iter().any(|complaint| line.text.contains(complaint))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use dormouse::policy::Policy;

    use super::*;

    #[test]
    fn every_policy_that_can_be_drawn_is_one() {
        let mut random = Random::new(1);
        let drawn: Vec<DrawnPolicy> = (0..300).map(|_| DrawnPolicy::draw(&mut random)).collect();
        for policy in &drawn {
            let Policy { save, pipeline, .. } = Policy::parse("drawn", &policy.text("/dev/vda")).unwrap();
            assert_eq!(save.compression(), policy.compression);
            let threads = u32::try_from(pipeline.threads).unwrap();
            assert_eq!((threads, pipeline.memory), (policy.threads, policy.memory_mib * MIB));
            assert_eq!((save.skip_free, save.shrink), (policy.skip_free, policy.shrink));
        }
        let comes = |what: fn(&DrawnPolicy) -> bool| assert!(drawn.iter().any(what));
        comes(|policy| policy.compression == Compression::Auto);
        comes(|policy| policy.compression == Compression::Store);
        comes(|policy| policy.compression == Compression::Zstd { level: -5 });
        comes(|policy| policy.compression == Compression::Zstd { level: 5 });
        comes(|policy| policy.threads == 0);
        comes(|policy| policy.threads == 4);
        comes(|policy| policy.memory_mib == 4);
        comes(|policy| policy.memory_mib == 48);
        comes(|policy| !policy.skip_free && policy.shrink == Shrink::Cache);
        comes(|policy| policy.shrink == Shrink::To(SHRINK_TO));
    }

    #[test]
    fn a_seed_has_its_plans_and_most_of_them_power_off() {
        let (policies, plans) = draw(5, 300);
        assert_eq!(draw(5, 20), (policies, plans[..20].to_vec()));
        assert_ne!(draw(6, 300).1, plans);
        let count = |what: fn(&Plan) -> bool| plans.iter().filter(|plan| what(plan)).count();
        assert!(count(|plan| plan.then == Then::PowerOff) > 150);
        assert!(count(|plan| plan.then == Then::Reboot) > 20 && count(|plan| plan.then == Then::Return) > 10);
        assert!((5..60).contains(&count(|plan| plan.cut.is_some())));
        assert!(plans.iter().all(|plan| plan.cut.is_none() || plan.then == Then::PowerOff));
        assert!((0..POLICIES).all(|number| plans.iter().any(|plan| plan.save == number && plan.restore != number)));
    }

    #[test]
    fn a_moment_comes_with_its_phase_and_as_much_as_it_asks_for() {
        let verify = Moment { phase: Phase::RestoreVerify, percent: 0 };
        assert!(verify.has_come("[ 1.2] dormouse: restore/verify: verifying header and index"));
        assert!(!verify.has_come("dormouse: restore/start: kernel D is up"));
        let write = Moment { phase: Phase::RestoreWrite, percent: 40 };
        assert!(!write.has_come("dormouse: restore/write: 5000 pages, 2 threads"));
        assert!(!write.has_come("dormouse: restore/write: 39 %, 57 MiB of 100 MiB"));
        assert!(write.has_come("dormouse: restore/write: 100 %, 100 MiB of 100 MiB"));
        assert_eq!((verify.to_string(), write.to_string()), ("restore/verify".into(), "restore/write at 40 %".into()));
    }

    #[test]
    fn a_policy_is_short_in_words() {
        let policy = DrawnPolicy {
            compression: Compression::Zstd { level: -3 },
            threads: 0,
            memory_mib: 17,
            skip_free: false,
            shrink: Shrink::Cache,
            verify: Verify::Memory,
        };
        assert_eq!(policy.to_string(), "zstd -3, every CPU, 17M, all pages, drop caches, verify memory");
        let other = DrawnPolicy {
            compression: Compression::Auto,
            threads: 1,
            skip_free: true,
            shrink: Shrink::None,
            verify: Verify::Off,
            ..policy
        };
        assert_eq!(other.to_string(), "auto, 1 thread, 17M");
    }
}
