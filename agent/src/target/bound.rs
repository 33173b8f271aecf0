//! The search that is bound to a disk: what a boot reads into memory must come from the disk that the image was put on,
//! not from whichever has the image's name and turns up first.
//!
//! ```text
//!   the disk that is recorded, with a mark of its own, is there   it is taken at once, others are named
//!   it is not                                                     it is waited for; what else has the name is refused
//!   it is recorded without a mark, or none is recorded            the one that has the name when all have turned up
//! ```

use std::time::Duration;

use dormouse_image::ImageDevice;
use dormouse_linux::block::{self, Settling};
use dormouse_linux::disk::{DiskIdentity, Likeness};
use dormouse_linux::wait::wait_for;

use crate::store::Access;
use crate::target::find::{all, find};
use crate::target::{Opened, Opening, Target, TargetError, opened, resolve};

/// A target that has the name, and its disk where that is known.
#[derive(Debug, Clone)]
struct Candidate {
    target: Target,
    disk: Option<DiskIdentity>,
}

/// What a look at the candidates decides.
#[derive(Debug)]
enum Choice {
    /// It is this one, and these are not.
    This(Target, Vec<Candidate>),
    /// It is this one if nothing else turns up.
    Perhaps(Target, Vec<Candidate>),
    /// Several could be meant.
    Several(Target, Target),
    /// None is meant, these are not.
    None(Vec<Candidate>),
}

/// Whether another device of the same name may still turn up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Others {
    /// All devices are waited for.
    MayTurnUp,
    /// They have been waited for a moment ago, and two of one name would have been refused.
    WereWaitedFor,
}

/// As [`super::open`], bound to the disk that is recorded, in a kernel that mounts nothing.
///
/// # Errors
/// [`TargetError::OtherDisk`] where only another disk has the name; those of [`super::open`].
pub fn open_on(name: &ImageDevice, disk: Option<&DiskIdentity>, how: Opening) -> Result<Opened, TargetError> {
    opened(find_on(name, disk, how.wait, Others::MayTurnUp)?, how)
}

/// The same where all devices have been waited for a moment ago: by the kernel before B or D, or by a D that C has not
/// started when it decided.
///
/// # Errors
/// As [`open_on`].
pub fn open_again(name: &ImageDevice, disk: Option<&DiskIdentity>, how: Opening) -> Result<Opened, TargetError> {
    opened(find_on(name, disk, how.wait, Others::WereWaitedFor)?, how)
}

fn find_on(
    name: &ImageDevice,
    disk: Option<&DiskIdentity>,
    wait: Duration,
    turn_up: Others,
) -> Result<Target, TargetError> {
    let is_one = disk.is_none() && matches!(name, ImageDevice::Path(_) | ImageDevice::File(_));
    if is_one || name.is_remote() {
        // A path names one thing, and what a server has is on no disk of this machine.
        return find(name, wait);
    }
    let mut settling: Option<Settling> = None;
    let mut last = Choice::None(Vec::new());
    let found = wait_for(wait, || {
        last = match all(name) {
            Ok(targets) => choose(disk, targets.into_iter().map(Candidate::new).collect()),
            Err(error) => return Some(Err(error)),
        };
        match &last {
            // The other leg may be on its way, and may know better.
            Choice::This(target, _) | Choice::Perhaps(target, _) if target.lacks_a_leg() => None,
            Choice::This(target, others) => Some(Ok((target.clone(), others.clone()))),
            Choice::Perhaps(target, others) => {
                let mut is_over = || settling.get_or_insert_with(Settling::begin).is_over();
                (turn_up == Others::WereWaitedFor || is_over()).then(|| Ok((target.clone(), others.clone())))
            }
            // Waiting makes none of them go away.
            Choice::Several(first, second) => {
                let (first, second) = (first.clone(), second.clone());
                Some(Err(TargetError::Ambiguous { name: name.clone(), first: first.into(), second: second.into() }))
            }
            Choice::None(_) => None,
        }
    });
    let (target, others) = match (found, last) {
        (Some(result), _) => result?,
        // Something is on its way for as long as was to be waited.
        (None, Choice::This(target, others) | Choice::Perhaps(target, others)) => (target, others),
        (None, Choice::Several(first, second)) => {
            return Err(TargetError::Ambiguous { name: name.clone(), first: first.into(), second: second.into() });
        }
        (None, Choice::None(others)) => {
            let other = others.into_iter().next().zip(disk).map(|(other, disk)| other.refused(name, disk));
            let not_found = || TargetError::NotFound { name: name.clone(), seconds: wait.as_secs() };
            return Err(other.unwrap_or_else(not_found));
        }
    };
    for other in others {
        disk.iter().for_each(|disk| log::warn!("{}", other.clone().refused(name, disk)));
    }
    Ok(target)
}

