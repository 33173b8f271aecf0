//! The `dormouse` command: its arguments, and which conductor each one starts.
//!
//! Results go to stdout: text, or with `--json` one object. An error goes to stderr as one line, and with `--json` to
//! stdout as an object too. What the exit status says is an [`ExitStatus`].

mod exit;
pub mod generate;
mod key;
mod output;
pub mod status;

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, CommandFactory, Parser, Subcommand};
use serde::Serialize;

use crate::cli::exit::ExitStatus;
use crate::cli::output::Output;
use crate::cli::status::Status;
use crate::cycle::lock::Lock;
use crate::cycle::look::Look;
use crate::cycle::refusal::Complaint;
use crate::cycle::{export, hibernate, in_clear, keys, resume, warm, wipe};
use crate::handoff::report::{Outcome, Report};
use crate::host::initramfs::{files, needs};
use crate::host::{doctor, initramfs, missed, save_kernel, setup, sleep_hooks, systemd, update};
use crate::policy::{self, DEFAULT_PATH, Policy, PolicyError, Then};
use crate::target::{self, Target, device, file};

/// Hibernates a running Linux machine through a second kernel.
///
/// `dormouse hibernate` saves this machine's memory to the image device and powers off. After power-on, the
/// initramfs runs `dormouse resume`, which brings everything back.
#[derive(Debug, Parser)]
#[command(name = "dormouse", version, max_term_width = 100)]
pub(crate) struct Cli {
    /// The policy; the files in the directory FILE.d whose names end in .toml extend it
    #[arg(long, global = true, value_name = "FILE", default_value = DEFAULT_PATH)]
    config: PathBuf,

    /// Print the result, or the error, as one JSON object; dormouse(7) describes it
    #[arg(long, global = true)]
    json: bool,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Save this machine's memory to the image device, then power off
    ///
    /// Returns when the machine has been resumed, and reports both halves. If the save fails, the machine goes
    /// on as if nothing had happened, and the reason is the error.
    Hibernate(HibernateArgs),
    /// Resume the saved session, if there is one; for the initramfs
    ///
    /// Run it in the initramfs before any filesystem is mounted. It does not return if it resumes. Otherwise
    /// it prints in one line why it does not, and the boot goes on. `noresume` or `dormouse=off` on the kernel
    /// command line keep it from resuming. An initramfs that unlocks volumes runs it twice, or once when they are
    /// unlocked.
    Resume(ResumeArgs),
    /// Keep a save kernel ready, so that a hibernation needs no boot; for systemd
    ///
    /// With `save.warm`, starts the save kernel when the machine is idle, and goes back from it: the machine stands
    /// still for a moment. Then it waits to be told to end, and starts it again when it has been used or no longer
    /// fits. Without `save.warm`, ends at once.
    Warm {
        /// Do not wait until the machine is idle.
        #[arg(long)]
        now: bool,
    },
    /// Report what happened last, when, and why
    ///
    /// Shows the end of the last hibernation, or why this boot did not resume, and what is on the image device.
    Status,
    /// Check each requirement, and say what to do about those that are not met
    ///
    /// For each check one line; for what is not as it should be also why it matters, and the remedy: a command or a
    /// setting. The exit status is 1 if any check has failed. It changes nothing. Without a policy, and without being
    /// root, it checks what it can.
    Doctor {
        /// Also measure how long the save kernel takes to start, loaded anew and where it waits (save.warm): it is
        /// started and left twice, and this machine stands still meanwhile.
        #[arg(long)]
        measure: bool,
    },
    /// Make this machine ready: the place of the image, the policy, the save kernel, both initramfs
    ///
    /// Asks where the answer is not on the command line and there is a terminal. Each step says what it does. It can be
    /// run again at any time: what is done already is kept.
    Setup(setup::Options),
    /// Route `systemctl hibernate` to Dormouse
    ///
    /// Writes drop-ins for systemd-hibernate.service, and for systemd-logind.service so that it does not ask for swap
    /// space, and enables dormouse.service. Inhibitors, polkit and the system-sleep hooks work as before;
    /// hybrid-sleep and suspend-then-hibernate stay systemd's own.
    Enable(RootArgs),
    /// Undo what `dormouse enable` has done
    ///
    /// Removes exactly the files that it has written.
    Disable(RootArgs),
    /// Give up an image that this boot has missed, and name what is not as it should be; for dormouse.service
    ///
    /// Run it once at boot, when filesystems are mounted. An image that still waits then must not be resumed by a later
    /// boot: it is discarded, unless the policy keeps it (resume.mismatch) and the filesystems can be compared. The
    /// exit status is 0 whatever the doctor finds, and another only if an image could not be given up.
    Prepare,
    /// Prepare, look at or discard an image
    #[command(subcommand)]
    Image(ImageCommand),
    /// Add, list or remove the keys that the image is sealed with
    #[command(subcommand)]
    Key(key::KeyCommand),
    /// Build the initramfs of the kernel that saves and restores
    ///
    /// It holds the agent, the policy, and the kernel modules that the image device needs. Build it again after
    /// every change of the policy. The same inputs give the same bytes.
    BuildInitramfs(BuildArgs),
    /// Bring the save kernel and its initramfs up to date
    ///
    /// Copies the newest installed kernel that can hibernate and builds the initramfs that belongs to it. Packages run
    /// it when a kernel was installed or removed, before the boot's initramfs is made. Does nothing on a machine that
    /// has no policy.
    Update {
        /// Print errors only
        #[arg(long)]
        quiet: bool,
    },
    /// List what an initramfs must hold that another tool builds; for the hooks of such tools
    ///
    /// Prints a line for each: `file SOURCE TARGET MODE`, `dir TARGET`, `node TARGET MODE MAJOR MINOR`, `module NAME`.
    /// Prints nothing on a machine that has no policy.
    InitramfsFiles(FilesArgs),
    /// Record that the boot's initramfs of a kernel has all that it must hold; for the hooks of such tools
    ///
    /// `dormouse hibernate` refuses where a kernel that may boot next has no such record, or one of another policy,
    /// once a hook has asked for the files of any (`--release`). Does nothing on a machine that has no policy.
    InitramfsDone {
        /// The kernel's release, as `uname -r` gives it
        release: String,
    },
    /// Check or show the policy
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Write man pages or shell completions; for packages
    #[command(subcommand, hide = true)]
    Gen(GenCommand),
}

