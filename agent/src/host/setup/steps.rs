//! What setup does, step by step.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{fmt, io};

use anyhow::{Context, bail, ensure};
use dormouse_image::ImageDevice;
use dormouse_linux::atomic_file::replace;

use crate::cycle::direct::{self, BLOCK_FILE, SystemdBoot};
use crate::host::loader;
use crate::host::setup::sealing::Key;
use crate::host::setup::{Choice, undo};
use crate::policy::{self, DEFAULT_PATH, Policy, SealKey};
use crate::target::{self, Target};

/// The commented example, which becomes the policy of a machine that has none.
const EXAMPLE: &str = include_str!("../../../../configs/dormouse.toml");
/// Its line that names the image device.
const EXAMPLE_DEVICE: &str = "device = \"PARTLABEL=dormouse\"\n";

/// The drop-in that setup writes where there is a policy.
pub(super) const DROP_IN: &str = "50-setup.toml";

/// What the steps are made of.
#[derive(Debug)]
pub(super) struct Wanted<'a> {
    pub(super) config: &'a Path,
    /// The policy as it is, if there is a whole one.
    pub(super) policy: Option<&'a Policy>,
    pub(super) choice: &'a Choice,
    /// What is copied for the save kernel; the one that the policy names is used without it.
    pub(super) kernel: Option<&'a Path>,
    pub(super) size: &'a str,
    pub(super) force: bool,
    /// What is done about the image's key.
    pub(super) key: &'a Key,
    /// The command that rebuilds the boot's initramfs, where the tool is known.
    pub(super) rebuild: Option<Vec<String>>,
    /// Whether it is run, and not only printed.
    pub(super) is_rebuilding: bool,
    /// Whether there is a service manager to enable dormouse.service in.
    pub(super) has_unit: bool,
}

/// One step. Its text is an order: a command to give, or a file to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// A command of Dormouse's own, without the program's name.
    Dormouse(Vec<String>),
    /// A whole policy, which names the image at `place`, and says whether its key is in a file.
    WritePolicy { file: PathBuf, place: PathBuf, has_key_file: bool },
    /// A drop-in of the policy at `config` that does nothing but name the image at `place`, and say the same.
    WriteDropIn { file: PathBuf, config: PathBuf, place: PathBuf, has_key_file: bool },
    /// Another program.
    Run(Vec<String>),
    /// A file with this text, for GRUB or of the policy.
    Write { file: PathBuf, text: &'static str, mode: u32 },
    /// The block that the boot loader reads and writes.
    MakeBlock,
    /// What systemd-boot needs is tried.
    TryEntry(SystemdBoot, Box<Policy>),
    /// What was made for the boot loader is where it reads it.
    SettleBoot,
    /// An image's label is overwritten.
    Erase(PathBuf),
    /// A file or a directory is removed.
    Remove(PathBuf),
    /// A directory is removed, if nothing is in it.
    RemoveIfEmpty(PathBuf),
    /// A file gets a name by which it does not count.
    PutAside(PathBuf),
    /// Something that is for the user to do.
    Tell(String),
}

