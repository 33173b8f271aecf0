//! `dormouse setup`: from an installed package to a machine that can be hibernated.
//!
//! ```text
//!   survey: what could hold the image ──> choice: by flags or by a question ──> steps ──> doctor
//! ```
//!
//! Nothing that it does is its own: each step is a command that can be given by hand, or a file of a few lines. So
//! `--dry-run` prints what would happen, a step that fails is a command to give again, and running all of it again is
//! safe.

mod direct;
mod sealing;
mod steps;
mod survey;
mod undo;

use std::fmt;
use std::io::{self, BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;
use dormouse_linux::kernels;
use dormouse_linux::system::Uname;
use dormouse_linux::units::mib;
use serde::Serialize;
use steps::Step;
use survey::{Candidate, Standing};

use crate::cycle::direct::SystemdBoot;
use crate::cycle::in_clear;
use crate::host::boot_initramfs::Tool;
use crate::host::doctor::Diagnosis;
use crate::host::setup::sealing::{Key, WantedKey};
use crate::host::{layers, loader, systemd};
use crate::policy::{KernelPolicy, Policy, PolicyError, SealKey};
use crate::target::file::Size;
use crate::target::{Target, device};

/// Where the image goes if no device is found for it.
const IMAGE_FILE: &str = "/var/lib/dormouse/image";

/// What the command line says.
#[derive(Debug, Clone, Default, Args)]
pub struct Options {
    /// Put the image on this partition or disk, which is prepared as `dormouse image init` does
    #[arg(long, value_name = "DEV", conflicts_with = "file")]
    device: Option<PathBuf>,

    /// Put the image into this file, which is made as `dormouse image create` does
    #[arg(long, value_name = "PATH")]
    file: Option<PathBuf>,

    /// How large that file becomes: a number with M or G after it, or auto for what memory may need
    #[arg(long, value_name = "auto|SIZE", default_value = "auto", value_parser = size)]
    size: String,

    /// The kernel that saves and restores, a bzImage [default: the one that the policy names, where that is not
    /// Dormouse's own copy; otherwise the running kernel's]
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,

    /// Overwrite whatever is on the device
    #[arg(long, requires = "device")]
    force: bool,

    /// What the image is sealed with: auto is a key file where there is an encrypted root filesystem for it; none is
    /// refused where what is written to the image goes around encryption
    #[arg(long, value_name = "auto|file|none", default_value = "auto", hide_possible_values = true)]
    key: WantedKey,

    /// Have the boot loader (GRUB or systemd-boot) start the restore kernel itself after a hibernation, so that a
    /// resume takes one boot; where the rest is set up
    #[arg(long, conflicts_with_all = ["device", "file", "kernel", "key"])]
    direct: bool,

    /// Take back everything: the image, its keys, the policy, the save kernel, `dormouse enable`, and build the boot's
    /// initramfs without Dormouse. A policy that was changed by hand is put aside
    #[arg(long, conflicts_with_all = ["device", "file", "kernel", "key", "direct"])]
    undo: bool,

    /// Print the command that rebuilds the boot's initramfs, and do not run it
    #[arg(long)]
    no_initramfs: bool,

    /// Print every step, and change nothing
    #[arg(long)]
    dry_run: bool,

    /// Ask nothing: take the answers that a question would have proposed. An empty device that is neither prepared nor
    /// named for the purpose is not taken this way
    #[arg(long)]
    yes: bool,
}

/// A size as `dormouse image create` takes it, which gets it as it is.
fn size(text: &str) -> Result<String, String> {
    text.parse::<Size>().map(|_| text.to_owned())
}

/// Where the image goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Choice {
    /// A device or a file that is prepared already.
    Kept(PathBuf),
    /// A device that is prepared now.
    Device(PathBuf),
    /// A file that is made now.
    File(PathBuf),
}

impl Choice {
    /// The device or the file.
    fn path(&self) -> &Path {
        let (Choice::Kept(path) | Choice::Device(path) | Choice::File(path)) = self;
        path
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Choice::Kept(path) => write!(f, "{}, which is prepared already", path.display()),
            Choice::Device(path) => write!(f, "the device {}", path.display()),
            Choice::File(path) => write!(f, "a new file, {}", path.display()),
        }
    }
}

/// What was done, or would be.
#[derive(Debug, Clone, Serialize)]
pub struct Done {
    /// Where the image goes; `None` where everything is taken back.
    pub place: Option<String>,
    /// What that lies on, from the top; `None` for what is not known.
    pub layers: Option<String>,
    /// The steps, each an order.
    pub steps: Vec<String>,
    /// Whether everything is taken back.
    pub is_undone: bool,
    /// Whether nothing was done.
    pub is_dry: bool,
    /// What the doctor finds after them; `None` where nothing was done, or all is taken back.
    pub diagnosis: Option<Diagnosis>,
}

