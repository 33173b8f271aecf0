//! The `dormouse` command as a user meets it: exit status, stdout and stderr.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use tempfile::TempDir;

const POLICY: &str = "[image]\ndevice = \"/dev/vda\"\n";

fn dormouse(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_dormouse")).args(arguments).env_remove("COLUMNS").output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// Runs the command, which must succeed and say nothing on stderr, and returns what it said.
fn succeeds(arguments: &[&str]) -> String {
    let output = dormouse(arguments);
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", text(&output.stderr));
    assert_eq!(text(&output.stderr), "", "{arguments:?}");
    text(&output.stdout).to_owned()
}

/// Runs the command, which must fail with this status and say nothing on stdout, and returns its complaint.
fn fails(status: i32, arguments: &[&str]) -> String {
    let output = dormouse(arguments);
    assert_eq!(output.status.code(), Some(status), "{arguments:?}: {}", text(&output.stderr));
    assert_eq!(text(&output.stdout), "", "{arguments:?}");
    text(&output.stderr).to_owned()
}

fn directory_with_policy(policy: &str) -> (TempDir, String) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("dormouse.toml");
    fs::write(&file, policy).unwrap();
    let name = file.to_str().unwrap().to_owned();
    (directory, name)
}

/// The least ELF64 header of a static program.
fn static_program(directory: &Path) -> String {
    let mut bytes = vec![0; 64];
    bytes[..8].copy_from_slice(b"\x7fELF\x02\x01\x01\0");
    bytes[16..21].copy_from_slice(&[2, 0, 62, 0, 1]);
    bytes[52] = 64;
    let file = directory.join("init");
    fs::write(&file, bytes).unwrap();
    file.to_str().unwrap().to_owned()
}

#[test]
fn usage_errors_exit_with_2() {
    let table: [&[&str]; 13] = [
        &[],
        &["hibernat"],
        &["hibernate", "now"],
        &["hibernate", "--then", "sleep"],
        &["hibernate", "--then"],
        &["image"],
        &["image", "init"],
        &["image", "info", "/dev/a", "/dev/b"],
        &["config", "change"],
        &["--verbose"],
        &["setup", "--device", "/dev/a", "--file", "/b"],
        &["setup", "--force"],
        &["doctor", "now"],
    ];
    for arguments in table {
        let complaint = fails(2, arguments);
        assert!(complaint.contains("--help"), "{arguments:?}: {complaint}");
    }
    assert!(fails(2, &["hibernate", "--then", "sleep"]).contains("is not one of \"poweroff\", \"reboot\", \"return\""));
}

#[test]
fn help_is_everywhere() {
    let table: [&[&str]; 25] = [
        &[],
        &["hibernate"],
        &["resume"],
        &["status"],
        &["doctor"],
        &["setup"],
        &["enable"],
        &["disable"],
        &["prepare"],
        &["update"],
        &["initramfs-files"],
        &["image"],
        &["image", "init"],
        &["image", "create"],
        &["image", "info"],
        &["image", "verify"],
        &["image", "export"],
        &["image", "discard"],
        &["build-initramfs"],
        &["config"],
        &["config", "check"],
        &["config", "show"],
        &["gen"],
        &["gen", "man"],
        &["gen", "completions"],
    ];
    for arguments in table {
        let help = succeeds(&[arguments, &["--help"]].concat());
        assert!(help.contains("Usage: dormouse"), "{arguments:?}: {help}");
        assert!(help.contains("--config <FILE>"), "{arguments:?}: {help}");
    }
    assert!(succeeds(&["--version"]).starts_with("dormouse "));
}

#[test]
fn a_good_policy_is_checked_and_shown() {
    let (_folder, file) = directory_with_policy(POLICY);
    let said = succeeds(&["config", "check", "--config", &file]);
    assert_eq!(said, format!("{file}: every key is known and every value valid\n"));
    let shown = succeeds(&["--config", &file, "config", "show"]);
    assert!(shown.starts_with("[image]\ndevice = \"/dev/vda\"\nwait = 10\n"), "{shown}");
    assert!(shown.ends_with("verbosity = \"quiet\"\n"), "{shown}");
}

