//! How a boot that does not resume ends, as a value: for the console, `dormouse status` and programs.

use std::fmt;

use dormouse_image::State;
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

use crate::cycle::look::AWAITS_UNLOCK;
use crate::cycle::verdict::{Fate, Reason};

/// How looking for a session ended. A session that is resumed does not end so: another kernel takes over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ResumeOutcome {
    /// No session waits.
    NoImage {
        /// The image device.
        device: String,
        /// The image's state; `None` where the device has no image.
        state: Option<State>,
    },
    /// A session waits, and is looked at again when this boot has unlocked its volumes.
    AwaitsUnlock {
        /// The image device.
        device: String,
    },
    /// A session waits, or was lost, and is not resumed.
    Refused {
        /// The image device.
        device: String,
        /// Why.
        reason: Reason,
        /// What became of the image.
        image: Fate,
    },
    /// Several devices have the name of the image device, and which one is meant must not be guessed.
    SeveralDevices {
        /// Which.
        reason: Reason,
        /// Those whose images are discarded.
        discarded: Vec<String>,
    },
    /// Only another disk than the one that the image was put on has its name. It is left alone: what is on it may be a
    /// copy, and the session's own image may turn up later.
    OtherDisk {
        /// Which.
        reason: String,
    },
    /// The restore kernel could not be started, and the image is discarded.
    StartFailed {
        /// The image device.
        device: String,
        /// Why, with its causes.
        reason: String,
    },
    /// `dormouse prepare` has found an image that waits although this boot is past its initramfs.
    Missed {
        /// The image device.
        device: String,
        /// Why it was not resumed.
        reason: Reason,
        /// What became of the image.
        image: Fate,
    },
}

impl ResumeOutcome {
    /// Its identifier: that of the reason, where there is one.
    #[must_use]
    pub fn id(&self) -> &'static str {
        match self {
            ResumeOutcome::NoImage { .. } => "no-image",
            ResumeOutcome::AwaitsUnlock { .. } => AWAITS_UNLOCK,
            ResumeOutcome::Refused { reason, .. }
            | ResumeOutcome::SeveralDevices { reason, .. }
            | ResumeOutcome::Missed { reason, .. } => reason.id(),
            ResumeOutcome::OtherDisk { .. } => "other-disk",
            ResumeOutcome::StartFailed { .. } => "start-failed",
        }
    }

    /// The kind of outcome, in one word.
    fn kind(&self) -> &'static str {
        match self {
            ResumeOutcome::NoImage { .. } => "no-image",
            ResumeOutcome::AwaitsUnlock { .. } => "waits",
            ResumeOutcome::Refused { .. } | ResumeOutcome::SeveralDevices { .. } | ResumeOutcome::OtherDisk { .. } => {
                "refused"
            }
            ResumeOutcome::StartFailed { .. } => "failed",
            ResumeOutcome::Missed { .. } => "missed",
        }
    }

    /// The image device, and what became of the image.
    fn image(&self) -> (Option<&str>, Option<Fate>) {
        match self {
            ResumeOutcome::NoImage { device, .. } => (Some(device), None),
            ResumeOutcome::AwaitsUnlock { device } => (Some(device), Some(Fate::Keep)),
            ResumeOutcome::Refused { device, image, .. } | ResumeOutcome::Missed { device, image, .. } => {
                (Some(device), Some(*image))
            }
            ResumeOutcome::SeveralDevices { .. } | ResumeOutcome::OtherDisk { .. } => (None, None),
            ResumeOutcome::StartFailed { device, .. } => (Some(device), Some(Fate::Discard)),
        }
    }
}

