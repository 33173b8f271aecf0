//! The hooks in `initramfs/`, run against recorded stubs of the tools that run them: which of the tool's functions and
//! which programs they call, with what, in which order. The stubs are in `tests/hooks`, and so is, per hook, what is
//! expected of it. To write that again: `DORMOUSE_BLESS=1 cargo test -p dormouse --test hooks`.
//!
//! Hooks name programs and files by absolute paths, where packages install them. Here they are installed into a
//! directory, and the paths under `/usr` in them with them.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

const HOOKS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../initramfs");
const STUBS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/hooks");

/// A machine with one hook on it, the stubs, and a file of what was called and said.
struct Machine {
    directory: TempDir,
    hook: PathBuf,
}

impl Machine {
    fn with(hook: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        for directory in ["usr/bin", "usr/lib/dormouse", "usr/share/initramfs-tools"] {
            fs::create_dir_all(root.join(directory)).unwrap();
        }
        let stubs = Path::new(STUBS);
        symlink(stubs.join("bin/dormouse"), root.join("usr/bin/dormouse")).unwrap();
        symlink(stubs.join("bin/mktemp"), root.join("usr/bin/mktemp")).unwrap();
        symlink(stubs.join("bin/dormouse-resume"), root.join("usr/lib/dormouse/dormouse-resume")).unwrap();
        symlink(stubs.join("hook-functions"), root.join("usr/share/initramfs-tools/hook-functions")).unwrap();
        fs::write(root.join("calls"), "").unwrap();
        let text = fs::read_to_string(Path::new(HOOKS).join(hook)).unwrap();
        let moved = [" ", "\n"].iter().fold(text, |text, blank| {
            text.replace(&format!("{blank}/usr/"), &format!("{blank}{}/usr/", root.display()))
        });
        // As mkinitcpio knows it.
        let hook = root.join("dormouse");
        fs::write(&hook, moved).unwrap();
        Self { directory, hook }
    }

    /// Removes an installed file.
    fn without(self, file: &str) -> Self {
        fs::remove_file(self.directory.path().join(file)).unwrap();
        self
    }

    /// Runs `interpreter [STUB] HOOK ARGUMENTS...`, on a machine that is `ready`, `bare` or `broken`; then the calls,
    /// what was said, and how it ended, a line each.
    fn run(self, command: &[&str], arguments: &[&str], case: &str) -> String {
        let root = self.directory.path();
        let calls = root.join("calls");
        let said = || fs::OpenOptions::new().append(true).open(&calls).unwrap();
        let path = format!("{}/usr/bin:{}", root.display(), std::env::var("PATH").unwrap());
        let status = Command::new(command[0])
            .current_dir(STUBS)
            .args(&command[1..])
            .arg(&self.hook)
            .args(arguments)
            .env("PATH", path)
            .env("CALLS", &calls)
            .env("CASE", case)
            .env("SCRATCH", root.join("scratch"))
            .env("version", "6.12.1")
            .stdout(said())
            .stderr(said())
            .status()
            .unwrap();
        assert!(!root.join("scratch").exists(), "the hook leaves its scratch directory behind");
        let text = fs::read_to_string(&calls).unwrap().replace(root.to_str().unwrap(), "");
        format!("{text}{status}\n")
    }
}

/// Compares what was done in each case with the file `tests/hooks/NAME.golden`.
fn compare(name: &str, cases: &[(&str, String)]) {
    let text: String = cases.iter().map(|(case, done)| format!("== {case}\n{done}\n")).collect();
    let file = Path::new(STUBS).join(format!("{name}.golden"));
    if std::env::var_os("DORMOUSE_BLESS").is_some_and(|bless| bless == "1") {
        fs::write(&file, &text).unwrap();
    }
    let golden = fs::read_to_string(&file).unwrap();
    assert!(text == golden, "{}: otherwise than expected:\n{text}", file.display());
}

#[test]
fn initramfs_tools_hook() {
    let hook = |case| Machine::with("initramfs-tools/hook").run(&["sh"], &[], case);
    compare(
        "initramfs-tools-hook",
        &[
            ("prerequisites", Machine::with("initramfs-tools/hook").run(&["sh"], &["prereqs"], "ready")),
            ("boot image", hook("ready")),
            ("not set up", hook("bare")),
            ("dormouse fails", hook("broken")),
        ],
    );
}

#[test]
fn initramfs_tools_scripts() {
    for stage in ["init-premount", "local-premount"] {
        let script = || Machine::with(&format!("initramfs-tools/{stage}"));
        compare(
            &format!("initramfs-tools-{stage}"),
            &[
                ("prerequisites", script().run(&["sh"], &["prereqs"], "ready")),
                ("boot", script().run(&["sh"], &[], "ready")),
                ("not set up", script().without("usr/lib/dormouse/dormouse-resume").run(&["sh"], &[], "ready")),
            ],
        );
    }
}

