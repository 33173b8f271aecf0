//! Why a policy was refused, with the place in the file.

use std::path::PathBuf;

use dormouse_image::ImageDeviceError;
use thiserror::Error;

use crate::policy::{MAX_ARGUMENTS, MAX_STALL, MAX_THREADS, MAX_WAIT, MIB, MIN_STALL};

/// Why a policy could not be used. Its text names the file and, where there is one, line and key.
#[derive(Debug, Error)]
pub enum PolicyError {
    /// There is no such file.
    #[error("{}: there is no policy here", file.display())]
    Missing {
        /// The file that was looked for.
        file: PathBuf,
    },
    /// The file, or a folder of drop-ins, is there, but cannot be read.
    #[error("{}: cannot read the policy", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Not TOML.
    #[error("{file}:{line}: this is not TOML: {message}")]
    Syntax {
        /// The file's name.
        file: String,
        /// Line, from 1.
        line: usize,
        /// What the parser said.
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
    /// A value of the right type that cannot be meant.
    #[error("{file}:{line}: {key}: {problem}")]
    Impossible {
        /// The file's name.
        file: String,
        /// Line, from 1.
        line: usize,
        /// The whole key.
        key: &'static str,
        /// What is wrong with it.
        problem: Problem,
    },
    /// A key that has no default is not there.
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
    /// `image.device`.
    #[error(transparent)]
    Device(#[from] ImageDeviceError),
    /// `image.wait`.
    #[error("{0} is not a number of seconds from 0 to {MAX_WAIT}")]
    Wait(i64),
    /// A size or address that is not a number with a suffix.
    #[error("`{0}` is not a size: write a number with K, M or G behind it, such as \"128M\"")]
    Size(String),
    /// A size or address that is no multiple of 2 MiB.
    #[error("`{0}` is not a multiple of 2M, and a region consists of whole 2 MiB pages")]
    Alignment(String),
    /// `region.size` out of its range.
    #[error("`{0}` is not a size from 64M to 4G")]
    RegionSize(String),
    /// `save.memory` out of its range.
    #[error("`{0}` is not a size from 4M to 1G")]
    Memory(String),
    /// `region.address` below 16 MiB.
    #[error("`{0}` is below 16M, where the kernel and its boot loader need the memory themselves")]
    RegionAddress(String),
    /// The region would end beyond what physical addresses can reach.
    #[error("a region of {} MiB at `{address}` ends beyond the last physical address", size / MIB)]
    RegionEnd {
        /// Bytes.
        size: u64,
        /// As written.
        address: String,
    },
    /// A path that is not absolute.
    #[error("`{0}` is not an absolute path")]
    Path(String),
    /// A path with a control character in it.
    #[error("{0:?} contains a control character")]
    PathCharacter(String),
    /// `kernel.arguments` is too long.
    #[error("{0} bytes are more than the {MAX_ARGUMENTS} that fit beside the arguments of Dormouse")]
    ArgumentsLength(usize),
    /// `kernel.arguments` holds something that would hide the arguments behind it.
    #[error("`{0}` would hide the arguments that follow it from the kernel")]
    ArgumentsHide(String),
    /// `kernel.arguments` sets an argument that Dormouse sets.
    #[error("`{0}` is for Dormouse itself to set")]
    ArgumentsOurs(String),
    /// `save.level`.
    #[error("{0} is not a zstd level (-7 to 19)")]
    Level(i64),
    /// `save.level` is 0, which zstd takes as its own default.
    #[error("0 leaves the level to zstd: name one (-7 to 19; 1 is the default here)")]
    LevelZero,
    /// `save.threads`.
    #[error("{0} is not a number of threads from 0 (one per CPU) to {MAX_THREADS}")]
    Threads(i64),
    /// `guard.stall`.
    #[error("{0} is not a number of seconds from {MIN_STALL} to {MAX_STALL}, or 0 for never")]
    Stall(i64),
    /// A word that is none of the allowed ones.
    #[error("`{word}` is none of {allowed}")]
    Word {
        /// As written.
        word: String,
        /// The allowed words, in quotes and separated by commas.
        allowed: &'static str,
    },
}
