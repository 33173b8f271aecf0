//! `dormouse enable` and `dormouse disable`: whether `systemctl hibernate` is Dormouse's.
//!
//! logind checks what it always checks (polkit, inhibitors, `AllowHibernation=`, swap), then starts
//! `systemd-hibernate.service`, whose command a drop-in replaces. Everything is written below `/etc/systemd/system`,
//! and what others have written there is left alone.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{fmt, fs};

use anyhow::{Context, bail};
use dormouse_linux::atomic_file::replace;
use dormouse_linux::procfs;
use serde::Serialize;

/// The first line of the files that `enable` writes, and the only ones that `disable` removes.
const MARK: &str = "# Written by `dormouse enable`; `dormouse disable` removes it.\n";

const UNIT: &str = "usr/lib/systemd/system/dormouse.service";
/// What is enabled: the units' names.
const UNITS: [&str; 2] = ["dormouse.service", "dormouse-warm.service"];
const WANTED: &str = "etc/systemd/system/multi-user.target.wants";

/// A drop-in: its path below the root, and what follows the mark in it.
struct DropIn {
    path: &'static str,
    text: &'static str,
}

/// The empty `ExecStart=` takes back systemd's own (systemd.service(5)). The service is oneshot, for which no time
/// limit holds.
const HIBERNATE: DropIn = DropIn {
    path: "etc/systemd/system/systemd-hibernate.service.d/50-dormouse.conf",
    text: "[Service]\nExecStart=\nExecStart=/usr/bin/dormouse hibernate --system-sleep\n",
};

/// logind offers hibernation only where swap space could hold the image, and Dormouse needs none. With this variable it
/// does not look at the space: up to systemd 254 it then does not look for swap at all (`enough_swap_for_hibernation`,
/// src/shared/sleep-config.c, later hibernate-util.c); from 255 on, having no swap is let through, but swap that the
/// kernel could not resume from is refused (`hibernation_is_safe`, src/shared/hibernate-util.c, pull request 30074).
const LOGIND: DropIn = DropIn {
    path: "etc/systemd/system/systemd-logind.service.d/50-dormouse.conf",
    text: "[Service]\nEnvironment=SYSTEMD_BYPASS_HIBERNATION_MEMORY_CHECK=1\n",
};

/// Whether systemd runs, and dormouse.service is installed.
pub(crate) fn has_unit(root: &Path) -> bool {
    root.join("run/systemd/system").is_dir() && root.join(UNIT).exists()
}

/// What became of one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    /// The file or link.
    pub path: PathBuf,
    /// What became of it.
    pub what: What,
}

/// What became of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// It was written, or the link made.
    Written,
    /// It is as it should be.
    Unchanged,
    /// It was removed.
    Removed,
    /// It does not exist.
    Missing,
    /// Somebody else has written it.
    LeftAlone,
    /// The unit that it would enable is not installed, so that nothing is checked at boot.
    NotInstalled,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.path.display())?;
        f.write_str(match self.what {
            What::Written => "written",
            What::Unchanged => "exists already",
            What::Removed => "removed",
            What::Missing => "missing",
            What::LeftAlone => "left alone, `dormouse enable` has not written it",
            What::NotInstalled => "not installed, so nothing is checked at boot",
        })
    }
}

/// What `systemctl hibernate` does from now on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Rerouted {
    /// Whether it is Dormouse's.
    pub is_dormouse: bool,
    /// What was done for it.
    pub changes: Vec<Change>,
    /// Whether systemd has read its units again.
    pub is_reloaded: bool,
}

impl fmt::Display for Rerouted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.changes.iter().try_for_each(|change| writeln!(f, "{change}"))?;
        if self.is_reloaded {
            writeln!(f, "systemctl daemon-reload: done")?;
        }
        f.write_str(match self.is_dormouse {
            true => {
                "`systemctl hibernate` is Dormouse's now. logind stops asking for swap space at the next boot, or \
                 after `systemctl restart systemd-logind`"
            }
            false => "`systemctl hibernate` is systemd's own again; logind asks for swap space from the next boot on",
        })
    }
}

/// Routes `systemctl hibernate` to Dormouse, and has `dormouse prepare` run at boot.
///
/// # Errors
/// A file cannot be written, or one of that name is somebody else's.
pub fn enable(root: &Path) -> anyhow::Result<Rerouted> {
    // Both or none.
    for drop_in in [HIBERNATE, LOGIND] {
        refuse_foreign(root, &drop_in)?;
    }
    let mut changes = vec![write(root, &HIBERNATE)?, write(root, &LOGIND)?];
    for unit in UNITS {
        changes.push(want(root, unit)?);
    }
    Ok(Rerouted { is_dormouse: true, changes, is_reloaded: reload(root)? })
}

