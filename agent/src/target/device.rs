//! `dormouse image`: preparing, showing, verifying and discarding images.

use std::fmt;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use anyhow::{Context, bail};
use dormouse_image::{FormatError, Layer, NbdExport, Remote, State};
use dormouse_linux::units::mib;
use serde::Serialize;
use thiserror::Error;

use crate::pipeline;
use crate::store::{Access, Disk, FindKey, Image, Nbd, NotDiscarded, Reader, StoreError};
use crate::target::signature::{self, Signature, Tail};
use crate::target::stack::Lay;
use crate::target::{Target, TargetError, new_label};

/// Why a device is not made an image device without `--force`.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum InitRefusal {
    /// Something else lives on it.
    #[error("image device {device}: it carries {found}")]
    Foreign {
        /// The device.
        device: String,
        /// What was found.
        found: String,
    },
    /// A session waits on it.
    #[error("image device {device}: it holds a session that can be resumed, which this would lose")]
    Waiting {
        /// The device.
        device: String,
    },
}

/// A device that was made an image device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Initialised {
    /// The device.
    pub device: String,
    /// Its identity, for `UUID=`.
    pub uuid: String,
    /// Its size in bytes.
    pub bytes: u64,
}

impl fmt::Display for Initialised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: UUID={}, {}", self.device, self.uuid, mib(self.bytes))
    }
}

/// Makes an image device of `path`.
///
/// # Errors
/// The device is in use or too small. Without `force` also: it carries something else, or an image that could be
/// resumed; or the save kernel would not have it.
pub fn init(path: &Path, force: bool) -> anyhow::Result<Initialised> {
    let target = Target::at(path)?;
    let (disk, lay) = match target.is_remote() {
        true => (target.blocks(Access::Write)?, None),
        false => (Disk::open(path, Access::Write)?, lay_of(path, force)?),
    };
    if force {
        wipe(&disk)?;
    } else {
        let found = if target.is_remote() { foreign_on(&disk) } else { foreign(path) }?;
        refuse_foreign(&target, found)?;
        refuse_resumable(&lay.as_ref().map_or(Ok(disk.clone()), |lay| lay.open(Access::Read))?)?;
    }
    let image = match lay {
        Some(lay) => Image::create(lay.open(Access::Write)?, lay.label()?)?,
        None => Image::create(disk, new_label(Vec::new())?)?,
    };
    let (device, uuid) = (image.disk().name().to_owned(), image.label().uuid.to_string());
    Ok(Initialised { device, uuid, bytes: image.disk().size() })
}

/// How a device lies on disks: a volume is written there, as any other kernel will.
fn lay_of(path: &Path, force: bool) -> anyhow::Result<Option<Lay>> {
    let about =
        || format!("image device {}: only with --force, if this is the disk of another machine", path.display());
    match Lay::of_device(path) {
        Err(_) if force => Ok(None),
        lay => lay.with_context(about),
    }
}

/// Refuses a device with a session that waits to be resumed.
fn refuse_resumable(disk: &Disk) -> anyhow::Result<()> {
    match Image::open(disk.clone()) {
        Ok(image) if image.commit().state.is_waiting() => {
            bail!(InitRefusal::Waiting { device: disk.to_string() })
        }
        // Anything else is about to be made an image, or has an error that the making will show.
        _ => Ok(()),
    }
}

/// Removes the marks of whatever lived on the device, so that nothing takes the image for it: they are all at its start
/// or at its end.
fn wipe(disk: &Disk) -> anyhow::Result<()> {
    let (start, end) = (signature::HEAD_LEN, signature::TAIL_LEN);
    let size = usize::try_from(disk.size())?;
    disk.write_copy(0, &vec![0; start.min(size)])?;
    disk.write_copy(disk.size() - u64::try_from(end.min(size))?, &vec![0; end.min(size)])?;
    disk.flush()?;
    Ok(())
}

/// Refuses a device on which something else lives.
fn refuse_foreign(device: &Target, found: Option<Signature>) -> anyhow::Result<()> {
    match found {
        Some(found) => bail!(InitRefusal::Foreign { device: device.to_string(), found: found.to_string() }),
        None => Ok(()),
    }
}

