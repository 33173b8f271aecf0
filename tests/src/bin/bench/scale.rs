//! How save and restore grow with CPUs, with memory, and with how much of it is in use.

use anyhow::{Context, Result};
use dormouse::handoff::spent::Spent;
use dormouse_tests::artifacts::Artifacts;
use dormouse_tests::cycle::{self, unobserved};
use dormouse_tests::guest::Guest;
use dormouse_tests::machine::{GuestConfig, MemorySize};

use crate::Options;
use crate::page::Section;
use crate::plot;
use crate::table::{Table, median_of, range_of};

/// A machine, and how much of its memory is filled beside what runs in it.
#[derive(Debug, Clone, Copy)]
struct Point {
    cpus: u32,
    mib: u64,
    filled_percent: u64,
}

const fn point(cpus: u32, gib: u64, filled_percent: u64) -> Point {
    Point { cpus, mib: gib * 1024, filled_percent }
}

/// CPUs, then memory, then what is filled.
const POINTS: [Point; 12] = [
    point(1, 2, 30),
    point(2, 2, 30),
    point(4, 2, 30),
    point(8, 2, 30),
    point(16, 2, 30),
    point(2, 1, 30),
    point(2, 4, 30),
    point(2, 8, 30),
    point(2, 2, 0),
    point(2, 2, 50),
    point(2, 2, 60),
    // So large that the rest must be free: hosts have as much once, and not twice.
    point(2, 16, 5),
];

/// The point that the others differ from, each in one thing.
const BASE: Point = point(2, 2, 30);

/// The medians of a point.
#[derive(Debug, Clone, Copy)]
struct Measured {
    point: Point,
    saved_percent: f64,
    save: f64,
    restore: f64,
}

const CPUS: &str = "CPUs";
const GIB: &str = "GiB of memory";
const SAVED: &str = "per cent of memory saved";

/// The plots: what is constant, what is across, and its value.
type Across = fn(&Measured) -> f64;
const LINES: [(&str, &str, Across); 3] = [
    ("2 GiB, 30 % filled", CPUS, |one| f64::from(one.point.cpus)),
    // Far below 2^52.
    ("2 CPUs, 30 % filled", GIB, |one| one.point.mib as f64 / 1024.0),
    ("2 CPUs, 2 GiB", SAVED, |one| one.saved_percent.round()),
];

/// Whether a point differs from the base in nothing but what is across.
fn is_on(point: Point, across: &str) -> bool {
    (across == CPUS || point.cpus == BASE.cpus)
        && (across == GIB || point.mib == BASE.mib)
        && (across == SAVED || point.filled_percent == BASE.filled_percent)
}

/// One hibernation.
#[derive(Debug, Clone, Copy)]
struct Run {
    save: f64,
    restore: f64,
    command_to_off: f64,
    on_to_tick: f64,
    image_bytes: f64,
    pages_saved: f64,
    ram_pages: f64,
    peak_mib: f64,
    save_spent: Spent,
    restore_spent: Spent,
}

impl Run {
    /// In both halves.
    fn lock_waits(&self) -> f64 {
        f64::from(self.save_spent.lock_waits) + f64::from(self.restore_spent.lock_waits)
    }
}

