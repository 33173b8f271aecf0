//! What is known of a save kernel that waits, and whether it will still do.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use dormouse_linux::atomic_file::replace;
use dormouse_linux::block::BlockDevice;
use dormouse_linux::foreign_page::ForeignPage;
use dormouse_linux::{kexec_loads, procfs};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::cycle::last;
use crate::cycle::place::Place;
use crate::machine::Machine;
use crate::policy::Policy;

/// What a save kernel is started with, each as text: only whether it is the same matters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Facts {
    policy: String,
    kernel: String,
    memory: String,
    cpus: String,
    disks: String,
}

impl Facts {
    /// As they are.
    ///
    /// # Errors
    /// A file of the policy's cannot be looked at.
    pub(super) fn now(policy: &Policy, machine: &Machine, place: &Place) -> anyhow::Result<Facts> {
        let file = |path: &Path| -> anyhow::Result<String> {
            let found = fs::metadata(path).with_context(|| path.display().to_string())?;
            Ok(format!("{}:{} {} {}.{}", found.dev(), found.ino(), found.size(), found.mtime(), found.mtime_nsec()))
        };
        let sum = |text: String| format!("{:016x}", dormouse_image::checksum(text.as_bytes()));
        let disks = BlockDevice::of_at_least(1).into_iter().map(|device| {
            let partition = device.partition().map(|partition| partition.uuid);
            format!("{} {} {partition:?}", device.path.display(), device.size())
        });
        Ok(Facts {
            policy: sum(policy.to_toml()),
            kernel: format!("{}; {}", file(&policy.kernel.image)?, file(&policy.kernel.initramfs)?),
            memory: sum(format!("{place:?} {:?} {:?}", machine.iomem.firmware, machine.efi)),
            cpus: procfs::text("/sys/devices/system/cpu/online")?.trim().to_owned(),
            disks: sum(disks.collect::<Vec<_>>().join("\n")),
        })
    }

    /// What is not as it was.
    fn differs(&self, other: &Facts) -> Option<&'static str> {
        let all = [
            (self.policy != other.policy, "the policy"),
            (self.kernel != other.kernel, "the save kernel or its initramfs"),
            (self.memory != other.memory, "the memory map"),
            (self.cpus != other.cpus, "the CPUs that are online"),
            (self.disks != other.disks, "the disks"),
        ];
        all.into_iter().find(|(differs, _)| *differs).map(|(_, what)| what)
    }
}

/// What is known of a save kernel that waits: a file of the running system.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The process that keeps it.
    pub process: u32,
    /// Since when it waits, in seconds since 1970.
    pub since_unix: u64,
    /// How long it ran before that, in seconds: for so long the session stood still.
    pub seconds: f64,
    /// What it takes of the memory, in bytes.
    pub bytes: u64,
    /// Where the process has the page for the order.
    pub(super) address: u64,
    pub(super) pfn: u64,
    pub(super) nonce: [u8; 16],
    /// What [`kexec_loads::left`] had when it was loaded.
    pub(super) loads_left: i32,
    pub(super) facts: Facts,
}

/// Why there is none that could be entered.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NotWarm {
    /// The process that kept it has ended.
    #[error("the process that kept the save kernel has ended")]
    Gone,
    /// `kexec_load(2)` was called.
    #[error("another kernel was loaded or unloaded for kexec since")]
    Replaced,
    /// It would not do.
    #[error("{0} changed since")]
    Changed(&'static str),
}

impl Record {
    /// The one of the running system.
    #[must_use]
    pub fn read() -> Option<Record> {
        serde_json::from_slice(&fs::read(path()).ok()?).ok()
    }

    pub(super) fn write(&self) -> anyhow::Result<()> {
        let path = path();
        let about = || path.display().to_string();
        replace(&path, &serde_json::to_vec(self)?, 0o600).with_context(about)
    }

    pub(super) fn remove() {
        match fs::remove_file(path()) {
            Err(error) if error.kind() != ErrorKind::NotFound => log::warn!("{}: {error}", path().display()),
            _ => {}
        }
    }

    /// Whether it is still what kexec has loaded.
    pub(super) fn is_loaded(&self) -> bool {
        kexec_loads::left().ok() == Some(self.loads_left)
    }

    /// Whether it can be entered.
    ///
    /// # Errors
    /// [`NotWarm`].
    pub(super) fn check(&self, now: &Facts) -> Result<ForeignPage, NotWarm> {
        if !self.is_loaded() {
            return Err(NotWarm::Replaced);
        }
        let page = ForeignPage::open(self.process, self.address).map_err(|_| NotWarm::Gone)?;
        let mut nonce = [0; 16];
        if page.read(&mut nonce).is_err() || nonce != self.nonce || page.pfn() != self.pfn {
            return Err(NotWarm::Gone);
        }
        self.facts.differs(now).map_or(Ok(page), |what| Err(NotWarm::Changed(what)))
    }
}

fn path() -> PathBuf {
    Path::new(last::DIRECTORY).join("warm")
}

/// Whether one is what kexec has loaded: to ask `kexec_load(2)` whether it can be returned to would count as a load.
pub(crate) fn is_loaded() -> bool {
    Record::read().is_some_and(|record| record.is_loaded())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        let text = |text: &str| text.to_owned();
        Facts { policy: text("a"), kernel: text("b"), memory: text("c"), cpus: text("0-1"), disks: text("d") }
    }

    #[test]
    fn what_changed_is_named() {
        assert_eq!(facts().differs(&facts()), None);
        let changed = |change: fn(&mut Facts)| {
            let mut now = facts();
            change(&mut now);
            facts().differs(&now)
        };
        assert_eq!(changed(|facts| facts.cpus = "0".into()), Some("the CPUs that are online"));
        assert_eq!(changed(|facts| facts.disks.push('x')), Some("the disks"));
        assert_eq!(changed(|facts| facts.kernel.clear()), Some("the save kernel or its initramfs"));
        assert_eq!(changed(|facts| facts.policy.clear()), Some("the policy"));
        assert_eq!(changed(|facts| facts.memory.clear()), Some("the memory map"));
    }
}
