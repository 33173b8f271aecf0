//! Runs one of Dormouse's fuzz targets under libFuzzer. `scripts/fuzz` builds and drives it.

#![no_main]

mod limit;

use std::sync::LazyLock;

use dormouse_tests::fuzz::{TARGETS, Target};
use libfuzzer_sys::fuzz_target;

/// The environment variable that names the target: all arguments are libFuzzer's.
const VARIABLE: &str = "DORMOUSE_FUZZ_TARGET";

static TARGET: LazyLock<Target> = LazyLock::new(|| {
    let name = std::env::var(VARIABLE).unwrap_or_default();
    match TARGETS.iter().find(|(target, _)| *target == name) {
        Some((_, target)) => *target,
        None => {
            let known: Vec<&str> = TARGETS.iter().map(|(target, _)| *target).collect();
            eprintln!("error: {VARIABLE} is `{name}`, and none of {}", known.join(", "));
            std::process::exit(2);
        }
    }
});

fuzz_target!(
    init: {
        LazyLock::force(&TARGET);
    },
    |input: &[u8]| TARGET(input)
);
