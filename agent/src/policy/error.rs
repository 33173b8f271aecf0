//! Why a policy was refused, with the place in the file.

use std::fmt::Display;
use std::path::PathBuf;

use dormouse_image::ImageDeviceError;
use dormouse_linux::disk::NoIdentity;
use dormouse_linux::link::NoLink;
use thiserror::Error;

use crate::policy::words::WordError;

/// Why a policy could not be used. Its text names the file and, where there is one, line and key.
#[derive(Debug, Error)]
pub enum PolicyError {
    /// There is no such file.
    #[error("{}: there is no policy here", file.display())]
    Missing {
        /// The file that was looked for.
        file: PathBuf,
    },
    /// The file, or a directory of drop-ins, exists but cannot be read.
    #[error("{}: cannot read the policy", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// What the system reported.
        source: std::io::Error,
    },
    /// Not TOML.
    #[error("{file}:{line}: this is not TOML: {message}")]
    Syntax {
        /// The file's name.
        file: String,
        /// Line, from 1.
        line: usize,
        /// What the parser reported.
        message: String,
    },
    /// A key that no policy has.
    #[error("{file}:{line}: {key}: there is no such key{}", suggestion(*nearest))]
    UnknownKey {
        /// The file's name.
        file: String,
        /// Line, from 1.
        line: usize,
        /// The whole key, such as `save.levle`.
        key: String,
        /// The known key that looks most like it, if one does.
        nearest: Option<&'static str>,
    },
    /// A value of the wrong type.
    #[error("{file}:{line}: {key}: {message}")]
    WrongType {
        /// The file's name.
        file: String,
        /// Line, from 1.
        line: usize,
        /// The whole key.
        key: String,
        /// What was found and what was expected.
        message: String,
    },
    /// A value of the right type that is not valid.
    #[error("{file}:{line}: {key}: {problem}")]
    Invalid {
        /// The file's name.
        file: String,
        /// Line, from 1.
        line: usize,
        /// The whole key.
        key: &'static str,
        /// What is wrong with it.
        problem: Problem,
    },
    /// A key that has no default is missing.
    #[error("{file}: {key} is missing, and it has no default")]
    MissingKey {
        /// The file's name.
        file: String,
        /// The whole key.
        key: &'static str,
    },
}

fn suggestion(nearest: Option<&str>) -> String {
    nearest.map_or_else(String::new, |key| format!("; did you mean {key}?"))
}

/// What is wrong with one value.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Problem {
    /// A text that does not name an image device.
    #[error(transparent)]
    Device(#[from] ImageDeviceError),
    /// A text that does not name a disk.
    #[error(transparent)]
    Disk(#[from] NoIdentity),
    /// A text that does not name a network interface.
    #[error(transparent)]
    Link(#[from] NoLink),
    /// A text that is not one of the allowed words.
    #[error(transparent)]
    Word(#[from] WordError),
    /// A number or a size out of its bounds.
    #[error("{found} is not a {valid}")]
    Bounds {
        /// As written.
        found: String,
        /// What it should be, with its bounds.
        valid: String,
    },
    /// A number within the bounds that is not valid, with the reason.
    #[error("{0}")]
    Excluded(&'static str),
    /// A size or address that is not a number with a suffix.
    #[error("`{0}` is not a size: write a number followed by K, M or G, such as \"128M\"")]
    Size(String),
    /// A text that says neither what to give up nor down to which size.
    #[error(
        "`{0}` is not \"none\", \"cache\" or a size: write a size as a number followed by K, M or G, such as \"2G\""
    )]
    Shrink(String),
    /// A size or address that is not a multiple of what it must be a multiple of.
    #[error("`{found}` is not a multiple of {multiple}")]
    Multiple {
        /// As written.
        found: String,
        /// What it must be a multiple of.
        multiple: String,
    },
    /// An address that is too low.
    #[error("`{found}` is below {min}, where the kernel and its boot loader need the memory themselves")]
    Low {
        /// As written.
        found: String,
        /// The lowest that is valid.
        min: String,
    },
    /// The region would end beyond what physical addresses can reach.
    #[error("a region of {mib} MiB at `{address}` ends beyond the last physical address")]
    RegionEnd {
        /// Its size in MiB.
        mib: u64,
        /// Where it would begin.
        address: String,
    },
    /// A path that is not absolute.
    #[error("`{0}` is not an absolute path")]
    Path(String),
    /// A path with a control character in it.
    #[error("{0:?} contains a control character")]
    PathCharacter(String),
    /// Kernel arguments that are too long.
    #[error("{found} bytes are more than the {max} that fit beside the arguments of Dormouse")]
    ArgumentsLength {
        /// Their length in bytes.
        found: usize,
        /// The longest that is valid.
        max: usize,
    },
    /// Kernel arguments with something in them that would hide those that follow.
    #[error("`{0}` would hide the arguments that follow it from the kernel")]
    ArgumentsHide(String),
    /// Kernel arguments with one that Dormouse sets.
    #[error("`{0}` is for Dormouse itself to set")]
    ArgumentsOurs(String),
}

impl Problem {
    /// [`Problem::Bounds`] of `found`, where `what` may be written from `min` to `max`; `note` follows.
    pub(super) fn bounds<T: Display>(found: impl Display, what: &str, [min, max]: [T; 2], note: &str) -> Problem {
        Problem::Bounds { found: found.to_string(), valid: format!("{what} from {min} to {max}{note}") }
    }
}
