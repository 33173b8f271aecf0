//! What the doctor finds of the machine's other devices: what a save must drive or would lose, and how the power goes
//! off. The facts are read by [`DeviceFacts::read`], and judged without reading anything.

use std::path::Path;

use dormouse_linux::system;
use dormouse_linux::volatile_memory::{self, Used};
use dormouse_linux::watchdogs::HardwareWatchdog;

use crate::cycle::drivers::{self, Undriven};
use crate::cycle::refusal;
use crate::host::doctor::Check;
use crate::host::doctor::facts::Facts;
use crate::host::doctor::judge::question;
use crate::policy::{Policy, Power, Then};

const UPDATE: &str = "run `dormouse update`";

/// What is known of them.
#[derive(Debug, Clone, Default)]
pub(super) struct DeviceFacts {
    /// Whether only root would see the rest.
    pub(super) needs_root: bool,
    /// What the save kernel cannot drive, where its initramfs shows what it holds.
    pub(super) undriven: Option<Undriven>,
    /// Nodes of the disks that are in use.
    pub(super) disks: Vec<String>,
    /// The watchdog that runs.
    pub(super) watchdog: Option<String>,
    /// Memory in use that loses its content.
    pub(super) volatile: Option<Used>,
}

impl DeviceFacts {
    /// Looks at them.
    pub(super) fn read(policy: Option<&Policy>) -> DeviceFacts {
        let disks = drivers::disks_of_session();
        let watchdogs = HardwareWatchdog::all(Path::new("/sys"));
        DeviceFacts {
            needs_root: !system::is_root(),
            undriven: policy.and_then(|policy| drivers::undriven(policy, &disks)),
            volatile: volatile_memory::in_use(&disks),
            disks: disks.iter().map(|disk| disk.hardware.node.display().to_string()).collect(),
            watchdog: watchdogs.into_iter().find(|watchdog| watchdog.is_active).map(|watchdog| watchdog.name),
        }
    }
}

/// The checks.
pub(super) fn checks(facts: &Facts) -> [Check; 4] {
    [disks(&facts.devices), watchdog(&facts.devices), volatile(&facts.devices), power(facts)]
}

fn disks(facts: &DeviceFacts) -> Check {
    let question =
        question("disks", "A disk that is switched off with a full cache loses what was written to it last.");
    if facts.needs_root {
        return question.needs_root();
    }
    let Some(undriven) = &facts.undriven else {
        return question.unknown("the save kernel's initramfs does not show which drivers it holds", UPDATE);
    };
    let lacking: Vec<String> = undriven
        .disks
        .iter()
        .map(|(node, modules)| format!("{} needs {}", node.display(), modules.join(", ")))
        .collect();
    match lacking.as_slice() {
        [] => question.ok(format!("the save kernel drives every disk in use: {}", facts.disks.join(", "))),
        lacking => question.warning(
            format!(
                "the save kernel does not drive all disks in use ({}): they are flushed before the jump alone",
                lacking.join("; ")
            ),
            UPDATE,
        ),
    }
}

fn watchdog(facts: &DeviceFacts) -> Check {
    let question =
        question("watchdog", "A hardware watchdog that nobody sets back restarts the machine during the save.");
    let undriven = facts.undriven.as_ref().and_then(|undriven| undriven.watchdogs.first());
    match (&facts.watchdog, undriven) {
        (None, _) => question.ok("no hardware watchdog is running"),
        (Some(name), None) => question.ok(format!("{name} is running, and the save kernel sets it back")),
        (Some(_), Some((name, modules))) => question.warning(
            format!("{name} is running, and the save kernel lacks its driver ({})", modules.join(", ")),
            "run `dormouse update`, or stop the watchdog (systemd: RuntimeWatchdogSec=off)",
        ),
    }
}

fn volatile(facts: &DeviceFacts) -> Check {
    let question =
        question("volatile-memory", "Memory that is declared persistent and is not loses its content with the power.");
    match refusal::in_volatile_memory(facts.volatile.clone(), Then::PowerOff) {
        None => question.ok("none is in use"),
        Some(obstacle) => question.refused(&obstacle),
    }
}

/// Whether the kernel offers S4 (kernel/power/hibernate.c, `disk_show`: `platform`).
fn power(facts: &Facts) -> Check {
    let question = question("platform-power", "With save.power = \"platform\" the firmware hears of the hibernation.");
    let has_s4 = facts.power_disk.as_deref().unwrap_or_default().contains("platform");
    let wanted = facts.policy.as_ref().is_ok_and(|policy| policy.save.power == Power::Platform);
    match (wanted, has_s4) {
        (true, false) => question.warning(
            "the policy asks for ACPI's S4, which this machine does not have; the power goes off without it",
            "set save.power = \"shutdown\"",
        ),
        (true, true) => question.ok("the power goes off by ACPI's S4"),
        (false, true) => question.ok("this machine has ACPI's S4; the power goes off without it"),
        (false, false) => question.ok("this machine does not have ACPI's S4, and does not need it"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::doctor::State;

    #[test]
    fn names_what_the_save_kernel_cannot_drive() {
        let missing = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        let facts = DeviceFacts {
            needs_root: false,
            undriven: Some(Undriven {
                disks: vec![("/dev/sdb".into(), missing(&["usb_storage", "xhci_pci"]))],
                watchdogs: vec![("watchdog0".into(), missing(&["sp5100_tco"]))],
            }),
            disks: missing(&["/dev/sdb", "/dev/vda"]),
            watchdog: Some("watchdog0".into()),
            volatile: None,
        };
        let check = disks(&facts);
        assert!(check.state == State::Warning && check.found.contains("/dev/sdb needs usb_storage, xhci_pci"));
        assert!(watchdog(&facts).state == State::Warning && watchdog(&facts).found.contains("sp5100_tco"));
        let all = DeviceFacts { undriven: Some(Undriven::default()), ..facts };
        assert_eq!((disks(&all).state, watchdog(&all).state), (State::Ok, State::Ok));
        assert_eq!(disks(&DeviceFacts::default()).state, State::Unknown);
        assert_eq!(disks(&DeviceFacts { needs_root: true, ..all.clone() }).found, "only root can see it");
        let pmem = Used { node: "/dev/pmem0".into(), by: "a filesystem or swap on it is in use".into() };
        let check = volatile(&DeviceFacts { volatile: Some(pmem), ..all });
        assert!(check.state == State::Failed && check.found.contains("/dev/pmem0"));
    }
}
