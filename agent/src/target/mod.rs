//! Where an image is, and how it is reached.
//!
//! ```text
//!   ImageDevice ──find──> Target ──open──> Blocks ──> Image
//!   (a name)                │
//!                           ├─ what must the small initramfs hold?    drivers
//!                           ├─ how is it opened here?                 open
//!                           └─ has it moved?                          check, confirm
//! ```
//!
//! A policy and an order name a target; every kernel finds it again. A kernel that mounts nothing has another name for
//! the same target, see [`boot_name`]: B's initramfs and C's policy carry that one. Nothing outside this module asks
//! which kind of target it is.

mod bound;
pub mod device;
mod error;
pub mod file;
mod find;
mod needs;
mod reach;
pub mod signature;
mod stack;

use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fmt, io};

use anyhow::Context;
use dormouse_image::{DiskExtent, ImageDevice, Label, Layer, LayerKind, Remote, Uuid};
use dormouse_linux::block::Hardware;
use dormouse_linux::procfs;
use dormouse_linux::wait::wait_for;

pub use bound::{disk_of, open_again, open_on};
pub use error::TargetError;
pub use find::{direct_devices, find, resolve};
pub use needs::{Driver, Needs};
pub use reach::{Reached, link_to, reach, reach_in_boot};
use stack::Lay;

use crate::store::{Access, Disk, Image, NEITHER, Nbd, Nfs, StoreError};

/// Where an image is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    path: PathBuf,
    kind: Kind,
    mirror: Mirror,
}

/// Where else all of it is, of what is reached on a device by the map in its label.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Mirror {
    /// Nowhere.
    None,
    /// On this device, at the same offsets.
    At(PathBuf),
    /// On a device that is not here.
    Missing,
}

/// How it is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    /// It has all of a block device, a disk or a partition.
    Device,
    /// It is in a file of a filesystem that a block device carries, and is reached on the device, with nothing mounted,
    /// by the map in its label, which is at this byte.
    Extents(u64),
    /// It is in a file, and is reached through the filesystem, which is mounted.
    File,
    /// A server has it.
    Remote(Remote),
}

/// What is demanded of an image that is reached through a mounted filesystem. Of one on a device nothing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IfFile {
    /// It must lie on the disk where its label says: another kernel is about to write or read it there.
    Check,
    /// What the filesystem shows is enough. Whoever changes it confirms that afterwards, see [`Target::confirm`].
    Trust,
    /// It must not be reached so: what resumes a session may mount nothing before.
    Refuse,
}

/// How an image is opened.
#[derive(Debug, Clone, Copy)]
pub struct Opening {
    /// For what.
    pub access: Access,
    /// How long its device may take to appear.
    pub wait: Duration,
    /// What is demanded where it is in a file.
    pub if_file: IfFile,
}

/// An open image, and where it was found.
#[derive(Debug)]
pub struct Opened {
    /// Where it is.
    pub target: Target,
    /// The image.
    pub image: Image,
}

/// Finds the image that is called `name`, opens it, and checks that it is where other kernels look for it.
///
/// # Errors
/// [`TargetError`].
pub fn open(name: &ImageDevice, how: Opening) -> Result<Opened, TargetError> {
    opened(find(name, how.wait)?, how)
}

/// The image on a target that was found.
fn opened(target: Target, how: Opening) -> Result<Opened, TargetError> {
    let Opening { access, if_file, wait } = how;
    if target.kind == Kind::File && if_file == IfFile::Refuse {
        return Err(TargetError::Mounted { path: target.path });
    }
    let image = if target.is_remote() { target.open_remote(access, wait)? } else { target.open(access)? };
    if if_file == IfFile::Check {
        target.check(&image)?;
    }
    Ok(Opened { target, image })
}

impl Target {
    /// All of what is at `path`: a block device or a file; or of what a server exports.
    ///
    /// # Errors
    /// [`StoreError::Open`]; the text is not an export's.
    pub fn at(path: &Path) -> anyhow::Result<Target> {
        if let Some(text) = path.to_str().filter(|text| Remote::is_meant(text)) {
            return Ok(Target::of_remote(&text.parse()?));
        }
        Ok(Target::of_path(path)?)
    }

