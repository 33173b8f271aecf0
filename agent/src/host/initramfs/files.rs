//! What an initramfs must hold that a distribution's own tool makes: the lists that the hooks for initramfs-tools,
//! dracut and mkinitcpio work through.
//!
//! ```text
//!   file SOURCE TARGET MODE         a file, where it is and where it goes, with its permissions in octal
//!   dir TARGET                      a directory
//!   node TARGET MODE MAJOR MINOR    a character device
//!   module NAME                     a kernel module, with what it needs
//! ```

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::{fmt, fs};

use anyhow::{Context, ensure};

use crate::host::initramfs::carried_policy;
use crate::host::initramfs::manifest::{Content, ITEMS, Item};
use crate::host::initramfs::needs::{self, Options};
use crate::policy::{DEFAULT_PATH, Policy};

/// The script that the boot's initramfs runs.
const RESUME: &str = include_str!("../../../../initramfs/dormouse-resume");
/// Where it goes.
const RESUME_PATH: &str = "/usr/lib/dormouse/dormouse-resume";
/// Where the command goes.
const COMMAND_PATH: &str = "/usr/bin/dormouse";

/// A line of the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// A file.
    File {
        /// Where it is.
        source: PathBuf,
        /// Where it goes.
        target: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// A directory.
    Dir(PathBuf),
    /// A character device.
    Node {
        /// Where it goes.
        target: PathBuf,
        /// Its permissions.
        mode: u32,
        /// Its major and minor number.
        number: (u32, u32),
    },
    /// A kernel module.
    Module(String),
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Entry::File { source, target, mode } => {
                write!(f, "file {} {} {mode:o}", source.display(), target.display())
            }
            Entry::Dir(target) => write!(f, "dir {}", target.display()),
            Entry::Node { target, mode, number: (major, minor) } => {
                write!(f, "node {} {mode:o} {major} {minor}", target.display())
            }
            Entry::Module(name) => write!(f, "module {name}"),
        }
    }
}

/// What the initramfs of an ordinary boot needs to resume. Files that are made for it go to `scratch`, which must exist
/// until the initramfs does.
///
/// # Errors
/// The save kernel or its initramfs is missing, or what the image device needs cannot be found out.
pub fn of_boot(policy: &Policy, options: &Options, scratch: &Path) -> anyhow::Result<Vec<Entry>> {
    let command = std::env::current_exe().context("cannot find this program's own file")?;
    let mut list = vec![
        Entry::File { source: command, target: COMMAND_PATH.into(), mode: 0o755 },
        made(scratch, "dormouse-resume", RESUME, RESUME_PATH, 0o755)?,
        made(scratch, "dormouse.toml", &carried_policy(policy)?.to_toml(), DEFAULT_PATH, 0o644)?,
    ];
    for file in [&policy.kernel.image, &policy.kernel.initramfs] {
        ensure!(file.is_file(), "{}: missing; `dormouse update` makes it", file.display());
        list.push(Entry::File { source: file.clone(), target: file.clone(), mode: 0o600 });
    }
    list.extend(needs::list_modules(policy, options)?.target.into_iter().map(Entry::Module));
    checked(list)
}

/// What the small initramfs of B and D needs, in place of `dormouse build-initramfs`; `scratch` as for [`of_boot`].
///
/// # Errors
/// The agent is missing, or what the image device needs cannot be found out.
pub fn of_small(policy: &Policy, options: &Options, scratch: &Path) -> anyhow::Result<Vec<Entry>> {
    let init = &options.init;
    ensure!(init.is_file(), "{}: the program for PID 1 is missing", init.display());
    let modules = needs::list_modules(policy, options)?;
    let names = |names: &[String]| names.iter().map(|name| format!("{name}\n")).collect::<String>();
    let entry = |item: Item| {
        Ok(match item {
            Item::Dir(path) => Entry::Dir(path.into()),
            Item::Node { path, mode, number } => Entry::Node { target: path.into(), mode, number },
            Item::File { path, mode, content } => match content {
                Content::Init => Entry::File { source: init.clone(), target: path.into(), mode },
                Content::Policy => made(scratch, "dormouse.toml", &carried_policy(policy)?.to_toml(), path, mode)?,
                Content::Modules => made(scratch, "modules", &names(&modules.target), path, mode)?,
                Content::Watchdogs => made(scratch, "modules.watchdogs", &names(&modules.watchdogs), path, mode)?,
                Content::Disks => made(scratch, "modules.disks", &names(&modules.disks), path, mode)?,
                Content::Memory => made(scratch, "modules.memory", &names(&modules.memory), path, mode)?,
            },
        })
    };
    let mut list: Vec<Entry> = ITEMS.into_iter().map(entry).collect::<anyhow::Result<_>>()?;
    list.extend(modules.all().cloned().map(Entry::Module));
    checked(list)
}