#[derive(Debug, Args)]
struct HibernateArgs {
    /// What follows a completed save: poweroff, reboot, or return to go on in this session (the image is then
    /// a snapshot and is never resumed) [default: the policy's save.then]
    #[arg(long, value_name = "poweroff|reboot|return")]
    then: Option<Then>,

    /// Jump although this kernel's version is older than the fix without which it hangs on the way back; for
    /// kernels whose distribution has added the fix
    #[arg(long)]
    trust_kernel: bool,

    /// Power off although nothing shows that the next boot resumes: this boot's initramfs has not looked for the image,
    /// has not found it, or was told not to resume; or that of a kernel which may boot next was built without the hook
    /// or for another policy. For an initramfs that does look, and does not pass on its /run
    #[arg(long)]
    trust_boot: bool,

    /// Hibernate although another kernel is loaded for `kexec -e` or a reboot by kexec, which is unloaded, and although
    /// a session waits in the image because the policy keeps it (resume.mismatch), which is lost
    #[arg(long)]
    force: bool,

    /// Run systemd's system-sleep hooks before and after, as systemd-sleep does; `systemctl hibernate` uses this
    #[arg(long)]
    system_sleep: bool,
}

#[derive(Debug, Clone, Copy, Args)]
struct ResumeArgs {
    /// The first of two: volumes are not unlocked yet. An image whose key is in one of them is left to the second
    #[arg(long, conflicts_with = "after_unlock")]
    before_unlock: bool,

    /// The second of two: volumes are unlocked, and nothing on them is checked or mounted. Prints nothing where the
    /// first one has decided
    #[arg(long)]
    after_unlock: bool,
}

impl ResumeArgs {
    fn look(self) -> Look {
        match self {
            ResumeArgs { before_unlock: true, .. } => Look::BeforeUnlock,
            ResumeArgs { after_unlock: true, .. } => Look::AfterUnlock,
            ResumeArgs { .. } => Look::Only,
        }
    }
}

#[derive(Debug, Args)]
struct RootArgs {
    /// The system whose files these are, mounted there; for image builders
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
}