#[test]
fn drop_ins_are_checked_and_shown() {
    let (directory, file) = directory_with_policy(POLICY);
    let drop_in = format!("{file}.d/50-level.toml");
    fs::create_dir(format!("{file}.d")).unwrap();
    fs::write(&drop_in, "[save]\ncompression = \"zstd\"\nlevel = 9\n").unwrap();
    let said = succeeds(&["config", "check", "--config", &file]);
    assert_eq!(said, format!("{file}, {drop_in}: every key is known and every value valid\n"));
    assert!(succeeds(&["config", "show", "--config", &file]).contains("level = 9\n"));
    fs::write(&drop_in, "[save]\nlevel = 40\n").unwrap();
    assert!(fails(1, &["config", "check", "--config", &file]).contains("50-level.toml:2: save.level: 40"));
    drop(directory);
}

#[test]
fn a_bad_policy_exits_with_1_and_names_the_place() {
    let (_folder, file) = directory_with_policy(&format!("{POLICY}\n[save]\nlevel = 40\n"));
    let complaint = fails(1, &["config", "check", "--config", &file]);
    assert_eq!(complaint, format!("dormouse: {file}:5: save.level: 40 is not a zstd level from -7 to 19\n"));
    for (status, command) in
        [(1, &["config", "show"][..]), (3, &["hibernate"]), (1, &["resume"]), (1, &["build-initramfs"])]
    {
        assert_eq!(fails(status, &[command, &["--config", &file]].concat()), complaint, "{command:?}");
    }
}

#[test]
fn a_missing_policy_has_a_remedy() {
    let complaint = fails(3, &["hibernate", "--config", "/nonexistent/dormouse.toml"]);
    assert!(complaint.starts_with("dormouse: /nonexistent/dormouse.toml: "), "{complaint}");
    assert!(complaint.contains("copy dormouse.toml") && complaint.lines().count() == 1, "{complaint}");
}

#[test]
fn a_missing_image_is_refused() {
    for command in ["init", "info", "verify", "discard"] {
        let complaint = fails(3, &["image", command, "/nonexistent/device"]);
        assert!(complaint.starts_with("dormouse: "), "{command}: {complaint}");
    }
}

/// Runs the command with `--json`, and returns its exit status and the one object that it prints.
fn json(arguments: &[&str]) -> (Option<i32>, serde_json::Value) {
    let output = dormouse(&[arguments, &["--json"]].concat());
    let said = text(&output.stdout);
    assert_eq!(said.lines().count(), 1, "{arguments:?}: {said:?} and {}", text(&output.stderr));
    (output.status.code(), serde_json::from_str(said).unwrap())
}

#[test]
fn programs_get_one_object() {
    let (directory, policy) = directory_with_policy(POLICY);
    let device = directory.path().join("device");
    fs::File::create(&device).unwrap().set_len(64 << 20).unwrap();
    let device = device.to_str().unwrap();

    let (status, error) = json(&["image", "info", device]);
    assert_eq!(
        (status, &error["outcome"], &error["id"]),
        (Some(3), &"refused".into(), &"image-not-initialised".into())
    );
    assert_eq!(error["remedy"], format!("run `dormouse image init {device}`"));
    assert!(error["message"].as_str().unwrap().contains(device), "{error}");

    assert_eq!(json(&["image", "init", device]).0, Some(0));
    let (status, info) = json(&["image", "info", device]);
    assert_eq!((status, &info["state"]), (Some(0), &"empty".into()));
    let (status, checked) = json(&["config", "check", "--config", &policy]);
    assert_eq!((status, &checked["files"][0]), (Some(0), &policy.as_str().into()));
    let (status, shown) = json(&["config", "show", "--config", &policy]);
    assert!(status == Some(0) && shown["toml"].as_str().unwrap().starts_with("[image]\n"), "{shown}");
    let root = directory.path().join("root");
    let (status, enabled) = json(&["enable", "--root", root.to_str().unwrap()]);
    assert_eq!((status, &enabled["changes"][0]["what"]), (Some(0), &"written".into()));
    let (status, missing) = json(&["status", "--config", "/nonexistent/dormouse.toml"]);
    assert_eq!((status, &missing["outcome"], &missing["id"]), (Some(1), &"failed".into(), &"policy-missing".into()));
}

