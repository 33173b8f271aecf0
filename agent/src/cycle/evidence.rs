//! What shows that the next boot will find the image: what this boot has found, and what the initramfs of each kernel
//! that may boot next was built for.
//!
//! That a boot has looked proves little. It may have looked for another image, or in vain, and by now its initramfs may
//! have been built again without the hook.

use std::path::Path;
use std::time::Duration;

use dormouse_image::{ImageDevice, State, VERSION};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::console::phase::Phase;
use crate::cycle::boots::{self, Fault};
use crate::cycle::last::Last;
use crate::cycle::look::{self, KeySeen, Unlocked};
use crate::cycle::refusal::{Complaint, Refusal};
use crate::machine::microcode;
use crate::policy::{Policy, Then};
use crate::store::{Access, Image, StoreError};
use crate::target::{self, Opened, TargetError};

/// What `dormouse resume` found in the initramfs of this boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// The name of the image in the policy of that initramfs.
    pub looked_for: String,
    /// Whether exactly one device or file has that name, and could be looked at.
    pub is_found: bool,
    /// The image on it, by the name by which any boot finds it; `None` where there was none.
    pub image: Option<String>,
    /// The state of that image then.
    pub state: Option<String>,
    /// Whether that policy resumes at all.
    pub is_enabled: bool,
    /// The major version of the image format that this initramfs reads.
    pub format: u16,
    /// The version of Dormouse in it.
    pub version: String,
    /// What the look at the end of the unlocking has found; `None` where there was none.
    #[serde(default)]
    pub unlocked: Option<Unlocked>,
    /// The revision of the CPU's microcode then; 0 where there is none, or it was not recorded.
    #[serde(default)]
    pub microcode: u32,
}

impl Found {
    /// What is known before anything was looked for.
    pub(crate) fn nothing_yet(policy: &Policy) -> Found {
        Found {
            looked_for: policy.image.device.to_string(),
            is_found: false,
            image: None,
            state: None,
            is_enabled: policy.resume.enabled,
            format: VERSION.major,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            unlocked: None,
            microcode: microcode::revision(),
        }
    }

    /// Adds what looking for the image came to.
    pub(crate) fn look(&mut self, result: &Result<Opened, TargetError>) {
        match result {
            Ok(Opened { image, .. }) => {
                self.is_found = true;
                self.image = Some(image.name().to_string());
                self.state = Some(image.commit().state.to_string());
            }
            // The place is the right one, whatever is on it.
            Err(TargetError::Store(error)) => {
                self.is_found = !matches!(error, StoreError::Busy { .. } | StoreError::Open { .. });
            }
            Err(_) => {}
        }
    }

    /// A boot that has resumed a session from `image` has found it, whatever the boot of that session had found before;
    /// and its key, which is at these `places` where it is in a file. It had at least the microcode that the session
    /// had, and the CPU has it still: `microcode`.
    #[must_use]
    fn resumed(mut self, image: &ImageDevice, places: Vec<String>, microcode: u32) -> Found {
        self.is_found = true;
        self.image = Some(image.to_string());
        self.state = Some(State::Consumed.to_string());
        self.microcode = microcode;
        let unlocked = self.unlocked.get_or_insert_default();
        if !places.is_empty() {
            unlocked.key = KeySeen::Read(places);
        }
        self
    }
}

/// The image that the policy names, as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Now {
    /// The name by which any boot finds it.
    image: String,
    /// Whether the name by which this boot looked leads to it now.
    is_where_it_looked: bool,
    /// Where its key is, if only a boot that has unlocked its volumes resumes it.
    key_places: Option<Vec<String>>,
    /// The revision of the CPU's microcode.
    microcode: u32,
}

impl Now {
    /// Looks where this boot has looked.
    #[must_use]
    pub fn read(policy: &Policy, image: &Image, last: Option<&Last>) -> Now {
        let name = image.name();
        let looked_for = last.and_then(|last| last.found.as_ref()?.looked_for.parse().ok());
        let is_where_it_looked = looked_for.is_some_and(|looked_for: ImageDevice| {
            let target = target::resolve(&looked_for).ok().flatten();
            let found = target.and_then(|target| target.open(Access::Read).ok());
            found.is_some_and(|found| found.name() == name)
        });
        let key_places = look::needs_unlock(policy, image).then(|| look::key_places(image));
        Now { image: name.to_string(), is_where_it_looked, key_places, microcode: microcode::revision() }
    }
}

