//! Whether the boot loader can start D itself, where the policy asks for it.

use std::fs;
use std::path::Path;

use crate::cycle::direct;
use crate::host::doctor::facts::Facts;
use crate::host::doctor::judge::question;
use crate::host::doctor::{Check, State};
use crate::host::loader;

const SETUP: &str = "dormouse setup --direct";

/// What is found of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LoaderFacts {
    /// Whether what GRUB is to do is what this version has it do.
    pub(super) is_current: bool,
    /// Whether GRUB's configuration reads it; `None` where that cannot be read.
    pub(super) is_read: Option<bool>,
    /// Whether the block is armed, or what is wrong with it.
    pub(super) block: Result<bool, String>,
    /// Why the last hibernation went without it.
    pub(super) why_not: Option<String>,
}

impl LoaderFacts {
    /// Looks.
    pub(super) fn read() -> LoaderFacts {
        let configuration = fs::read_to_string(direct::file(direct::CONFIGURATION));
        LoaderFacts {
            is_current: configuration.is_ok_and(|text| text == loader::GRUB),
            is_read: loader::is_read(Path::new("/")),
            block: direct::is_armed().map_err(|error| format!("{error:#}")),
            why_not: direct::why_not(),
        }
    }
}

/// The check; none where the policy does not ask for it.
pub(super) fn check(facts: &Facts) -> Option<Check> {
    let question =
        question("boot-loader", "The boot loader starts the restore kernel itself, so that a resume takes one boot.");
    if !facts.policy.as_ref().is_ok_and(|policy| policy.resume.direct) {
        return None;
    }
    let LoaderFacts { is_current, is_read, block, why_not } = &facts.loader;
    Some(match (block, is_current, is_read, why_not) {
        (Err(why), ..) => question.warning(format!("{why}; resumes take two boots"), SETUP),
        (_, false, ..) => question.warning("what GRUB is to do is missing, or of another version", SETUP),
        (_, _, Some(false), _) => question.warning(
            "GRUB's configuration does not read it",
            format!("{SETUP}, or have grub.cfg read, after its entries:\n{}", loader::BY_HAND),
        ),
        (Ok(true), ..) => {
            question.warning("it would start the restore kernel at the next boot, although this session goes on", SETUP)
        }
        (.., Some(why)) => {
            question.check(State::Ok, format!("ready; the last hibernation went without it: {why}"), None)
        }
        (Ok(false), ..) => question.ok("GRUB starts the restore kernel where a hibernation asks for it"),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::host::doctor::tests::ready;
    use crate::policy::Policy;

    fn judged(loader: LoaderFacts) -> (State, String) {
        let policy = Policy::parse("policy", "[image]\ndevice = \"/dev/vdb\"\n[resume]\ndirect = true\n").unwrap();
        let check = check(&Facts { loader, policy: Ok(policy), ..ready() }).unwrap();
        (check.state, check.found)
    }

    #[test]
    fn what_is_missing_is_named() {
        assert_eq!(check(&ready()), None);
        let good = LoaderFacts { is_current: true, is_read: Some(true), block: Ok(false), why_not: None };
        assert_eq!(judged(good.clone()).0, State::Ok);
        assert_eq!(judged(LoaderFacts { is_read: None, ..good.clone() }).0, State::Ok);
        let cases = [
            (LoaderFacts { block: Err("there is none".into()), ..good.clone() }, "there is none"),
            (LoaderFacts { is_current: false, ..good.clone() }, "another version"),
            (LoaderFacts { is_read: Some(false), ..good.clone() }, "does not read it"),
            (LoaderFacts { block: Ok(true), ..good.clone() }, "although this session goes on"),
        ];
        for (facts, expected) in cases {
            let (state, found) = judged(facts);
            assert!(state == State::Warning && found.contains(expected), "{found}");
        }
        let (state, found) = judged(LoaderFacts { why_not: Some("the region is elsewhere".into()), ..good });
        assert!(state == State::Ok && found.ends_with("went without it: the region is elsewhere"), "{found}");
    }
}