    /// The block device or file at `path`.
    ///
    /// # Errors
    /// [`StoreError::Open`].
    fn of_path(path: &Path) -> Result<Target, StoreError> {
        let failed = |source| StoreError::Open { name: path.display().to_string(), source };
        let kind = match std::fs::metadata(path).map_err(failed)?.file_type() {
            found if found.is_block_device() => Kind::Device,
            found if found.is_file() => Kind::File,
            _ => return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, NEITHER))),
        };
        Ok(Target::of_kind(path.to_owned(), kind))
    }

    /// The image in a file that begins at byte `offset` of a block device; all of the device, where that is 0.
    fn on_device(path: PathBuf, offset: u64) -> Target {
        Target::of_kind(path, if offset == 0 { Kind::Device } else { Kind::Extents(offset) })
    }

    /// What a server has.
    fn of_remote(remote: &Remote) -> Target {
        Target::of_kind(remote.to_string().into(), Kind::Remote(remote.clone()))
    }

    fn of_kind(path: PathBuf, kind: Kind) -> Target {
        Target { path, kind, mirror: Mirror::None }
    }

    /// Whether a server has it: then it is on no disk of this machine.
    #[must_use]
    pub fn is_remote(&self) -> bool {
        matches!(self.kind, Kind::Remote(_))
    }

    /// Whether it lies on two devices that hold the same, of which one is not here.
    #[must_use]
    pub fn lacks_a_leg(&self) -> bool {
        self.mirror == Mirror::Missing
    }

    /// Refuses one that lacks a leg, for whoever writes more than a state: the legs would hold different things.
    ///
    /// # Errors
    /// [`TargetError::NoLeg`].
    pub fn demand_all_legs(&self) -> Result<(), TargetError> {
        if self.lacks_a_leg() { Err(TargetError::NoLeg { target: self.clone().into() }) } else { Ok(()) }
    }

    /// Where it lies on disks, where something is put together of them under it.
    fn lay(&self) -> Result<Option<Lay>, TargetError> {
        let lay = match &self.kind {
            Kind::Device => Lay::of_device(&self.path),
            Kind::File => file::lay(&self.path),
            Kind::Extents(_) | Kind::Remote(_) => Ok(None),
        };
        lay.with_context(|| format!("image device {}", self.path.display())).map_err(TargetError::Moved)
    }

    /// The nodes of the disks and partitions that it lies on.
    fn legs(&self) -> Result<Vec<PathBuf>, TargetError> {
        if let Some(lay) = self.lay()? {
            return Ok(lay.legs);
        }
        let first = match &self.kind {
            Kind::Device | Kind::Extents(_) => self.path.clone(),
            Kind::File => file::block_device(&self.path).map_err(TargetError::Moved)?,
            Kind::Remote(_) => return Ok(Vec::new()),
        };
        let second = if let Mirror::At(path) = &self.mirror { Some(path.clone()) } else { None };
        Ok([Some(first), second].into_iter().flatten().collect())
    }

    /// Whether what lies on it is not encrypted by a layer that encrypts everything else there: it must be sealed.
    ///
    /// # Errors
    /// It lies in a way that cannot be followed.
    pub fn bypasses_encryption(&self) -> Result<bool, TargetError> {
        match &self.kind {
            Kind::Extents(_) => Ok(self.open(Access::Read)?.label().bypasses_encryption()),
            _ => Ok(self.lay()?.is_some_and(|lay| lay.bypasses_encryption())),
        }
    }

    /// The block device or the file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens its blocks, whatever is on them.
    ///
    /// # Errors
    /// As [`Disk::open_at`]; [`TargetError::Moved`] where it lies in a way that cannot be followed.
    pub fn blocks(&self, access: Access) -> Result<Disk, TargetError> {
        if let Some(lay) = self.lay()? {
            if self.kind == Kind::Device {
                // Nobody else may have it either, as with a partition.
                Disk::open(&self.path, access)?;
            }
            return Ok(lay.open(access)?);
        }
        let offset = match &self.kind {
            Kind::Extents(offset) => *offset,
            Kind::Remote(Remote::Nbd(export)) => return Ok(Disk::new(Nbd::open(export, access)?)),
            Kind::Remote(Remote::Nfs(file)) => return Ok(Disk::new(Nfs::open(file, access)?)),
            Kind::Device | Kind::File => return Ok(Disk::open(&self.path, access)?),
        };
        let open = |path: &PathBuf| stack::open_at(path, offset, access);
        Ok(stack::mirrored(&self.legs()?.iter().map(open).collect::<Result<Vec<_>, _>>()?))
    }

    /// Opens the image on it.
    ///
    /// # Errors
    /// Those of its blocks, and of [`Image::open`].
    pub fn open(&self, access: Access) -> Result<Image, TargetError> {
        let opened = self.blocks(access).and_then(|blocks| Ok(Image::open(blocks)?));
        opened.or_else(|error| self.open_as_device(access).ok_or(error))
    }

    /// Opens the image that a server has, which may not answer yet.
    fn open_remote(&self, access: Access, wait: Duration) -> Result<Image, TargetError> {
        let mut last = None;
        let found = wait_for(wait, || match self.open(access) {
            Err(error @ TargetError::Store(StoreError::Open { .. })) => {
                last = Some(error);
                None
            }
            result => Some(result),
        });
        match (found, last) {
            (Some(result), _) => result,
            (None, Some(error)) => Err(error),
            (None, None) => self.open(access),
        }
    }

    /// The image on it that was made for a device of another machine, which believes to have all of that: it is nothing
    /// but the content of the file or volume here.
    fn open_as_device(&self, access: Access) -> Option<Image> {
        if matches!(self.kind, Kind::Extents(_) | Kind::Remote(_)) || self.lay().is_ok_and(|lay| lay.is_none()) {
            return None;
        }
        let image = Image::open(Disk::open(&self.path, access).ok()?).ok()?;
        image.label().extents.is_empty().then_some(image)
    }

    /// What drives the disk that it is on, or the interface by which its server is reached: with that,
    /// [`Needs::of_drivers`] says what the initramfs of B and D must hold so that they reach it.
    ///
    /// # Errors
    /// They could not reach it.
    pub fn drivers(&self) -> anyhow::Result<Vec<Driver>> {
        if let Some(link) = self.link()? {
            let mut drivers = Driver::of_link(&link);
            if let Kind::Remote(Remote::Nfs(_)) = self.kind {
                drivers.extend(Nfs::MODULES.map(|name| Driver::IfThere(name.to_owned())));
            }
            return Ok(drivers);
        }
        let mut drivers = Vec::new();
        for leg in self.legs()? {
            let of_leg = Driver::of(&Hardware::of_node(&leg)?);
            drivers.extend(of_leg.into_iter().filter(|driver| !drivers.contains(driver)).collect::<Vec<_>>());
        }
        Ok(drivers)
    }

    /// Refuses a block device that B and D would not have, neither itself nor what it is put together of. Whether they
    /// have that under a file, [`Target::check`] tells.
    ///
    /// # Errors
    /// It cannot be followed to a disk.
    pub fn refuse_virtual(&self) -> Result<(), TargetError> {
        if self.kind == Kind::Device { self.lay().map(drop) } else { Ok(()) }
    }

    /// Sees to it that its image is where other kernels look for it: one in a file must still lie where its label says,
    /// and nowhere else. One on a device does not move.
    ///
    /// # Errors
    /// It does not, or not certainly.
    pub fn check(&self, image: &Image) -> Result<(), TargetError> {
        match &self.kind {
            Kind::Device | Kind::Extents(_) if image.label().stack.is_empty() => Ok(()),
            Kind::Device | Kind::Extents(_) => self.check_volume(image.label()).map_err(TargetError::Moved),
            Kind::File => file::check(&self.path, image).map_err(TargetError::Moved),
            Kind::Remote(_) => Ok(()),
        }
    }

    /// The same for one that is a whole volume, which lies on disks as its table says.
    fn check_volume(&self, label: &Label) -> anyhow::Result<()> {
        let about = || format!("image device {self}");
        let top = label.stack.first().with_context(about)?;
        if top.kind == LayerKind::Filesystem {
            return Err(anyhow::anyhow!(
                "it is in a file below layers, which only the file can be compared with: name the file's \
                 path in the policy"
            ))
            .with_context(about);
        }
        let device = if self.kind == Kind::Device { Some(self.path.clone()) } else { stack::device_of(top) };
        let device = device.with_context(|| format!("the layer {top} is not here")).with_context(about)?;
        let lay = Lay::of_device(&device).with_context(about)?;
        let difference = match lay {
            Some(lay) => lay.difference(label),
            None => Some(format!("{} is not put together any more", device.display())),
        };
        match difference {
            Some(difference) => Err(anyhow::anyhow!("{difference}; make it again: {}", self.how_to_make_again())),
            None => Ok(()),
        }
        .with_context(about)
    }

    /// Sees to it that a boot will find what has just been changed of its image. Where it was reached through a
    /// filesystem, that may have written the change elsewhere: to blocks of its own, where the file was cloned.
    ///
    /// # Errors
    /// As [`Target::check`].
    pub fn confirm(&self, image: &Image) -> Result<(), TargetError> {
        let context = "the change may not be where a boot looks for it: boot once with `noresume`";
        // A file that was made as a device is never looked for by a boot.
        match &self.kind {
            Kind::File if !image.label().extents.is_empty() => {
                file::check(&self.path, image).map_err(|error| TargetError::Moved(error.context(context)))
            }
            _ => Ok(()),
        }
    }

    /// As [`Target::check`], for an image whose data are about to be wiped: one that was made as a device in a file,
    /// for another machine, is nobody's whom a boot looks for.
    ///
    /// # Errors
    /// As [`Target::check`].
    pub fn check_for_wiping(&self, image: &Image) -> Result<(), TargetError> {
        if image.label().extents.is_empty() { Ok(()) } else { self.check(image) }
    }

    /// The name by which a policy of this machine is to know it: a file by its path, and a device by what is on it,
    /// which does not change with the device's name.
    ///
    /// # Errors
    /// It has no image, or its path cannot be written in a policy.
    pub fn policy_name(&self) -> anyhow::Result<ImageDevice> {
        let image = self.open(Access::Read)?;
        match &self.kind {
            Kind::Device | Kind::Extents(_) | Kind::Remote(_) => Ok(image.name()),
            Kind::File => Ok(self.path.display().to_string().parse()?),
        }
    }

    /// The command that makes it again, where what it holds is of no use.
    #[must_use]
    pub fn how_to_make_again(&self) -> String {
        let path = self.path.display();
        match &self.kind {
            Kind::Device | Kind::Extents(_) => format!("dormouse setup --device {path}"),
            Kind::File => format!("remove the file, then `dormouse setup --file {path}`"),
            Kind::Remote(Remote::Nbd(_)) => format!("dormouse image init {path}"),
            Kind::Remote(Remote::Nfs(_)) => format!("dormouse image create --size SIZE {path}"),
        }
    }
}

