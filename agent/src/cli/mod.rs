//! The `dormouse` command: its arguments, and which conductor each one starts.
//!
//! Results go to stdout. An error goes to stderr as one line, with exit status 1; a command line that cannot
//! be understood gets status 2.

pub mod generate;
pub mod status;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Args, CommandFactory, Parser, Subcommand};
use serde::Serialize;

use crate::cli::status::Status;
use crate::cycle::{export, hibernate, resume};
use crate::handoff::report::Outcome;
use crate::host::initramfs::{files, needs};
use crate::host::{doctor, initramfs, missed, save_kernel, setup, sleep_hooks, systemd, update};
use crate::policy::{self, DEFAULT_PATH, Policy, PolicyError, Then};
use crate::target::{Target, device, file};

/// Hibernates a running Linux machine through a second kernel.
///
/// `dormouse hibernate` saves this machine's memory to the image device and powers off. After power-on, the
/// initramfs runs `dormouse resume`, which brings everything back.
#[derive(Debug, Parser)]
#[command(name = "dormouse", version, max_term_width = 100)]
pub(crate) struct Cli {
    /// The policy; the files in the folder FILE.d whose names end in .toml go on with it
    #[arg(long, global = true, value_name = "FILE", default_value = DEFAULT_PATH)]
    config: PathBuf,

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
    /// Run it in the initramfs before any file system is mounted. It does not return if it resumes. Otherwise
    /// it prints in one line why it does not, and the boot goes on. `noresume` or `dormouse=off` on the kernel
    /// command line keep it from resuming.
    Resume,
    /// Tell what happened last, when, and why
    ///
    /// Shows the end of the last hibernation, or why this boot did not resume, and what is on the image device.
    Status {
        /// Print it as one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Check each requirement, and say what to do about those that are not met
    ///
    /// For each check one line; for what is not as it should be also why it matters, and the remedy: a command or a
    /// setting. The exit status is 1 if any check has failed. It changes nothing. Without a policy, and without being
    /// root, it checks what it can.
    Doctor {
        /// Print it as one JSON object: {"ready": bool, "checks": [{"id", "state", "found", "why", "remedy"}]}
        #[arg(long)]
        json: bool,
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
    /// Take back what `dormouse enable` has done
    ///
    /// Removes exactly the files that it has written.
    Disable(RootArgs),
    /// Give up an image that this boot has missed, and name what is not as it should be; for dormouse.service
    ///
    /// Run it once at boot, when filesystems are mounted. An image that still waits then must not be resumed by a later
    /// boot: it is discarded, unless the policy keeps it (resume.mismatch) and the filesystems can be compared. The
    /// exit status is 0 whatever the doctor finds, and 1 only if an image could not be given up.
    Prepare,
    /// Prepare, look at or discard an image
    #[command(subcommand)]
    Image(ImageCommand),
    /// Build the initramfs of the kernel that saves and restores
    ///
    /// It holds the agent, the policy, and the kernel modules that the image device needs. Build it again after
    /// every change of the policy. The same inputs give the same bytes.
    BuildInitramfs(BuildArgs),
    /// Bring the save kernel and its initramfs up to date
    ///
    /// Copies the newest installed kernel that can hibernate and builds the initramfs that belongs to it. Packages run it
    /// when a kernel was installed or removed, before the boot's initramfs is made. Does nothing on a machine that has no
    /// policy.
    Update {
        /// Say nothing of what went well
        #[arg(long)]
        quiet: bool,
    },
    /// List what an initramfs must hold that another tool builds; for the hooks of such tools
    ///
    /// Prints a line for each: `file SOURCE TARGET MODE`, `dir TARGET`, `node TARGET MODE MAJOR MINOR`, `module NAME`.
    /// Prints nothing on a machine that has no policy.
    InitramfsFiles(FilesArgs),
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

    /// Print the report as one JSON object
    #[arg(long)]
    json: bool,

    /// Jump although this kernel's version is older than the fix without which it hangs on the way back; for
    /// kernels whose distribution has added the fix
    #[arg(long)]
    trust_kernel: bool,

    /// Power off although this boot's initramfs has not looked for an image, so that the next one may not either; for
    /// an initramfs that does, and does not pass on its /run
    #[arg(long)]
    trust_boot: bool,

    /// Run systemd's system-sleep hooks before and after, as systemd-sleep does; `systemctl hibernate` uses this
    #[arg(long)]
    system_sleep: bool,
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
    /// Refuses a device that carries anything else: a file system, swap space, a partition table, a RAID or
    /// encrypted volume, an image that can be resumed; and one that the save kernel would not have, such as an LVM volume.
    Init {
        /// A partition, a disk or a file
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
        /// The file; it must not be there yet
        file: PathBuf,
    },
    /// Show what is on an image device
    Info {
        /// The image device
        device: PathBuf,
        /// Print it as one JSON object
        #[arg(long)]
        json: bool,
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
        /// The file to write; it must not be there yet
        file: PathBuf,
    },
    /// Give up the saved session: it will not be resumed
    Discard {
        /// The image device
        device: PathBuf,
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
    /// kernel.image elsewhere than Dormouse, a kernel that is there is not replaced
    #[arg(long, value_name = "BZIMAGE")]
    kernel: Option<PathBuf>,

    /// Kernel modules, separated by commas; what they depend on is added. `auto` stands for those that the image
    /// device needs, `none` for nothing
    #[arg(long, value_name = "NAME,...", value_delimiter = ',', default_value = needs::AUTO)]
    modules: Vec<String>,

    /// Where they are [default: /lib/modules/RELEASE, of the release of the kernel]
    #[arg(long, value_name = "FOLDER")]
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

    /// The modules of the kernel that the initramfs is for
    #[arg(long, value_name = "FOLDER")]
    modules_dir: PathBuf,

    /// A folder for files that are made for it; keep it until the initramfs is built
    #[arg(long, value_name = "FOLDER")]
    scratch: PathBuf,
}

#[derive(Debug, Clone, Copy, Subcommand)]
enum ConfigCommand {
    /// Check the policy: every key is known, every value possible; and name its files
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
        /// The folder to write to; it is made where it is not there
        folder: PathBuf,
    },
    /// Write completions for bash, zsh and fish
    Completions {
        /// The folder to write to; it is made where it is not there
        folder: PathBuf,
    },
}

/// Runs the command that the process's arguments ask for, and returns the process's exit status.
pub fn main() -> ExitCode {
    // A usage error ends the process here, with status 2; so does --help, with 0.
    let cli = Cli::parse();
    match run(&cli) {
        Ok(status) => status,
        Err(error) => {
            // Where stderr is closed, the exit status is all there is left to say.
            let _ = writeln!(io::stderr(), "dormouse: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> anyhow::Result<ExitCode> {
    let mut status = ExitCode::SUCCESS;
    // The image commands are for any image, also on a machine that has no policy.
    let policy = || Policy::load(&cli.config);
    match &cli.command {
        Command::Hibernate(arguments) => hibernate(&policy()?, arguments),
        Command::Resume => print(&resume::run(&policy()?)?),
        Command::Status { json } => {
            let status = Status::of(&policy()?);
            if *json { print_json(&status) } else { print(&status.to_string()) }
        }
        Command::Doctor { json } => {
            let diagnosis = doctor::Diagnosis::of_this_machine(&cli.config);
            if !diagnosis.ready {
                status = ExitCode::FAILURE;
            }
            if *json { print_json(&diagnosis) } else { print(&diagnosis.to_string()) }
        }
        Command::Setup(options) => setup::run(&cli.config, options),
        Command::Enable(RootArgs { root }) => print(&systemd::enable(root)?.join("\n")),
        Command::Disable(RootArgs { root }) => print(&systemd::disable(root)?.join("\n")),
        Command::Prepare => missed::run(&cli.config, print),
        Command::Image(command) => image(command),
        Command::BuildInitramfs(arguments) => build_initramfs(&policy()?, arguments),
        // Packages and hooks call these on machines that nobody has set up.
        Command::Update { .. } | Command::InitramfsFiles(_) if matches!(policy(), Err(PolicyError::Missing { .. })) => {
            Ok(())
        }
        Command::Update { quiet } => {
            let said = update::run(&policy()?)?;
            if *quiet { Ok(()) } else { print(&said.to_string()) }
        }
        Command::InitramfsFiles(arguments) => initramfs_files(&policy()?, arguments),
        Command::Config(ConfigCommand::Check) => {
            policy()?;
            let files: Vec<_> = policy::files(&cli.config).iter().map(|file| file.display().to_string()).collect();
            print(&format!("{}: every key is known and every value possible", files.join(", ")))
        }
        Command::Gen(command) => {
            let files = match command {
                GenCommand::Man { folder } => generate::man(Cli::command(), folder)?,
                GenCommand::Completions { folder } => generate::completions(Cli::command(), folder)?,
            };
            files.iter().try_for_each(|file| print(&file.display().to_string()))
        }
        Command::Config(ConfigCommand::Show { boot: false }) => print(policy()?.to_toml().trim_end()),
        Command::Config(ConfigCommand::Show { boot: true }) => {
            print(initramfs::carried_policy(&policy()?)?.to_toml().trim_end())
        }
    }?;
    Ok(status)
}

fn hibernate(policy: &Policy, arguments: &HibernateArgs) -> anyhow::Result<()> {
    let HibernateArgs { then, trust_kernel, trust_boot, .. } = *arguments;
    let options = hibernate::Options { then, trust_kernel, trust_boot };
    let sleep = || hibernate::run(policy, options);
    let report = if arguments.system_sleep { sleep_hooks::around(sleep) } else { sleep() }?;
    if report.outcome == Outcome::Failed {
        bail!("{report}");
    }
    if arguments.json { print_json(&report) } else { print(&report.to_string()) }
}

fn image(command: &ImageCommand) -> anyhow::Result<()> {
    match command {
        ImageCommand::Init { device, force } => print(&device::init(device, *force)?.to_string()),
        ImageCommand::Create { size, file } => print(&file::create(file, *size)?.to_string()),
        ImageCommand::Info { device, json } => {
            let info = device::info(&Target::at(device)?)?;
            if *json { print_json(&info) } else { print(&info.to_string()) }
        }
        ImageCommand::Verify { device } => print(&device::verify(device)?.to_string()),
        ImageCommand::Export { device, file } => print(&export::run(device, file)?.to_string()),
        ImageCommand::Discard { device } => print(&device::discard(device)?.to_string()),
    }
}

fn build_initramfs(policy: &Policy, arguments: &BuildArgs) -> anyhow::Result<()> {
    let options = needs::Options {
        kernel: arguments.kernel.clone(),
        init: arguments.init.clone(),
        modules: arguments.modules.clone(),
        modules_dir: arguments.modules_dir.clone(),
    };
    if arguments.list_modules {
        return needs::list_modules(policy, &options)?.iter().try_for_each(|name| print(name));
    }
    print(&save_kernel::run(policy, &options, arguments.output.as_deref())?.to_string())
}

fn initramfs_files(policy: &Policy, arguments: &FilesArgs) -> anyhow::Result<()> {
    let options = needs::Options { modules_dir: Some(arguments.modules_dir.clone()), ..needs::Options::default() };
    let list = match arguments.small {
        true => files::of_small(policy, &options, &arguments.scratch)?,
        false => files::of_boot(policy, &options, &arguments.scratch)?,
    };
    list.iter().try_for_each(|entry| print(&entry.to_string()))
}

fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    print(&serde_json::to_string(value).context("writing JSON")?)
}

fn print(text: &str) -> anyhow::Result<()> {
    writeln!(io::stdout(), "{text}").context("cannot write to stdout")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_holds_together() {
        Cli::command().debug_assert();
    }

    /// Every command, option and argument says what it is for.
    #[test]
    fn everything_has_a_help_text() {
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
