//! Shows a whole hibernation under QEMU: a guest with a workload is saved, powered off, powered on and resumed, each
//! phase named as it happens. `scripts/demo` builds everything and runs this.

mod screen;
mod table;
mod words;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};
use dormouse_tests::artifacts::Artifacts;
use dormouse_tests::channel::Output;
use dormouse_tests::cycle::{self, CameBack, WentOn};
use dormouse_tests::guest::{BOOT_TIMEOUT, Guest, READY_MARK};
use dormouse_tests::machine::{
    BootLoader, Disk, DiskKind, Firmware, GuestConfig, MIB, MachineType, MemorySize, image_disk_bytes,
};
use dormouse_tests::userland::{GuestPolicy, POLICY_PATH, Userland};
use dormouse_tests::workload::report::Report;
use dormouse_tests::{nbd_server, nfs_server};
use screen::Screen;
use table::Row;

/// Hibernates a real Linux under QEMU, powers it off, and brings it back.
///
/// A guest runs a workload that no boot could bring back: a tmpfs file, a process that counts, a TCP connection with
/// bytes in flight, an anonymous mapping that is partly swapped out. It is saved, powered off, powered on and resumed.
///
/// The exit status is 0 only if everything is as it was; 3 where this machine cannot be hibernated, which is refused
/// with nothing changed; 1 where anything is lost, or fails.
#[derive(Debug, Parser)]
#[command(name = "scripts/demo")]
struct Options {
    /// The guest's memory, in M or G
    #[arg(long, default_value = "768M")]
    memory: MemorySize,
    /// The guest's CPUs
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
    cpus: u32,
    /// The chipset
    #[arg(long, value_enum, default_value_t = MachineType::Pc)]
    machine: MachineType,
    /// What holds the image: a disk, or a server on the host
    #[arg(long, value_enum, default_value_t = Place::Virtio)]
    disk: Place,
    /// What runs before the kernel
    #[arg(long, value_enum, default_value_t = Firmware::Bios)]
    firmware: Firmware,
    /// The kernel: a series of Linux, as in 6.12 or 7.2, which is built; or a directory with bzImage, config, release
    /// and lib/modules
    #[arg(long, default_value = "6.12")]
    kernel: String,
    /// An argument for the kernel command line of A and C; can be given more than once
    #[arg(long, value_name = "ARGUMENT", allow_hyphen_values = true)]
    kernel_argument: Vec<String>,
    /// More arguments for QEMU, split as a shell does
    #[arg(long, value_name = "ARGUMENTS", allow_hyphen_values = true)]
    qemu: Option<String>,
    /// A policy that goes on from the guest's, which names the image's device
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// How often to hibernate, one time after the other in the same session
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    cycles: u32,
    /// What follows the save: the power-off, or the return to the session that was saved
    #[arg(long, value_enum, default_value_t = Then::Poweroff)]
    then: Then,
    /// Start the save kernel ahead of each hibernation, which then finds it waiting
    #[arg(long)]
    warm: bool,
    /// Have the boot loader (GRUB) start the restore kernel itself, with no ordinary boot before it
    #[arg(long)]
    direct: bool,
    /// Print the whole serial console
    #[arg(long)]
    verbose: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Then {
    Poweroff,
    Return,
}

/// What holds the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Place {
    /// virtio-blk on PCI
    Virtio,
    /// NVMe
    Nvme,
    /// A SATA disk on an AHCI controller
    Ahci,
    /// A SCSI disk on virtio-scsi
    Scsi,
    /// USB mass storage on xHCI
    Usb,
    /// An NBD server
    Nbd,
    /// An NFS server
    Nfs,
}

impl Place {
    /// The disk, where it is one.
    fn disk(self) -> Option<DiskKind> {
        match self {
            Place::Virtio => Some(DiskKind::Virtio),
            Place::Nvme => Some(DiskKind::Nvme),
            Place::Ahci => Some(DiskKind::Ahci),
            Place::Scsi => Some(DiskKind::Scsi),
            Place::Usb => Some(DiskKind::Usb),
            Place::Nbd | Place::Nfs => None,
        }
    }
}

/// The server that has the image.
enum Server {
    Nbd(nbd_server::Server),
    Nfs(nfs_server::Server),
}

impl Server {
    fn start(place: Place, memory: MemorySize) -> Result<Server> {
        if place == Place::Nfs {
            return nfs_server::Server::start(nfs_server::Version::Three).map(Server::Nfs);
        }
        nbd_server::Server::start(&["memory", &image_disk_bytes(memory).to_string()]).map(Server::Nbd)
    }

    fn url_for_guest(&self) -> String {
        match self {
            Server::Nbd(server) => server.url_for_guest(""),
            Server::Nfs(server) => server.url_for_guest("image"),
        }
    }
}

/// The size of the swap area, which the workload swaps a part of itself out to: the guest's last disk.
const SWAP_BYTES: u64 = 64 * MIB;

/// How the demonstration ended.
enum Ending {
    /// Whether every proof held.
    Shown(bool),
    /// The machine cannot be hibernated, and goes on.
    Refused,
}