#[derive(Debug, Subcommand)]
enum ImageCommand {
    /// Make a device an image device, and print its UUID
    ///
    /// Refuses a device that carries anything else: a filesystem, swap space, a partition table, a RAID or encrypted
    /// volume, an image that can be resumed; and devices that the save kernel cannot see. A linear LVM volume or a RAID
    /// 1 is written where it lies on its disks.
    Init {
        /// A partition, a disk, a volume or a file; or what a server exports, as nbd://ADDRESS/EXPORT
        device: PathBuf,
        /// Overwrite whatever is on it, also an image that could still be resumed; what it was is lost. A device that
        /// is in use is refused all the same
        #[arg(long)]
        force: bool,
    },
    /// Make a file for the image, on a mounted ext4, XFS or btrfs
    ///
    /// The file is written from beginning to end and its place on the disk recorded in it: the save kernel writes there
    /// without mounting anything. Do not defragment, copy or move it.
    Create {
        /// Its size, as 16G or 6000M; auto is what this machine's memory takes at most
        #[arg(long, value_name = "auto|SIZE")]
        size: file::Size,
        /// The file; it must not exist yet
        file: PathBuf,
    },
    /// List what an NBD server exports, and the images on it
    List {
        /// The server, as nbd://ADDRESS or nbd://ADDRESS:PORT
        server: String,
    },
    /// Show what is on an image device
    Info {
        /// The image device
        device: PathBuf,
    },
    /// Read a whole image and check every checksum
    Verify {
        /// The image device
        device: PathBuf,
    },
    /// Write the saved machine's memory to a core file, for makedumpfile, gdb, drgn and crash
    ///
    /// The file is an ELF core as kdump writes it, with memory as the saved kernel left it. It is sparse: copy it
    /// with a program that keeps holes. It holds all secrets that were in memory. The image stays as it is.
    Export {
        /// The image device
        device: PathBuf,
        /// The file to write; it must not exist yet
        file: PathBuf,
    },
    /// Give up the saved session: it will not be resumed, and its data are wiped (image.wipe)
    Discard {
        /// The image device
        device: PathBuf,
    },
    /// Overwrite the data of a session that has gone on or was given up
    ///
    /// `dormouse hibernate`, `dormouse prepare` and `dormouse image discard` do so (image.wipe). A session that waits
    /// and a snapshot are left alone. A hibernation may begin at any time: it goes first.
    Wipe {
        /// The image device [default: the policy's]
        device: Option<PathBuf>,
    },
}

#[derive(Debug, Args)]
struct BuildArgs {
    /// Where to write it [default: the policy's kernel.initramfs]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,

    /// The static program that becomes PID 1
    #[arg(long, value_name = "PATH", default_value = needs::INIT)]
    init: PathBuf,

    /// A kernel that is to save and restore: it is copied to the policy's kernel.image first. Where the policy has
    /// kernel.image elsewhere than Dormouse, an existing kernel is not replaced
    #[arg(long, value_name = "BZIMAGE")]
    kernel: Option<PathBuf>,

    /// Kernel modules, separated by commas; what they depend on is added. `auto` stands for those that the image
    /// device needs, `none` for nothing
    #[arg(long, value_name = "NAME,...", value_delimiter = ',', default_value = needs::AUTO)]
    modules: Vec<String>,

    /// Where they are [default: /lib/modules/RELEASE, of the release of the kernel]
    #[arg(long, value_name = "DIR")]
    modules_dir: Option<PathBuf>,

    /// Only print the names of the modules, in the order in which they are loaded
    #[arg(long)]
    list_modules: bool,
}

#[derive(Debug, Args)]
struct FilesArgs {
    /// For the small initramfs of the kernel that saves and restores, in place of the one of the boot, which resumes
    #[arg(long)]
    small: bool,

    /// The kernel whose boot's initramfs this is: until `dormouse initramfs-done` it counts as one that does not resume
    #[arg(long, value_name = "RELEASE", conflicts_with = "small")]
    release: Option<String>,

    /// The modules of the kernel that the initramfs is for
    #[arg(long, value_name = "DIR")]
    modules_dir: PathBuf,

    /// A directory for files that are made for it; keep it until the initramfs is built
    #[arg(long, value_name = "DIR")]
    scratch: PathBuf,
}

#[derive(Debug, Clone, Copy, Subcommand)]
enum ConfigCommand {
    /// Check the policy: every key is known, every value valid; and name its files
    Check,
    /// Print the whole policy, drop-ins and defaults included
    Show {
        /// As an initramfs needs it: the image device by a name that is good before anything is mounted
        #[arg(long)]
        boot: bool,
    },
}

#[derive(Debug, Subcommand)]
enum GenCommand {
    /// Write the man pages, of sections 5, 7 and 8
    Man {
        /// The directory to write to; made if it does not exist
        directory: PathBuf,
    },
    /// Write completions for bash, zsh and fish
    Completions {
        /// The directory to write to; made if it does not exist
        directory: PathBuf,
    },
}

