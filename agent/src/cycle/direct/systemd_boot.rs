//! systemd-boot, told to start D: an entry for D beside those that it has, and the EFI variable by which it boots that
//! entry once. It removes the variable before it starts anything (systemd 252, src/boot/efi/boot.c).
//!
//! ```text
//!   $BOOT/loader/entries/a-dormouse.conf ──names──> $BOOT/dormouse/kernel, order, initramfs
//!   LoaderEntryOneShot = "a-dormouse.conf"
//! ```

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use dormouse_linux::atomic_file::replace;
use dormouse_linux::efi_variable::Variable;
use dormouse_linux::units::mib;
use nix::sys::statfs::{MSDOS_SUPER_MAGIC, statfs};
use nix::sys::statvfs::statvfs;
use nix::unistd::syncfs;

use crate::console::phase::Phase;
use crate::cycle::direct::{INITRAMFS, KERNEL, ORDER, put};
use crate::policy::Policy;

/// The vendor of its variables.
const VENDOR: &str = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f";
/// How the variable with its name and version begins.
const NAME: &str = "systemd-boot ";
/// The oldest version whose order of entries is known.
const OLDEST: u32 = 252;
/// Where the partition with its entries may be mounted: the extended boot loader partition or the EFI system partition.
const PLACES: [&str; 3] = ["/boot", "/efi", "/boot/efi"];
/// Where the entries are on it.
const ENTRIES: &str = "loader/entries";
/// The name of ours. The first entry is the default where nothing else says which is, and this one must never be that:
/// those without a key to sort by come last, and of them those with the lowest name, for which letters come before
/// digits and `-` before either.
pub(crate) const ENTRY: &str = "a-dormouse.conf";
/// Room for the order, the entry, and what a filesystem itself takes.
const SPARE: u64 = 4 << 20;
/// Where D's files are on it.
const FILES: &str = "dormouse";

/// It has booted this system, and its entries are here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SystemdBoot {
    /// Where the partition with its entries is mounted.
    place: PathBuf,
}

impl SystemdBoot {
    /// `None` where something else has booted this system.
    pub(crate) fn find() -> Option<anyhow::Result<SystemdBoot>> {
        let version = version()?;
        let about = "systemd-boot's variables cannot be read";
        let text = |name| Variable::new(name, VENDOR).text().context(about);
        let is_usable = || {
            demand_known(&version)?;
            demand_default(text("LoaderEntrySelected")?.as_deref(), text("LoaderBootCountPath")?.as_deref())
        };
        Some(is_usable().and_then(|()| find_in(&PLACES.map(Path::new))))
    }

    /// The same, whether it can be told to start D or not: what is there of Dormouse's is to be removed.
    pub(crate) fn to_clear() -> Option<SystemdBoot> {
        version()?;
        find_in(&PLACES.map(Path::new)).ok()
    }

    #[cfg(test)]
    pub(crate) fn at(place: &Path) -> SystemdBoot {
        SystemdBoot { place: place.to_owned() }
    }

    /// Where the partition with its entries is mounted.
    pub(crate) fn place(&self) -> &Path {
        &self.place
    }

    /// Where D's files are.
    pub(crate) fn files(&self) -> PathBuf {
        self.place.join(FILES)
    }

    /// The entry for D.
    pub(crate) fn entry(&self) -> PathBuf {
        self.place.join(ENTRIES).join(ENTRY)
    }

    /// Looks whether so many bytes would fit there, in place of what Dormouse has there.
    ///
    /// # Errors
    /// They would not, or that cannot be found out.
    fn demand_room(&self, needed: u64) -> anyhow::Result<()> {
        let about = || self.place.display().to_string();
        let found = statvfs(&self.place).with_context(about)?;
        let free = found.blocks_available() * found.fragment_size();
        let ours = [KERNEL, INITRAMFS, ORDER].map(|name| fs::metadata(self.files().join(name)).map_or(0, |f| f.len()));
        let room = free + ours.iter().sum::<u64>();
        ensure!(needed <= room, "{}: it has room for {}, and {} are needed", about(), mib(room), mib(needed));
        Ok(())
    }