fn main() -> ExitCode {
    let options = Options::parse();
    match run(&options) {
        Ok(Ending::Shown(true)) => ExitCode::SUCCESS,
        Ok(Ending::Shown(false)) => ExitCode::FAILURE,
        Ok(Ending::Refused) => ExitCode::from(3),
        Err(error) => {
            eprintln!("\nscripts/demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<Ending> {
    let artifacts = Artifacts::from_environment()?.with_option(&options.kernel)?;
    let mut config = GuestConfig::new(options.cpus, options.memory);
    let mut server = None;
    if let Some(kind) = options.disk.disk() {
        config = config.disk(kind);
    } else {
        config.disks.clear();
        config.link = "user,net=10.0.2.0/24".to_owned();
        server = Some(Server::start(options.disk, options.memory)?);
    }
    let device = match &server {
        Some(server) => server.url_for_guest(),
        None => config.disk_path(0)?,
    };
    config.machine = options.machine;
    config.firmware = options.firmware;
    config.disks.push(Disk { kind: DiskKind::Virtio, bytes: SWAP_BYTES });
    config.kernel_arguments.clone_from(&options.kernel_argument);
    config.qemu_arguments = options.qemu.as_deref().map(words::split).transpose()?.unwrap_or_default();
    println!(
        "A {} with {}, {} CPU{}, {} of memory and {}, under QEMU's emulation.",
        name(options.machine),
        name(options.firmware),
        options.cpus,
        if options.cpus == 1 { "" } else { "s" },
        options.memory,
        match options.disk.disk() {
            Some(_) => format!("a {} disk", name(options.disk)),
            None => format!("an image on a server ({})", name(options.disk)),
        },
    );
    for (what, arguments) in [("the kernel", &config.kernel_arguments), ("QEMU", &config.qemu_arguments)] {
        if !arguments.is_empty() {
            println!("More arguments for {what}: {}", arguments.join(" "));
        }
    }
    config.boot_loader = options.direct.then_some(BootLoader::Grub);
    config.menu_seconds = Some(0);
    let between = if options.direct { "the boot loader starts D after power-on," } else { "C boots after power-on," };
    println!("Linux {}: A is hibernated, B saves it, {between} D restores it.", artifacts.release());

    let policies = vec![policy(options, &device)?];
    let modules = if options.disk == Place::Nfs { vec!["nfsv3".to_owned()] } else { Vec::new() };
    let mut guest = Guest::new(config, &Userland { policies, modules, ..Userland::default() }, &artifacts)?;
    let mut screen = Screen::new(options.verbose);
    start(&mut guest, &mut screen, &device)?;
    let mut rows = Vec::new();
    for number in 1..=options.cycles {
        let title = if options.cycles == 1 { String::new() } else { format!(" {number} of {}", options.cycles) };
        if options.warm {
            warm(&mut guest, &mut screen, &title)?;
        }
        let before = cycle::check_workload(&mut guest)?;
        let row = match options.then {
            Then::Poweroff => power_cycle(&mut guest, &mut screen, before.clone(), &title),
            Then::Return => snapshot(&mut guest, &mut screen, before.clone(), &title),
        };
        match row {
            Ok(row) => rows.push(row),
            Err(error) => {
                let refusal = error.downcast_ref::<CameBack>().filter(|came_back| came_back.0.status == REFUSED);
                let Some(CameBack(output)) = refusal else { return Err(error) };
                return refused(&mut guest, &screen, &before, output);
            }
        }
    }
    table::print(&rows);
    Ok(Ending::Shown(rows.iter().all(Row::holds)))
}

/// The exit status of `dormouse hibernate` for what it refuses with nothing changed.
const REFUSED: i32 = 3;

/// Shows why, and that the session goes on.
fn refused(guest: &mut Guest, screen: &Screen, before: &Report, output: &Output) -> Result<Ending> {
    let json: serde_json::Value = serde_json::from_str(&output.stdout).unwrap_or_default();
    screen.say('A', &format!("refused ({})", json["id"].as_str().unwrap_or("without an identifier")));
    let printed = output.stderr.trim();
    println!("\n{}", if printed.is_empty() { output.stdout.trim() } else { printed });
    let broken: Vec<String> = cycle::settle(guest, before)?
        .into_iter()
        .filter(|proof| !proof.holds)
        .map(|proof| format!("not {}: {}", proof.claim, proof.detail))
        .collect();
    ensure!(broken.is_empty(), "it was refused, but {}", broken.join("; "));
    println!("The session goes on, with nothing changed.");
    Ok(Ending::Refused)
}

/// The guest's policy: the image's device, what the caller adds, and what other options want.
fn policy(options: &Options, device: &str) -> Result<GuestPolicy> {
    let mut text = match &options.policy {
        Some(path) => std::fs::read_to_string(path).with_context(|| format!("{}: cannot be read", path.display()))?,
        None => String::new(),
    };
    if options.disk.disk().is_none() && !["trust_server", "key ="].iter().any(|key| text.contains(key)) {
        // It is this host.
        text = with_key(&text, "image", "trust_server = true");
    }
    text = with_key(&text, "image", &format!("device = \"{device}\""));
    for (wanted, table, line) in [(options.warm, "save", "warm = true"), (options.direct, "resume", "direct = true")] {
        if wanted {
            text = with_key(&text, table, line);
        }
    }
    Ok(GuestPolicy::standard(text))
}

/// The policy with a key more in this table, which can have one heading only.
fn with_key(policy: &str, table: &str, line: &str) -> String {
    let heading = format!("[{table}]\n");
    match policy.split_once(&heading) {
        Some((before, after)) => format!("{before}{heading}{line}\n{after}"),
        None => format!("{table}.{line}\n{policy}"),
    }
}

/// An ordinary boot of A, the image device, and the workload.
fn start(guest: &mut Guest, screen: &mut Screen, device: &str) -> Result<()> {
    screen.step("Start: an ordinary boot");
    guest.settle_firmware()?;
    boot(guest, screen)?;
    let printed = cycle::init_image(guest, device)?;
    screen.say('A', &format!("dormouse image init {device}: {}", printed.trim()));
    if device.starts_with("nfs://") {
        // The boot has looked for a file that did not exist.
        guest.cut_power();
        boot(guest, screen)?;
    }
    if guest.config().boot_loader.is_some() {
        guest.succeed("dormouse setup --direct")?;
        screen.say('A', "dormouse setup --direct: the boot loader will start D");
    }
    let swap = guest.config().disk_path(guest.config().disks.len() - 1)?;
    guest.succeed(&format!("mkswap {swap} && swapon {swap}"))?;
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

fn boot(guest: &mut Guest, screen: &mut Screen) -> Result<()> {
    loop {
        let mut cursor = guest.power_on()?;
        guest.follow(&mut cursor, BOOT_TIMEOUT, "A", |line| {
            screen.line(line);
            line.text.contains(READY_MARK).then_some(())
        })?;
        screen.say('A', "is up");
        if guest.config().boot_loader.is_none() || cycle::is_beside_the_region(guest)? {
            break;
        }
        screen.say('A', "has put itself, at random, where D will be: it would leave the resume to C. Once more");
        guest.cut_power();
    }
    Ok(())
}

/// Starts the save kernel, which waits from then on.
fn warm(guest: &mut Guest, screen: &mut Screen, title: &str) -> Result<()> {
    screen.step(&format!("Ahead of time{title}: dormouse warm --now"));
    let mut cursor = guest.console().end();
    cycle::warm(guest, POLICY_PATH)?;
    for line in guest.console().since(&mut cursor) {
        screen.line(&line);
    }
    screen.say('A', "the save kernel waits");
    Ok(())
}

fn power_cycle(guest: &mut Guest, screen: &mut Screen, before: Report, title: &str) -> Result<Row> {
    let command = "dormouse hibernate --then poweroff --json";
    screen.step(&format!("Save{title}: {command}"));
    let mut kernels = 0;
    let saved = cycle::save(guest, before, command, &mut |line| {
        kernels += usize::from(cycle::is_kernel_start(line));
        screen.line(line);
    })?;
    let to_power_off = saved.to_power_off;
    screen.say(' ', "the power is off");
    screen.step(&format!("Resume{title}: power on"));
    let went_on = cycle::resume(guest, saved, &mut |line| {
        kernels += usize::from(cycle::is_kernel_start(line));
        screen.line(line);
    })?;
    screen.say('A', "dormouse hibernate has returned");
    row(guest, &went_on, Some(to_power_off.as_secs_f64()), kernels)
}

fn snapshot(guest: &mut Guest, screen: &mut Screen, before: Report, title: &str) -> Result<Row> {
    let command = "dormouse hibernate --then return --json";
    screen.step(&format!("Save and return{title}: {command}"));
    let mut kernels = 0;
    let went_on = cycle::stay_on(guest, before, command, &mut |line| {
        kernels += usize::from(cycle::is_kernel_start(line));
        screen.line(line);
    })?;
    if went_on.output.status == REFUSED {
        return Err(CameBack(went_on.output).into());
    }
    screen.say('A', "dormouse hibernate has returned");
    row(guest, &went_on, None, kernels)
}

fn row(guest: &Guest, went_on: &WentOn, to_power_off: Option<f64>, kernels: usize) -> Result<Row> {
    let report = went_on.report().map_err(|error| guest.explain(error))?;
    let to_first_tick = went_on.to_first_tick.map(|time| time.as_secs_f64());
    Ok(Row { report, proofs: went_on.proofs(), to_power_off, to_first_tick, kernels })
}

fn name(value: impl ValueEnum) -> String {
    value.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

#[cfg(test)]
mod tests {
    use super::with_key;

    #[test]
    fn a_key_goes_into_its_table() {
        assert_eq!(with_key("", "save", "warm = true"), "save.warm = true\n");
        let policy = "[image]\nwait = 60\n[save]\n";
        assert_eq!(with_key(policy, "save", "warm = true"), "[image]\nwait = 60\n[save]\nwarm = true\n");
    }
}