#[cfg(test)]
impl Target {
    /// All of a device, whatever is at `path`.
    pub(crate) fn device(path: &str) -> Target {
        Target::of_kind(path.into(), Kind::Device)
    }

    /// A file, whatever is at `path`.
    pub(crate) fn file(path: &str) -> Target {
        Target::of_kind(path.into(), Kind::File)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        if let Mirror::At(second) = &self.mirror {
            write!(f, " and {}", second.display())?;
        }
        if let Kind::Extents(offset) = self.kind { write!(f, " (from byte {offset} on)") } else { Ok(()) }
    }
}

/// The layers under a file or a volume, from the top down, or under one that is to be made at `path`: none on a disk or
/// partition itself.
///
/// # Errors
/// They cannot be followed.
pub fn layers_under(path: &Path) -> anyhow::Result<Vec<Layer>> {
    let lay = match path.ancestors().find(|path| path.exists()) {
        Some(directory) if directory.is_dir() => file::lay_of_directory(directory)?,
        _ => Target::at(path)?.lay()?,
    };
    Ok(lay.map(|lay| lay.layers).unwrap_or_default())
}

/// What to do where nothing that is called `name` is found.
#[must_use]
pub fn how_to_get(name: &ImageDevice) -> String {
    match name {
        ImageDevice::File(path) => format!("dormouse setup --file {}", path.display()),
        ImageDevice::Remote(Remote::Nfs(file)) => format!("dormouse image create --size SIZE {file}"),
        ImageDevice::Remote(export) => {
            format!("see to it that the server exports it, then `dormouse image init {export}`")
        }
        device => format!("attach {device}, or name another with `dormouse setup`"),
    }
}