/// The layers of a place, as the end of a sentence about it.
fn on(layers: Option<&str>) -> String {
    layers.map_or_else(String::new, |layers| format!(", on {layers}"))
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(diagnosis) = &self.diagnosis else {
            if let Some(place) = &self.place {
                write!(f, "The image goes to {place}{}.", on(self.layers.as_deref()))?;
            } else if !self.is_undone {
                f.write_str("The boot loader starts the restore kernel itself after a hibernation.")?;
            } else if !self.is_dry {
                return f.write_str("Dormouse is not set up on this machine any more.");
            } else {
                f.write_str("Everything is taken back.")?;
            }
            let steps = if self.is_dry { &self.steps[..] } else { &[] };
            return steps.iter().try_for_each(|step| write!(f, "\nwould {step}"));
        };
        diagnosis.problems().iter().try_for_each(|problem| writeln!(f, "{problem}"))?;
        writeln!(f, "{}", diagnosis.verdict())?;
        f.write_str(
            "No kernel argument is needed. See `dormouse doctor`. Next: `dormouse enable`, for `systemctl \
             hibernate`; and one reboot, by which the initramfs shows that it looks for an image",
        )
    }
}

/// Goes through all of it, with the policy at `config`. Names each step to `say` before it is done. With `is_quiet`,
/// nothing is asked, and what other programs print goes to stderr.
///
/// # Errors
/// The step that failed, what it was to do, and how to go on.
pub fn run(
    config: &Path,
    options: &Options,
    is_quiet: bool,
    say: &mut dyn FnMut(&str) -> anyhow::Result<()>,
) -> anyhow::Result<Done> {
    if options.undo {
        return take_back(config, options, is_quiet, say);
    }
    if options.direct {
        return set_up_loader(config, options, is_quiet, say);
    }
    let stdin = io::stdin();
    let may_ask = stdin.is_terminal() && !options.yes && !options.dry_run && !is_quiet;
    let policy = known_policy(config)?;
    let choice = match named(options)? {
        Some(choice) => choice,
        None if may_ask => ask(&survey::devices()?, &mut stdin.lock(), &mut io::stdout())?,
        None => propose(&survey::devices()?, options)?,
    };
    let release = Uname::read()?.release;
    let is_owners = policy.as_ref().is_some_and(|policy| !KernelPolicy::is_own(&policy.kernel.image));
    let kernel = match &options.kernel {
        Some(kernel) => Some(kernel.clone()),
        None if is_owners => None,
        None => Some(kernels::file_of(Path::new("/"), &release)?),
    };
    let key = sealing::choose(policy.as_ref(), &choice, options.key)?;
    let layers = layers::below(choice.path());
    let steps = steps::plan(&steps::Wanted {
        config,
        policy: policy.as_ref(),
        choice: &choice,
        kernel: kernel.as_deref(),
        size: &options.size,
        force: options.force,
        key: &key,
        rebuild: Tool::detect(Path::new("/")).map(|tool| tool.rebuild()),
        is_rebuilding: !options.no_initramfs,
        has_unit: systemd::has_unit(Path::new("/")),
    });
    let mut done = Done {
        place: Some(choice.to_string()),
        layers: (!layers.is_empty()).then(|| layers::in_words(&layers)),
        steps: steps.iter().map(Step::to_string).collect(),
        is_undone: false,
        is_dry: options.dry_run,
        diagnosis: None,
    };
    if !options.dry_run {
        say(&format!("The image goes to {choice}{}.", on(done.layers.as_deref())))?;
        let is_sealed = key != Key::AsItIs || policy.is_some_and(|policy| policy.image.key != SealKey::None);
        let volumes = if is_sealed { Vec::new() } else { in_clear::open_volumes(None) };
        in_clear::warning(&volumes).map_or(Ok(()), |warning| say(&format!("Warning: {warning}.")))?;
        perform(&steps, is_quiet, say)?;
        done.diagnosis = Some(Diagnosis::of_this_machine(config));
    }
    Ok(done)
}

/// Takes all of it back.
fn take_back(
    config: &Path,
    options: &Options,
    is_quiet: bool,
    say: &mut dyn FnMut(&str) -> anyhow::Result<()>,
) -> anyhow::Result<Done> {
    let root = Path::new("/");
    let rebuild = Tool::detect(root).filter(|_| !options.no_initramfs).map(Tool::rebuild);
    let mut steps = undo::plan(&undo::look(config, systemd::has_unit(root), rebuild)?);
    let systemd_boot = SystemdBoot::to_clear();
    // The boot loader first: it must not look for what is gone.
    steps.splice(0..0, direct::undo(config, systemd_boot.as_ref(), loader::update_command(root), Path::exists));
    if !options.dry_run {
        perform(&steps, is_quiet, say)?;
    }
    let steps = steps.iter().map(Step::to_string).collect();
    Ok(Done { place: None, layers: None, steps, is_undone: true, is_dry: options.dry_run, diagnosis: None })
}