/// The steps that lead to what is wanted.
pub(super) fn plan(wanted: &Wanted<'_>) -> Vec<Step> {
    let mut steps = Vec::new();
    let path_text = |path: &Path| path.display().to_string();
    let dormouse = |words: &[&str]| Step::Dormouse(words.iter().map(|&word| word.to_owned()).collect());
    match wanted.choice {
        Choice::Kept(_) => {}
        Choice::Device(path) => {
            let force = if wanted.force { &["--force"][..] } else { &[] };
            steps.push(dormouse(&[&["image", "init"], force, &[&path_text(path)]].concat()));
        }
        Choice::File(path) => {
            if let Some(directory) = path.parent().filter(|directory| !directory.exists()) {
                steps.push(Step::Run(vec!["mkdir".to_owned(), "-p".to_owned(), path_text(directory)]));
            }
            steps.push(dormouse(&["image", "create", "--size", wanted.size, &path_text(path)]));
        }
    }
    let (file, place) = (wanted.config.to_owned(), wanted.choice.path().to_owned());
    // What the policy says of the key already, it goes on saying in what is written again.
    let has_key_file = wanted.key.is_named() || wanted.policy.is_some_and(|policy| policy.image.key == SealKey::File);
    let is_said = |policy: &Policy| {
        is_named(&policy.image.device, &place) && (!has_key_file || policy.image.key == SealKey::File)
    };
    if !wanted.config.exists() {
        steps.push(Step::WritePolicy { file, place, has_key_file });
    } else if !wanted.policy.is_some_and(is_said) {
        let drop_in = policy::drop_in_dir(&file).join(DROP_IN);
        steps.push(Step::WriteDropIn { file: drop_in, config: file, place, has_key_file });
    }
    let config = path_text(wanted.config);
    let config = if config == DEFAULT_PATH { &[][..] } else { &["--config", &config] };
    if let Key::New(path) = wanted.key {
        steps.push(dormouse(&[config, &["key", "add", "file", &path_text(path)]].concat()));
    }
    let kernel = wanted.kernel.map(path_text);
    let kernel = kernel.as_deref().map(|kernel| ["--kernel", kernel]);
    steps.push(dormouse(&[config, &["build-initramfs"], kernel.as_ref().map_or(&[][..], |words| words)].concat()));
    if wanted.has_unit {
        // Also without `dormouse enable`: an image that a boot has missed must not wait for the next one.
        steps.push(Step::Run(
            ["systemctl", "--quiet", "enable", "dormouse.service", "dormouse-warm.service"].map(str::to_owned).into(),
        ));
    }
    steps.push(match &wanted.rebuild {
        Some(command) if wanted.is_rebuilding => Step::Run(command.clone()),
        Some(command) => Step::Tell(format!("rebuild the boot's initramfs: {}", command.join(" "))),
        None => Step::Tell(
            "rebuild the boot's initramfs with a hook that runs `dormouse resume` (initramfs/README.md): no tool \
             that is known was found here"
                .to_owned(),
        ),
    });
    steps
}

/// Whether the policy means this place already.
fn is_named(device: &ImageDevice, place: &Path) -> bool {
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    target::resolve(device).is_ok_and(|found| found.is_some_and(|found| real(found.path()) == real(place)))
}

/// How the policy is to name a place.
fn name_of(place: &Path) -> anyhow::Result<String> {
    Ok(Target::at(place)?.policy_name()?.to_string())
}

/// The example with this device in it.
fn whole_policy(device: &str, has_key_file: bool) -> String {
    EXAMPLE.replacen(EXAMPLE_DEVICE, &image_lines(device, has_key_file), 1)
}

fn drop_in(device: &str, has_key_file: bool) -> String {
    format!("# Written by `dormouse setup`.\n[image]\n{}", image_lines(device, has_key_file))
}

fn image_lines(device: &str, has_key_file: bool) -> String {
    let key = if has_key_file { "key = \"file\"\n" } else { "" };
    format!("device = {}\n{key}", toml::Value::from(device))
}

/// Whether a policy is what [`Step::WritePolicy`] has written, of whatever device.
pub(super) fn is_example(text: &str) -> bool {
    let Ok(policy) = Policy::parse("a policy", text) else { return false };
    let (device, has_key_file) = (policy.image.device.to_string(), policy.image.key == SealKey::File);
    text == whole_policy(&device, has_key_file)
}

impl Step {
    /// Does it. With `is_quiet`, what another program prints goes to stderr.
    pub(super) fn perform(&self, is_quiet: bool) -> anyhow::Result<()> {
        match self {
            // The same program, wherever it is.
            Step::Dormouse(words) => {
                run(Command::new(std::env::current_exe().context("this program's own path")?).args(words), is_quiet)
            }
            Step::Run(words) => match words.as_slice() {
                [program, arguments @ ..] => run(Command::new(program).args(arguments), is_quiet),
                [] => Ok(()),
            },
            Step::WritePolicy { file, place, has_key_file } => {
                write(file, &whole_policy(&name_of(place)?, *has_key_file))
            }
            Step::WriteDropIn { file, config, place, has_key_file } => {
                write(file, &drop_in(&name_of(place)?, *has_key_file))?;
                let image = Policy::load(config)?.image;
                let device = image.device;
                // A drop-in whose name comes later, perhaps.
                ensure!(
                    is_named(&device, place),
                    "the policy says image.device = \"{device}\" all the same: remove that from the file that says so \
                     (`dormouse config check` lists the files)"
                );
                ensure!(
                    !has_key_file || image.key == SealKey::File,
                    "the policy says image.key = \"{}\" all the same: remove that from the file that says so",
                    image.key.as_str()
                );
                Ok(())
            }
            Step::Write { file, text, mode } => {
                replace(file, text.as_bytes(), *mode).with_context(|| format!("{}: cannot write it", file.display()))
            }
            Step::MakeBlock => loader::make_block(),
            Step::TryEntry(loader, policy) => loader.try_it(policy),
            Step::SettleBoot => direct::settle(),
            Step::Erase(place) => undo::erase(place),
            Step::Remove(path) => remove(path),
            Step::RemoveIfEmpty(path) => {
                // Something is left in it, or it never was.
                let _ = std::fs::remove_dir(path);
                Ok(())
            }
            Step::PutAside(path) => {
                std::fs::rename(path, aside(path)).with_context(|| format!("{}: cannot be renamed", path.display()))
            }
            Step::Tell(_) => Ok(()),
        }
    }
}

