//! The firmware that kernel modules ask for, as far as it is installed.
//!
//! A module names the files in its section `.modinfo` (`MODULE_FIRMWARE`, include/linux/module.h), and the kernel looks
//! for them below `/lib/firmware` (drivers/base/firmware_loader/main.c, `fw_path`), for compressed ones only if it was
//! built to: so they are unpacked here.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use glob::Pattern;

use crate::kmod::{self, Module};

/// How a string of `.modinfo` begins that names a file.
const MARK: &[u8] = b"firmware=";
/// How the names of compressed files end.
const PACKED: [&str; 3] = ["", ".zst", ".xz"];

/// A file of firmware.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Firmware {
    /// Its name below `/lib/firmware`.
    pub name: String,
    /// Its content, not compressed.
    pub bytes: Vec<u8>,
}

/// The firmware of these modules of the kernel `release`, below `root`, each file once, by name. What is not installed
/// is left out: most of what a module names is for other devices. A file that cannot be read is named in the log.
#[must_use]
pub fn of(modules: &[&Module], release: &str, root: &Path) -> Vec<Firmware> {
    let places = [format!("updates/{release}"), "updates".to_owned(), release.to_owned(), String::new()];
    let places = places.map(|place| root.join(place));
    let names = modules.iter().flat_map(|module| names(&module.bytes));
    let files: BTreeMap<String, PathBuf> = names.flat_map(|name| find(&places, &name)).collect();
    let read = |(name, file): (String, PathBuf)| match kmod::unpack(&file) {
        Ok((_, bytes)) => Some(Firmware { name, bytes }),
        Err(error) => {
            log::warn!("firmware {}: {error}; going on without it", file.display());
            None
        }
    };
    files.into_iter().filter_map(read).collect()
}

/// The names in a module, which may have wildcards.
fn names(module: &[u8]) -> Vec<String> {
    let strings = module.split(|byte| *byte == 0).filter_map(|string| string.strip_prefix(MARK));
    let names = strings.filter_map(|name| std::str::from_utf8(name).ok());
    let is_below = |name: &&str| {
        !name.starts_with('/')
            && name.bytes().all(|byte| byte.is_ascii_graphic())
            && !name.split('/').any(|part| part == "..")
    };
    names.filter(is_below).map(str::to_owned).collect()
}

/// The files of this name, each with its own name; the first place that has some counts.
fn find(places: &[PathBuf], name: &str) -> Vec<(String, PathBuf)> {
    for place in places {
        let mut found = Vec::new();
        for end in PACKED {
            let pattern = format!("{}/{name}{end}", Pattern::escape(&place.to_string_lossy()));
            for file in glob::glob(&pattern).into_iter().flatten().flatten().filter(|file| file.is_file()) {
                let below = file.strip_prefix(place).unwrap_or(&file).to_string_lossy().into_owned();
                let plain = below.strip_suffix(end).unwrap_or(&below).to_owned();
                found.push((plain, file));
            }
        }
        if !found.is_empty() {
            return found;
        }
    }
    Vec::new()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;

    use super::*;

    #[test]
    fn what_is_installed_is_found_and_unpacked() {
        let root = tempfile::tempdir().unwrap();
        let file = |name: &str, bytes: &[u8]| {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        };
        file("nic/one.fw", b"one");
        file("nic/two.fw.zst", &zstd::bulk::compress(b"two", 1).unwrap());
        file("updates/nic/one.fw", b"newer");
        file("nic/v-1.fw", b"v1");
        file("nic/v-2.fw", b"v2");
        file("nic/broken.fw.zst", b"no archive");
        file("other/x.fw", b"x");
        let text = b"\x7fELF\0license=GPL\0firmware=nic/one.fw\0firmware=nic/two.fw\0firmware=nic/v-*.fw\0\
                     firmware=nic/absent.fw\0firmware=nic/broken.fw\0firmware=../secret\0firmware=/etc/passwd\0\
                     depends=\0";
        let module = Module { file_name: "nic.ko".to_owned(), bytes: text.to_vec() };
        let found = of(&[&module, &module], "6.12.0", root.path());
        let found: Vec<(&str, &[u8])> = found.iter().map(|file| (file.name.as_str(), &file.bytes[..])).collect();
        let expected: [(&str, &[u8]); 4] =
            [("nic/one.fw", b"newer"), ("nic/two.fw", b"two"), ("nic/v-1.fw", b"v1"), ("nic/v-2.fw", b"v2")];
        assert_eq!(found, expected);
    }
}