/// Why nothing shows that the next boot will resume.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum NoEvidence {
    /// This boot's `dormouse resume` was an older one.
    #[error("this boot's initramfs has another Dormouse in it, which does not report what it finds")]
    NotReported,
    /// It looked in vain.
    #[error("this boot has looked for {looked_for} without finding it, and the next one may not find it either")]
    NotFound {
        /// The image's name in the boot's policy.
        looked_for: String,
    },
    /// It found another image.
    #[error("this boot has looked for {looked_for}, which is not the image that the policy names now ({image})")]
    Another {
        /// The image's name in the boot's policy.
        looked_for: String,
        /// The policy's image.
        image: String,
    },
    /// The policy in the initramfs forbids it.
    #[error("the policy in this boot's initramfs never resumes (resume.enabled = false)")]
    Disabled,
    /// It could not read what is about to be written.
    #[error("this boot's initramfs reads images of format {format}, and this Dormouse writes {VERSION}")]
    Format {
        /// The major version.
        format: u16,
    },
    /// It has not looked again when the volumes were unlocked.
    #[error("this boot has not looked again after it has unlocked its volumes, and the key of the image is in one")]
    NotUnlocked,
    /// It could not read the key.
    #[error("this boot could not read the key of the image when its volumes were unlocked: {0}")]
    NoKey(String),
    /// The microcode was loaded into a running system.
    #[error(
        "this boot's initramfs had revision {boot:#x} of the CPU's microcode, and the CPU has {now:#x} now: the next \
         boot, with the older one, would not resume"
    )]
    Microcode {
        /// In the initramfs.
        boot: u32,
        /// Now.
        now: u32,
    },
    /// The initramfs of a kernel that may boot next would not do.
    #[error("Linux {release} may boot next, and its initramfs {fault}")]
    Kernel {
        /// The kernel's release.
        release: String,
        /// What is wrong.
        fault: Fault,
    },
}

impl Refusal for NoEvidence {
    /// Those of the doctor's checks of the same things.
    fn id(&self) -> &'static str {
        if matches!(self, NoEvidence::Kernel { .. }) { "next-boot" } else { "boot-evidence" }
    }

    fn remedy(&self) -> Option<String> {
        let remedy = match self {
            NoEvidence::NotFound { .. } => {
                "reboot once, if the device or its server was only away at this boot; otherwise build the boot's \
                 initramfs again, as `dormouse setup` does, or give the device more time (image.wait), and reboot \
                 once; or use --trust-boot if you know that it will be found"
            }
            NoEvidence::NotUnlocked => {
                "build the boot's initramfs again, as `dormouse setup` does, and reboot once; mkinitcpio without \
                 systemd needs `dormouse` after `encrypt` and `lvm2` among its HOOKS"
            }
            NoEvidence::NoKey(_) => {
                "see that the boot's initramfs opens the volume that the key is in (`dormouse key list` names it), and \
                 reboot once"
            }
            NoEvidence::Microcode { .. } => {
                "have the boot's initramfs load it (packages intel-microcode, amd64-microcode), and reboot once; or \
                 use --trust-boot if the next boot does so already"
            }
            NoEvidence::Kernel { .. } => {
                "build it again (`dormouse doctor` has the command), remove a kernel that is not used, or use \
                 --trust-boot if you know which one boots"
            }
            _ => {
                "build the boot's initramfs again, as `dormouse setup` does, and reboot once; or use --trust-boot if \
                 you know that it looks for this image"
            }
        };
        Some(remedy.to_owned())
    }
}

/// What is missing in what this boot has found. A boot that has not looked at all is
/// [`refusal::in_boot`](crate::cycle::refusal::in_boot)'s.
///
/// # Errors
/// What is missing.
pub fn of_boot(last: &Last, now: &Now) -> Result<(), NoEvidence> {
    let found = last.found.as_ref().ok_or(NoEvidence::NotReported)?;
    let looked_for = found.looked_for.clone();
    // An image that was made since has another UUID. A boot that looks by the name of its place finds that one too.
    let is_same = found.image.as_deref() == Some(&now.image);
    match found {
        Found { format, .. } if *format != VERSION.major => Err(NoEvidence::Format { format: *format }),
        Found { is_found: false, .. } => Err(NoEvidence::NotFound { looked_for }),
        Found { is_enabled: false, .. } => Err(NoEvidence::Disabled),
        // Loaded late, through sysfs: what else changes it in a running system?
        Found { microcode, .. } if *microcode != 0 && *microcode < now.microcode => {
            Err(NoEvidence::Microcode { boot: *microcode, now: now.microcode })
        }
        _ if !is_same && !now.is_where_it_looked => Err(NoEvidence::Another { looked_for, image: now.image.clone() }),
        _ => now.key_places.as_ref().map_or(Ok(()), |places| of_unlock(found.unlocked.as_ref(), places)),
    }
}