/// The name by which kernels that mount nothing find the target that a policy calls `name`: the UUID of the image in
/// place of the path of a device, which may be another there, and also its place on the disk where it is in a file. A
/// device that carries no image yet, and one that has a name of its own, keep their name.
///
/// # Errors
/// A file that does not exist, or that no boot would find.
pub fn boot_name(name: &ImageDevice) -> Result<ImageDevice, TargetError> {
    if !is_renamed(name) {
        return Ok(name.clone());
    }
    let Some(target) = resolve(name)? else { return Ok(name.clone()) };
    match (&target.kind, target.open(Access::Read)) {
        (Kind::File, image) => {
            let image = image?;
            target.check(&image)?;
            Ok(image.name())
        }
        (_, image) => Ok(image.map_or_else(|_| name.clone(), |image| image.name())),
    }
}

/// Whether [`boot_name`] has another name for it, which it takes from the image: an image that is made again is not
/// found by that.
#[must_use]
pub fn is_renamed(name: &ImageDevice) -> bool {
    matches!(name, ImageDevice::Path(_) | ImageDevice::File(_))
}

/// The label of a new image that lies in `extents`, or has a whole device where there are none.
fn new_label(extents: Vec<DiskExtent>) -> anyhow::Result<Label> {
    Ok(Label {
        uuid: procfs::random().map(Uuid::from_random)?,
        created_unix: procfs::now_unix(),
        extents,
        mirror: None,
        stack: Vec::new(),
    })
}

#[cfg(test)]
mod tests;
