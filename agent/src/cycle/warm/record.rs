//! What is known of a save kernel that waits, and whether it will still do.

use std::fs;
use std::io::ErrorKind;
use std::os::fd::RawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use dormouse_linux::atomic_file::replace;
use dormouse_linux::block::BlockDevice;
use dormouse_linux::foreign_page::ForeignPage;
use dormouse_linux::{kexec_loads, procfs};
use dormouse_sys::module::Module;
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
    pub(super) loaded_by: LoadedBy,
    pub(super) facts: Facts,
}

/// Who has loaded it, and how it is known that this is still what is loaded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) enum LoadedBy {
    Kernel {
        /// What [`kexec_loads::left`] had then.
        loads_left: i32,
    },
    /// Dormouse's module, which loads for one opener at a time.
    Module {
        /// Where the process has it open.
        descriptor: RawFd,
    },
}

/// Why there is none that could be entered.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NotWarm {
    /// The process that kept it has ended.
    #[error("the process that kept the save kernel has ended")]
    Gone,
    /// `kexec_load(2)` was called, or the module is no longer open.
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
        Record::of_file(&path())
    }

    fn of_file(path: &Path) -> Option<Record> {
        serde_json::from_slice(&fs::read(path).ok()?).ok()
    }

    pub(super) fn write(&self) -> anyhow::Result<()> {
        let path = path();
        let about = || path.display().to_string();
        replace(&path, &serde_json::to_vec(self)?, 0o600).with_context(about)
    }

    /// Takes it: whatever comes of it, it is entered at most once. The process that keeps it notices in time.
    pub(super) fn take() -> Option<Record> {
        let record = Record::read()?;
        if let Err(error) = fs::rename(path(), taken_path()) {
            log::warn!("{}: {error}", path().display());
            return None;
        }
        Some(record)
    }

    pub(super) fn remove() {
        for path in [path(), taken_path()] {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != ErrorKind::NotFound => log::warn!("{}: {error}", path.display()),
                _ => {}
            }
        }
    }

    /// Whether it is still what is loaded.
    pub(super) fn is_loaded(&self) -> bool {
        match self.loaded_by {
            LoadedBy::Kernel { loads_left } => kexec_loads::left().ok() == Some(loads_left),
            LoadedBy::Module { .. } => self.module().is_some(),
        }
    }

    /// The module, as the process that keeps it has it open.
    pub(super) fn module(&self) -> Option<Module> {
        let LoadedBy::Module { descriptor } = self.loaded_by else { return None };
        Module::of_process(self.process, descriptor).ok().flatten()
    }

    /// Whether it can be entered.
    ///
    /// # Errors
    /// [`NotWarm`].
    pub(super) fn check(&self, now: &Facts) -> Result<(ForeignPage, Option<Module>), NotWarm> {
        if !self.is_loaded() {
            return Err(NotWarm::Replaced);
        }
        let page = ForeignPage::open(self.process, self.address).map_err(|_| NotWarm::Gone)?;
        let mut nonce = [0; 16];
        if page.read(&mut nonce).is_err() || nonce != self.nonce || page.pfn() != self.pfn {
            return Err(NotWarm::Gone);
        }
        self.facts.differs(now).map_or_else(|| Ok((page, self.module())), |what| Err(NotWarm::Changed(what)))
    }
}

fn path() -> PathBuf {
    Path::new(last::DIRECTORY).join("warm")
}

/// Where the record of one is that was taken.
fn taken_path() -> PathBuf {
    path().with_extension("taken")
}

/// Whether one is what kexec has loaded: to ask `kexec_load(2)` whether it can be returned to would count as a load.
pub(crate) fn is_loaded() -> bool {
    Record::read().is_some_and(|record| matches!(record.loaded_by, LoadedBy::Kernel { .. }) && record.is_loaded())
}

/// The module, where a process has it open that keeps a save kernel, or has not noticed yet that it was taken.
pub(crate) fn module_of_keeper() -> Option<Module> {
    let records = [path(), taken_path()].into_iter().filter_map(|path| Record::of_file(&path));
    records.filter_map(|record| record.module()).next()
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
