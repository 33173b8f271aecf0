//! Shows a whole hibernation under QEMU: a guest with a workload is saved, powered off, powered on and resumed, each
//! phase named as it happens. `scripts/demo` builds everything and runs this.

mod screen;
mod table;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, ValueEnum};
use dormouse_tests::artifacts::Artifacts;
use dormouse_tests::cycle::{self, WentOn};
use dormouse_tests::guest::{BOOT_TIMEOUT, Guest, READY_MARK};
use dormouse_tests::machine::{DiskKind, Firmware, GuestConfig, MachineType, MemorySize};
use screen::Screen;
use table::Row;

/// Hibernates a real Linux under QEMU, powers it off, and brings it back.
///
/// A guest runs a workload that no boot could bring back: a tmpfs file, a process that counts, a TCP connection with
/// bytes in flight, an anonymous mapping. It is saved, powered off, powered on and resumed. The exit status is 0 only
/// if everything is as it was.
#[derive(Debug, Parser)]
#[command(name = "scripts/demo")]
struct Options {
    /// The guest's memory, in M or G
    #[arg(long, default_value = "768M")]
    memory: MemorySize,
    /// The guest's CPUs
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=8))]
    cpus: u32,
    /// The chipset
    #[arg(long, value_enum, default_value_t = MachineType::Pc)]
    machine: MachineType,
    /// The disk that holds the image
    #[arg(long, value_enum, default_value_t = DiskKind::Virtio)]
    disk: DiskKind,
    /// What runs before the kernel
    #[arg(long, value_enum, default_value_t = Firmware::Bios)]
    firmware: Firmware,
    /// How often to hibernate, one time after the other in the same session
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    cycles: u32,
    /// What follows the save: the power-off, or the return to the session that was saved
    #[arg(long, value_enum, default_value_t = Then::Poweroff)]
    then: Then,
    /// Print the whole serial console
    #[arg(long)]
    verbose: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Then {
    Poweroff,
    Return,
}

fn main() -> ExitCode {
    let options = Options::parse();
    match run(&options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("\nscripts/demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether every proof held.
fn run(options: &Options) -> Result<bool> {
    let artifacts = Artifacts::from_environment()?;
    let mut config = GuestConfig::new(options.cpus, options.memory).disk(options.disk);
    config.machine = options.machine;
    config.firmware = options.firmware;
    println!(
        "A {} with {}, {} CPU{}, {} of memory and a {} disk, under QEMU's emulation.",
        name(options.machine),
        name(options.firmware),
        options.cpus,
        if options.cpus == 1 { "" } else { "s" },
        options.memory,
        name(options.disk),
    );
    println!("Linux {}: A is hibernated, B saves it, C boots after power-on, D restores it.", artifacts.release());

    let mut guest = Guest::standard(config, &artifacts)?;
    let mut screen = Screen::new(options.verbose);
    start(&mut guest, &mut screen)?;
    let mut rows = Vec::new();
    for number in 1..=options.cycles {
        let title = if options.cycles == 1 { String::new() } else { format!(" {number} of {}", options.cycles) };
        let row = match options.then {
            Then::Poweroff => power_cycle(&mut guest, &mut screen, &title)?,
            Then::Return => snapshot(&mut guest, &mut screen, &title)?,
        };
        rows.push(row);
    }
    table::print(&rows);
    Ok(rows.iter().all(Row::holds))
}

/// An ordinary boot of A, the image device, and the workload.
fn start(guest: &mut Guest, screen: &mut Screen) -> Result<()> {
    screen.step("Start: an ordinary boot");
    guest.settle_firmware()?;
    let mut cursor = guest.power_on()?;
    guest.follow(&mut cursor, BOOT_TIMEOUT, "A", |line| {
        screen.line(line);
        line.text.contains(READY_MARK).then_some(())
    })?;
    screen.say('A', "is up");
    let device = guest.config().disk_path(0)?;
    let printed = cycle::init_image(guest, &device)?;
    screen.say('A', &format!("dormouse image init {device}: {}", printed.trim()));
    cycle::start_workload(guest)?;
    let report = cycle::check_workload(guest)?;
    screen.say(
        'A',
        &format!(
            "the workload runs: a tmpfs file of {}, a mapping of {}, {} bytes in flight",
            dormouse_linux::units::mib(report.data.evidence.bytes),
            dormouse_linux::units::mib(report.mapping.evidence.bytes),
            report.in_flight
        ),
    );
    Ok(())
}

fn power_cycle(guest: &mut Guest, screen: &mut Screen, title: &str) -> Result<Row> {
    let command = "dormouse hibernate --then poweroff --json";
    let before = cycle::check_workload(guest)?;
    screen.step(&format!("Save{title}: {command}"));
    let saved = cycle::save(guest, before, command, &mut |line| screen.line(line))?;
    let to_power_off = saved.to_power_off;
    screen.say(' ', "the power is off");
    screen.step(&format!("Resume{title}: power on"));
    let went_on = cycle::resume(guest, saved, &mut |line| screen.line(line))?;
    screen.say('A', "dormouse hibernate has returned");
    row(guest, &went_on, Some(to_power_off.as_secs_f64()))
}

fn snapshot(guest: &mut Guest, screen: &mut Screen, title: &str) -> Result<Row> {
    let command = "dormouse hibernate --then return --json";
    let before = cycle::check_workload(guest)?;
    screen.step(&format!("Save and return{title}: {command}"));
    let went_on = cycle::stay_on(guest, before, command, &mut |line| screen.line(line))?;
    screen.say('A', "dormouse hibernate has returned");
    row(guest, &went_on, None)
}

fn row(guest: &Guest, went_on: &WentOn, to_power_off: Option<f64>) -> Result<Row> {
    let report = went_on.report().map_err(|error| guest.explain(error))?;
    let to_first_tick = went_on.to_first_tick.map(|time| time.as_secs_f64());
    Ok(Row { report, proofs: went_on.proofs(), to_power_off, to_first_tick })
}

fn name(value: impl ValueEnum) -> String {
    value.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}
