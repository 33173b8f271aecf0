//! What the initramfs of B and D holds beside its modules: one list, from which our own archive is written, and the
//! list for other tools.

use crate::handoff::places::{DISK_MODULES_LIST, MEMORY_MODULES_LIST, MODULES_LIST, WATCHDOG_MODULES_LIST};
use crate::policy::DEFAULT_PATH;

/// One thing in the initramfs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Item {
    /// A directory to mount on.
    Dir(&'static str),
    /// A character device.
    Node {
        /// Where it goes.
        path: &'static str,
        /// Its permissions.
        mode: u32,
        /// Its number.
        number: (u32, u32),
    },
    /// A file.
    File {
        /// Where it goes.
        path: &'static str,
        /// Its permissions.
        mode: u32,
        /// What is in it.
        content: Content,
    },
}

/// What is in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    /// The static program that becomes PID 1.
    Init,
    /// The policy with its drop-ins, see [`super::carried_policy`].
    Policy,
    /// The modules that reach the target, in the order of loading, one on a line. In our own archive these are names of
    /// files; so they are in the next three.
    Modules,
    /// The modules of watchdogs.
    Watchdogs,
    /// The modules of the session's other disks.
    Disks,
    /// Dormouse's own module, where there is one for that kernel.
    Memory,
}

/// All of it, but for the modules. A directory comes before what is in it.
pub(super) const ITEMS: [Item; 13] = [
    Item::Dir("/dev"),
    Item::Dir("/proc"),
    Item::Dir("/run"),
    Item::Dir("/sys"),
    // What a process finds open or may open before PID 1 has mounted devtmpfs.
    Item::Node { path: "/dev/console", mode: 0o600, number: (5, 1) },
    Item::Node { path: "/dev/kmsg", mode: 0o644, number: (1, 11) },
    Item::Node { path: "/dev/null", mode: 0o666, number: (1, 3) },
    Item::File { path: "/init", mode: 0o755, content: Content::Init },
    Item::File { path: DEFAULT_PATH, mode: 0o644, content: Content::Policy },
    Item::File { path: MODULES_LIST, mode: 0o644, content: Content::Modules },
    Item::File { path: WATCHDOG_MODULES_LIST, mode: 0o644, content: Content::Watchdogs },
    Item::File { path: DISK_MODULES_LIST, mode: 0o644, content: Content::Disks },
    Item::File { path: MEMORY_MODULES_LIST, mode: 0o644, content: Content::Memory },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_readme_lists_every_item() {
        let readme = include_str!("../../../../initramfs/README.md");
        let table = readme.lines().filter(|line| line.starts_with("| `/")).collect::<String>();
        for item in ITEMS {
            let (Item::Dir(path) | Item::Node { path, .. } | Item::File { path, .. }) = item;
            assert!(table.contains(&format!("`{path}`")), "{path} is missing from initramfs/README.md");
        }
    }
}
