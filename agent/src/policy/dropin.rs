//! Which files make up a policy: the main file and its drop-ins, by the rules that systemd has for its own
//! (systemd-system.conf(5), CONFIGURATION DIRECTORIES AND PRECEDENCE).
//!
//! Drop-ins are the `*.toml` in the directory that is named like the main file with `.d` appended. The default policy
//! also has those of its vendor and of the running system. All of them are sorted by name, whatever directory they are
//! in; a file hides those of the same name in directories that count less, and an empty one, or a link to `/dev/null`,
//! does nothing else.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use crate::policy::{DEFAULT_PATH, PolicyError};

/// The directories of the default policy beside its own, the one that counts least first: the package's, and that which
/// holds until the machine is switched off.
const FURTHER_DIRS: [&str; 2] = ["/usr/lib/dormouse/dormouse.toml.d", "/run/dormouse.toml.d"];

/// The directory of the drop-ins that extend the policy at `config`.
#[must_use]
pub fn drop_in_dir(config: &Path) -> PathBuf {
    let mut dir = config.as_os_str().to_owned();
    dir.push(".d");
    dir.into()
}

/// The files that make up the policy at `config`, in the order in which they count, the main file first, without those
/// that are missing or hidden. If a directory cannot be read, only the main file; [`super::Policy::load`] reports why.
#[must_use]
pub fn files(config: &Path) -> Vec<PathBuf> {
    list(config).unwrap_or_else(|_| vec![config.to_owned()])
}

/// The same, or why a directory cannot be read.
pub(super) fn list(config: &Path) -> Result<Vec<PathBuf>, PolicyError> {
    let own = drop_in_dir(config);
    let further = if config == Path::new(DEFAULT_PATH) { &FURTHER_DIRS[..] } else { &[] };
    let dirs: Vec<&Path> = further.iter().map(Path::new).chain([Path::new(&own)]).collect();
    // If it cannot be looked at, the attempt to read it reports what is wrong.
    let main = config.try_exists().unwrap_or(true).then(|| config.to_owned());
    Ok(main.into_iter().chain(drop_ins(&dirs)?).collect())
}

/// The drop-ins in these directories, the one that counts least first, sorted by name.
fn drop_ins(dirs: &[&Path]) -> Result<Vec<PathBuf>, PolicyError> {
    let mut by_name: BTreeMap<OsString, PathBuf> = BTreeMap::new();
    for dir in dirs {
        let named = names(dir).map_err(|source| PolicyError::Read { file: dir.to_path_buf(), source })?;
        by_name.extend(named.into_iter().map(|name| (name.clone(), dir.join(name))));
    }
    Ok(by_name.into_values().filter(|path| !is_empty(path)).collect())
}

/// The names of a directory's drop-ins. Editors and package managers put other files beside them.
fn names(dir: &Path) -> io::Result<Vec<OsString>> {
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry?.file_name();
        let is_hidden = name.as_encoded_bytes().starts_with(b".");
        if !is_hidden && Path::new(&name).extension().is_some_and(|extension| extension == "toml") {
            names.push(name);
        }
    }
    Ok(names)
}

/// Whether a file only hides others. One that cannot be looked at does not: reading it reports what is wrong.
fn is_empty(path: &Path) -> bool {
    let is_null = || path.canonicalize().is_ok_and(|target| target == Path::new("/dev/null"));
    path.metadata().is_ok_and(|metadata| if metadata.is_file() { metadata.len() == 0 } else { is_null() })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;
    use std::os::unix::fs::symlink;

    use tempfile::TempDir;

    use super::*;

    /// Directories named by letters, with files in them.
    fn dirs(files: &[&str]) -> TempDir {
        let top = tempfile::tempdir().unwrap();
        for file in files {
            let path = top.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "[save]\n").unwrap();
        }
        top
    }

    /// The drop-ins of directories `v`, `r` and `e`, as paths below the top.
    fn found(top: &TempDir) -> Vec<String> {
        let dirs = ["v", "r", "e"].map(|name| top.path().join(name));
        let paths = drop_ins(&dirs.each_ref().map(PathBuf::as_path)).unwrap();
        paths.iter().map(|path| path.strip_prefix(top.path()).unwrap().display().to_string()).collect()
    }

    #[test]
    fn drop_ins_are_sorted_by_name_across_dirs() {
        let top = dirs(&["e/50-c.toml", "v/60-a.toml", "r/10-b.toml", "e/90.toml"]);
        assert_eq!(found(&top), ["r/10-b.toml", "e/50-c.toml", "v/60-a.toml", "e/90.toml"]);
    }

    #[test]
    fn the_last_file_of_a_name_counts() {
        let top = dirs(&["v/1.toml", "r/1.toml", "e/1.toml", "v/2.toml", "r/2.toml", "v/3.toml"]);
        assert_eq!(found(&top), ["e/1.toml", "r/2.toml", "v/3.toml"]);
    }

    #[test]
    fn empty_files_only_hide() {
        let top = dirs(&["v/1.toml", "v/2.toml", "r/2.toml", "v/3.toml"]);
        fs::create_dir(top.path().join("e")).unwrap();
        symlink("/dev/null", top.path().join("e/1.toml")).unwrap();
        fs::write(top.path().join("e/2.toml"), "").unwrap();
        assert_eq!(found(&top), ["v/3.toml"]);
    }

    #[test]
    fn ignores_files_that_are_not_drop_ins() {
        let top = dirs(&["e/a.toml~", "e/.b.toml", "e/README", "e/c.toml.dpkg-new", "e/toml"]);
        symlink("nowhere", top.path().join("e/.#d.toml")).unwrap();
        assert!(found(&top).is_empty());
    }

    #[test]
    fn the_directory_follows_the_main_file() {
        let top = dirs(&["x.toml", "x.toml.d/2.toml", "x.toml.d/1.toml", "y.toml.d/1.toml"]);
        let main = top.path().join("x.toml");
        let expected = ["x.toml", "x.toml.d/1.toml", "x.toml.d/2.toml"].map(|name| top.path().join(name));
        assert_eq!(files(&main), expected);
        assert_eq!(files(&top.path().join("y.toml")), [top.path().join("y.toml.d/1.toml")]);
        assert!(files(&top.path().join("z.toml")).is_empty());
    }

    #[test]
    fn a_file_in_place_of_the_directory_is_an_error() {
        let top = dirs(&["x.toml", "x.toml.d"]);
        let error = list(&top.path().join("x.toml")).unwrap_err();
        assert!(error.to_string().contains("x.toml.d"), "{error}");
        assert_eq!(files(&top.path().join("x.toml")), [top.path().join("x.toml")]);
    }
}