/// Has the boot loader start D.
fn set_up_loader(
    config: &Path,
    options: &Options,
    is_quiet: bool,
    say: &mut dyn FnMut(&str) -> anyhow::Result<()>,
) -> anyhow::Result<Done> {
    let root = Path::new("/");
    let policy = Policy::load(config).context("set up the rest first")?;
    let steps = direct::plan(&direct::Wanted {
        config,
        policy: &policy,
        systemd_boot: SystemdBoot::find().transpose()?,
        has_scripts: Path::new(loader::DROP_INS).is_dir(),
        update: loader::update_command(root),
        rebuild: Tool::detect(root).filter(|_| !options.no_initramfs).map(Tool::rebuild),
    });
    if !options.dry_run {
        perform(&steps, is_quiet, say)?;
    }
    let steps = steps.iter().map(Step::to_string).collect();
    Ok(Done { place: None, layers: None, steps, is_undone: false, is_dry: options.dry_run, diagnosis: None })
}

/// The policy as it is. None is the beginning, and one without an image device is what setup completes; what is wrong
/// with another is for its author to mend.
fn known_policy(config: &Path) -> anyhow::Result<Option<Policy>> {
    match Policy::load(config) {
        Ok(policy) => Ok(Some(policy)),
        Err(PolicyError::Missing { .. } | PolicyError::MissingKey { .. }) => Ok(None),
        Err(error) => Err(anyhow::Error::from(error).context("correct the policy first")),
    }
}

fn perform(steps: &[Step], is_quiet: bool, say: &mut dyn FnMut(&str) -> anyhow::Result<()>) -> anyhow::Result<()> {
    for (at, step) in steps.iter().enumerate() {
        say(&format!("* {step}"))?;
        step.perform(is_quiet).with_context(|| {
            let left: Vec<String> = steps[at..].iter().map(|step| format!("  {step}")).collect();
            format!(
                "step {} of {} failed; what was done before it stays. Run `dormouse setup` again when it is mended, \
                 or go on by hand:\n{}\nThe failure",
                at + 1,
                steps.len(),
                left.join("\n")
            )
        })?;
    }
    Ok(())
}

/// The place that the flags name, if they do.
fn named(options: &Options) -> anyhow::Result<Option<Choice>> {
    let device = options.device.as_ref().map(|device| {
        let is_kept = is_image(device) && !options.force;
        if is_kept { Choice::Kept(device.clone()) } else { Choice::Device(device.clone()) }
    });
    // The policy has no working directory.
    let file = options.file.as_deref().map(std::path::absolute).transpose().context("--file")?;
    Ok(device.or_else(|| file.as_deref().map(in_file)))
}

/// The place that a question would propose, where nobody can be asked.
fn propose(candidates: &[Candidate], options: &Options) -> anyhow::Result<Choice> {
    if !options.yes && !options.dry_run {
        bail!("no terminal to ask at where the image is to go: name a --device or a --file, or pass --yes");
    }
    let choice = candidates.iter().find(|one| one.standing != Standing::Empty).map(Candidate::choice);
    Ok(choice.unwrap_or_else(|| in_file(Path::new(IMAGE_FILE))))
}

/// A file that exists already was made for this, or making it again will say why not.
fn in_file(path: &Path) -> Choice {
    if is_image(path) { Choice::Kept(path.to_owned()) } else { Choice::File(path.to_owned()) }
}

/// Whether there is an image that can be looked at.
fn is_image(path: &Path) -> bool {
    Target::at(path).is_ok_and(|target| device::info(&target, &|_| Ok(None)).is_ok())
}

/// Asks which of the candidates it is to be, or a file.
fn ask(candidates: &[Candidate], input: &mut impl BufRead, output: &mut impl Write) -> anyhow::Result<Choice> {
    let cannot_ask = "cannot ask";
    writeln!(output, "Where is the image to go?").context(cannot_ask)?;
    for (number, candidate) in (1..).zip(candidates) {
        writeln!(output, "  {number}  {candidate}").context(cannot_ask)?;
    }
    let file = candidates.len() + 1;
    writeln!(output, "  {file}  a file, {IMAGE_FILE}").context(cannot_ask)?;
    let default = candidates.iter().position(|one| one.standing != Standing::Empty).map_or(file, |at| at + 1);
    loop {
        write!(output, "Number [{default}]: ").and_then(|()| output.flush()).context(cannot_ask)?;
        let number = match answer_of(input)?.as_str() {
            "" => default,
            text => text.parse().unwrap_or(0),
        };
        match number.checked_sub(1).and_then(|at| candidates.get(at)) {
            Some(candidate) if candidate.standing == Standing::Empty => {
                let path = candidate.path.display();
                write!(
                    output,
                    "Nothing is recognised on {path}, which does not mean that it is empty. Use it? [y/N]: "
                )
                .and_then(|()| output.flush())
                .context(cannot_ask)?;
                if matches!(answer_of(input)?.as_str(), "y" | "Y" | "yes") {
                    return Ok(candidate.choice());
                }
            }
            Some(candidate) => return Ok(candidate.choice()),
            None if number == file => return Ok(in_file(Path::new(IMAGE_FILE))),
            None => writeln!(output, "Write a number from 1 to {file}.").context(cannot_ask)?,
        }
    }
}

