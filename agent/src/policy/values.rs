//! The values that the policy, the kernel command line and the command share, each with the text it is
//! written as: `FromStr` reads what `Display` writes.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use dormouse_image::{BLOCK, Uuid};
use thiserror::Error;

/// How the image device is named.
///
/// No variant can hold a double quote or a control character, so that every value can be written on a
/// kernel command line, which has no way to escape them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageDevice {
    /// `UUID=`: the UUID in the label that `dormouse image init` writes.
    ImageUuid(Uuid),
    /// `UUID=...@<bytes>`: an image in a file, by its UUID and by the offset of its first block on whatever block device is under the
    /// filesystem. What `dormouse config show --boot` makes of a [`ImageDevice::File`].
    ImageAt {
        /// The UUID in the label that `dormouse image create` writes.
        uuid: Uuid,
        /// Bytes, a multiple of 4096 and not 0.
        offset: u64,
    },
    /// `PARTUUID=`: the partition's own UUID, in lower case (`xxxxxxxx-NN` on an MBR disk).
    PartUuid(String),
    /// `PARTLABEL=`: the partition's name in its GPT entry.
    PartLabel(String),
    /// A device node below `/dev`.
    Path(PathBuf),
    /// Any other absolute path: a file on a mounted filesystem, which only A can find.
    File(PathBuf),
}

/// A text that does not name an image device.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ImageDeviceError {
    /// None of the forms.
    #[error(
        "`{0}` does not name a device: write UUID=, PARTUUID=, PARTLABEL=, a path below /dev or the absolute path of a file"
    )]
    Form(String),
    /// `UUID=` with something that is not a UUID.
    #[error("`{0}` is not a UUID of the form 01234567-89ab-cdef-0123-456789abcdef (`dormouse image info` shows it)")]
    Uuid(String),
    /// `UUID=...@` with something that is no place for an image in a file.
    #[error("`{0}` is not where an image in a file begins: a number of bytes, a multiple of 4096 and not 0")]
    Offset(String),
    /// `PARTUUID=` with something that is neither a GPT nor an MBR partition's.
    #[error("`{0}` is not a partition UUID (`lsblk -o NAME,PARTUUID` shows them)")]
    PartUuid(String),
    /// A character that a kernel command line cannot carry.
    #[error("`{text}` contains {character:?}, which a kernel command line cannot carry")]
    Character {
        /// The whole text.
        text: String,
        /// The first such character.
        character: char,
    },
}

impl FromStr for ImageDevice {
    type Err = ImageDeviceError;

    fn from_str(text: &str) -> Result<Self, ImageDeviceError> {
        if let Some(character) = text.chars().find(|c| c.is_control() || *c == '"') {
            return Err(ImageDeviceError::Character { text: text.to_owned(), character });
        }
        if let Some(rest) = text.strip_prefix("UUID=") {
            let (uuid, offset) = rest.split_once('@').map_or((rest, None), |(uuid, offset)| (uuid, Some(offset)));
            let uuid = uuid.parse().map_err(|_| ImageDeviceError::Uuid(uuid.to_owned()))?;
            let Some(offset) = offset else { return Ok(Self::ImageUuid(uuid)) };
            let bytes = parse_bytes(offset).filter(|bytes| *bytes != 0 && bytes.is_multiple_of(BLOCK as u64));
            let offset = bytes.ok_or_else(|| ImageDeviceError::Offset(offset.to_owned()))?;
            return Ok(Self::ImageAt { uuid, offset });
        }
        if let Some(uuid) = text.strip_prefix("PARTUUID=") {
            return if is_part_uuid(uuid) {
                Ok(Self::PartUuid(uuid.to_ascii_lowercase()))
            } else {
                Err(ImageDeviceError::PartUuid(uuid.to_owned()))
            };
        }
        match text.strip_prefix("PARTLABEL=") {
            Some(label) if !label.is_empty() => Ok(Self::PartLabel(label.to_owned())),
            None if text.starts_with('/') && !text.ends_with('/') => {
                let path = PathBuf::from(text);
                Ok(if path.starts_with("/dev") { Self::Path(path) } else { Self::File(path) })
            }
            _ => Err(ImageDeviceError::Form(text.to_owned())),
        }
    }
}

impl fmt::Display for ImageDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ImageUuid(uuid) => write!(f, "UUID={uuid}"),
            Self::ImageAt { uuid, offset } => write!(f, "UUID={uuid}@{offset}"),
            Self::PartUuid(uuid) => write!(f, "PARTUUID={uuid}"),
            Self::PartLabel(label) => write!(f, "PARTLABEL={label}"),
            Self::Path(path) | Self::File(path) => write!(f, "{}", path.display()),
        }
    }
}

/// A GPT partition's UUID, or an MBR partition's disk identifier and two-digit number.
fn is_part_uuid(text: &str) -> bool {
    let groups: Vec<&str> = text.split('-').collect();
    let lengths: Vec<usize> = groups.iter().map(|group| group.len()).collect();
    let hexadecimal = groups.iter().all(|group| group.bytes().all(|b| b.is_ascii_hexdigit()));
    hexadecimal && (lengths == [8, 4, 4, 4, 12] || lengths == [8, 2])
}

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

const SUFFIXES: [(char, u64); 3] = [('G', 1 << 30), ('M', 1 << 20), ('K', 1 << 10)];

/// Reads a number of bytes with an optional suffix K, M or G (powers of 1024). `None` if it is not one, or
/// does not fit into 64 bits.
pub(crate) fn parse_bytes(text: &str) -> Option<u64> {
    let suffix = SUFFIXES.iter().find_map(|&(letter, unit)| Some((text.strip_suffix(letter)?, unit)));
    let (digits, unit) = suffix.unwrap_or((text, 1));
    // `u64::from_str` would also take a leading plus sign.
    if !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    digits.parse::<u64>().ok()?.checked_mul(unit)
}

/// Writes a number of bytes with the largest suffix that keeps it whole: what [`parse_bytes`] reads.
pub(crate) fn format_bytes(bytes: u64) -> String {
    let whole = SUFFIXES.iter().find(|(_, unit)| bytes != 0 && bytes.is_multiple_of(*unit));
    match whole {
        Some((letter, unit)) => format!("{}{letter}", bytes / unit),
        None => bytes.to_string(),
    }
}