/// Takes back what [`enable`] did, and nothing else.
///
/// # Errors
/// A file cannot be removed.
pub fn disable(root: &Path) -> anyhow::Result<Rerouted> {
    let mut changes = vec![remove(root, &HIBERNATE)?, remove(root, &LOGIND)?];
    for unit in UNITS {
        let wanted = root.join(WANTED).join(unit);
        changes.push(match fs::read_link(&wanted) {
            Ok(_) => removed(wanted)?,
            Err(_) => Change { path: wanted, what: What::Missing },
        });
    }
    Ok(Rerouted { is_dormouse: false, changes, is_reloaded: reload(root)? })
}

fn refuse_foreign(root: &Path, drop_in: &DropIn) -> anyhow::Result<()> {
    let path = root.join(drop_in.path);
    match fs::read_to_string(&path) {
        Ok(found) if !found.starts_with(MARK) => bail!(
            "{}: `dormouse enable` has not written this file, and does not change it: remove or rename it first",
            path.display()
        ),
        _ => Ok(()),
    }
}

fn write(root: &Path, drop_in: &DropIn) -> anyhow::Result<Change> {
    let path = root.join(drop_in.path);
    let text = format!("{MARK}{}", drop_in.text);
    if fs::read_to_string(&path).is_ok_and(|found| found == text) {
        return Ok(Change { path, what: What::Unchanged });
    }
    replace(&path, text.as_bytes(), 0o644).with_context(|| format!("{}: cannot write it", path.display()))?;
    Ok(Change { path, what: What::Written })
}

fn remove(root: &Path, drop_in: &DropIn) -> anyhow::Result<Change> {
    let path = root.join(drop_in.path);
    match procfs::text_if_present(&path)? {
        None => Ok(Change { path, what: What::Missing }),
        Some(found) if !found.starts_with(MARK) => Ok(Change { path, what: What::LeftAlone }),
        Some(_) => removed(path),
    }
}

/// Removes a file, and the directory that it was in if nothing else is.
fn removed(path: PathBuf) -> anyhow::Result<Change> {
    fs::remove_file(&path).with_context(|| format!("{}: cannot remove it", path.display()))?;
    if let Some(directory) = path.parent() {
        let _ = fs::remove_dir(directory);
    }
    Ok(Change { path, what: What::Removed })
}

/// The link that `systemctl enable` makes of a unit with this name.
fn want(root: &Path, name: &str) -> anyhow::Result<Change> {
    let installed = Path::new("/usr/lib/systemd/system").join(name);
    let (unit, wanted) = (root.join("usr/lib/systemd/system").join(name), root.join(WANTED).join(name));
    if !unit.exists() {
        return Ok(Change { path: unit, what: What::NotInstalled });
    }
    if fs::symlink_metadata(&wanted).is_ok() {
        return Ok(Change { path: wanted, what: What::Unchanged });
    }
    let made = wanted.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| symlink(&installed, &wanted));
    made.with_context(|| format!("{}: cannot make this link", wanted.display()))?;
    Ok(Change { path: wanted, what: What::Written })
}

/// Has the running systemd read its units again, where these are its files. Returns whether it has.
fn reload(root: &Path) -> anyhow::Result<bool> {
    // sd_booted(3).
    if root != Path::new("/") || !Path::new("/run/systemd/system").exists() {
        return Ok(false);
    }
    let status = Command::new("systemctl").arg("daemon-reload").status();
    match status.context("`systemctl daemon-reload` could not be started")? {
        status if status.success() => Ok(true),
        status => bail!("the files are as they should be, but `systemctl daemon-reload` ended with {status}"),
    }
}

/// What `systemctl hibernate` does here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Routing {
    /// Whether it starts `dormouse hibernate`.
    pub is_dormouse: bool,
    /// Whether logind is set not to ask for swap space.
    pub needs_no_swap: bool,
}

impl Routing {
    /// Reads it off the units' drop-ins, whoever has written them.
    #[must_use]
    pub fn read(root: &Path) -> Routing {
        let contains = |unit: &str, start: &str, text: &str| {
            let texts = drop_ins(root, unit).into_iter().filter_map(|path| fs::read_to_string(path).ok());
            let last = texts
                .flat_map(|text| {
                    text.lines().filter(|line| line.starts_with(start)).map(str::to_owned).collect::<Vec<_>>()
                })
                .last();
            last.is_some_and(|line| line.contains(text))
        };
        Routing {
            is_dormouse: contains("systemd-hibernate.service", "ExecStart=", "dormouse hibernate"),
            needs_no_swap: contains(
                "systemd-logind.service",
                "Environment=",
                "SYSTEMD_BYPASS_HIBERNATION_MEMORY_CHECK=1",
            ),
        }
    }
}