pub(crate) fn run(options: &Options) -> Result<Section> {
    let runs = options.runs.unwrap_or(if options.quick { 3 } else { 5 });
    let artifacts = Artifacts::from_environment()?;
    let mut table = Table::new(&[
        "cpus",
        "memory_mib",
        "filled_percent",
        "saved_percent",
        "save_s",
        "restore_s",
        "command_to_off_s",
        "on_to_tick_s",
        "image_bytes",
        "pages_saved",
        "agent_peak_mib",
        "save_waiting_ms",
        "save_mapping_ms",
        "restore_waiting_ms",
        "restore_mapping_ms",
        "lock_waits",
        "runs",
        "save_s_min",
        "save_s_max",
        "restore_s_min",
        "restore_s_max",
    ]);
    let mut measured = Vec::new();
    for point in POINTS {
        let mut guest = start(&artifacts, point).with_context(|| format!("{point:?}"))?;
        let mut results = Vec::new();
        for number in 1..=runs {
            let run = hibernate(&mut guest).with_context(|| format!("{point:?}, run {number}"))?;
            eprintln!("{point:?}, run {number}: {run:?}");
            results.push(run);
        }
        let of = |value: fn(&Run) -> f64| median_of(&results, value);
        let (save_min, save_max) = range_of(&results, |run| run.save);
        let (restore_min, restore_max) = range_of(&results, |run| run.restore);
        let saved_percent = 100.0 * of(|run| run.pages_saved / run.ram_pages);
        measured.push(Measured { point, saved_percent, save: of(|run| run.save), restore: of(|run| run.restore) });
        table.row(vec![
            point.cpus.to_string(),
            point.mib.to_string(),
            point.filled_percent.to_string(),
            format!("{saved_percent:.0}"),
            format!("{:.2}", of(|run| run.save)),
            format!("{:.2}", of(|run| run.restore)),
            format!("{:.2}", of(|run| run.command_to_off)),
            format!("{:.2}", of(|run| run.on_to_tick)),
            format!("{:.0}", of(|run| run.image_bytes)),
            format!("{:.0}", of(|run| run.pages_saved)),
            format!("{:.1}", of(|run| run.peak_mib)),
            format!("{:.0}", of(|run| run.save_spent.waiting_ms.into())),
            format!("{:.0}", of(|run| run.save_spent.mapping_ms.into())),
            format!("{:.0}", of(|run| run.restore_spent.waiting_ms.into())),
            format!("{:.0}", of(|run| run.restore_spent.mapping_ms.into())),
            format!("{:.0}", of(Run::lock_waits)),
            results.len().to_string(),
            format!("{save_min:.2}"),
            format!("{save_max:.2}"),
            format!("{restore_min:.2}"),
            format!("{restore_max:.2}"),
        ]);
    }
    table.write_csv(&options.output.join("scale.csv"))?;
    let mut section = Section::new(
        "Scaling",
        "A guest with more CPUs, more memory, and more of its memory in use; only one of them varies at a time.",
    );
    section.table(&format!("Scaling: medians of {runs} runs, under emulation"), table);
    for (title, across, of) in LINES {
        let along = |value: fn(&Measured) -> f64| -> Vec<(f64, f64)> {
            let of_this = measured.iter().filter(|one| is_on(one.point, across));
            let mut points: Vec<_> = of_this.map(|one| (of(one), value(one))).collect();
            points.sort_by(|one, other| one.0.total_cmp(&other.0));
            points
        };
        let series = [("save", along(|one| one.save)), ("restore", along(|one| one.restore))];
        section.picture(plot::lines(title, "seconds", across, &series));
    }
    Ok(section)
}

/// A guest with the workload, and with files in memory that compress as programs do.
fn start(artifacts: &Artifacts, point: Point) -> Result<Guest> {
    let mut config = GuestConfig::new(point.cpus, MemorySize { mib: point.mib });
    config.memory_is_there = true;
    let mut guest = Guest::standard(config, artifacts)?;
    guest.boot()?;
    let device = guest.config().disk_path(0)?;
    cycle::init_image(&mut guest, &device)?;
    cycle::start_workload(&mut guest)?;
    fill(&mut guest, point.mib * point.filled_percent / 100)?;
    Ok(guest)
}

/// Fills so much of the guest's memory with files that compress as programs do.
pub(crate) fn fill(guest: &mut Guest, mib: u64) -> Result<()> {
    // A number before each copy shifts it, so that pages of different copies differ.
    guest.succeed(&format!(
        "size=$(stat -c %s /usr/bin/dormouse); have=0; number=0; mkdir -p /run/fill; \
         while [ $have -lt $(({mib} * 1024 * 1024)) ]; do \
         {{ echo $number; cat /usr/bin/dormouse; }} >/run/fill/$number; \
         number=$((number + 1)); have=$((have + size)); done"
    ))?;
    Ok(())
}

fn hibernate(guest: &mut Guest) -> Result<Run> {
    let before = cycle::check_workload(guest)?;
    let saved = cycle::save(guest, before, "dormouse hibernate --then poweroff --json", &mut unobserved)?;
    let command_to_off = saved.to_power_off.as_secs_f64();
    let went_on = cycle::resume(guest, saved, &mut unobserved)?;
    went_on.demand_proofs().map_err(|error| guest.explain(error))?;
    let report = went_on.report()?;
    let restore = report.restore.context("no word of the restore")?;
    // Sizes are far below 2^52.
    Ok(Run {
        save: report.save.seconds,
        restore: restore.seconds,
        command_to_off,
        on_to_tick: went_on.to_first_tick.context("no sign of life")?.as_secs_f64(),
        image_bytes: report.image_bytes as f64,
        pages_saved: report.stored_pages as f64,
        ram_pages: report.ram_pages as f64,
        save_spent: report.save.spent,
        restore_spent: restore.spent,
        peak_mib: report.save.peak_kib.max(restore.peak_kib) as f64 / 1024.0,
    })
}