    /// Tries what a hibernation does: there is room for D's files, and the firmware takes the variable.
    ///
    /// # Errors
    /// There is not, or it does not.
    pub(crate) fn try_it(&self, policy: &Policy) -> anyhow::Result<()> {
        let sizes =
            [&policy.kernel.image, &policy.kernel.initramfs].map(|path| fs::metadata(path).map_or(0, |f| f.len()));
        // Each is written beside the one that it replaces.
        self.demand_room(sizes.iter().sum::<u64>() + sizes.iter().max().unwrap_or(&0) + SPARE)?;
        let variable = one_shot();
        let about = || format!("{}: the firmware's variables cannot be written", variable.path().display());
        // Somebody else's boot is not disturbed.
        if variable.text().with_context(about)?.is_none_or(|text| text == ENTRY) {
            // It names an entry that is not there, so that a power cut does no harm.
            variable.set_text(ENTRY).and_then(|()| variable.remove()).with_context(about)?;
        }
        Ok(())
    }

    /// Whether it is told to start D at the next boot.
    ///
    /// # Errors
    /// The variable cannot be read.
    pub(crate) fn is_armed(&self) -> anyhow::Result<bool> {
        let variable = one_shot();
        let text = variable.text().with_context(|| variable.path().display().to_string())?;
        Ok(text.as_deref() == Some(ENTRY))
    }

    /// Puts everything in its place, durably. The entry is there as long as what is returned.
    ///
    /// # Errors
    /// A file cannot be written.
    pub(super) fn put(self, files: [(&str, &[u8]); 3], command_line: &str) -> anyhow::Result<Entry> {
        let directory = self.files();
        for (name, bytes) in files {
            put(&directory.join(name), bytes)?;
        }
        let path = self.entry();
        // From here on, whatever fails removes it.
        let entry = Entry(self);
        let text = text(command_line);
        replace(&path, text.as_bytes(), 0o600).with_context(|| format!("{}: cannot write it", path.display()))?;
        entry.0.sync()?;
        Ok(entry)
    }

    /// Removes the variable, if it still names the entry, and the entry.
    fn take_back(&self) -> anyhow::Result<()> {
        let variable = one_shot();
        let about = || format!("{}: cannot be removed", variable.path().display());
        // Where the loader has removed it, efivarfs may have its name yet.
        if variable.text().with_context(about)?.is_none_or(|text| text == ENTRY) {
            variable.remove().with_context(about)?;
        }
        let path = self.entry();
        if path.exists() {
            fs::remove_file(&path).with_context(|| format!("{}: cannot be removed", path.display()))?;
            self.sync()?;
        }
        Ok(())
    }

    /// FAT has no journal: what is written is in its place.
    fn sync(&self) -> anyhow::Result<()> {
        let about = || self.place.display().to_string();
        syncfs(File::open(&self.place).with_context(about)?).with_context(about)
    }
}

/// The entry, which is removed when this is dropped, with the variable that names it: this session goes on.
#[derive(Debug)]
pub(in crate::cycle) struct Entry(SystemdBoot);

impl Entry {
    /// Has it booted once, at the next boot.
    ///
    /// # Errors
    /// The firmware does not take the variable.
    pub(super) fn arm(&self) -> anyhow::Result<()> {
        let variable = one_shot();
        let about = || format!("{}: cannot be set", variable.path().display());
        if let Some(other) = variable.text().with_context(about)?.filter(|text| text != ENTRY) {
            bail!("systemd-boot has been told already what to boot next: {other}");
        }
        variable.set_text(ENTRY).with_context(about)
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if let Err(error) = self.0.take_back() {
            log::warn!(
                "{}: systemd-boot may try to start a restore kernel at the next boot, in vain: {error:#}",
                Phase::HibernateReturn
            );
        }
    }
}

/// Removes what a hibernation has left whose session did not go on: nobody is to choose the entry by accident.
///
/// # Errors
/// It cannot be removed.
pub(crate) fn remove_left() -> anyhow::Result<()> {
    SystemdBoot::to_clear().map_or(Ok(()), |loader| loader.take_back())
}

fn one_shot() -> Variable {
    Variable::new("LoaderEntryOneShot", VENDOR)
}

/// Its version, if it has booted this system.
fn version() -> Option<String> {
    let info = Variable::new("LoaderInfo", VENDOR).text().ok()??;
    info.strip_prefix(NAME).map(str::to_owned)
}

fn demand_known(version: &str) -> anyhow::Result<()> {
    let digits = version.split(|char: char| !char.is_ascii_digit()).next();
    let number = digits.and_then(|digits| digits.parse::<u32>().ok());
    ensure!(
        number.is_some_and(|number| number >= OLDEST),
        "systemd-boot {version} has booted this system, and {OLDEST} or newer is needed; `bootctl update` installs \
         systemd's own"
    );
    Ok(())
}