fn write(file: &Path, text: &str) -> anyhow::Result<()> {
    replace(file, text.as_bytes(), 0o644).with_context(|| format!("{}: cannot write it", file.display()))
}

/// Removes what is there.
fn remove(path: &Path) -> anyhow::Result<()> {
    let removed = if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("{}: cannot be removed", path.display()))
        }
        _ => Ok(()),
    }
}

/// The name of a file that does not count any more.
fn aside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".undone");
    name.into()
}

fn run(command: &mut Command, is_quiet: bool) -> anyhow::Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    if is_quiet {
        command.stdout(io::stderr());
    }
    let status = command.status().with_context(|| format!("{program} could not be started"))?;
    if !status.success() {
        bail!("{program}: {status}");
    }
    Ok(())
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Dormouse(words) => write!(f, "run: dormouse {}", words.join(" ")),
            Step::Run(words) => write!(f, "run: {}", words.join(" ")),
            Step::WritePolicy { file, place, has_key_file } => {
                let key = if *has_key_file { ", its key in a file" } else { "" };
                write!(f, "write {}: the commented example, with the image on {}{key}", file.display(), place.display())
            }
            Step::WriteDropIn { file, place, has_key_file, .. } => {
                let key = if *has_key_file { " and image.key" } else { "" };
                write!(f, "write {}: image.device{key}, for the image on {}", file.display(), place.display())
            }
            Step::Write { file, .. } => write!(f, "write {}", file.display()),
            Step::MakeBlock => {
                write!(
                    f,
                    "make {}: the block that the boot loader reads and writes",
                    direct::file(BLOCK_FILE).display()
                )
            }
            Step::TryEntry(loader, _) => {
                write!(f, "try whether systemd-boot, with its entries on {}, can be told", loader.place().display())
            }
            Step::SettleBoot => write!(f, "settle the filesystem of {}", direct::DIRECTORY),
            Step::Erase(place) => write!(f, "erase the label of the image on {}", place.display()),
            Step::Remove(path) => write!(f, "remove {}", path.display()),
            Step::RemoveIfEmpty(path) => write!(f, "remove {}, if nothing is left in it", path.display()),
            Step::PutAside(path) => {
                write!(f, "rename {}, which was changed by hand, to {}", path.display(), aside(path).display())
            }
            Step::Tell(text) => write!(f, "left to you: {text}"),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::target::device;

    fn wanted<'a>(config: &'a Path, choice: &'a Choice) -> Wanted<'a> {
        Wanted {
            config,
            policy: None,
            choice,
            kernel: Some(Path::new("/boot/vmlinuz-6.12")),
            size: "auto",
            force: false,
            key: &Key::AsItIs,
            rebuild: Some(vec!["mkinitcpio".to_owned(), "-P".to_owned()]),
            is_rebuilding: true,
            has_unit: true,
        }
    }

    fn texts(wanted: &Wanted<'_>) -> Vec<String> {
        plan(wanted).iter().map(Step::to_string).collect()
    }

    #[test]
    fn a_machine_without_anything_gets_all_steps() {
        let (config, place) = (Path::new("/nonexistent/dormouse.toml"), Choice::Device("/dev/vdb".into()));
        let expected = [
            "run: dormouse image init /dev/vdb",
            "write /nonexistent/dormouse.toml: the commented example, with the image on /dev/vdb",
            "run: dormouse --config /nonexistent/dormouse.toml build-initramfs --kernel /boot/vmlinuz-6.12",
            "run: systemctl --quiet enable dormouse.service dormouse-warm.service",
            "run: mkinitcpio -P",
        ];
        assert_eq!(texts(&wanted(config, &place)), expected);
        let printed = Wanted { force: true, is_rebuilding: false, ..wanted(config, &place) };
        assert_eq!(texts(&printed)[0], "run: dormouse image init --force /dev/vdb");
        assert_eq!(texts(&printed)[4], "left to you: rebuild the boot's initramfs: mkinitcpio -P");
        let file = Choice::File("/nonexistent/image".into());
        let unknown_tool = texts(&Wanted { rebuild: None, has_unit: false, ..wanted(config, &file) });
        let made = ["run: mkdir -p /nonexistent", "run: dormouse image create --size auto /nonexistent/image"];
        assert_eq!(unknown_tool[..2], made);
        assert!(unknown_tool[4].contains("initramfs/README.md"));
    }

    #[test]
    fn a_key_is_added_when_the_policy_names_it() {
        let (config, file) = (Path::new("/nonexistent/dormouse.toml"), Choice::File("/nonexistent/image".into()));
        let key = Key::New("/var/lib/dormouse/key".into());
        let steps = texts(&Wanted { key: &key, ..wanted(config, &file) });
        assert!(steps[2].ends_with("with the image on /nonexistent/image, its key in a file"), "{steps:?}");
        let added = "run: dormouse --config /nonexistent/dormouse.toml key add file /var/lib/dormouse/key";
        assert_eq!(steps[3], added);
        // The small initramfs carries the policy, and the boot's both: they come last.
        assert!(steps[4].contains("build-initramfs") && steps.last().unwrap().ends_with("mkinitcpio -P"));
    }

    #[test]
    fn a_policy_that_is_there_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let (config, device) = (directory.path().join("dormouse.toml"), directory.path().join("device"));
        std::fs::write(&config, "").unwrap();
        std::fs::write(&device, "").unwrap();
        let place = Choice::Kept(device.clone());
        let drop_in = format!("write {}.d/50-setup.toml: image.device", config.display());
        assert!(texts(&wanted(&config, &place))[0].starts_with(&drop_in));
        // By whatever name, it is the same.
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&device, &link).unwrap();
        let named = |path: &Path| is_named(&path.display().to_string().parse().unwrap(), &device);
        assert!(named(&link) && !named(&config));
        // So is a kernel that it names.
        let named = texts(&Wanted { kernel: None, ..wanted(&config, &place) });
        assert!(named[1].ends_with(" build-initramfs"), "{named:?}");
    }

    #[test]
    fn a_drop_in_that_does_not_count_is_noticed() {
        let directory = tempfile::tempdir().unwrap();
        let (config, device) = (directory.path().join("dormouse.toml"), directory.path().join("image"));
        std::fs::File::create(&device).unwrap().set_len(64 << 20).unwrap();
        device::init(&device, false).unwrap();
        write(&config, "").unwrap();
        let drop_in = policy::drop_in_dir(&config).join("50-setup.toml");
        let step = Step::WriteDropIn { file: drop_in, config: config.clone(), place: device, has_key_file: true };
        step.perform(false).unwrap();
        write(&policy::drop_in_dir(&config).join("90-mine.toml"), "[image]\ndevice = \"/nonexistent\"\n").unwrap();
        let error = step.perform(false).unwrap_err().to_string();
        assert!(error.contains("image.device = \"/nonexistent\" all the same"), "{error}");
    }

    #[test]
    fn written_policies_name_the_image() {
        let device = "UUID=01234567-89ab-cdef-0123-456789abcdef";
        assert_eq!(EXAMPLE.matches(EXAMPLE_DEVICE).count(), 1);
        for has_key_file in [false, true] {
            let (whole, part) = (whole_policy(device, has_key_file), drop_in(device, has_key_file));
            for text in [&whole, &part] {
                let image = Policy::parse("written", text).unwrap().image;
                assert_eq!((image.device.to_string().as_str(), image.key == SealKey::File), (device, has_key_file));
            }
            assert!(is_example(&whole) && !is_example(&part) && !is_example(&format!("{whole}\n")));
        }
    }

    #[test]
    fn a_file_is_named_by_its_path() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(64 << 20).unwrap();
        assert!(name_of(file.path()).is_err());
        device::init(file.path(), false).unwrap();
        assert_eq!(name_of(file.path()).unwrap(), file.path().display().to_string());
    }

    #[test]
    fn a_command_that_fails_says_how() {
        let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
        assert!(Step::Run(words(&["true"])).perform(false).is_ok());
        let failed = Step::Run(words(&["sh", "-c", "exit 3"])).perform(false).unwrap_err().to_string();
        assert!(failed.contains("exit status: 3"), "{failed}");
        assert!(Step::Run(words(&["/nonexistent/tool"])).perform(false).is_err());
    }
}
