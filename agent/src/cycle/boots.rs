//! What the hooks have put into the initramfs of each kernel: a stamp for each, written when a hook has put everything
//! into it, and removed when it begins.
//!
//! A system whose initramfs is made by hand has no stamps, and no directory for them.

use std::path::{Component, Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use std::{fmt, fs, io};

use dormouse_linux::atomic_file::replace;
use dormouse_linux::{kernels, procfs};
use nix::sys::statfs::{MSDOS_SUPER_MAGIC, statfs};
use serde::{Deserialize, Serialize};

use crate::cycle::evidence::NoEvidence;
use crate::policy::Policy;
use crate::target::{self, TargetError};

/// Where the stamps are, one for each kernel, below the root.
const DIRECTORY: &str = "var/lib/dormouse/boots";
/// A stamp and the initramfs that it is about may lie on filesystems that count time differently.
const COARSE: Duration = Duration::from_secs(2);
/// What a tool takes at most, after the hook, to finish the initramfs.
const BUILD: Duration = Duration::from_secs(3600);

/// What a hook has put into the initramfs of a kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// The name of the image in it, and the link by which its server is reached.
    pub image: String,
    /// The digest of what of the policy decides about a resume.
    pub policy: String,
    /// The version of Dormouse.
    pub version: String,
    /// When, in seconds since 1970.
    pub at_unix: u64,
}

/// A kernel that may boot next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    release: String,
    stamp: Option<Stamp>,
    /// When its initramfs was written, where that is known.
    built: Option<SystemTime>,
}

/// What is wrong with the initramfs of a kernel, as a clause.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// No hook has put Dormouse into it, or one has failed.
    NoStamp,
    /// It was built for another policy.
    OtherPolicy {
        /// The image that it looks for.
        image: String,
    },
    /// The hook has run, and the initramfs was not finished.
    NotFinished,
    /// It was built again, and no hook has run.
    Replaced,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::NoStamp => f.write_str("does not look for an image: no hook of Dormouse's was at work in it"),
            Fault::OtherPolicy { image } => write!(f, "was built for another policy: it looks for {image}"),
            Fault::NotFinished => f.write_str("is older than what Dormouse's hook has put together for it"),
            Fault::Replaced => f.write_str("was built again since, without Dormouse's hook"),
        }
    }
}

/// The policy as an initramfs carries it, where no filesystem is mounted and devices may have other names: bound to
/// the disk that the image lies on now, or the link by which its server is reached now.
///
/// # Errors
/// The image is in a file that does not exist, or that no boot would find.
pub fn carried_policy(policy: &Policy) -> Result<Policy, TargetError> {
    let mut policy = policy.clone();
    policy.image.disk = policy.image.disk.or_else(|| target::disk_of(&policy.image.device));
    policy.image.link = policy.image.link.or_else(|| target::link_to(&policy.image.device).ok().flatten());
    policy.image.device = target::boot_name(&policy.image.device)?;
    Ok(policy)
}

/// A digest of what of a policy decides whether a boot finds and resumes the image; the policy is as it is in the
/// running system. Where the image cannot be found, it fits no stamp.
#[must_use]
pub fn digest(policy: &Policy) -> String {
    carried_policy(policy).map_or_else(|_| String::new(), |policy| digest_of_carried(&policy))
}

fn digest_of_carried(policy: &Policy) -> String {
    let image = &policy.image;
    let mut text =
        format!("{}\n{:?}\n{:?}\n{:?}\n{:?}", image.device, image.disk, image.wait, image.key, policy.resume);
    if image.device.is_remote() {
        text.push_str(&format!("\n{:?}\n{}", image.link, image.trust_server));
    }
    format!("{:016x}", dormouse_image::checksum(text.as_bytes()))
}

fn place(root: &Path, release: &str) -> io::Result<PathBuf> {
    match Path::new(release).components().collect::<Vec<_>>().as_slice() {
        [Component::Normal(_)] => Ok(root.join(DIRECTORY).join(release)),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "not a kernel's release")),
    }
}

/// Writes the stamp of a kernel in whose initramfs this policy is, as [`carried_policy`] has it.
///
/// # Errors
/// It cannot be written.
pub fn write(root: &Path, release: &str, carried: &Policy) -> io::Result<()> {
    let device = carried.image.device.to_string();
    let stamp = Stamp {
        image: match &carried.image.link {
            Some(link) if carried.image.device.is_remote() => format!("{device}, which is reached by {link}"),
            _ => device,
        },
        policy: digest_of_carried(carried),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        at_unix: procfs::now_unix(),
    };
    replace(&place(root, release)?, &serde_json::to_vec(&stamp).map_err(io::Error::other)?, 0o644)
}

