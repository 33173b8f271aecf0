//! Fuzz targets: functions that take any bytes, hand them to a part of Dormouse that reads what it did not write, and
//! panic where that part breaks a promise.
//!
//! ```text
//!   scripts/fuzz ──> fuzz/ (a crate of its own, with libFuzzer) ──> TARGETS  looks for new inputs, by coverage
//!   cargo test ───> the test below ───────────────────────────────> TARGETS  replays corpus and regressions
//! ```
//!
//! `fuzz/corpus` has inputs that reach different code, `fuzz/regressions` those that once broke something; both have a
//! directory for each target.

mod cmdline;
mod filesystem;
mod handoff;
mod image;
mod iomem;
mod keys;
mod layers;
mod policy;
mod scratch;
mod sealed;
mod vmcore;
mod vmcoreinfo;

use dormouse_image::PfnRange;

/// Takes any bytes, and panics where it finds a promise broken.
pub type Target = fn(&[u8]);

/// The targets by their names.
pub const TARGETS: &[(&str, Target)] = &[
    ("cmdline", cmdline::run),
    ("filesystem", filesystem::run),
    ("handoff", handoff::run),
    ("image", image::run),
    ("iomem", iomem::run),
    ("keys", keys::run),
    ("layers", layers::run),
    ("policy", policy::run),
    ("sealed", sealed::run),
    ("vmcore", vmcore::run),
    ("vmcoreinfo", vmcoreinfo::run),
];

/// Whether ranges ascend, none of them is empty, and none overlaps another.
fn ascending(ranges: &[PfnRange]) -> bool {
    ranges.iter().all(|range| range.start < range.end)
        && ranges.windows(2).all(|pair| matches!(pair, [left, right] if left.end <= right.start))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeSet;
    use std::path::{Path, PathBuf};

    use super::*;

    fn directory(kind: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz").join(kind)
    }

    fn entries(directory: &Path) -> BTreeSet<PathBuf> {
        let entries = std::fs::read_dir(directory).into_iter().flatten();
        entries.map(|entry| entry.unwrap().path()).collect()
    }

    #[test]
    fn every_target_has_a_corpus_and_every_folder_a_target() {
        let names = |kind: &str| -> BTreeSet<String> {
            let names = entries(&directory(kind));
            names.iter().map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect()
        };
        let targets: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
        assert_eq!(names("corpus"), targets);
        assert_eq!(names("dictionaries"), targets.iter().map(|name| format!("{name}.dict")).collect());
        assert!(names("regressions").is_subset(&targets));
    }

    #[test]
    fn no_input_that_was_kept_breaks_a_promise() {
        for (name, target) in TARGETS {
            for kind in ["corpus", "regressions"] {
                for path in entries(&directory(kind).join(name)) {
                    // Shown where the target panics.
                    println!("{}", path.display());
                    target(&std::fs::read(path).unwrap());
                }
            }
        }
    }
}
