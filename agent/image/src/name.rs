//! How an image device is named: the text of a policy and of a kernel command line.

use core::net::{IpAddr, SocketAddr};
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
    /// What a server has.
    Remote(Remote),
}

/// What a server has. It holds neither a double quote nor a control character, as an [`ImageDevice`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Remote {
    /// An export, by NBD.
    Nbd(NbdExport),
    /// A file, by NFS.
    Nfs(NfsFile),
}

impl Remote {
    /// The server: its address, and the port that it is reached at.
    #[must_use]
    pub fn server(&self) -> SocketAddr {
        match self {
            Remote::Nbd(export) => export.address,
            Remote::Nfs(file) => SocketAddr::new(file.server, NfsFile::PORT),
        }
    }

    /// Whether a text begins as one of them does.
    #[must_use]
    pub fn is_meant(text: &str) -> bool {
        [NbdExport::SCHEME, NfsFile::SCHEME].iter().any(|scheme| text.starts_with(scheme))
    }
}

impl FromStr for Remote {
    type Err = ImageDeviceError;

    fn from_str(text: &str) -> Result<Self, ImageDeviceError> {
        if text.starts_with(NfsFile::SCHEME) { text.parse().map(Self::Nfs) } else { text.parse().map(Self::Nbd) }
    }
}

impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Remote::Nbd(export) => write!(f, "{export}"),
            Remote::Nfs(file) => write!(f, "{file}"),
        }
    }
}

/// A file that a server exports by NFS: `nfs://ADDRESS/DIRECTORY/FILE`, with the path that the server has for it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct NfsFile {
    /// The server: an address, since a kernel that has just started asks nobody for one.
    pub server: IpAddr,
    /// The file, an absolute path on the server.
    pub path: String,
}

impl NfsFile {
    /// How its text begins.
    pub const SCHEME: &str = "nfs://";
    /// Source: IANA's service names and port numbers.
    pub const PORT: u16 = 2049;
    /// The longest path that is mounted (`NFS_MAXPATHLEN`, include/uapi/linux/nfs.h).
    const PATH_MAX: usize = 1024;

    /// The directory that is mounted, and the file's name in it.
    #[must_use]
    pub fn directory_and_name(&self) -> (&str, &str) {
        match self.path.rsplit_once('/') {
            Some(("", name)) => ("/", name),
            Some(both) => both,
            None => ("/", &self.path),
        }
    }

    /// The server as it is written before a path.
    #[must_use]
    pub fn host(&self) -> String {
        match self.server {
            IpAddr::V4(ip) => ip.to_string(),
            IpAddr::V6(ip) => format!("[{ip}]"),
        }
    }

    fn parse(text: &str) -> Option<NfsFile> {
        let (place, path) = text.strip_prefix(Self::SCHEME)?.split_once('/')?;
        let server = match place.strip_prefix('[') {
            Some(rest) => IpAddr::V6(rest.strip_suffix(']')?.parse().ok()?),
            None => IpAddr::V4(place.parse().ok()?),
        };
        let is_plain = path.split('/').all(|part| !["", ".", ".."].contains(&part));
        (is_plain && path.len() < Self::PATH_MAX).then(|| NfsFile { server, path: format!("/{path}") })
    }
}

impl FromStr for NfsFile {
    type Err = ImageDeviceError;

    fn from_str(text: &str) -> Result<Self, ImageDeviceError> {
        demand_writable(text)?;
        NfsFile::parse(text).ok_or_else(|| ImageDeviceError::Nfs(text.to_owned()))
    }
}

impl fmt::Display for NfsFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}{}", Self::SCHEME, self.host(), self.path)
    }
}

/// What a server exports by NBD, the Network Block Device protocol: `nbd://ADDRESS[:PORT]/EXPORT`. It holds neither a
/// double quote nor a control character, as an [`ImageDevice`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct NbdExport {
    /// The server: an address, since a kernel that has just started asks nobody for one.
    pub address: SocketAddr,
    /// The export's name, which may be empty: the server's default.
    pub name: String,
}

impl NbdExport {
    /// How its text begins.
    pub const SCHEME: &str = "nbd://";
    /// Where the text has no port. Source: IANA's service names and port numbers.
    const PORT: u16 = 10809;
    /// The most bytes of a name (doc/proto.md of the NBD project).
    const NAME_MAX: usize = 4096;