/// Runs the command that the process's arguments ask for, and returns the process's exit status.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            let status = if error.use_stderr() { ExitStatus::Usage } else { ExitStatus::Done };
            return status.into();
        }
    };
    let output = Output { json: cli.json };
    let status = run(&cli, output).unwrap_or_else(|error| {
        let complaint = Complaint::of(&error);
        output.complain(&complaint);
        ExitStatus::of(&complaint)
    });
    status.into()
}

fn run(cli: &Cli, output: Output) -> anyhow::Result<ExitStatus> {
    // The image commands are for any image, also on a machine that has no policy.
    let policy = || Policy::load(&cli.config);
    match &cli.command {
        Command::Hibernate(arguments) => return hibernate(&cli.config, arguments, output),
        Command::Resume(arguments) => match resume::run(&policy()?, arguments.look())? {
            Some(outcome) => output.show(&outcome),
            None => Ok(()),
        },
        Command::Warm { now } => warm::keep(|| Ok(policy()?), *now),
        Command::Status => output.show(&Status::of(&policy()?)),
        Command::Doctor { measure } => {
            let mut diagnosis = doctor::Diagnosis::of_this_machine(&cli.config);
            if *measure {
                diagnosis.measure(&cli.config);
            }
            output.show(&diagnosis)?;
            return Ok(if diagnosis.ready { ExitStatus::Done } else { ExitStatus::Failed });
        }
        Command::Setup(options) => {
            let done = setup::run(&cli.config, options, output.json, &mut |line| output.say(line))?;
            output.show(&done)
        }
        Command::Enable(RootArgs { root }) => output.show(&systemd::enable(root)?),
        Command::Disable(RootArgs { root }) => output.show(&systemd::disable(root)?),
        Command::Prepare => prepare(&cli.config, output),
        Command::Image(command) => image(&cli.config, command, output),
        Command::Key(command) => key::run(&policy()?, command, output),
        Command::BuildInitramfs(arguments) => build_initramfs(&policy()?, arguments, output),
        // Packages and hooks call these on machines that nobody has set up.
        Command::Update { .. } | Command::InitramfsFiles(_) | Command::InitramfsDone { .. }
            if matches!(policy(), Err(PolicyError::Missing { .. })) =>
        {
            Ok(())
        }
        Command::Update { quiet } => {
            let updated = update::run(&policy()?)?;
            if *quiet { Ok(()) } else { output.show(&updated) }
        }
        Command::InitramfsFiles(arguments) => initramfs_files(&policy()?, arguments, output),
        Command::InitramfsDone { release } => initramfs::done(&policy()?, release),
        Command::Config(ConfigCommand::Check) => {
            policy()?;
            output.show(&Checked { files: policy::files(&cli.config) })
        }
        Command::Gen(command) => {
            let files = match command {
                GenCommand::Man { directory } => generate::man(Cli::command(), directory)?,
                GenCommand::Completions { directory } => generate::completions(Cli::command(), directory)?,
            };
            output.list("files", files.iter().map(|file| file.display()))
        }
        Command::Config(ConfigCommand::Show { boot: false }) => output.text("toml", policy()?.to_toml().trim_end()),
        Command::Config(ConfigCommand::Show { boot: true }) => {
            output.text("toml", initramfs::carried_policy(&policy()?)?.to_toml().trim_end())
        }
    }?;
    Ok(ExitStatus::Done)
}

/// How a hibernation ended, for programs. What was refused, or has failed without a report, is a [`Complaint`], which
/// has the same keys but for the report.
#[derive(Debug, Serialize)]
struct Hibernation<'a> {
    outcome: &'static str,
    id: &'static str,
    message: String,
    remedy: Option<&'static str>,
    /// What has kept nothing from being done.
    warnings: Vec<String>,
    report: &'a Report,
}

impl fmt::Display for Hibernation<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