/// Whatever this machine lacks first, it is refused by its name, and nothing is changed. Where nothing is lacking, this
/// would hibernate the machine: the image device of the policy does not exist.
#[test]
fn hibernate_is_refused_with_an_identifier() {
    let (_folder, policy) = directory_with_policy("[image]\ndevice = \"PARTLABEL=no-such-device\"\nwait = 0\n");
    let (status, refused) = json(&["hibernate", "--config", &policy]);
    let id = refused["id"].as_str().unwrap();
    let known = [
        "already-running",
        "image-not-found",
        "kernel-hibernation",
        "kernel-jump",
        "kernel-return",
        "kexec-allowed",
        "machine-unknown",
        "memory",
        "memory-encryption",
        "memory-map",
        "needs-root",
        "resume-hook",
    ];
    assert!(known.contains(&id), "{refused}");
    assert_eq!((status, &refused["outcome"]), (Some(3), &"refused".into()), "{refused}");
    assert!(!refused["message"].as_str().unwrap().is_empty(), "{refused}");
}

#[test]
fn the_initramfs_is_built_and_reproducible() {
    let (directory, policy) = directory_with_policy(POLICY);
    let init = static_program(directory.path());
    let build = |name: &str| {
        let output = directory.path().join(name);
        let output_name = output.to_str().unwrap();
        let files = ["--config", &policy, "--init", &init, "--output", output_name];
        let arguments = [&["build-initramfs", "--modules", "none"][..], &files].concat();
        let said = succeeds(&arguments);
        let bytes = fs::read(&output).unwrap();
        assert_eq!(said, format!("{output_name}: {} bytes\n", bytes.len()));
        bytes
    };
    assert_eq!(build("one"), build("two"));
}

#[test]
fn finds_and_lists_modules() {
    let (directory, policy) = directory_with_policy("[image]\ndevice = \"PARTLABEL=none\"\n");
    let init = static_program(directory.path());
    let modules = directory.path().join("modules");
    fs::create_dir(&modules).unwrap();
    fs::write(modules.join("modules.dep"), "usb-storage.ko: usbcore.ko\nusbcore.ko:\n").unwrap();
    for name in ["usb-storage.ko", "usbcore.ko"] {
        fs::write(modules.join(name), b"\x7fELF").unwrap();
    }
    let output = directory.path().join("initramfs.img");
    let build = ["build-initramfs", "--config", &policy, "--init", &init, "--output", output.to_str().unwrap()];
    let named = |names| [&build[..], &["--modules-dir", modules.to_str().unwrap(), "--modules", names]].concat();
    assert!(succeeds(&named("usb_storage,usbcore")).ends_with(", with usbcore.ko usb-storage.ko\n"));
    assert_eq!(succeeds(&[&named("usb_storage")[..], &["--list-modules"]].concat()), "usbcore\nusb_storage\n");
    assert!(fails(1, &named("usb_storage,zfs")).contains("no kernel module `zfs`"));
    // The image device is looked at where nothing is named.
    let complaint = fails(3, &[&build[..], &["--modules-dir", modules.to_str().unwrap()]].concat());
    assert!(
        complaint.contains("name the modules with --modules: image device PARTLABEL=none: not found"),
        "{complaint}"
    );
    // Without a directory, the release is that of the policy's kernel, which is not there.
    let complaint = fails(1, &[&build[..], &["--modules", "zfs"]].concat());
    assert!(complaint.contains("/var/lib/dormouse/vmlinuz: cannot tell this kernel's release"), "{complaint}");
}

