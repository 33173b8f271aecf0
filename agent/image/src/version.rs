//! The format's version and the one rule for reading others.

use std::fmt;

/// A version of the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// Changes when older readers must not read on.
    pub major: u16,
    /// Changes when something was added: a record, or a field where zeroes were.
    pub minor: u16,
}

/// The newest version that this crate writes. Each block has the oldest one that gives a meaning to all that is in it.
pub const VERSION: Version = Version { major: 1, minor: SPENT_SINCE };

/// The minor version since which images are sealed.
pub const SEALED: u16 = 1;

/// The minor version since which images lie below layers, and on two legs.
pub(crate) const LAYERS: u16 = 1;

/// The minor version since which the revision of the CPU's microcode is recorded.
pub(crate) const MICROCODE: u16 = 2;

/// The minor version since which an order names a block by which a boot loader is told to start D.
pub const LOADER: u16 = 3;

/// The minor version since which an order says how a server is reached that has the image.
pub const NETWORK: u16 = 4;

/// The minor version since which a commit record says what the save's threads spent their time on.
pub(crate) const SPENT_SINCE: u16 = 5;

impl Version {
    /// Whether a reader of version `self` may look into a block of version `found`: the same major version.
    ///
    /// What a newer minor version added is then skipped or refused, piece by piece: unknown records are skipped where
    /// their flag allows it, and fields that this version does not know must be zero.
    #[must_use]
    pub fn reads(self, found: Version) -> bool {
        found.major == self.major
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}