/// As [`foreign`], of blocks that are open.
fn foreign_on(disk: &Disk) -> anyhow::Result<Option<Signature>> {
    probe(disk.size(), |start, len| {
        let len = usize::try_from(disk.size() - start)?.min(len);
        Ok(disk.read(start, len)?)
    })
}

/// What else lives on a device, if anything that is known does.
///
/// # Errors
/// It cannot be read.
pub fn foreign(path: &Path) -> anyhow::Result<Option<Signature>> {
    let cannot_read = || format!("image device {}: cannot read it", path.display());
    let mut device = File::open(path).with_context(cannot_read)?;
    let device_len = device.seek(SeekFrom::End(0)).with_context(cannot_read)?;
    probe(device_len, |start, len| {
        let mut bytes = Vec::new();
        device.seek(SeekFrom::Start(start))?;
        (&mut device).take(u64::try_from(len)?).read_to_end(&mut bytes)?;
        Ok(bytes)
    })
    .with_context(cannot_read)
}

/// Looks at both ends of what has so many bytes; `part` reads from a byte on, no more than that many and than there
/// are.
fn probe<B: AsRef<[u8]>>(
    device_len: u64,
    mut part: impl FnMut(u64, usize) -> anyhow::Result<B>,
) -> anyhow::Result<Option<Signature>> {
    let head = part(0, signature::HEAD_LEN)?;
    let end = part(device_len.saturating_sub(u64::try_from(signature::TAIL_LEN)?), signature::TAIL_LEN)?;
    Ok(signature::probe(head.as_ref(), Some(Tail { device_len, bytes: end.as_ref() })))
}

/// What is on an image device.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Info {
    /// The device.
    pub device: String,
    /// The disk that it lies on, by what that reports of itself: a boot takes the image from no other.
    pub disk: Option<String>,
    /// Its size in bytes.
    pub device_bytes: u64,
    /// Its identity, for `UUID=`.
    pub uuid: String,
    /// In how many pieces of a block device it lies; 0 where it has the device for itself.
    pub extents: usize,
    /// What lies between the file or volume and the disk, from the top down.
    pub layers: Vec<String>,
    /// On how many disks all of it lies.
    pub legs: usize,
    /// The name by which it is found where nothing is mounted.
    pub boot_name: String,
    /// The image's state.
    pub state: String,
    /// Why it failed or was discarded.
    pub reason: String,
    /// When it was given this state, in seconds since 1970.
    pub changed_unix: u64,
    /// Restores begun.
    pub attempts: u16,
    /// Boots that kept it although the machine differed.
    pub kept: u16,
    /// How it is sealed; `None` where it is not.
    pub sealed: Option<String>,
    /// Whether the data of the session in it are gone from the device.
    pub is_wiped: bool,
    /// The saved session, where there is one.
    pub session: Option<Session>,
}

/// Whose session it is.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Whose {
    /// When it was saved, in seconds since 1970.
    pub saved_unix: u64,
    /// Its host name.
    pub hostname: String,
    /// Its kernel.
    pub kernel: String,
    /// Its boot_id.
    pub boot_id: String,
}

/// The session in an image.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Session {
    /// Whose it is; `None` where the image is sealed and there is no key at hand.
    #[serde(flatten)]
    pub whose: Option<Whose>,
    /// Bytes of the image on the device, from its start.
    pub image_bytes: u64,
    /// Pages that the image accounts for.
    pub ram_pages: u64,
    /// Pages in chunks.
    pub stored_pages: u64,
    /// Pages that are restored as zeroes.
    pub zero_pages: u64,
    /// Pages that are left out, and neither stored nor restored: free, offline, or with a hardware error.
    pub omitted_pages: u64,
    /// Chunks.
    pub chunks: u64,
    /// Bytes of all chunks.
    pub stored_bytes: u64,
    /// How long the save took, in seconds.
    pub save_seconds: f64,
}

/// What a server exports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Listing {
    /// Each of its exports.
    pub exports: Vec<Listed>,
}

/// An export of a server's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Listed {
    /// As it is named in a command.
    pub export: String,
    /// The state of the image on it; none where there is no image.
    pub state: Option<String>,
    /// Whose session it holds.
    pub hostname: Option<String>,
    /// Why it cannot be read.
    pub error: Option<String>,
}

