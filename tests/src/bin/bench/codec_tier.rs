//! How `compression = "auto"` compares with each fixed choice, on image devices of different speeds.
//!
//! One guest has a disk of each speed, throttled by the emulator, and saves its session to each of them with each
//! choice in turn. The session goes on after each save: what is measured is B's save alone.

use anyhow::{Context, Result, ensure};
use dormouse_tests::artifacts::Artifacts;
use dormouse_tests::cycle::{self, unobserved};
use dormouse_tests::guest::Guest;
use dormouse_tests::machine::{Disk, DiskKind, GuestConfig, MemorySize, image_disk_bytes};
use dormouse_tests::userland::{GuestPolicy, Userland};

use crate::Options;
use crate::page::Section;
use crate::table::{Table, median_of, range_of};

/// Bytes that a device takes in a second. Beside emulated CPUs, which compress a tenth of what real ones do, the first
/// is to the others what 500 MB/s are to real ones.
const SPEEDS: [u64; 5] = [50_000_000, 200_000_000, 500_000_000, 1_000_000_000, 3_000_000_000];

/// What the policy says of compression, and what it is called. The first is compared with the others.
const CHOICES: [(&str, &str); 5] = [
    ("auto", "compression = \"auto\""),
    ("store", "compression = \"store\""),
    ("zstd -1", "compression = \"zstd\"\nlevel = -1"),
    ("zstd 1", "compression = \"zstd\"\nlevel = 1"),
    ("zstd 3", "compression = \"zstd\"\nlevel = 3"),
];

const MEMORY: MemorySize = MemorySize { mib: 1024 };

/// Part of the memory that is filled beside the workload, in per cent.
const FILLED: u64 = 30;

/// One save.
#[derive(Debug, Clone, Copy)]
struct Run {
    seconds: f64,
    image_bytes: f64,
    waiting_ms: f64,
    coding_ms: f64,
}

pub(crate) fn run(options: &Options) -> Result<Section> {
    let runs = options.runs.unwrap_or(3);
    let artifacts = Artifacts::from_environment()?;
    let mut guest = start(&artifacts)?;
    let mut results: Vec<Vec<Run>> = vec![Vec::new(); SPEEDS.len() * CHOICES.len()];
    for number in 0..runs {
        for turn in 0..results.len() {
            // Each run begins with another choice: what went before has its part in how fast a save is.
            let (device, choice) = (turn / CHOICES.len(), (turn + number) % CHOICES.len());
            let name = format!("{} MB/s, {}, run {}", SPEEDS[device] / 1_000_000, CHOICES[choice].0, number + 1);
            let run = save(&mut guest, device, choice).with_context(|| name.clone())?;
            eprintln!("{name}: {run:.2?}");
            results[device * CHOICES.len() + choice].push(run);
        }
    }
    let mut table = Table::new(&[
        "device_mb_s",
        "choice",
        "runs",
        "save_s",
        "save_s_min",
        "save_s_max",
        "image_bytes",
        "waiting_ms",
        "coding_ms",
        "of_best_fixed",
    ]);
    for (speed, results) in SPEEDS.into_iter().zip(results.chunks(CHOICES.len())) {
        let seconds = |runs: &Vec<Run>| median_of(runs, |run| run.seconds);
        let best = results.iter().skip(1).map(seconds).fold(f64::INFINITY, f64::min);
        for ((choice, _), runs) in CHOICES.into_iter().zip(results) {
            let of = |value: fn(&Run) -> f64| median_of(runs, value);
            let (least, most) = range_of(runs, |run| run.seconds);
            table.row(vec![
                (speed / 1_000_000).to_string(),
                choice.to_owned(),
                runs.len().to_string(),
                format!("{:.2}", seconds(runs)),
                format!("{least:.2}"),
                format!("{most:.2}"),
                format!("{:.0}", of(|run| run.image_bytes)),
                format!("{:.0}", of(|run| run.waiting_ms)),
                format!("{:.0}", of(|run| run.coding_ms)),
                format!("{:.2}", seconds(runs) / best),
            ]);
        }
    }
    table.write_csv(&options.output.join("codec.csv"))?;
    let mut section = Section::new(
        "Codecs and devices",
        "One session, saved to devices that the emulator makes slow. It goes on after each save; measured is B alone.",
    );
    section.table(&format!("Medians of {runs} alternating runs, 2 CPUs, under emulation"), table);
    Ok(section)
}

/// Where the guest has the policy of a choice on a device.
fn policy_path(device: usize, choice: usize) -> String {
    format!("/etc/dormouse-{device}-{choice}.toml")
}

fn start(artifacts: &Artifacts) -> Result<Guest> {
    let mut config = GuestConfig::new(2, MEMORY);
    let disk = Disk { kind: DiskKind::Virtio, bytes: image_disk_bytes(MEMORY) };
    config.disks = vec![disk; SPEEDS.len()];
    config.throttles = SPEEDS.into_iter().enumerate().collect();
    config.memory_is_there = true;
    let devices = (0..SPEEDS.len()).map(|at| config.disk_path(at)).collect::<Result<Vec<_>>>()?;
    let userland = Userland {
        policies: devices
            .iter()
            .enumerate()
            .flat_map(|(at, device)| {
                CHOICES.into_iter().enumerate().map(move |(choice, (_, compression))| GuestPolicy {
                    path: policy_path(at, choice),
                    text: format!("[image]\ndevice = \"{device}\"\n[save]\n{compression}\n"),
                })
            })
            .collect(),
        ..Userland::default()
    };
    let mut guest = Guest::new(config, &userland, artifacts)?;
    guest.boot()?;
    for device in &devices {
        cycle::init_image(&mut guest, device)?;
    }
    cycle::start_workload(&mut guest)?;
    crate::scale::fill(&mut guest, MEMORY.mib * FILLED / 100)?;
    Ok(guest)
}

fn save(guest: &mut Guest, device: usize, choice: usize) -> Result<Run> {
    let before = cycle::check_workload(guest)?;
    // The boot has looked for an image on one of these devices, and this session is never resumed.
    let command =
        format!("dormouse --config {} hibernate --then return --json --trust-boot", policy_path(device, choice));
    let went_on = cycle::stay_on(guest, before, &command, &mut unobserved)?;
    went_on.demand_proofs().map_err(|error| guest.explain(error))?;
    let report = went_on.report()?;
    ensure!(report.save.seconds > 0.0, "{report:?}");
    // Sizes are far below 2^52.
    Ok(Run {
        seconds: report.save.seconds,
        image_bytes: report.image_bytes as f64,
        waiting_ms: report.save.spent.waiting_ms.into(),
        coding_ms: report.save.spent.coding_ms.into(),
    })
}
