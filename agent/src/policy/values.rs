//! The values that the policy, the kernel command line and the command share, each with the text it is
//! written as: `FromStr` reads what `Display` writes.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// What happens after a completed save.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Then {
    /// The machine powers off; the image is resumed at the next power-on.
    #[default]
    PowerOff,
    /// The machine reboots and resumes at once.
    Reboot,
    /// B jumps back to A, which goes on; the image is a snapshot and is never resumed.
    Return,
}

/// A text that is no [`Then`].
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("`{0}` is not what can follow a save: write poweroff, reboot or return")]
pub struct ThenError(pub String);

impl Then {
    /// Every value, in the order in which help texts list them.
    pub const ALL: [Self; 3] = [Self::PowerOff, Self::Reboot, Self::Return];

    /// The word it is written as.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::PowerOff => "poweroff",
            Self::Reboot => "reboot",
            Self::Return => "return",
        }
    }
}

impl FromStr for Then {
    type Err = ThenError;

    fn from_str(text: &str) -> Result<Self, ThenError> {
        let known = Self::ALL.into_iter().find(|then| then.as_str() == text);
        known.ok_or_else(|| ThenError(text.to_owned()))
    }
}

impl fmt::Display for Then {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How the pages of an image are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Each chunk as the device leaves time for: the better the more waits for it.
    Auto,
    /// As they are.
    Store,
    /// Compressed with zstd, each chunk independently.
    Zstd {
        /// zstd's level: -7 to 19, never 0.
        level: i32,
    },
}

/// How an image is verified before the power goes off, while the memory that was saved is still there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Verify {
    /// Not at all; a restore finds out.
    #[default]
    Off,
    /// It is read back from the device, and every checksum compared.
    Checksum,
    /// It is read back, and every page compared with the memory that it was made of.
    Memory,
}

impl Verify {
    /// Every value, from the least to the most that is done.
    pub const ALL: [Self; 3] = [Self::Off, Self::Checksum, Self::Memory];

    /// The word it is written as.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Checksum => "checksum",
            Self::Memory => "memory",
        }
    }
}

/// What becomes of an image that does not fit the machine or its filesystems.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Unfit {
    /// It is given up.
    #[default]
    Discard,
    /// It stays, and the next boot looks again.
    Keep,
}

impl Unfit {
    /// Every value.
    pub const ALL: [Self; 2] = [Self::Discard, Self::Keep];

    /// The word it is written as.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Discard => "discard",
            Self::Keep => "keep",
        }
    }
}

/// How much is said on the consoles of B and D. Their kernel log gets everything in any case.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verbosity {
    /// What begins, a bar, and how it ended; of the kernel errors alone.
    #[default]
    Quiet,
    /// One line per phase, and warnings.
    Normal,
    /// Every decision and measurement.
    Verbose,
}

impl Verbosity {
    /// Every value, from the least to the most that is said.
    pub const ALL: [Self; 3] = [Self::Quiet, Self::Normal, Self::Verbose];

    /// The word it is written as.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Quiet => "quiet",
            Self::Normal => "normal",
            Self::Verbose => "verbose",
        }
    }
}

impl fmt::Display for Verbosity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
