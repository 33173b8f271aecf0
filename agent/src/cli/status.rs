//! `dormouse status`: what happened last, when, and why.

use std::fmt;
use std::time::{Duration, UNIX_EPOCH};

use dormouse_linux::units::mib;
use serde::Serialize;

use crate::cycle::keys;
use crate::cycle::last::Last;
use crate::cycle::refusal::Complaint;
use crate::cycle::warm::Record;
use crate::policy::Policy;
use crate::target;
use crate::target::device::{self, Info};

/// What there is to report.
#[derive(Debug, Serialize)]
pub struct Status {
    /// What happened last in the running system.
    pub last: Option<Last>,
    /// The save kernel that waits, if one does.
    pub waiting: Option<Waiting>,
    /// What is on the image device.
    pub image: Option<Info>,
    /// Why that is not known.
    pub image_error: Option<Complaint>,
}

/// A save kernel that waits.
#[derive(Debug, Serialize)]
pub struct Waiting {
    /// The process that keeps it.
    pub process: u32,
    /// Since when, in seconds since 1970.
    pub since_unix: u64,
    /// How long the session stood still for it, in seconds.
    pub seconds: f64,
    /// What it takes of the memory, in bytes.
    pub bytes: u64,
}

impl Waiting {
    fn now() -> Option<Waiting> {
        let Record { process, since_unix, seconds, bytes, .. } = Record::read()?;
        Some(Waiting { process, since_unix, seconds, bytes })
    }
}

impl Status {
    /// Looks at the policy's image device and at what the running system has recorded.
    #[must_use]
    pub fn of(policy: &Policy) -> Status {
        let found = target::find(&policy.image.device, Duration::ZERO).map_err(anyhow::Error::from);
        let info = found.and_then(|target| device::info(&target, &keys::at_hand));
        let (image, image_error) = match info {
            Ok(info) => (Some(info), None),
            Err(error) => (None, Some(Complaint::of(&error))),
        };
        Status { last: Last::read(), waiting: Waiting::now(), image, image_error }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.last {
            None => writeln!(f, "this boot  has neither hibernated nor been asked to resume")?,
            Some(last) => {
                writeln!(f, "this boot  {}: {}", time(last.at_unix), last.text.replace('\n', "\n           "))?
            }
        }
        if let Some(Waiting { since_unix, bytes, .. }) = &self.waiting {
            writeln!(f, "waiting    the save kernel, since {}, in {} of memory", time(*since_unix), mib(*bytes))?;
        }
        match (&self.image, &self.image_error) {
            (Some(info), _) => {
                write!(f, "image      {}: {} since {}", info.device, info.state, time(info.changed_unix))?;
                if !info.reason.is_empty() {
                    write!(f, ": {}", info.reason)?;
                }
                if let Some(disk) = &info.disk {
                    write!(f, "\ndisk       {disk}")?;
                }
                if let Some(suite) = &info.sealed {
                    write!(f, "\nsealed     {suite}")?;
                }
                if let Some(whose) = info.session.as_ref().and_then(|session| session.whose.as_ref()) {
                    let saved = time(whose.saved_unix);
                    write!(f, "\nsession    {}, {}, saved {saved}", whose.hostname, whose.kernel)?;
                }
                Ok(())
            }
            (None, Some(error)) => write!(f, "image      {error}"),
            (None, None) => Ok(()),
        }
    }
}

/// A time for people, in UTC: an initramfs has no time zone.
fn time(unix: u64) -> String {
    // Any 64-bit number of seconds may come from a device; a time beyond any calendar is shown as it is.
    match UNIX_EPOCH.checked_add(Duration::from_secs(unix)).filter(|_| unix < 253_402_300_800) {
        Some(time) => humantime::format_rfc3339_seconds(time).to_string(),
        None => format!("second {unix}"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::cycle::last::Event;
    use crate::store::StoreError;

    #[test]
    fn reports_what_happened_in_a_few_lines() {
        let text = "failed: no room".to_owned();
        let last = Last {
            event: Event::Hibernate,
            at_unix: 1_800_000_000,
            id: "save-failed".into(),
            text,
            report: None,
            found: None,
        };
        let error = StoreError::WriterGone { name: "/dev/x".into() };
        let waiting = Waiting { process: 9, since_unix: 1_800_000_001, seconds: 0.5, bytes: 129 << 20 };
        let status = Status {
            last: Some(last),
            waiting: Some(waiting),
            image: None,
            image_error: Some(Complaint::of(&error.into())),
        };
        assert_eq!(
            status.to_string(),
            "this boot  2027-01-15T08:00:00Z: failed: no room\n\
             waiting    the save kernel, since 2027-01-15T08:00:01Z, in 129 MiB of memory\n\
             image      image device /dev/x: a writing thread ended unexpectedly"
        );
        let json = serde_json::to_value(&status).unwrap();
        assert_eq!((&json["last"]["id"], &json["image_error"]["id"]), (&"save-failed".into(), &"writer-gone".into()));
        assert_eq!(time(u64::MAX), "second 18446744073709551615");
    }
}