/// What is missing in what a boot has found when its volumes were unlocked, where the key is at these `places`.
fn of_unlock(unlocked: Option<&Unlocked>, places: &[String]) -> Result<(), NoEvidence> {
    match unlocked.map(|unlocked| &unlocked.key) {
        None => Err(NoEvidence::NotUnlocked),
        Some(KeySeen::Read(read)) if !places.is_empty() && places.iter().all(|place| read.contains(place)) => Ok(()),
        Some(KeySeen::Missing(why)) => Err(NoEvidence::NoKey(why.clone())),
        Some(KeySeen::Read(_) | KeySeen::NotNeeded) => {
            Err(NoEvidence::NoKey("the key was made, or has moved, since".to_owned()))
        }
    }
}

/// Demands all of it before a hibernation whose end needs a next boot.
///
/// # Errors
/// [`NoEvidence`].
pub(super) fn demand(policy: &Policy, image: &Image, then: Then, is_trusted: bool) -> Result<(), NoEvidence> {
    let last = Last::resume_of_this_boot();
    let Some(last) = last.filter(|_| then != Then::Return && !is_trusted) else { return Ok(()) };
    of_boot(&last, &Now::read(policy, image, Some(&last)))?;
    match boots::read(Path::new("/")) {
        Some(kernels) => boots::judge(&kernels, &boots::digest(policy)).first().cloned().map_or(Ok(()), Err),
        None => Ok(()),
    }
}

/// Records for the next hibernation that a boot has found the image and resumed from it.
pub(super) fn record_resumed(policy: &Policy, image: &ImageDevice) {
    let Some(mut last) = Last::resume_of_this_boot() else { return };
    let places = self::image(policy).map_or_else(Vec::new, |image| look::key_places(&image));
    last.found = last.found.map(|found| found.resumed(image, places, microcode::revision()));
    last.write_again();
}

/// What a look finds that is made when the volumes are unlocked.
pub(super) fn unlocked(policy: &Policy) -> Unlocked {
    Unlocked::read(policy, image(policy).as_ref())
}

/// The image that the policy names, where it is there.
fn image(policy: &Policy) -> Option<Image> {
    target::find(&policy.image.device, Duration::ZERO).ok()?.open(Access::Read).ok()
}

/// Adds to what the first look of this boot has recorded whether a second one could have resumed an image.
pub(super) fn record_unlocked(policy: &Policy, mut first: Last) {
    let unlocked = unlocked(policy);
    log::info!("{}: looked again, after the unlock", Phase::ResumeCheck);
    first.found = first.found.map(|found| Found { unlocked: Some(unlocked), ..found });
    first.write_again();
}

