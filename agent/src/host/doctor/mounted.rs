//! Whether the next boot could tell that another system has written to what is mounted now.

use std::collections::HashSet;

use dormouse_linux::error_chain::in_full;
use dormouse_linux::system;

use crate::cycle::refusal::{self, Refusal};
use crate::filesystems::{self, Mounted};
use crate::host::doctor::facts::{Facts, Unseen};
use crate::host::doctor::{Check, State};
use crate::policy::{Then, Unsure};

const ID: &str = "filesystems";
const WHY: &str = "A session would destroy a filesystem that another system has written to since it was saved, so the \
                   next boot compares.";

/// Looks at what is mounted.
pub(super) fn read() -> Result<Mounted, Unseen> {
    if !system::is_root() {
        return Err(Unseen::NeedsRoot);
    }
    filesystems::of_session().map_err(|error| Unseen::Because(format!("{error:#}")))
}

/// Judges what was found.
pub(super) fn check(facts: &Facts) -> Check {
    let check = |state, found, remedy| Check { id: ID, state, found, why: WHY, remedy };
    let mounted = match &facts.mounted {
        Ok(mounted) => mounted,
        Err(Unseen::NeedsRoot) => {
            let remedy = Some("run `dormouse doctor` as root".to_owned());
            return check(State::Unknown, "only root can see it".to_owned(), remedy);
        }
        Err(Unseen::Because(why)) => {
            return check(State::Unknown, why.clone(), Some("see what it names".to_owned()));
        }
    };
    let policy = facts.policy.as_ref().map_or(Unsure::default(), |policy| policy.resume.unsure);
    match refusal::in_filesystems(&mounted.unsure, policy, Then::PowerOff) {
        Some(refused) => check(State::Failed, in_full(&refused), refused.remedy()),
        None if mounted.unsure.is_empty() => {
            // One on several disks that are alike is listed with each.
            let filesystems: HashSet<&str> = mounted.filesystems.iter().map(|found| &*found.mount).collect();
            let areas: HashSet<&str> = mounted.swap_areas.iter().map(|found| &*found.uuid).collect();
            let (filesystems, areas) = (filesystems.len(), areas.len());
            check(State::Ok, format!("filesystems: {filesystems}, swap areas: {areas}; all can be compared"), None)
        }
        None => {
            let found = format!("writes by another system will not be noticed: {}", mounted.unsure.join(", "));
            check(State::Warning, found, Some("unmount them, or see that no other system writes to them".to_owned()))
        }
    }
}