/// Demands that an entry stays the default that comes before ours: the one that has booted this system. Those that
/// systemd-boot finds by itself come after all others, and so do those whose tries are used up (`NAME+0-3.conf`).
fn demand_default(selected: Option<&str>, counted: Option<&str>) -> anyhow::Result<()> {
    let selected = selected.context("systemd-boot does not say which entry has booted this system")?;
    ensure!(!selected.starts_with("auto-"), "{selected} has booted this system, which has no entry in {ENTRIES}");
    let tries = counted.and_then(|path| path.rsplit_once('+')).map(|(_, tries)| tries);
    let is_used_up = tries.is_some_and(|tries| tries.starts_with("0-") || tries.starts_with("0."));
    ensure!(!is_used_up, "systemd-boot has tried the entry {selected} as often as it may, and would boot another one");
    Ok(())
}

fn find_in(places: &[&Path]) -> anyhow::Result<SystemdBoot> {
    for place in places {
        // In this order: looking at it mounts what is mounted when it is needed.
        let has_entries = place.join(ENTRIES).is_dir();
        if has_entries && statfs(*place).is_ok_and(|found| found.filesystem_type() == MSDOS_SUPER_MAGIC) {
            return Ok(SystemdBoot { place: place.to_path_buf() });
        }
    }
    let list: Vec<_> = places.iter().map(|place| place.display().to_string()).collect();
    bail!("none of {} is a FAT filesystem with {ENTRIES}, where systemd-boot finds its entries", list.join(", "))
}

/// The entry (the Boot Loader Specification, type 1). Its paths begin at the partition that it is on.
fn text(command_line: &str) -> String {
    format!(
        "# Written by `dormouse hibernate`, which removes it when the session goes on.\n\
         title Resume from hibernation (Dormouse)\n\
         linux /{FILES}/{KERNEL}\n\
         initrd /{FILES}/{ORDER}\n\
         initrd /{FILES}/{INITRAMFS}\n\
         options {command_line}\n"
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_entry_has_the_order_before_the_initramfs() {
        let expected = "title Resume from hibernation (Dormouse)\nlinux /dormouse/kernel\ninitrd /dormouse/order\n\
                        initrd /dormouse/initramfs\noptions quiet a=b\n";
        assert_eq!(text("quiet a=b").split_once('\n').unwrap().1, expected);
    }

    #[test]
    fn an_old_version_is_refused() {
        for version in ["252", "252.39-1~deb12u1", "257-rc1"] {
            demand_known(version).unwrap();
        }
        for version in ["251.4", "", "git"] {
            assert!(demand_known(version).unwrap_err().to_string().contains("252 or newer"), "{version}");
        }
    }

    #[test]
    fn ours_is_never_the_default() {
        let path = |name: &str| format!("\\loader\\entries\\{name}.conf");
        for counted in [None, Some("a"), Some("a+3"), Some("a+2-1"), Some("a+10-0")] {
            demand_default(Some("a.conf"), counted.map(path).as_deref()).unwrap();
        }
        // After a resume by D.
        demand_default(Some(ENTRY), None).unwrap();
        for counted in ["a+0", "a+0-3", "a+b+0-3"] {
            let error = demand_default(Some("a.conf"), Some(&path(counted))).unwrap_err().to_string();
            assert!(error.contains("as often as it may"), "{error}");
        }
        assert!(demand_default(Some("auto-efi-shell"), None).unwrap_err().to_string().contains("auto-efi-shell"));
        assert!(demand_default(None, None).is_err());
    }

    #[test]
    fn a_directory_that_is_not_on_fat_is_not_taken() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir_all(directory.path().join(ENTRIES)).unwrap();
        let error = find_in(&[directory.path()]).unwrap_err().to_string();
        assert!(error.contains(ENTRIES) && error.contains(&directory.path().display().to_string()), "{error}");
    }

    #[test]
    fn room_is_what_is_free_and_what_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let loader = SystemdBoot { place: directory.path().to_owned() };
        loader.demand_room(1).unwrap();
        let error = loader.demand_room(1 << 60).unwrap_err().to_string();
        assert!(error.contains("are needed"), "{error}");
    }
}