    fn parse(text: &str) -> Option<NbdExport> {
        let rest = text.strip_prefix(Self::SCHEME)?;
        let (place, name) = rest.split_once('/')?;
        // With a port, or without; an IPv6 address is in brackets in both.
        let bare = || place.strip_prefix('[').map_or(Some(place), |place| place.strip_suffix(']'));
        let is_bracketed = place.starts_with('[');
        let alone = || bare()?.parse::<IpAddr>().ok().filter(|address| address.is_ipv6() == is_bracketed);
        let address = place.parse().ok().or_else(|| Some(SocketAddr::new(alone()?, Self::PORT)))?;
        (name.len() <= Self::NAME_MAX).then(|| NbdExport { address, name: name.to_owned() })
    }
}

impl FromStr for NbdExport {
    type Err = ImageDeviceError;

    fn from_str(text: &str) -> Result<Self, ImageDeviceError> {
        demand_writable(text)?;
        NbdExport::parse(text).ok_or_else(|| ImageDeviceError::Nbd(text.to_owned()))
    }
}

impl fmt::Display for NbdExport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let NbdExport { address, name } = self;
        f.write_str(Self::SCHEME)?;
        match (address.port() == Self::PORT, address.ip()) {
            (false, _) => write!(f, "{address}")?,
            (true, IpAddr::V6(ip)) => write!(f, "[{ip}]")?,
            (true, IpAddr::V4(ip)) => write!(f, "{ip}")?,
        }
        write!(f, "/{name}")
    }
}

impl ImageDevice {
    /// The name of what a server has.
    #[must_use]
    pub fn of_remote(remote: &Remote) -> ImageDevice {
        ImageDevice::Remote(remote.clone())
    }

    /// Whether a server has it: then it is on no disk of this machine.
    #[must_use]
    pub fn is_remote(&self) -> bool {
        matches!(self, ImageDevice::Remote(_))
    }

    /// The same name on the machine that is called so: `{hostname}` and `{machine-id}` in what a server has stand for
    /// that, so that one policy serves many machines. A machine that has no such name keeps the words, and so does one
    /// whose name cannot be written in a policy.
    #[must_use]
    pub fn on_machine(self, hostname: Option<&str>, machine_id: Option<&str>) -> ImageDevice {
        let Self::Remote(remote) = &self else { return self };
        let with = |text: &str| {
            let words = [("{hostname}", hostname), ("{machine-id}", machine_id)];
            words.into_iter().fold(text.to_owned(), |text, (word, value)| {
                value.map_or(text.clone(), |value| text.replace(word, value))
            })
        };
        let named = match remote.clone() {
            Remote::Nbd(export) => Remote::Nbd(NbdExport { name: with(&export.name), ..export }),
            Remote::Nfs(file) => Remote::Nfs(NfsFile { path: with(&file.path), ..file }),
        };
        if named.to_string().parse().as_ref() == Ok(&named) { Self::Remote(named) } else { self }
    }

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
        "`{0}` does not name a device: write UUID=, PARTUUID=, PARTLABEL=, a path below /dev, the absolute path of a \
         file, nbd:// or nfs://"
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
    /// `nbd://` with something that is not an address and an export's name.
    #[error(
        "`{0}` is not an export: write nbd://ADDRESS/EXPORT or nbd://ADDRESS:PORT/EXPORT with the server's address, \
         not its name; an IPv6 address in brackets"
    )]
    Nbd(String),
    /// `nfs://` with something that is not an address and the path of a file.
    #[error(
        "`{0}` is not a file of a server: write nfs://ADDRESS/DIRECTORY/FILE with the server's address, not its name, \
         and the path that the server has; an IPv6 address in brackets"
    )]
    Nfs(String),
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
        demand_writable(text)?;
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
        if Remote::is_meant(text) {
            return text.parse().map(Self::Remote);
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
            Self::Remote(remote) => write!(f, "{remote}"),
        }
    }
}

/// Refuses what a kernel command line cannot carry.
fn demand_writable(text: &str) -> Result<(), ImageDeviceError> {
    match text.chars().find(|c| c.is_control() || *c == '"') {
        Some(character) => Err(ImageDeviceError::Character { text: text.to_owned(), character }),
        None => Ok(()),
    }
}

