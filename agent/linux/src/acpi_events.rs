//! ACPI's fixed events (the power button and its like) and general-purpose events, and whether the hardware reports
//! them: the files of `/sys/firmware/acpi/interrupts`.
//!
//! Another kernel that starts on the machine switches all of them off (Linux 6.12, drivers/acpi/acpica/evevent.c,
//! `acpi_ev_fixed_event_initialize`; evgpeblk.c, `acpi_ev_create_gpe_block`) and on again only what it has drivers for.
//! A kernel that is returned to does not look: its own account says that they are on.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Where they are.
pub const DIRECTORY: &str = "/sys/firmware/acpi/interrupts";

/// The events that the hardware reports.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Enabled {
    directory: PathBuf,
    names: Vec<String>,
}

/// What became of those that were off.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mended {
    /// They are on again.
    pub on: Vec<String>,
    /// They are off still, with the reason.
    pub off: Vec<String>,
}

/// One event's file, but for its count (drivers/acpi/sysfs.c, `counter_show`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Event {
    /// The hardware reports it.
    is_on: bool,
    /// It has happened, and has not been taken note of.
    is_pending: bool,
    /// The kernel wants it. Of a fixed event, this is the hardware's bit again.
    is_wanted: bool,
    is_masked: bool,
}

impl Event {
    fn parse(text: &str) -> Event {
        let has = |word: &str| text.split_whitespace().any(|found| found == word);
        Event { is_on: has("EN"), is_pending: has("STS"), is_wanted: has("enabled"), is_masked: has("masked") }
    }
}

impl Enabled {
    /// Those that are on now. None on a machine without ACPI.
    #[must_use]
    pub fn now() -> Enabled {
        Enabled::read(Path::new(DIRECTORY))
    }

    fn read(directory: &Path) -> Enabled {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| is_event(name) && event(&directory.join(name)).is_ok_and(|event| event.is_on))
            .collect();
        names.sort();
        Enabled { directory: directory.to_owned(), names }
    }

    /// Their names.
    #[must_use]
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Switches on again what the hardware does not report any more.
    pub fn enable_again(&self) -> Mended {
        let mut mended = Mended::default();
        for name in &self.names {
            match enable(&self.directory.join(name), name.starts_with("ff_")) {
                Ok(false) => {}
                Ok(true) => mended.on.push(name.clone()),
                Err(error) => mended.off.push(format!("{name}: {error}")),
            }
        }
        mended
    }
}

/// `ff_pwr_btn`, `gpe1D`; not the sums `gpe_all` and `sci`.
fn is_event(name: &str) -> bool {
    let number = name.strip_prefix("gpe").filter(|rest| !rest.is_empty() && !rest.starts_with('_'));
    name.starts_with("ff_") || number.is_some()
}

fn event(path: &Path) -> io::Result<Event> {
    Ok(Event::parse(&fs::read_to_string(path)?))
}

/// Switches an event on, and returns whether it was off.
fn enable(path: &Path, is_fixed: bool) -> io::Result<bool> {
    let found = event(path)?;
    if found.is_on {
        return Ok(false);
    }
    if is_fixed {
        // The press that switched the machine on is not one to react to; the kernel's own hibernation clears it as
        // well (drivers/acpi/acpica/hwsleep.c, `acpi_hw_legacy_wake`).
        if found.is_pending {
            set(path, "clear")?;
        }
        set(path, "enable")?;
    } else if found.is_wanted && !found.is_masked {
        // The kernel counts those that want a general-purpose event, so that `enable` has no effect where it counts
        // one. Taking a mask off writes the hardware's bit, because one is counted (drivers/acpi/acpica/evgpe.c,
        // `acpi_ev_mask_gpe`). What is pending stays so, and is handled.
        set(path, "mask")?;
        set(path, "unmask")?;
    } else {
        // Its driver has switched it off since, or somebody has masked it: it is as the kernel wants it.
        return Ok(false);
    }
    match event(path)?.is_on {
        true => Ok(true),
        false => Err(io::Error::other("it stays off")),
    }
}

fn set(path: &Path, word: &str) -> io::Result<()> {
    // The kernel compares with the end of the line (drivers/acpi/sysfs.c, `counter_set`).
    fs::write(path, format!("{word}\n"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const ON: &str = "       1  EN     enabled      unmasked\n";

    #[test]
    fn reads_the_states_that_the_kernel_prints() {
        let on = Event { is_on: true, is_wanted: true, ..Event::default() };
        assert_eq!(Event::parse(ON), on);
        assert_eq!(Event::parse("      12  EN STS enabled      unmasked\n"), Event { is_pending: true, ..on });
        let off = Event { is_wanted: true, ..Event::default() };
        assert_eq!(Event::parse("       0         enabled      unmasked\n"), off);
        assert_eq!(Event::parse("       0         enabled      masked  \n"), Event { is_masked: true, ..off });
        assert_eq!(Event::parse("       0         disabled     unmasked\n"), Event::default());
        assert_eq!(Event::parse("       0         invalid      unmasked\n"), Event::default());
        assert_eq!(Event::parse("       0         wake_enabled unmasked\n"), Event::default());
    }

    #[test]
    fn notes_what_is_on() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(directory.path().join(name), text).unwrap();
        write("ff_pwr_btn", ON);
        write("ff_slp_btn", "       0         invalid      unmasked\n");
        write("gpe1D", ON);
        write("gpe02", "       0         disabled     unmasked\n");
        write("gpe_all", "      40\n");
        write("sci", "      41\n");
        let enabled = Enabled::read(directory.path());
        assert_eq!(enabled.names(), ["ff_pwr_btn", "gpe1D"]);
        // What is on stays untouched.
        assert_eq!(enabled.enable_again(), Mended::default());
        assert_eq!(fs::read_to_string(directory.path().join("gpe1D")).unwrap(), ON);
        assert_eq!(Enabled::read(Path::new("/nonexistent")).names(), [""; 0]);
    }

    /// A file that keeps what was written last is as good as hardware that does not react.
    #[test]
    fn an_event_that_stays_off_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(directory.path().join(name), text).unwrap();
        write("ff_pwr_btn", ON);
        write("gpe1D", ON);
        write("gpe1E", ON);
        let enabled = Enabled::read(directory.path());
        write("ff_pwr_btn", "       0     STS disabled     unmasked\n");
        write("gpe1D", "       0         enabled      unmasked\n");
        write("gpe1E", "       0         disabled     unmasked\n");
        let mended = enabled.enable_again();
        assert_eq!(mended.off, ["ff_pwr_btn: it stays off", "gpe1D: it stays off"]);
        let read = |name: &str| fs::read_to_string(directory.path().join(name)).unwrap();
        assert_eq!((read("ff_pwr_btn"), read("gpe1D")), ("enable\n".to_owned(), "unmask\n".to_owned()));
        assert!(read("gpe1E").contains("disabled"), "its driver has switched it off");
    }
}