impl fmt::Display for Listing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.exports.is_empty() {
            return f.write_str("the server names no export");
        }
        for (number, Listed { export, state, hostname, error }) in self.exports.iter().enumerate() {
            let end = if number == 0 { "" } else { "\n" };
            let state = state.as_deref().unwrap_or("no image");
            write!(f, "{end}{export}: {}", error.as_deref().unwrap_or(state))?;
            hostname.iter().try_for_each(|name| write!(f, ", the session of {name}"))?;
        }
        Ok(())
    }
}

/// Lists what a server exports, and what is on it.
///
/// # Errors
/// `server` is not a server's address, or that does not answer.
pub fn list(server: &str, find: FindKey<'_>) -> anyhow::Result<Listing> {
    let text = if server.matches('/').count() < 3 { format!("{server}/") } else { server.to_owned() };
    let NbdExport { address, .. } = text.parse()?;
    let of = |export: NbdExport| {
        let nothing = Listed { export: export.to_string(), state: None, hostname: None, error: None };
        match info(&Target::of_remote(&Remote::Nbd(export)), find) {
            Ok(Info { state, session, .. }) => {
                let hostname = session.and_then(|session| session.whose).map(|whose| whose.hostname);
                Listed { state: Some(state), hostname, ..nothing }
            }
            Err(error)
                if matches!(error.downcast_ref(), Some(TargetError::Store(StoreError::NotInitialised { .. }))) =>
            {
                nothing
            }
            Err(error) => Listed { error: Some(format!("{error:#}")), ..nothing },
        }
    };
    let (exports, others) = Nbd::list(address)?;
    if others > 0 {
        log::warn!("{text}: {others} exports have names that cannot be written in a policy, and are left out");
    }
    Ok(Listing { exports: exports.into_iter().map(of).collect() })
}

/// Reads what is on an image device. Of a sealed one whose key `find` does not have, that is its state and sizes.
///
/// # Errors
/// It is not an image device, or its header is damaged or forged.
pub fn info(target: &Target, find: FindKey<'_>) -> anyhow::Result<Info> {
    let mut image = target.open(Access::Read)?;
    let is_to_be_opened = image.is_sealed() && image.commit().state.holds_a_session();
    match if is_to_be_opened { find(&image) } else { Ok(None) } {
        Ok(None) => {}
        Ok(key) => image.unlock(key.as_ref())?,
        Err(error) => log::warn!("image device {target}: no key: {error:#}"),
    }
    let commit = image.commit();
    let whose = match image.header() {
        Ok(header) => Ok(Some(Whose {
            saved_unix: header.session.created_unix,
            hostname: header.session.hostname,
            kernel: header.session.kernel_release,
            boot_id: header.session.boot_id.to_string(),
        })),
        Err(StoreError::Format { source: FormatError::Sealed | FormatError::KeyWiped(_), .. }) => Ok(None),
        Err(error) => Err(error),
    };
    let session = match whose {
        Ok(whose) => Some(Session {
            whose,
            image_bytes: commit.data_end,
            ram_pages: commit.totals.ram_pages,
            stored_pages: commit.totals.stored_pages,
            zero_pages: commit.totals.zero_pages,
            omitted_pages: commit.totals.omitted_pages,
            chunks: commit.totals.chunks,
            stored_bytes: commit.totals.stored_bytes,
            save_seconds: std::time::Duration::from_millis(commit.stats.millis).as_secs_f64(),
        }),
        Err(StoreError::Incomplete { .. }) => None,
        // Half wiped, for example.
        Err(StoreError::Format { .. }) if image.is_to_be_wiped() => None,
        Err(error) => return Err(error.into()),
    };
    Ok(Info {
        device: target.to_string(),
        disk: target.disk().map(|disk| disk.to_string()),
        device_bytes: image.disk().size(),
        uuid: image.label().uuid.to_string(),
        extents: image.label().extents.len(),
        layers: image.label().stack.iter().map(Layer::to_string).collect(),
        legs: if image.label().mirror.is_some() { 2 } else { 1 },
        boot_name: image.name().to_string(),
        state: commit.state.to_string(),
        reason: commit.reason.clone(),
        changed_unix: commit.changed_unix,
        attempts: commit.attempts,
        kept: commit.kept,
        sealed: commit.seal.as_ref().map(|seal| seal.suite.to_string()),
        is_wiped: image.is_wiped() && commit.state != State::Empty,
        session,
    })
}

