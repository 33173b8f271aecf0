//! Whether the boot loader can start D itself, where the policy asks for it.

use std::fs;
use std::path::Path;

use crate::cycle::direct::{self, SystemdBoot};
use crate::host::doctor::Check;
use crate::host::doctor::facts::Facts;
use crate::host::doctor::judge::question;
use crate::host::loader;

const SETUP: &str = "dormouse setup --direct";
const ARMED: &str = "it would start the restore kernel at the next boot, although this session goes on";

/// What is found of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LoaderFacts {
    /// Whether systemd-boot is told to start D, or what is wrong with it; `None` where something else has booted this
    /// system.
    pub(super) systemd_boot: Option<Result<bool, String>>,
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
        let is_armed = |loader: anyhow::Result<SystemdBoot>| loader.and_then(|loader| loader.is_armed());
        let armed = SystemdBoot::find().map(is_armed);
        LoaderFacts {
            systemd_boot: armed.map(|armed| armed.map_err(|error| format!("{error:#}"))),
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
    let LoaderFacts { systemd_boot, is_current, is_read, block, why_not } = &facts.loader;
    if let Some(found) = systemd_boot {
        return Some(match (found, why_not) {
            (Err(why), _) => question.warning(format!("{why}; resumes take two boots"), SETUP),
            (Ok(true), _) => question.warning(ARMED, SETUP),
            (_, Some(why)) => question.ok(went_without(why)),
            (Ok(false), None) => question.ok("systemd-boot starts the restore kernel where a hibernation asks for it"),
        });
    }
    Some(match (block, is_current, is_read, why_not) {
        (Err(why), ..) => question.warning(format!("{why}; resumes take two boots"), SETUP),
        (_, false, ..) => question.warning("what GRUB is to do is missing, or of another version", SETUP),
        (_, _, Some(false), _) => question.warning(
            "GRUB's configuration does not read it",
            format!("{SETUP}, or have grub.cfg read, after its entries:\n{}", loader::BY_HAND),
        ),
        (Ok(true), ..) => question.warning(ARMED, SETUP),
        (.., Some(why)) => question.ok(went_without(why)),
        (Ok(false), ..) => question.ok("GRUB starts the restore kernel where a hibernation asks for it"),
    })
}

fn went_without(why: &str) -> String {
    format!("ready; the last hibernation went without it: {why}")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::host::doctor::State;
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
        let good =
            LoaderFacts { systemd_boot: None, is_current: true, is_read: Some(true), block: Ok(false), why_not: None };
        let other = |armed: Result<bool, &str>| LoaderFacts {
            systemd_boot: Some(armed.map_err(str::to_owned)),
            block: Err("there is none".into()),
            ..good.clone()
        };
        let (state, found) = judged(other(Ok(false)));
        assert!(state == State::Ok && found.starts_with("systemd-boot starts"), "{found}");
        for (facts, expected) in [(other(Ok(true)), "although"), (other(Err("none of /boot")), "none of /boot")] {
            let (state, found) = judged(facts);
            assert!(state == State::Warning && found.contains(expected), "{found}");
        }
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
