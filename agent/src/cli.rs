//! The `dormouse` command: its arguments, and which conductor each one starts.
//!
//! Results go to stdout. An error goes to stderr as one line, with exit status 1; a command line that cannot
//! be understood gets status 2.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand};
use serde::Serialize;

use crate::initramfs::{self, modules, release};
use crate::policy::{DEFAULT_PATH, Policy, Then};
use crate::report::Outcome;
use crate::status::Status;
use crate::{export, hibernate, image_cmd, image_file, resume};

/// Hibernates a running Linux machine through a second kernel.
///
/// `dormouse hibernate` saves this machine's memory to the image device and powers off. After power-on, the
/// initramfs runs `dormouse resume`, which brings everything back.
#[derive(Debug, Parser)]
#[command(name = "dormouse", version, max_term_width = 100)]
struct Cli {
    /// The policy
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
    /// Prepare, look at or discard an image
    #[command(subcommand)]
    Image(ImageCommand),
    /// Build the initramfs of the kernel that saves and restores
    ///
    /// It holds the agent, the policy, and the kernel modules that are named. Build it again after every change
    /// of the policy. The same inputs give the same bytes.
    BuildInitramfs(BuildArgs),
    /// Check or show the policy
    #[command(subcommand)]
    Config(ConfigCommand),
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
}

#[derive(Debug, Subcommand)]
enum ImageCommand {
    /// Make a device an image device, and print its UUID
    ///
    /// Refuses a device that carries anything else: a file system, swap space, a partition table, a RAID or
    /// encrypted volume, an image that can be resumed.
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
        size: image_file::Size,
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
    #[arg(long, value_name = "PATH", default_value = "/usr/lib/dormouse/dormouse-init")]
    init: PathBuf,

    /// Kernel modules that the image device needs, separated by commas; what they depend on is added
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    modules: Vec<String>,

    /// Where they are [default: /lib/modules/RELEASE, of the release of the policy's kernel.image]
    #[arg(long, value_name = "FOLDER")]
    modules_dir: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, Subcommand)]
enum ConfigCommand {
    /// Check the policy: every key is known, every value possible
    Check,
    /// Print the whole policy, defaults included
    Show {
        /// As an initramfs needs it: the image device by a name that is good before anything is mounted
        #[arg(long)]
        boot: bool,
    },
}

/// Runs the command that the process's arguments ask for, and returns the process's exit status.
pub fn main() -> ExitCode {
    // A usage error ends the process here, with status 2; so does --help, with 0.
    let cli = Cli::parse();
    match run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Where stderr is closed, the exit status is all there is left to say.
            let _ = writeln!(io::stderr(), "dormouse: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> anyhow::Result<()> {
    // The image commands are for any image, also on a machine that has no policy.
    let policy = || Policy::load(&cli.config);
    match &cli.command {
        Command::Hibernate(arguments) => hibernate(&policy()?, arguments),
        Command::Resume => print(&resume::run(&policy()?)?),
        Command::Status { json } => {
            let status = Status::of(&policy()?);
            if *json { print_json(&status) } else { print(&status.to_string()) }
        }
        Command::Image(command) => image(command),
        Command::BuildInitramfs(arguments) => build_initramfs(&policy()?, arguments),
        Command::Config(ConfigCommand::Check) => {
            policy()?;
            print(&format!("{}: every key is known and every value possible", cli.config.display()))
        }
        Command::Config(ConfigCommand::Show { boot: false }) => print(policy()?.to_toml().trim_end()),
        Command::Config(ConfigCommand::Show { boot: true }) => {
            print(image_file::for_boot(&policy()?)?.to_toml().trim_end())
        }
    }
}

fn hibernate(policy: &Policy, arguments: &HibernateArgs) -> anyhow::Result<()> {
    let options = hibernate::Options { then: arguments.then, trust_kernel: arguments.trust_kernel };
    let report = hibernate::run(policy, options)?;
    if report.outcome == Outcome::Failed {
        bail!("{report}");
    }
    if arguments.json { print_json(&report) } else { print(&report.to_string()) }
}

fn image(command: &ImageCommand) -> anyhow::Result<()> {
    match command {
        ImageCommand::Init { device, force } => print(&image_cmd::init(device, *force)?),
        ImageCommand::Create { size, file } => print(&image_file::create(file, *size)?),
        ImageCommand::Info { device, json } => {
            let info = image_cmd::info(&device.as_path().into())?;
            if *json { print_json(&info) } else { print(&info.to_string()) }
        }
        ImageCommand::Verify { device } => print(&image_cmd::verify(device)?),
        ImageCommand::Export { device, file } => print(&export::run(device, file)?.to_string()),
        ImageCommand::Discard { device } => print(&image_cmd::discard(device)?),
    }
}

fn build_initramfs(policy: &Policy, arguments: &BuildArgs) -> anyhow::Result<()> {
    let init = std::fs::read(&arguments.init)
        .with_context(|| format!("{}: cannot read the program for PID 1", arguments.init.display()))?;
    let modules = match (&arguments.modules_dir, arguments.modules.as_slice()) {
        (_, []) => Vec::new(),
        (Some(folder), names) => modules::resolve(folder, names)?,
        (None, names) => modules::resolve(&modules_folder(&policy.kernel.image)?, names)?,
    };
    let bytes = initramfs::build(&image_file::for_boot(policy)?, &init, &modules)?;
    let output = arguments.output.as_ref().unwrap_or(&policy.kernel.initramfs);
    initramfs::write(output, &bytes)?;
    let names: Vec<&str> = modules.iter().map(|module| module.file_name.as_str()).collect();
    let with = if names.is_empty() { String::new() } else { format!(", with {}", names.join(" ")) };
    print(&format!("{}: {} bytes{with}", output.display(), bytes.len()))
}

/// The folder of the modules that belong to a bzImage.
fn modules_folder(bzimage: &Path) -> anyhow::Result<PathBuf> {
    let cannot =
        || format!("{}: cannot tell this kernel's release; name its modules with --modules-dir", bzimage.display());
    let mut head = Vec::new();
    let limit = u64::try_from(release::HEAD_LEN)?;
    File::open(bzimage).and_then(|file| file.take(limit).read_to_end(&mut head)).with_context(cannot)?;
    let release = release::of_bzimage(&head).with_context(cannot)?;
    Ok(Path::new("/lib/modules").join(release))
}

fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    print(&serde_json::to_string(value).context("writing JSON")?)
}

fn print(text: &str) -> anyhow::Result<()> {
    writeln!(io::stdout(), "{text}").context("cannot write to stdout")
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

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
