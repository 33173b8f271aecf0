//! When the list of block devices has come to rest.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::Path;
use std::time::{Duration, Instant};

use super::{CLASS, identity};

/// How long nothing may have turned up. Disks of one controller follow one another within milliseconds.
const QUIET: Duration = Duration::from_millis(500);

/// A watch on the list of block devices.
#[derive(Debug)]
pub struct Settling {
    listed: BTreeSet<OsString>,
    since: Instant,
}

impl Settling {
    /// Begins to watch.
    #[must_use]
    pub fn begin() -> Settling {
        Settling { listed: listed(Path::new(CLASS)), since: Instant::now() }
    }

    /// Whether nothing has turned up for half a second, and nothing is known to be on its way.
    pub fn is_over(&mut self) -> bool {
        self.look(listed(Path::new(CLASS)), identity::is_pending(Path::new("/sys")), Instant::now())
    }

    fn look(&mut self, listed: BTreeSet<OsString>, is_pending: bool, now: Instant) -> bool {
        if listed != self.listed {
            (self.listed, self.since) = (listed, now);
        }
        !is_pending && now.saturating_duration_since(self.since) >= QUIET
    }
}

fn listed(class: &Path) -> BTreeSet<OsString> {
    std::fs::read_dir(class).into_iter().flatten().flatten().map(|entry| entry.file_name()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_device_begins_the_rest_again() {
        let start = Instant::now();
        let after = |millis| start + Duration::from_millis(millis);
        let list = |names: &[&str]| names.iter().map(OsString::from).collect::<BTreeSet<_>>();
        let mut settling = Settling { listed: list(&["sda"]), since: start };
        assert!(!settling.look(list(&["sda"]), false, after(499)));
        assert!(settling.look(list(&["sda"]), false, after(500)));
        assert!(!settling.look(list(&["sda"]), true, after(510)));
        assert!(!settling.look(list(&["sda", "sdb"]), false, after(520)));
        assert!(!settling.look(list(&["sda", "sdb"]), false, after(1019)));
        assert!(settling.look(list(&["sda", "sdb"]), false, after(1020)));
    }
}