/// Removes the stamp of a kernel, and notes that hooks are in use: there is a directory for stamps from now on.
///
/// # Errors
/// The release is not one, or something cannot be written.
pub fn remove(root: &Path, release: &str) -> io::Result<()> {
    fs::create_dir_all(root.join(DIRECTORY))?;
    match fs::remove_file(place(root, release)?) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// What an error about the stamp of a kernel begins with.
#[must_use]
pub fn about(release: &str) -> String {
    format!("/{DIRECTORY}/{release}")
}

/// Whatever is known of the kernels that may boot next; `None` where no hooks are in use.
#[must_use]
pub fn read(root: &Path) -> Option<Vec<Kernel>> {
    root.join(DIRECTORY)
        .is_dir()
        .then(|| kernels::next(root).into_iter().map(|release| kernel(root, release)).collect())
}

fn kernel(root: &Path, release: String) -> Kernel {
    let stamp = place(root, &release).and_then(fs::read).ok();
    let stamp = stamp.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    // FAT has local times, and what they mean changes with the time zone.
    let is_exact = |path: &PathBuf| statfs(path).is_ok_and(|found| found.filesystem_type() != MSDOS_SUPER_MAGIC);
    let initramfs = kernels::initramfs_of(root, &release).filter(is_exact);
    let built = initramfs.and_then(|path| fs::metadata(path).ok()?.modified().ok());
    Kernel { release, stamp, built }
}

/// What is wrong with their initramfs, of each one thing; `digest` is the policy's.
#[must_use]
pub fn judge(kernels: &[Kernel], digest: &str) -> Vec<NoEvidence> {
    let fault = |kernel: &Kernel| {
        let Some(stamp) = &kernel.stamp else { return Some(Fault::NoStamp) };
        let at = UNIX_EPOCH.checked_add(Duration::from_secs(stamp.at_unix))?;
        match kernel.built {
            _ if stamp.policy != digest => Some(Fault::OtherPolicy { image: stamp.image.clone() }),
            Some(built) if built + COARSE < at => Some(Fault::NotFinished),
            Some(built) if built > at + BUILD => Some(Fault::Replaced),
            _ => None,
        }
    };
    let of_kernel =
        |kernel: &Kernel| fault(kernel).map(|fault| NoEvidence::Kernel { release: kernel.release.clone(), fault });
    kernels.iter().filter_map(of_kernel).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;

    const UUID: &str = "UUID=01234567-89ab-cdef-0123-456789abcdef";

    fn policy(more: &str) -> Policy {
        Policy::parse("a policy", &format!("[image]\ndevice = \"{UUID}\"\n{more}")).unwrap()
    }

    fn faults(root: &Path, policy: &Policy) -> Vec<String> {
        judge(&read(root).unwrap(), &digest(policy)).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn every_kernel_that_may_boot_needs_a_stamp_of_this_policy() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        assert_eq!(read(root), None);
        fs::create_dir_all(root.join("boot")).unwrap();
        for release in ["6.1.0-30-amd64", "6.12.117"] {
            fs::write(root.join(format!("boot/vmlinuz-{release}")), "").unwrap();
        }
        write(root, "6.12.117", &policy("")).unwrap();
        let none = "Linux 6.1.0-30-amd64 may boot next, and its initramfs does not look for an image: no hook of \
                    Dormouse's was at work in it";
        assert_eq!(faults(root, &policy("")), [none]);
        write(root, "6.1.0-30-amd64", &policy("")).unwrap();
        assert!(faults(root, &policy("")).is_empty());
        // What does not decide about a resume may change; what does may not.
        assert!(faults(root, &policy("[save]\nlevel = 3\n")).is_empty());
        assert_eq!(faults(root, &policy("key = \"file\"\n")).len(), 2);
        let other = faults(root, &policy("[resume]\nmismatch = \"keep\"\n"));
        assert!(other.len() == 2 && other[0].contains(&format!("it looks for {UUID}")), "{other:?}");
        fs::write(place(root, "6.12.117").unwrap(), "nonsense").unwrap();
        assert_eq!(faults(root, &policy("")).len(), 1);
        remove(root, "6.1.0-30-amd64").unwrap();
        remove(root, "6.1.0-30-amd64").unwrap();
        assert_eq!(faults(root, &policy("")).len(), 2);
        assert!(write(root, "../x", &policy("")).is_err() && remove(root, "..").is_err());
    }

    #[test]
    fn rejects_an_initramfs_of_another_time() {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let fault = |built| {
            let digest = digest(&policy(""));
            let stamp = Stamp { image: UUID.into(), policy: digest.clone(), version: "1".into(), at_unix: 100_000 };
            let kernel = Kernel { release: "6.12".into(), stamp: Some(stamp), built };
            judge(&[kernel], &digest).pop().map(|found| match found {
                NoEvidence::Kernel { fault, .. } => fault,
                other => panic!("{other}"),
            })
        };
        assert_eq!(fault(None), None);
        assert_eq!(fault(Some(at(99_999))), None);
        assert_eq!(fault(Some(at(100_900))), None);
        assert_eq!(fault(Some(at(99_000))), Some(Fault::NotFinished));
        assert_eq!(fault(Some(at(200_000))), Some(Fault::Replaced));
    }
}