/// The version of the systemd that is installed.
#[must_use]
pub fn version() -> Option<u32> {
    let output = Command::new("systemctl").arg("--version").output().ok()?;
    parse_version(&String::from_utf8_lossy(&output.stdout))
}

/// From the first line, such as `systemd 252 (252.38-1~deb12u1)`.
fn parse_version(text: &str) -> Option<u32> {
    text.strip_prefix("systemd ")?.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// A unit's drop-ins, by name; of two with one name that in `/etc` counts (systemd.unit(5)).
fn drop_ins(root: &Path, unit: &str) -> Vec<PathBuf> {
    let mut found = std::collections::BTreeMap::new();
    for place in ["usr/lib/systemd/system", "run/systemd/system", "etc/systemd/system"] {
        let Ok(entries) = fs::read_dir(root.join(place).join(format!("{unit}.d"))) else { continue };
        let conf = entries.flatten().map(|entry| entry.path());
        let conf = conf.filter(|path| path.extension().is_some_and(|extension| extension == "conf"));
        found.extend(conf.filter_map(|path| Some((path.file_name()?.to_owned(), path))));
    }
    found.into_values().collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Every file and link below a directory, with its content.
    fn files(directory: &Path) -> Vec<(PathBuf, String)> {
        let mut found = Vec::new();
        for entry in fs::read_dir(directory).unwrap().flatten() {
            let path = entry.path();
            match fs::read_link(&path) {
                Ok(target) => found.push((path, format!("-> {}", target.display()))),
                Err(_) if path.is_dir() => found.extend(files(&path)),
                Err(_) => found.push((path.clone(), fs::read_to_string(&path).unwrap())),
            }
        }
        found.sort();
        found
    }

    fn put(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn count(rerouted: &Rerouted, what: What) -> usize {
        rerouted.changes.iter().filter(|change| change.what == what).count()
    }

    #[test]
    fn disable_undoes_enable_without_a_trace() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        for unit in UNITS {
            put(root, &format!("usr/lib/systemd/system/{unit}"), "[Unit]\n");
        }
        put(root, "etc/systemd/system/systemd-logind.service.d/90-mine.conf", "[Service]\n");
        let before = files(root);
        assert_eq!(Routing::read(root), Routing::default());

        enable(root).unwrap();
        let enabled = files(root);
        assert_eq!(enabled.len(), before.len() + 4);
        assert!(
            enabled.iter().any(|(path, text)| path.ends_with("dormouse.service")
                && text == "-> /usr/lib/systemd/system/dormouse.service")
        );
        assert_eq!(Routing::read(root), Routing { is_dormouse: true, needs_no_swap: true });
        let again = enable(root).unwrap();
        assert_eq!(count(&again, What::Unchanged), 4, "{again}");
        assert_eq!(files(root), enabled);

        disable(root).unwrap();
        assert_eq!(files(root), before);
        for directory in ["systemd-hibernate.service.d", "multi-user.target.wants"] {
            assert!(!root.join("etc/systemd/system").join(directory).exists(), "{directory}");
        }
        let again = disable(root).unwrap();
        assert_eq!(count(&again, What::Missing), 4, "{again}");
    }

    #[test]
    fn a_version_is_read() {
        assert_eq!(parse_version("systemd 252 (252.38-1~deb12u1)\n+PAM +AUDIT\n"), Some(252));
        assert_eq!(parse_version("systemd 256~rc3\n"), Some(256));
        assert_eq!(parse_version("busybox\n"), None);
    }

    #[test]
    fn leaves_files_of_others_alone() {
        let directory = tempfile::tempdir().unwrap();
        put(directory.path(), HIBERNATE.path, "[Service]\nExecStart=\nExecStart=/bin/mine\n");
        let before = files(directory.path());
        let refused = enable(directory.path()).unwrap_err().to_string();
        assert!(refused.contains("has not written this file"), "{refused}");
        assert!(disable(directory.path()).unwrap().changes[0].what == What::LeftAlone);
        assert_eq!(files(directory.path()), before);
        // Nor is the one written where the other is somebody else's.
        let directory = tempfile::tempdir().unwrap();
        put(directory.path(), LOGIND.path, "[Service]\n");
        assert!(enable(directory.path()).is_err() && files(directory.path()).len() == 1);
    }

    #[test]
    fn the_last_drop_in_decides() {
        let directory = tempfile::tempdir().unwrap();
        enable(directory.path()).unwrap();
        put(
            directory.path(),
            "etc/systemd/system/systemd-hibernate.service.d/60-mine.conf",
            "[Service]\nExecStart=/bin/mine\n",
        );
        assert!(!Routing::read(directory.path()).is_dormouse);
    }
}
