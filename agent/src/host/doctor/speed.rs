//! How long a hibernation takes to get into its save kernel, either way.

use std::path::Path;

use dormouse_linux::units::mib;

use super::Check;
use super::judge::{Question, question};
use crate::cycle::warm::{self, Measured};
use crate::policy::Policy;

const START: Question = question(
    "save-kernel-start",
    "a hibernation starts the save kernel before it can save anything, unless one waits (save.warm)",
);

/// Starts it both ways.
pub(super) fn measure(config: &Path) -> Result<Measured, String> {
    let policy = Policy::load(config).map_err(|error| error.to_string())?;
    warm::measure(&policy).map_err(|error| format!("{error:#}"))
}

pub(super) fn check(measured: Result<Measured, String>) -> Check {
    match measured {
        Ok(Measured { booted, entered, bytes }) => START.ok(format!(
            "there and back in {booted:.1} s where it is loaded and booted, in {entered:.1} s where it waits, which \
             takes {} of memory",
            mib(bytes)
        )),
        Err(why) => START.unknown(
            format!("not measured: {why}"),
            "mend what is named, and try `dormouse hibernate --then return`, which starts it, too",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;

    #[test]
    fn both_ways_are_shown_or_why_not() {
        let check = check(Ok(Measured { booted: 3.25, entered: 0.55, bytes: 129 << 20 }));
        let text = "there and back in 3.2 s where it is loaded and booted, in 0.6 s where it waits, which takes 129 \
                    MiB of memory";
        assert_eq!((check.state, check.found.as_str()), (State::Ok, text));
        let check = super::check(Err("the image device is not there".to_owned()));
        assert_eq!(check.state, State::Unknown);
        assert!(check.found.contains("the image device is not there") && check.remedy.is_some());
    }
}