/// A file with `content`.
fn made(scratch: &Path, name: &str, content: &str, target: &str, mode: u32) -> anyhow::Result<Entry> {
    let source = scratch.join(name);
    let write = || {
        fs::write(&source, content)?;
        fs::set_permissions(&source, fs::Permissions::from_mode(mode))
    };
    write().with_context(|| format!("{}: cannot write it", source.display()))?;
    Ok(Entry::File { source, target: target.into(), mode })
}

/// A shell takes a line apart at its blanks.
fn checked(list: Vec<Entry>) -> anyhow::Result<Vec<Entry>> {
    for entry in &list {
        if let Entry::File { source, target, .. } = entry {
            for path in [source, target] {
                let text = path.to_str().unwrap_or(" ");
                ensure!(!text.contains(char::is_whitespace), "{}: a path with blanks in it", path.display());
            }
        }
    }
    Ok(list)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn policy(directory: &Path) -> Policy {
        let [kernel, initramfs] = ["vmlinuz", "initramfs.img"].map(|name| directory.join(name).display().to_string());
        let text =
            format!("[image]\ndevice = \"/dev/vda\"\n[kernel]\nimage = \"{kernel}\"\ninitramfs = \"{initramfs}\"\n");
        Policy::parse("dormouse.toml", &text).unwrap()
    }

    fn options(directory: &Path) -> Options {
        let modules = directory.join("depmod");
        fs::create_dir(&modules).unwrap();
        fs::write(modules.join("modules.dep"), "usb-storage.ko.xz: usbcore.ko.xz\nusbcore.ko.xz:\n").unwrap();
        let init = directory.join("dormouse-init");
        fs::write(&init, "").unwrap();
        Options { init, modules: vec!["usb_storage".into()], modules_dir: Some(modules), ..Options::default() }
    }

    /// The lines, with the directory's name left out.
    fn lines(list: &[Entry], directory: &Path) -> Vec<String> {
        list.iter().map(|entry| entry.to_string().replace(&directory.display().to_string(), "")).collect()
    }

    #[test]
    fn the_boots_initramfs_has_the_save_kernel_and_the_policy() {
        let directory = tempfile::tempdir().unwrap();
        let (policy, options) = (policy(directory.path()), options(directory.path()));
        let missing = of_boot(&policy, &options, directory.path()).unwrap_err().to_string();
        assert!(missing.ends_with("vmlinuz: missing; `dormouse update` makes it"), "{missing}");
        for file in ["vmlinuz", "initramfs.img"] {
            fs::write(directory.path().join(file), "").unwrap();
        }
        let list = of_boot(&policy, &options, directory.path()).unwrap();
        let lines = lines(&list, directory.path());
        assert!(lines[0].ends_with(" /usr/bin/dormouse 755"), "{lines:?}");
        assert_eq!(
            lines[1..],
            [
                "file /dormouse-resume /usr/lib/dormouse/dormouse-resume 755",
                "file /dormouse.toml /etc/dormouse.toml 644",
                "file /vmlinuz /vmlinuz 600",
                "file /initramfs.img /initramfs.img 600",
                "module usbcore",
                "module usb_storage",
            ]
        );
        let text = fs::read_to_string(directory.path().join("dormouse.toml")).unwrap();
        assert_eq!(Policy::parse("made", &text).unwrap(), policy);
    }

    #[test]
    fn the_small_initramfs_has_the_agent_as_its_init() {
        let directory = tempfile::tempdir().unwrap();
        let list = of_small(&policy(directory.path()), &options(directory.path()), directory.path()).unwrap();
        assert_eq!(
            lines(&list, directory.path()),
            [
                "dir /dev",
                "dir /proc",
                "dir /run",
                "dir /sys",
                "node /dev/console 600 5 1",
                "node /dev/kmsg 644 1 11",
                "node /dev/null 666 1 3",
                "file /dormouse-init /init 755",
                "file /dormouse.toml /etc/dormouse.toml 644",
                "file /modules /etc/dormouse/modules 644",
                "file /modules.watchdogs /etc/dormouse/modules.watchdogs 644",
                "file /modules.disks /etc/dormouse/modules.disks 644",
                "file /modules.memory /etc/dormouse/modules.memory 644",
                "module usbcore",
                "module usb_storage",
            ]
        );
        assert_eq!(fs::read_to_string(directory.path().join("modules")).unwrap(), "usbcore\nusb_storage\n");
    }

    #[test]
    fn a_path_that_a_shell_would_take_apart_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let scratch = directory.path().join("a b");
        fs::create_dir(&scratch).unwrap();
        let error = of_small(&policy(directory.path()), &options(directory.path()), &scratch).unwrap_err().to_string();
        assert!(error.ends_with("a b/dormouse.toml: a path with blanks in it"), "{error}");
    }
}
