//! `initramfs/dormouse-resume`: whatever happens in it, the boot goes on.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

const HOOK: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../initramfs/dormouse-resume");

/// A command that notes its arguments in a file next to it, then ends as told. It says nothing, since what the
/// hook is told goes to the console of the machine.
fn command(directory: &Path, ending: &str) -> String {
    let file = directory.join("dormouse");
    fs::write(&file, format!("#!/bin/sh\necho \"$@\" >\"$0.called\"\n{ending}\n")).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    file.to_str().unwrap().to_owned()
}

fn shell(arguments: &[&str], dormouse: &str) -> Output {
    Command::new("sh").args(arguments).env("DORMOUSE", dormouse).output().unwrap()
}

#[test]
fn it_resumes_and_the_boot_goes_on_however_that_ends() {
    for ending in ["exit 0", "exit 1", "kill -9 $$"] {
        let directory = tempfile::tempdir().unwrap();
        let dormouse = command(directory.path(), ending);
        let run = shell(&[HOOK], &dormouse);
        assert_eq!(run.status.code(), Some(0), "{ending}: {run:?}");
        assert_eq!(fs::read_to_string(format!("{dormouse}.called")).unwrap(), "resume\n");
    }
}

#[test]
fn a_look_is_named_by_the_argument() {
    for (given, called) in [
        ("--before-unlock", "resume --before-unlock\n"),
        ("--after-unlock", "resume --after-unlock\n"),
        ("x", "resume\n"),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let dormouse = command(directory.path(), "exit 0");
        let run = shell(&[HOOK, given], &dormouse);
        assert_eq!(run.status.code(), Some(0), "{run:?}");
        assert_eq!(fs::read_to_string(format!("{dormouse}.called")).unwrap(), called);
    }
}

#[test]
fn a_strict_shell_that_sources_it_goes_on_too() {
    let directory = tempfile::tempdir().unwrap();
    let dormouse = command(directory.path(), "exit 1");
    let run = shell(&["-euc", &format!(". '{HOOK}'; echo after")], &dormouse);
    assert_eq!(run.status.code(), Some(0), "{run:?}");
    assert!(run.stdout.ends_with(b"after\n"), "{run:?}");
}