#[test]
fn rejects_programs_that_cannot_become_pid_1() {
    let (directory, policy) = directory_with_policy(POLICY);
    let output = directory.path().join("initramfs.img");
    let build = |init: &str| {
        let files = ["--config", &policy, "--init", init, "--output", output.to_str().unwrap()];
        fails(1, &[&["build-initramfs", "--modules", "none"][..], &files].concat())
    };
    assert!(build("/nonexistent/init").starts_with("dormouse: /nonexistent/init: cannot read the program"));
    assert!(build(&policy).starts_with("dormouse: the program for PID 1 is not an ELF file"));
    assert!(!output.exists());
}

#[test]
fn doctor_without_a_policy_names_the_remedy() {
    let output = dormouse(&["doctor", "--config", "/nonexistent/dormouse.toml"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(text(&output.stderr), "");
    let said = text(&output.stdout);
    assert!(said.contains("\n[FAIL] policy             there is none yet\n"), "{said}");
    assert!(said.contains("\n       remedy: dormouse setup\n"), "{said}");
    assert!(said.lines().last().unwrap().starts_with("this machine cannot be hibernated yet: "), "{said}");

    let output = dormouse(&["doctor", "--json", "--config", "/nonexistent/dormouse.toml"]);
    assert_eq!(output.status.code(), Some(1));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let checks = json["checks"].as_array().unwrap();
    let policy = checks.iter().find(|check| check["id"] == "policy").unwrap();
    assert_eq!((&json["ready"], &policy["state"]), (&false.into(), &"failed".into()));
}

#[test]
fn systemctl_hibernate_is_routed_in_another_root() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().to_str().unwrap();
    let said = succeeds(&["enable", "--root", root]);
    let drop_in = directory.path().join("etc/systemd/system/systemd-hibernate.service.d/50-dormouse.conf");
    assert!(said.contains(&format!("{}: written\n", drop_in.display())), "{said}");
    let written = fs::read_to_string(&drop_in).unwrap();
    assert!(written.ends_with("ExecStart=\nExecStart=/usr/bin/dormouse hibernate --system-sleep\n"), "{written}");
    assert!(succeeds(&["disable", "--root", root]).contains(": removed\n"));
    assert!(!drop_in.exists());
}

/// Files stand for a device and a kernel.
#[test]
fn setup_dry_run_prints_steps_and_changes_nothing() {
    let (directory, policy) = directory_with_policy("");
    let (device, kernel) = (directory.path().join("device"), directory.path().join("vmlinuz"));
    fs::File::create(&device).unwrap().set_len(64 << 20).unwrap();
    let (device, kernel) = (device.to_str().unwrap(), kernel.to_str().unwrap());
    let flags = ["setup", "--config", &policy, "--device", device, "--kernel", kernel, "--no-initramfs"];
    let said = succeeds(&[&flags[..], &["--dry-run"]].concat());
    let place = format!("The image goes to the device {device}");
    assert!(said.starts_with(&place), "{said}");
    let expected = [
        format!("would run: dormouse image init {device}"),
        format!("would write {policy}.d/50-setup.toml: image.device, for the image on {device}"),
        format!("would run: dormouse --config {policy} build-initramfs --kernel {kernel}"),
    ];
    // After a line for each layer that the place is made of, on whatever the tests run.
    let steps = said.lines().skip_while(|line| !line.starts_with("would "));
    assert_eq!(steps.take(3).collect::<Vec<_>>(), expected);
    assert!(!Path::new(&format!("{policy}.d")).exists());
    assert!(fails(3, &["image", "info", device]).contains("not initialised"));

    // Without a kernel it gets as far as that, and says how to go on.
    let output = dormouse(&flags);
    assert_eq!(output.status.code(), Some(1));
    let complaint = text(&output.stderr);
    assert!(complaint.contains("step 3 of 4 failed; what was done before it stays"), "{complaint}");
    assert!(complaint.contains(&format!("  run: dormouse --config {policy} build-initramfs")), "{complaint}");
    assert!(fs::read_to_string(format!("{policy}.d/50-setup.toml")).unwrap().contains(device));
    assert!(succeeds(&["image", "info", device]).contains("empty"));
}