fn hibernate(config: &Path, arguments: &HibernateArgs, output: Output) -> anyhow::Result<ExitStatus> {
    let policy = Policy::load(config).map_err(|error| Complaint::refused(&error.into()))?;
    let HibernateArgs { then, trust_kernel, trust_boot, force, .. } = *arguments;
    let options = hibernate::Options { then, trust_kernel, trust_boot, force };
    let warnings: Vec<String> = in_clear::warning(&in_clear::open_volumes(Some(&policy))).into_iter().collect();
    warnings.iter().for_each(|warning| output::say_error(format_args!("warning: {warning}")));
    let sleep = || hibernate::run(&policy, options);
    let report = if arguments.system_sleep { sleep_hooks::around(sleep) } else { sleep() }?;
    let (outcome, status) = match report.outcome {
        Outcome::Failed => ("failed", ExitStatus::Failed),
        Outcome::Resumed | Outcome::Returned | Outcome::Waiting => ("done", ExitStatus::Done),
    };
    let (id, message) = (report.id(), report.to_string());
    let hibernation = Hibernation { outcome, id, message, remedy: None, warnings, report: &report };
    if status == ExitStatus::Failed {
        output::say_error(&hibernation);
    }
    if status == ExitStatus::Done || output.json {
        output.show(&hibernation)?;
    }
    wipe::begin(&policy, config);
    Ok(status)
}

fn prepare(config: &Path, output: Output) -> anyhow::Result<()> {
    let (found, result) = missed::run(config);
    if result.is_ok() || !output.json {
        output.show(&found)?;
    }
    result
}

/// A policy that is valid.
#[derive(Debug, Serialize)]
struct Checked {
    files: Vec<PathBuf>,
}

impl fmt::Display for Checked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let files: Vec<_> = self.files.iter().map(|file| file.display().to_string()).collect();
        write!(f, "{}: every key is known and every value valid", files.join(", "))
    }
}

fn image(config: &Path, command: &ImageCommand, output: Output) -> anyhow::Result<()> {
    // Held while an image is changed.
    let lock = match command {
        ImageCommand::Init { .. } | ImageCommand::Create { .. } | ImageCommand::Discard { .. } => {
            Lock::take_for_image()?
        }
        _ => None,
    };
    match command {
        ImageCommand::Init { device, force } => output.show(&device::init(device, *force)?),
        ImageCommand::Create { size, file } => {
            // Whatever keeps it from being made, nothing is left of it.
            output.show(&file::create(file, *size).map_err(|error| Complaint::refused(&error))?)
        }
        ImageCommand::List { server } => output.show(&device::list(server, &keys::at_hand)?),
        ImageCommand::Info { device } => output.show(&device::info(&Target::at(device)?, &keys::at_hand)?),
        ImageCommand::Verify { device } => output.show(&device::verify(device, &keys::asked_for)?),
        ImageCommand::Export { device, file } => output.show(&export::run(device, file, &keys::asked_for)?),
        ImageCommand::Discard { device } => {
            output.show(&device::discard(device)?)?;
            drop(lock);
            // It is given up, whatever becomes of its data.
            if Policy::load(config).map_or(true, |policy| policy.image.wipe)
                && let Err(error) = wipe::run(&Target::at(device)?)
            {
                output::say_error(format_args!("warning: the image's data are not wiped: {error:#}"));
            }
            Ok(())
        }
        ImageCommand::Wipe { device } => {
            let target = match device {
                Some(device) => Target::at(device)?,
                None => target::find(&Policy::load(config)?.image.device, Duration::ZERO)?,
            };
            output.show(&wipe::run(&target)?)
        }
    }
}

fn build_initramfs(policy: &Policy, arguments: &BuildArgs, output: Output) -> anyhow::Result<()> {
    let options = needs::Options {
        kernel: arguments.kernel.clone(),
        init: arguments.init.clone(),
        modules: arguments.modules.clone(),
        modules_dir: arguments.modules_dir.clone(),
    };
    if arguments.list_modules {
        return output.list("modules", needs::list_modules(policy, &options)?.all().cloned());
    }
    output.show(&save_kernel::run(policy, &options, arguments.output.as_deref())?)
}

fn initramfs_files(policy: &Policy, arguments: &FilesArgs, output: Output) -> anyhow::Result<()> {
    let options = needs::Options { modules_dir: Some(arguments.modules_dir.clone()), ..needs::Options::default() };
    if let Some(release) = &arguments.release {
        initramfs::begin(release);
    }
    let list = match arguments.small {
        true => files::of_small(policy, &options, &arguments.scratch)?,
        false => files::of_boot(policy, &options, &arguments.scratch)?,
    };
    output.list("entries", list)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    /// Every command, option and argument says what it is for.
    #[test]
    fn every_command_and_argument_has_a_help_text() {
        fn check(command: &clap::Command) {
            assert!(command.get_about().is_some(), "{}", command.get_name());
            for argument in command.get_arguments() {
                assert!(argument.get_help().is_some(), "{} {}", command.get_name(), argument.get_id());
            }
            command.get_subcommands().for_each(check);
        }
        check(&Cli::command());
    }
}