fn answer_of(input: &mut impl BufRead) -> anyhow::Result<String> {
    let mut answer = String::new();
    if input.read_line(&mut answer).context("cannot read an answer")? == 0 {
        bail!("no answer; nothing was changed");
    }
    Ok(answer.trim().to_owned())
}

impl fmt::Display for Candidate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let standing = match self.standing {
            Standing::Prepared => "prepared for images",
            Standing::Named => "empty, and named for images",
            Standing::Empty => "empty: nothing is recognised on it",
        };
        write!(f, "{}, {}, {standing}", self.path.display(), mib(self.size))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn candidate(path: &str, standing: Standing) -> Candidate {
        Candidate { path: path.into(), size: 1 << 30, standing }
    }

    fn answered(candidates: &[Candidate], answers: &str) -> anyhow::Result<(Choice, String)> {
        let mut output = Vec::new();
        let place = ask(candidates, &mut answers.as_bytes(), &mut output)?;
        Ok((place, String::from_utf8(output).unwrap()))
    }

    #[test]
    fn an_answer_is_a_number_or_the_default() {
        let candidates = [candidate("/dev/a", Standing::Empty), candidate("/dev/b", Standing::Prepared)];
        let (place, shown) = answered(&candidates, "\n").unwrap();
        assert_eq!(place, Choice::Kept("/dev/b".into()));
        assert!(
            shown.contains("  2  /dev/b, 1,024 MiB, prepared for images") && shown.ends_with("Number [2]: "),
            "{shown}"
        );
        assert_eq!(answered(&candidates, "x\n0\n4\n1\ny\n").unwrap().0, Choice::Device("/dev/a".into()));
        assert_eq!(answered(&candidates, "1\n\n2\n").unwrap().0, Choice::Kept("/dev/b".into()));
        assert_eq!(answered(&candidates, "3\n").unwrap().0, Choice::File(IMAGE_FILE.into()));
        // What is merely empty is never proposed.
        assert_eq!(answered(&candidates[..1], "\n").unwrap().0, Choice::File(IMAGE_FILE.into()));
        assert!(answered(&candidates, "7\n").unwrap_err().to_string().contains("nothing was changed"));
    }

    #[test]
    fn flags_decide_without_a_question() {
        let directory = tempfile::tempdir().unwrap();
        let [empty, prepared] = ["empty", "prepared"].map(|name| directory.path().join(name));
        for path in [&empty, &prepared] {
            std::fs::File::create(path).unwrap().set_len(64 << 20).unwrap();
        }
        device::init(&prepared, false).unwrap();
        let device =
            |path: &Path, force| named(&Options { device: Some(path.into()), force, ..Options::default() }).unwrap();
        assert_eq!(device(&empty, false), Some(Choice::Device(empty.clone())));
        assert_eq!(device(&prepared, false), Some(Choice::Kept(prepared.clone())));
        assert_eq!(device(&prepared, true), Some(Choice::Device(prepared.clone())));
        let file = |path: &Path| named(&Options { file: Some(path.into()), ..Options::default() }).unwrap();
        assert_eq!(file(Path::new("/x/image")), Some(Choice::File("/x/image".into())));
        assert_eq!(file(&prepared), Some(Choice::Kept(prepared.clone())));
        assert_eq!(file(Path::new("image")), Some(Choice::File(std::env::current_dir().unwrap().join("image"))));
        assert_eq!(named(&Options::default()).unwrap(), None);
    }

    #[test]
    fn empty_devices_are_never_taken_unasked() {
        let candidates = [candidate("/dev/a", Standing::Empty), candidate("/dev/b", Standing::Named)];
        let yes = Options { yes: true, ..Options::default() };
        assert_eq!(propose(&candidates, &yes).unwrap(), Choice::Device("/dev/b".into()));
        assert_eq!(propose(&candidates[..1], &yes).unwrap(), Choice::File(IMAGE_FILE.into()));
        assert!(propose(&candidates, &Options::default()).unwrap_err().to_string().contains("--yes"));
    }
}
