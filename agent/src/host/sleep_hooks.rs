//! systemd's sleep hooks, for `systemctl hibernate` when it is routed to Dormouse: systemd-sleep, which runs them
//! otherwise, has no part in it then.
//!
//! As src/sleep/sleep.c and src/shared/exec-util.c of systemd have it: every executable in the directory, in parallel,
//! with the arguments `pre hibernate` before and `post hibernate` after, also when the hibernation failed, and with
//! `SYSTEMD_SLEEP_ACTION=hibernate`. How they end is logged and changes nothing. After `LIMIT` those that still run
//! get SIGTERM and are waited for no longer. Inhibitors are logind's matter, before it starts the service.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use dormouse_linux::kmsg;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Where they are; on a system whose `/lib` is not `/usr/lib`, the second one.
const DIRECTORIES: [&str; 2] = ["/usr/lib/systemd/system-sleep", "/lib/systemd/system-sleep"];

/// How long they may take: `DEFAULT_TIMEOUT_USEC` (src/basic/def.h of systemd), which systemd-sleep gives them.
const LIMIT: Duration = Duration::from_secs(90);

const PAUSE: Duration = Duration::from_millis(20);

/// Runs the hooks, then `sleep`, then the hooks again, whatever became of it.
pub fn around<T>(sleep: impl FnOnce() -> T) -> T {
    kmsg::init();
    let directories = DIRECTORIES.map(Path::new);
    run(&directories, "pre", LIMIT);
    let slept = sleep();
    run(&directories, "post", LIMIT);
    slept
}

/// Runs every hook with `when` as its first argument, and waits for all of them, `limit` at most.
fn run(directories: &[&Path], when: &str, limit: Duration) {
    let began = Instant::now();
    let mut running: Vec<(PathBuf, Child)> = Vec::new();
    for path in hooks(directories) {
        // stdout is the report's.
        let started = Command::new(&path)
            .args([when, "hibernate"])
            .env("SYSTEMD_SLEEP_ACTION", "hibernate")
            .stdin(Stdio::null())
            .stdout(std::io::stderr())
            .spawn();
        match started {
            Ok(child) => running.push((path, child)),
            Err(error) => log::warn!("sleep hook {} {when}: cannot be started: {error}", path.display()),
        }
    }
    while !running.is_empty() {
        running.retain_mut(|(path, child)| match child.try_wait() {
            Ok(None) => true,
            Ok(Some(status)) if status.success() => false,
            Ok(Some(status)) => {
                log::warn!("sleep hook {} {when}: {status}; ignored", path.display());
                false
            }
            Err(error) => {
                log::warn!("sleep hook {} {when}: cannot wait for it: {error}", path.display());
                false
            }
        });
        if began.elapsed() >= limit {
            for (path, child) in running.drain(..) {
                log::warn!("sleep hook {} {when}: not done after {} s; ended", path.display(), limit.as_secs());
                // It is not reaped yet, so the number is still its own.
                let _ = i32::try_from(child.id()).map(|pid| kill(Pid::from_raw(pid), Signal::SIGTERM));
            }
        } else if !running.is_empty() {
            std::thread::sleep(PAUSE);
        }
    }
}

/// The executables in the directories, sorted by name; of two with one name, that in the earlier directory. An empty
/// file or a link to `/dev/null` hides one of that name, and is none itself.
fn hooks(directories: &[&Path]) -> Vec<PathBuf> {
    let mut found: BTreeMap<_, PathBuf> = BTreeMap::new();
    for directory in directories {
        let Ok(entries) = fs::read_dir(directory) else { continue };
        for entry in entries.flatten() {
            found.entry(entry.file_name()).or_insert_with(|| entry.path());
        }
    }
    let is_hook = |path: &PathBuf| {
        let metadata = fs::metadata(path);
        metadata.is_ok_and(|file| file.is_file() && file.len() > 0 && file.permissions().mode() & 0o111 != 0)
    };
    found.into_values().filter(is_hook).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn hook(directory: &Path, name: &str, text: &str, mode: u32) {
        let path = directory.join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn executables_run_in_parallel_and_are_told_what_happens() {
        let directory = tempfile::tempdir().unwrap();
        let (here, out) = (directory.path(), directory.path().join("out"));
        fs::create_dir(&out).unwrap();
        // Each waits for the other.
        for (name, other) in [("10-a", "20-b"), ("20-b", "10-a")] {
            let text = format!(
                "#!/bin/sh\ncd {}\ntouch {name}\nwhile ! [ -e {other} ]; do sleep 0.01; done\n\
                 echo \"$@ $SYSTEMD_SLEEP_ACTION\" >{name}.told\nexit 3\n",
                out.display()
            );
            hook(here, name, &text, 0o755);
        }
        hook(here, "not-executable", "#!/bin/sh\ntouch wrong\n", 0o644);
        hook(here, "empty", "", 0o755);
        let began = Instant::now();
        run(&[here, here], "pre", Duration::from_secs(30));
        assert!(began.elapsed() < Duration::from_secs(30));
        for name in ["10-a", "20-b"] {
            assert_eq!(fs::read_to_string(out.join(format!("{name}.told"))).unwrap(), "pre hibernate hibernate\n");
        }
        assert_eq!(hooks(&[here]).len(), 2);
    }

    #[test]
    fn one_that_does_not_end_is_not_waited_for_for_ever() {
        let directory = tempfile::tempdir().unwrap();
        hook(directory.path(), "slow", "#!/bin/sh\nexec sleep 60\n", 0o755);
        let began = Instant::now();
        run(&[directory.path()], "post", Duration::from_millis(200));
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    }

    #[test]
    fn an_earlier_directory_hides_what_a_later_one_has() {
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        hook(second.path(), "a", "#!/bin/sh\n", 0o755);
        hook(second.path(), "b", "#!/bin/sh\n", 0o755);
        std::os::unix::fs::symlink("/dev/null", first.path().join("a")).unwrap();
        assert_eq!(hooks(&[first.path(), second.path()]), [second.path().join("b")]);
        assert!(hooks(&[Path::new("/nonexistent")]).is_empty());
    }
}