fn choose(disk: Option<&DiskIdentity>, candidates: Vec<Candidate>) -> Choice {
    let (mut same, mut possible, mut others) = (Vec::new(), Vec::new(), Vec::new());
    for candidate in candidates {
        let likeness = match (disk, &candidate.disk) {
            (None, _) => Likeness::Possible,
            (Some(disk), Some(found)) => disk.likeness(found),
            (Some(_), None) => Likeness::Other,
        };
        match likeness {
            Likeness::Same => same.push(candidate),
            Likeness::Possible => possible.push(candidate),
            Likeness::Other => others.push(candidate),
        }
    }
    let is_certain = !same.is_empty();
    let mut meant = if is_certain { same } else { possible }.into_iter();
    match (meant.next(), meant.next()) {
        (None, _) => Choice::None(others),
        (Some(first), Some(second)) => Choice::Several(first.target, second.target),
        (Some(only), None) if is_certain => Choice::This(only.target, others),
        (Some(only), None) => Choice::Perhaps(only.target, others),
    }
}

impl Candidate {
    fn new(target: Target) -> Candidate {
        let disk = target.disk();
        Candidate { target, disk }
    }

    fn refused(self, name: &ImageDevice, disk: &DiskIdentity) -> TargetError {
        let found = self.disk.map_or_else(|| "nothing that is known of".to_owned(), |found| found.to_string());
        TargetError::OtherDisk { name: name.clone(), target: self.target.into(), found, recorded: disk.to_string() }
    }
}

impl Target {
    /// The disk that it lies on; `None` where that cannot be found out.
    #[must_use]
    pub fn disk(&self) -> Option<DiskIdentity> {
        let legs = self.legs().ok()?;
        let mut disks = legs.iter().map(|leg| block::disk_of(leg));
        let first = disks.next()??;
        disks.next().map_or(Some(first.clone()), |second| Some(first.with_mirror(second?)))
    }
}

/// The disk that the image called `name` lies on now, for a policy that is carried into an initramfs; `None` where no
/// image is there, or its disk cannot be found out.
#[must_use]
pub fn disk_of(name: &ImageDevice) -> Option<DiskIdentity> {
    if name.is_remote() {
        return None;
    }
    let target = resolve(name).ok()??;
    target.open(Access::Read).ok()?;
    // What lies on something that is put together is reached by another way where nothing is.
    target.disk().filter(DiskIdentity::is_known)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::target::IfFile;

    fn disk(text: &str) -> Option<DiskIdentity> {
        (!text.is_empty()).then(|| text.parse().unwrap())
    }

    /// The choice in short, where each candidate is a path and its disk.
    fn chosen(recorded: &str, candidates: &[(&str, &str)]) -> String {
        let list = candidates.iter().map(|(path, text)| Candidate { target: Target::device(path), disk: disk(text) });
        let names = |list: &[Candidate]| list.iter().map(|one| format!(", not {}", one.target)).collect::<String>();
        match choose(disk(recorded).as_ref(), list.collect()) {
            Choice::This(target, others) => format!("{target}{}", names(&others)),
            Choice::Perhaps(target, others) => format!("{target}?{}", names(&others)),
            Choice::Several(first, second) => format!("{first} or {second}"),
            Choice::None(others) => format!("none{}", names(&others)),
        }
    }

    #[test]
    fn the_recorded_disk_wins_over_a_clone() {
        let (own, clone) = (("/dev/sdb", "usb serial=own"), ("/dev/sda", "usb serial=clone"));
        assert_eq!(chosen("usb serial=own", &[clone, own]), "/dev/sdb, not /dev/sda");
        assert_eq!(chosen("usb serial=own", &[clone]), "none, not /dev/sda");
        assert_eq!(chosen("usb serial=own", &[("/dev/sda", "")]), "none, not /dev/sda");
        assert_eq!(chosen("usb serial=own", &[]), "none");
        // A stick whose maker gives all of them one number.
        assert_eq!(chosen("usb serial=own", &[own, ("/dev/sdc", "usb serial=own")]), "/dev/sdb or /dev/sdc");
    }

    #[test]
    fn a_disk_without_a_mark_is_taken_when_nothing_else_turns_up() {
        let (own, stick) = (("/dev/vda", "virtio"), ("/dev/sda", "usb serial=1"));
        assert_eq!(chosen("virtio", &[stick, own]), "/dev/vda?, not /dev/sda");
        assert_eq!(chosen("virtio", &[own, ("/dev/vdb", "virtio")]), "/dev/vda or /dev/vdb");
        assert_eq!(chosen("", &[own]), "/dev/vda?");
        assert_eq!(chosen("", &[own, stick]), "/dev/vda or /dev/sda");
        assert_eq!(chosen("virtio", &[stick]), "none, not /dev/sda");
    }

    #[test]
    fn a_file_is_no_disk() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let name = ImageDevice::Path(file.path().to_owned());
        assert_eq!(disk_of(&name), None);
        let recorded = disk("nvme serial=1");
        let error = find_on(&name, recorded.as_ref(), Duration::from_millis(10), Others::MayTurnUp).unwrap_err();
        assert!(matches!(error, TargetError::OtherDisk { .. }), "{error}");
        assert!(find_on(&name, None, Duration::ZERO, Others::MayTurnUp).is_ok());
    }

    #[test]
    fn refuses_a_file_where_none_may_be_mounted() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let name = ImageDevice::File(file.path().to_owned());
        let how = Opening { access: Access::Read, wait: Duration::ZERO, if_file: IfFile::Refuse };
        assert!(matches!(open_on(&name, None, how), Err(TargetError::Mounted { .. })));
    }
}