/// A complaint about a boot that found nothing, for the record.
pub(crate) fn record(result: Result<(&'static str, String), Complaint>, found: Found) {
    let (id, text) = result.unwrap_or_else(|complaint| (complaint.id_or("failed"), complaint.to_string()));
    Last::record_resume(id, &text, found);
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::cycle::last::Event;

    /// One of each kind.
    pub(crate) fn samples() -> Vec<NoEvidence> {
        let looked_for = || "UUID=a".to_owned();
        vec![
            NoEvidence::NotReported,
            NoEvidence::NotFound { looked_for: looked_for() },
            NoEvidence::Another { looked_for: looked_for(), image: "UUID=b".into() },
            NoEvidence::Disabled,
            NoEvidence::Format { format: 2 },
            NoEvidence::NotUnlocked,
            NoEvidence::NoKey("/dev/mapper/root: missing".into()),
            NoEvidence::Microcode { boot: 1, now: 2 },
            NoEvidence::Kernel { release: "6.12".into(), fault: Fault::NoStamp },
        ]
    }

    fn found() -> Found {
        Found {
            looked_for: "UUID=a".into(),
            is_found: true,
            image: Some("UUID=a".into()),
            state: Some("empty".into()),
            is_enabled: true,
            format: VERSION.major,
            version: "1".into(),
            unlocked: None,
            microcode: 0xf4,
        }
    }

    fn judged(change: impl FnOnce(&mut Found), now: (&str, bool)) -> Result<(), NoEvidence> {
        let mut found = found();
        change(&mut found);
        let last = Last::new(Event::Resume, "no-image", "", None, Some(found));
        of_boot(&last, &Now { image: now.0.to_owned(), is_where_it_looked: now.1, key_places: None, microcode: 0xf4 })
    }

    #[test]
    fn demands_a_look_with_the_key_where_it_is_in_a_volume() {
        let judged = |unlocked| {
            let found = Found { unlocked, ..found() };
            let last = Last::new(Event::Resume, "no-image", "", None, Some(found));
            of_boot(
                &last,
                &Now {
                    image: "UUID=a".into(),
                    is_where_it_looked: true,
                    key_places: Some(vec!["dm:x@1,2".into()]),
                    microcode: 0xf4,
                },
            )
        };
        let saw = |key| judged(Some(Unlocked { mounted: Vec::new(), key }));
        assert_eq!(judged(None), Err(NoEvidence::NotUnlocked));
        assert_eq!(saw(KeySeen::Missing("missing".into())), Err(NoEvidence::NoKey("missing".into())));
        assert_eq!(saw(KeySeen::Read(vec!["dm:x@1,2".into()])), Ok(()));
        // It was added, or added again, since this boot.
        for key in [KeySeen::NotNeeded, KeySeen::Read(vec!["dm:x@5,2".into()])] {
            assert!(matches!(saw(key), Err(NoEvidence::NoKey(_))));
        }
        let resumed = found().resumed(&"/dev/vda".parse().unwrap(), vec!["dm:x@1,2".into()], 0xf4);
        assert_eq!(judged(resumed.unlocked), Ok(()));
    }

    #[test]
    fn demands_the_same_image() {
        assert_eq!(judged(|_| (), ("UUID=a", false)), Ok(()));
        let another = NoEvidence::Another { looked_for: "UUID=a".into(), image: "UUID=b".into() };
        assert_eq!(judged(|_| (), ("UUID=b", false)), Err(another.clone()));
        // One that was made since, where nothing or another image was, and where this boot looks by the place's name.
        assert_eq!(judged(|found| found.image = None, ("UUID=b", true)), Ok(()));
        assert_eq!(judged(|_| (), ("UUID=b", true)), Ok(()));
        assert_eq!(judged(|found| found.image = None, ("UUID=b", false)), Err(another));
    }

    #[test]
    fn rejects_microcode_that_was_loaded_late() {
        let judged = |boot: u32| judged(|found| found.microcode = boot, ("UUID=a", false));
        assert_eq!(judged(0xf3), Err(NoEvidence::Microcode { boot: 0xf3, now: 0xf4 }));
        // Not recorded, or not named any more.
        assert_eq!(judged(0), Ok(()));
        assert_eq!(judged(0xf5), Ok(()));
        // A boot has resumed the session on a newer one since.
        let image = "UUID=01234567-89ab-cdef-0123-456789abcdef".parse().unwrap();
        assert_eq!(found().resumed(&image, Vec::new(), 0xf8).microcode, 0xf8);
    }

    #[test]
    fn demands_that_it_was_found_and_may_be_resumed() {
        // Whatever is in its place now.
        let not_found = Err(NoEvidence::NotFound { looked_for: "UUID=a".into() });
        assert_eq!(judged(|found| found.is_found = false, ("UUID=a", true)), not_found);
        assert_eq!(judged(|found| found.is_enabled = false, ("UUID=a", true)), Err(NoEvidence::Disabled));
        let format = VERSION.major + 1;
        assert_eq!(judged(|found| found.format = format, ("UUID=a", true)), Err(NoEvidence::Format { format }));
        let resumed = judged(
            |found| {
                let image = "UUID=01234567-89ab-cdef-0123-456789abcdef".parse().unwrap();
                *found = found.clone().resumed(&image, Vec::new(), 0xf4);
            },
            ("UUID=01234567-89ab-cdef-0123-456789abcdef", false),
        );
        assert_eq!(resumed, Ok(()));
    }

    #[test]
    fn rejects_a_record_of_an_older_version() {
        let text = r#"{"event":"resume","at_unix":5,"id":"no-image","text":"no image","report":null}"#;
        let last: Last = serde_json::from_str(text).unwrap();
        let now = Now { image: "UUID=a".into(), is_where_it_looked: true, key_places: None, microcode: 0 };
        assert_eq!(of_boot(&last, &now), Err(NoEvidence::NotReported));
    }
}
