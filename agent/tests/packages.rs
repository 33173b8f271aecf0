//! The packages' lists of files, against what `scripts/install` makes: nothing is forgotten, nothing listed that is not
//! made.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use glob::Pattern;
use toml::{Table, Value};

const CHECKOUT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
/// Where scripts/package has scripts/install put the files.
const TREE: &str = "../target/package/tree/";

/// What is for mkinitcpio and pacman.
const ARCH: [&str; 5] = [
    "usr/lib/dormouse/dormouse-resume.service",
    "usr/lib/dormouse/dormouse-resume-unlocked.service",
    "usr/lib/dormouse/mkinitcpio.conf",
    "usr/lib/initcpio/",
    "usr/share/libalpm/",
];
/// What is for initramfs-tools and for Debian's kernel packages.
const DEBIAN: [&str; 2] = ["etc/", "usr/share/initramfs-tools/"];

/// Installs into `root`; then each file's path under it, with its permissions.
fn install(root: &Path) -> BTreeMap<String, u32> {
    let programs = Path::new(env!("CARGO_BIN_EXE_dormouse")).parent().unwrap();
    let mut script = Command::new(Path::new(CHECKOUT).join("scripts/install"));
    let done = script.arg(root).env("DORMOUSE_BIN", programs).output().unwrap();
    assert!(done.status.success(), "{done:?}");
    let files = glob::glob(&format!("{}/**/*", Pattern::escape(root.to_str().unwrap()))).unwrap();
    let files = files.map(Result::unwrap).filter(|file| file.is_file());
    let entry = |file: PathBuf| {
        let path = file.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
        (path, fs::metadata(&file).unwrap().permissions().mode() & 0o7777)
    };
    files.map(entry).collect()
}

/// A package's list of files: the path in the tree, which may be a pattern, the directory that it goes to, and its
/// permissions.
fn assets(package: &str) -> Vec<(String, String, u32)> {
    let text = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")).unwrap();
    let manifest: Table = text.parse().unwrap();
    let field = |asset: &Value, index: usize, key: &str| {
        asset.get(index).or_else(|| asset.get(key)).and_then(Value::as_str).unwrap().to_owned()
    };
    let asset = |asset: &Value| {
        let source = field(asset, 0, "source").strip_prefix(TREE).unwrap().to_owned();
        let directory = field(asset, 1, "dest").trim_start_matches('/').to_owned();
        (source, directory, u32::from_str_radix(&field(asset, 2, "mode"), 8).unwrap())
    };
    manifest["package"]["metadata"][package]["assets"].as_array().unwrap().iter().map(asset).collect()
}

/// Each line of a package's list names files of the tree, with their permissions, to where they are there; and all
/// files but those `of_others` are on it, once.
fn check(package: &str, of_others: &[&str], elsewhere: &[(&str, &str)]) {
    let root = tempfile::tempdir().unwrap();
    let tree = install(root.path());
    let mut packed = BTreeSet::new();
    for (source, directory, mode) in assets(package) {
        let pattern = Pattern::new(&source).unwrap();
        // cargo-deb and cargo-generate-rpm do as glob(3), whose star ends at a slash.
        let options = glob::MatchOptions { require_literal_separator: true, ..Default::default() };
        let files: Vec<_> = tree.iter().filter(|(path, _)| pattern.matches_with(path, options)).collect();
        assert!(!files.is_empty(), "{package}: scripts/install makes no {source}");
        for (path, installed) in files {
            let there = &path[..=path.rfind('/').unwrap()];
            let moved = elsewhere.iter().find(|(from, _)| *from == there).map_or(there, |(_, to)| to);
            assert_eq!(
                (directory.as_str(), format!("{mode:o}")),
                (moved, format!("{installed:o}")),
                "{package}: {path}"
            );
            assert!(packed.insert(path), "{package}: {path} is listed twice");
        }
    }
    let ours = tree.keys().filter(|path| !of_others.iter().any(|other| path.starts_with(other)));
    assert_eq!(packed, ours.collect(), "{package}");
}

#[test]
fn the_deb_has_what_debian_needs() {
    check("deb", &ARCH, &[("usr/share/zsh/site-functions/", "usr/share/zsh/vendor-completions/")]);
}

#[test]
fn the_rpm_has_what_fedora_needs() {
    check("generate-rpm", &[ARCH.as_slice(), &DEBIAN].concat(), &[]);
}

#[test]
fn the_pkgbuild_removes_what_is_debians() {
    let text = fs::read_to_string(Path::new(CHECKOUT).join("configs/package/arch/PKGBUILD")).unwrap();
    let removed = text.lines().find_map(|line| line.trim().strip_prefix("rm -r ")).unwrap();
    let removed = removed.split_whitespace().map(|word| word.trim_matches('"').trim_start_matches("${pkgdir:?}/"));
    assert_eq!(removed.collect::<Vec<_>>(), DEBIAN.map(|directory| directory.trim_end_matches('/')));
    assert!(text.contains("scripts/install \"$pkgdir\""));
}

/// All that is for somebody's initramfs or kernel updates.
#[test]
fn every_hook_is_installed() {
    let root = tempfile::tempdir().unwrap();
    let contents = |path: &Path| fs::read(path).unwrap();
    let installed: BTreeSet<_> = install(root.path()).keys().map(|path| contents(&root.path().join(path))).collect();
    for file in glob::glob(&format!("{CHECKOUT}/initramfs/**/*")).unwrap().map(Result::unwrap) {
        // The second is a part of the program: see `dormouse initramfs-files`.
        let stays = ["README.md", "dormouse-resume"].iter().any(|name| file.ends_with(name));
        assert!(file.is_dir() || stays || installed.contains(&contents(&file)), "{}", file.display());
    }
}
