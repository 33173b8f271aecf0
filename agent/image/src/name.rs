//! How an image device is named: the text of a policy and of a kernel command line.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use thiserror::Error;

use crate::{BLOCK, Uuid};

/// How the image device is named.
///
/// No variant can hold a double quote or a control character, so that every value can be written on a
/// kernel command line, which has no way to escape them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageDevice {
    /// `UUID=`: the UUID in the label that `dormouse image init` writes.
    ImageUuid(Uuid),
    /// `UUID=...@<bytes>`: an image in a file, by its UUID and by the offset of its first block on whatever block
    /// device is under the filesystem. What `dormouse config show --boot` makes of a [`ImageDevice::File`].
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

impl ImageDevice {
    /// The name of the image with this UUID, whose first block is at `offset` of a block device.
    #[must_use]
    pub fn of_image(uuid: Uuid, offset: u64) -> ImageDevice {
        if offset == 0 { ImageDevice::ImageUuid(uuid) } else { ImageDevice::ImageAt { uuid, offset } }
    }
}

/// A text that does not name an image device.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ImageDeviceError {
    /// None of the forms.
    #[error(
        "`{0}` does not name a device: write UUID=, PARTUUID=, PARTLABEL=, a path below /dev or the absolute path of a \
         file"
    )]
    Form(String),
    /// `UUID=` with something that is not a UUID.
    #[error("`{0}` is not a UUID of the form 01234567-89ab-cdef-0123-456789abcdef (`dormouse image info` shows it)")]
    Uuid(String),
    /// `UUID=...@` with something that is not the place of an image in a file.
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
            let bytes = offset.parse::<u64>().ok().filter(|bytes| *bytes != 0 && bytes.is_multiple_of(BLOCK as u64));
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
