//! The format's version and the one rule for reading others.

use std::fmt;

/// A version of the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// Changes when older readers must not read on.
    pub major: u16,
    /// Changes when something was added that older readers may ignore.
    pub minor: u16,
}

/// The version that this crate writes.
pub const VERSION: Version = Version { major: 1, minor: 0 };

impl Version {
    /// Whether a reader of version `self` may read `found`: the same major version, and a minor one that is not newer.
    #[must_use]
    pub fn reads(self, found: Version) -> bool {
        found.major == self.major && found.minor <= self.minor
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_major_version_is_equal_and_the_minor_one_not_newer() {
        let ours = Version { major: 2, minor: 3 };
        let reads = |major, minor| ours.reads(Version { major, minor });
        assert!(reads(2, 0) && reads(2, 3));
        assert!(!reads(2, 4) && !reads(1, 3) && !reads(3, 0) && !reads(3, 3));
    }
}