impl fmt::Display for Info {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "device    {}, {}", self.device, mib(self.device_bytes))?;
        if let Some(disk) = &self.disk {
            writeln!(f, "disk      {disk}")?;
        }
        writeln!(f, "uuid      {}", self.uuid)?;
        if self.extents > 0 {
            writeln!(f, "extents   {}; without a filesystem it is {}", self.extents, self.boot_name)?;
        }
        if !self.layers.is_empty() {
            let legs = if self.legs == 1 { "a disk" } else { "two disks" };
            writeln!(f, "layers    {} over {legs}", self.layers.join(", "))?;
        }
        write!(f, "state     {}", self.state)?;
        if !self.reason.is_empty() {
            write!(f, ": {}", self.reason)?;
        }
        if self.is_wiped {
            f.write_str("\ndata      wiped")?;
        }
        if let Some(suite) = &self.sealed {
            write!(f, "\nsealed    {suite}")?;
        }
        let Some(session) = &self.session else { return Ok(()) };
        let page = dormouse_sys::PAGE_SIZE;
        match &session.whose {
            Some(whose) => {
                write!(f, "\nsession   {}, kernel {}, boot {}", whose.hostname, whose.kernel, whose.boot_id)?;
            }
            None => f.write_str("\nsession   not known without its key")?,
        }
        write!(
            f,
            "\nimage     {}: {} stored in {} chunks, {} zero, {} left out",
            mib(session.image_bytes),
            mib(session.stored_pages * page),
            session.chunks,
            mib(session.zero_pages * page),
            mib(session.omitted_pages * page),
        )
    }
}

/// An image that was read and found whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verified {
    /// The device.
    pub device: String,
    /// Its chunks.
    pub chunks: u64,
    /// Pages in them.
    pub stored_pages: u64,
    /// Pages that are restored as zeroes.
    pub zero_pages: u64,
    /// The image's state.
    pub state: String,
}

impl fmt::Display for Verified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Verified { device, chunks, stored_pages, zero_pages, state } = self;
        write!(
            f,
            "{device}: {chunks} chunks with {stored_pages} pages verified, {zero_pages} zero pages; the image is \
             {state}"
        )
    }
}

/// Reads a whole image and checks all of it, which takes the key of a sealed one.
///
/// # Errors
/// What is wrong with it; that it is sealed and `find` has no key.
pub fn verify(path: &Path, find: FindKey<'_>) -> anyhow::Result<Verified> {
    let target = Target::at(path)?;
    let mut image = target.open(Access::Read)?;
    image.unlock_by(find)?;
    let header = image.header()?;
    let counts = pipeline::discard(&mut Reader::open(&image, &header)?, pipeline::Limits::of_threads(0), |_| ())
        .with_context(|| format!("image device {target}"))?;
    Ok(Verified {
        device: target.to_string(),
        chunks: image.commit().totals.chunks,
        stored_pages: counts.stored,
        zero_pages: counts.zero,
        state: image.commit().state.to_string(),
    })
}

/// What giving up a session came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Discarded {
    /// The device.
    pub device: String,
    /// The image's state before.
    pub was: String,
    /// Whether that was changed: otherwise there was nothing to discard.
    pub is_changed: bool,
}

impl fmt::Display for Discarded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Discarded { device, was, is_changed } = self;
        match is_changed {
            true => write!(f, "{device}: discarded; the next boot is an ordinary one"),
            false => write!(f, "{device}: there is nothing to discard, the image is {was}"),
        }
    }
}

/// Gives up the session in an image.
///
/// # Errors
/// The device cannot be written, or a boot might not find the change.
pub fn discard(path: &Path) -> anyhow::Result<Discarded> {
    let target = Target::at(path)?;
    let mut image = target.open(Access::Write)?;
    let state = image.commit().state;
    let is_changed = !matches!(state, State::Consumed | State::Discarded | State::Empty);
    if is_changed {
        image.transition(State::Discarded, "by `dormouse image discard`").context(NotDiscarded)?;
        target.confirm(&image).context(NotDiscarded)?;
    }
    Ok(Discarded { device: target.to_string(), was: state.to_string(), is_changed })
}