impl fmt::Display for ResumeOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = self.id();
        match self {
            ResumeOutcome::NoImage { device, state: None } => {
                write!(f, "no image to resume: {device} is not initialised")
            }
            ResumeOutcome::NoImage { device, state: Some(state) } => {
                write!(f, "no image to resume: the one on {device} is {state}")
            }
            ResumeOutcome::AwaitsUnlock { device } => {
                write!(f, "a session waits in the image on {device}; it is resumed when the volumes are unlocked")
            }
            ResumeOutcome::Refused { device, reason, image } => {
                write!(f, "not resuming from {device} ({id}): {reason}")?;
                match reason {
                    Reason::SaveUnfinished => f.write_str("; the session is lost"),
                    // What the image says of them says what became of the session.
                    Reason::SaveFailed(_) | Reason::RestoreFailed(_) => Ok(()),
                    _ => write!(f, "; the image is {image}"),
                }
            }
            ResumeOutcome::SeveralDevices { reason, discarded } => {
                write!(f, "not resuming ({id}): {reason}")?;
                discarded.iter().try_for_each(|device| write!(f, "; the image on {device} is discarded"))
            }
            ResumeOutcome::OtherDisk { reason } => write!(f, "not resuming ({id}): {reason}; it is left as it is"),
            ResumeOutcome::StartFailed { reason, .. } => {
                write!(f, "not resuming ({id}): {reason}; the image is discarded")
            }
            ResumeOutcome::Missed { device, image: Fate::Keep, .. } => {
                write!(f, "a session waits in the image on {device}, and is kept by policy (resume.mismatch)")
            }
            ResumeOutcome::Missed { device, reason, image: Fate::Discard } => {
                write!(f, "the image on {device} is discarded ({id}): {reason}; see `dormouse doctor`")
            }
        }
    }
}

/// `{"outcome", "id", "device", "image", "message"}`.
impl Serialize for ResumeOutcome {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (device, image) = self.image();
        let mut map = serializer.serialize_map(Some(5))?;
        map.serialize_entry("outcome", self.kind())?;
        map.serialize_entry("id", self.id())?;
        map.serialize_entry("device", &device)?;
        map.serialize_entry("image", &image)?;
        map.serialize_entry("message", &self.to_string())?;
        map.end()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// The words are for people; this is the one place that fixes them.
    #[test]
    fn outcomes_in_words() {
        let device = || "/dev/vda".to_owned();
        let refused = |reason, image| ResumeOutcome::Refused { device: device(), reason, image };
        let ambiguous = Reason::AmbiguousDevices("both /dev/a and /dev/b are it".into());
        let cases = [
            (
                ResumeOutcome::NoImage { device: device(), state: None },
                "no image to resume: /dev/vda is not initialised",
            ),
            (
                ResumeOutcome::NoImage { device: device(), state: Some(State::Consumed) },
                "no image to resume: the one on /dev/vda is consumed",
            ),
            (
                ResumeOutcome::AwaitsUnlock { device: device() },
                "a session waits in the image on /dev/vda; it is resumed when the volumes are unlocked",
            ),
            (
                refused(Reason::PolicyDisabled, Fate::Discard),
                "not resuming from /dev/vda (policy-disabled): the policy says so (resume.enabled); the image is \
                 discarded",
            ),
            (
                refused(Reason::MachineUnknown("no /proc".into()), Fate::Keep),
                "not resuming from /dev/vda (machine-unknown): no /proc; the image is kept",
            ),
            (
                refused(Reason::SaveUnfinished, Fate::Discard),
                "not resuming from /dev/vda (save-unfinished): the last save never finished; the session is lost",
            ),
            (
                refused(Reason::SaveFailed("no room; the session went on".into()), Fate::Discard),
                "not resuming from /dev/vda (save-failed): no room; the session went on",
            ),
            (
                ResumeOutcome::SeveralDevices { reason: ambiguous, discarded: vec!["/dev/b".into()] },
                "not resuming (ambiguous-devices): both /dev/a and /dev/b are it; the image on /dev/b is discarded",
            ),
            (
                ResumeOutcome::Missed { device: device(), reason: Reason::SessionGoesOn, image: Fate::Discard },
                "the image on /dev/vda is discarded (session-goes-on): the session in it goes on; see `dormouse \
                 doctor`",
            ),
        ];
        for (outcome, expected) in cases {
            assert_eq!(outcome.to_string(), expected);
        }
    }

    #[test]
    fn outcomes_for_programs() {
        let outcome = ResumeOutcome::Refused {
            device: "/dev/vda".into(),
            reason: Reason::TooManyAttempts(2),
            image: Fate::Discard,
        };
        let json = serde_json::to_value(&outcome).unwrap();
        assert_eq!((&json["outcome"], &json["id"]), (&"refused".into(), &"too-many-attempts".into()));
        assert_eq!((&json["device"], &json["image"]), (&"/dev/vda".into(), &"discarded".into()));
        assert_eq!(json["message"], outcome.to_string());
    }
}