/// A GPT partition's UUID, or an MBR partition's disk identifier and two-digit number.
fn is_part_uuid(text: &str) -> bool {
    let groups: Vec<&str> = text.split('-').collect();
    let lengths: Vec<usize> = groups.iter().map(|group| group.len()).collect();
    let hexadecimal = groups.iter().all(|group| group.bytes().all(|b| b.is_ascii_hexdigit()));
    hexadecimal && (lengths == [8, 4, 4, 4, 12] || lengths == [8, 2])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_file_of_a_server_has_a_directory_and_a_name() {
        for (text, server, directory, name) in [
            ("nfs://10.0.2.2/srv/images/oak", "10.0.2.2", "/srv/images", "oak"),
            ("nfs://10.0.2.2/oak", "10.0.2.2", "/", "oak"),
            ("nfs://[fd00::1]/srv/a b", "fd00::1", "/srv", "a b"),
        ] {
            let file: NfsFile = text.parse().unwrap();
            assert_eq!((file.server, file.directory_and_name()), (server.parse().unwrap(), (directory, name)));
            assert_eq!(
                (file.to_string().as_str(), text.parse::<ImageDevice>().unwrap().to_string().as_str()),
                (text, text)
            );
        }
        let long = format!("nfs://10.0.2.2/{}", "x/".repeat(600) + "y");
        for text in
            ["nfs://server/x", "nfs://10.0.2.2", "nfs://10.0.2.2/", "nfs://10.0.2.2/a/", "nfs://10.0.2.2/../x", &long]
        {
            assert!(matches!(text.parse::<NfsFile>(), Err(ImageDeviceError::Nfs(_))), "{text}");
        }
        let fleet: ImageDevice = "nfs://10.0.2.2/srv/{hostname}/image".parse().unwrap();
        assert_eq!(fleet.on_machine(Some("oak"), None).to_string(), "nfs://10.0.2.2/srv/oak/image");
    }

    #[test]
    fn one_policy_serves_many_machines() {
        let device: ImageDevice = "nbd://10.0.2.2/{hostname}-{machine-id}-{other}".parse().unwrap();
        assert_eq!(device.clone().on_machine(Some("oak"), Some("0a1b")).to_string(), "nbd://10.0.2.2/oak-0a1b-{other}");
        assert_eq!(device.clone().on_machine(None, None), device);
        assert_eq!(device.clone().on_machine(Some("o\"ak"), None), device);
        let file: ImageDevice = "/images/{hostname}".parse().unwrap();
        assert_eq!(file.clone().on_machine(Some("oak"), Some("0a1b")), file);
    }

    #[test]
    fn an_export_has_an_address_and_a_name() {
        for (text, address, name) in [
            ("nbd://10.0.2.2/image", "10.0.2.2:10809", "image"),
            ("nbd://10.0.2.2:7000/a/b c", "10.0.2.2:7000", "a/b c"),
            ("nbd://[fe80::1]/", "[fe80::1]:10809", ""),
            ("nbd://[::1]:10810/x", "[::1]:10810", "x"),
        ] {
            let export: NbdExport = text.parse().unwrap();
            assert_eq!(export, NbdExport { address: address.parse().unwrap(), name: name.to_owned() });
            assert_eq!(export.to_string(), text);
        }
        assert_eq!("nbd://10.0.2.2:10809/x".parse::<NbdExport>().unwrap().to_string(), "nbd://10.0.2.2/x");
        let long = format!("nbd://10.0.2.2/{}", "x".repeat(4097));
        for text in ["nbd://server/x", "nbd://10.0.2.2", "nbd://fe80::1/x", "nbd://[10.0.2.2]/x", "nbd:///x", &long] {
            assert!(matches!(text.parse::<NbdExport>(), Err(ImageDeviceError::Nbd(_))), "{text}");
        }
        assert!(matches!("nbd://10.0.2.2/a\"b".parse::<NbdExport>(), Err(ImageDeviceError::Character { .. })));
        let device: ImageDevice = "nbd://10.0.2.2/x".parse().unwrap();
        assert_eq!((device.to_string().as_str(), device.is_remote()), ("nbd://10.0.2.2/x", true));
    }
}