/// What the units of an initramfs with systemd are ordered by: the first look is before the unlock, the second between
/// that and whatever touches a filesystem.
#[test]
fn the_units_are_ordered_by_the_unlock() {
    let unit = |name: &str| fs::read_to_string(Path::new(HOOKS).join(name)).unwrap();
    let listed = |text: &str, key: &str, name: &str| {
        let lines = text.lines().filter_map(|line| line.strip_prefix(key));
        lines.flat_map(str::split_whitespace).any(|unit| unit == name)
    };
    let (first, second) = (unit("dormouse-resume.service"), unit("dormouse-resume-unlocked.service"));
    for target in ["cryptsetup-pre.target", "dracut-initqueue.service"] {
        assert!(listed(&first, "Before=", target), "{target}");
    }
    for target in
        ["dormouse-resume.service", "cryptsetup.target", "remote-cryptsetup.target", "dracut-initqueue.service"]
    {
        assert!(listed(&second, "After=", target), "{target}");
    }
    for text in [&first, &second] {
        for target in [
            "dracut-pre-mount.service",
            "systemd-hibernate-resume.service",
            "local-fs-pre.target",
            "systemd-fsck-root.service",
            "sysroot.mount",
            "initrd-root-fs.target",
        ] {
            assert!(listed(text, "Before=", target), "{target}");
        }
        // Passive: nothing else may start it.
        assert!(listed(text, "Wants=", "local-fs-pre.target"));
    }
    // So is this one: systemd-cryptsetup-generator orders the unlocks after it, and does not start it.
    assert!(listed(&first, "Wants=", "cryptsetup-pre.target"));
}

#[test]
fn dracut_module() {
    let module =
        |included: &[&str], case| Machine::with("dracut/module-setup.sh").run(&["bash", "dracut.sh"], included, case);
    compare(
        "dracut-module-setup",
        &[
            ("boot image with systemd", module(&["base", "systemd", "dormouse"], "ready")),
            ("boot image without systemd", module(&["base", "dormouse"], "ready")),
            ("small image", module(&["dormouse"], "ready")),
            ("not set up", module(&["base", "systemd", "dormouse"], "bare")),
            ("dormouse fails", module(&["base", "systemd", "dormouse"], "broken")),
            ("small image, not set up", module(&["dormouse"], "bare")),
            ("small image, dormouse fails", module(&["dormouse"], "broken")),
        ],
    );
}

#[test]
fn mkinitcpio_install() {
    let install =
        |hooks: &[&str], case| Machine::with("mkinitcpio/install").run(&["bash", "mkinitcpio.sh"], hooks, case);
    compare(
        "mkinitcpio-install",
        &[
            ("boot image with systemd", install(&["systemd", "block", "dormouse", "filesystems"], "ready")),
            ("boot image without systemd", install(&["base", "udev", "block", "dormouse", "filesystems"], "ready")),
            ("small image", install(&["dormouse"], "ready")),
            ("not set up", install(&["base", "udev", "block", "dormouse", "filesystems"], "bare")),
            ("dormouse fails", install(&["base", "udev", "block", "dormouse", "filesystems"], "broken")),
            ("small image, not set up", install(&["dormouse"], "bare")),
            ("small image, dormouse fails", install(&["dormouse"], "broken")),
        ],
    );
}

/// What runs in the boot's initramfs where there is no systemd.
#[test]
fn sourced_in_the_boot() {
    let dracut = Machine::with("dracut/dormouse-resume.sh").run(&["sh", "-c", ". \"$0\""], &[], "ready");
    let mkinitcpio = Machine::with("mkinitcpio/hook").run(&["sh", "-c", ". \"$0\"; run_hook"], &[], "ready");
    compare("boot-without-systemd", &[("dracut", dracut), ("mkinitcpio", mkinitcpio)]);
}

#[test]
fn kernel_updates() {
    let script = |case| Machine::with("kernel/postinst.d-postrm.d").run(&["sh"], &["6.12.1"], case);
    let removed = Machine::with("kernel/postinst.d-postrm.d").without("usr/bin/dormouse");
    let plugin = |verb, case| Machine::with("kernel/dormouse.install").run(&["sh"], &[verb, "6.12.1"], case);
    compare(
        "kernel",
        &[
            ("/etc/kernel", script("ready")),
            ("/etc/kernel, dormouse fails", script("broken")),
            ("/etc/kernel, the package is removed", removed.run(&["sh"], &["6.12.1"], "ready")),
            ("kernel-install add", plugin("add", "ready")),
            ("kernel-install remove", plugin("remove", "ready")),
            ("kernel-install inspect", plugin("inspect", "ready")),
            ("kernel-install add, dormouse fails", plugin("add", "broken")),
        ],
    );
}
