//! What is known of drivers that a hibernation means something to: facts, and checks of them.

use std::fs;
use std::path::Path;

use dormouse_linux::hibernation_events;
use dormouse_linux::kernel_config::KernelConfig;

use super::judge::question;
use super::{Check, State};

/// Facts about drivers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Drivers {
    /// Whether the kernel can tell its drivers of a hibernation.
    pub(super) can_be_told: bool,
    pub(super) nvidia: Option<Nvidia>,
    pub(super) has_amdgpu: bool,
    /// The devices of `virtio_mem`.
    pub(super) virtio_mem: Vec<String>,
    /// After how many seconds a driver that hangs while it freezes makes the kernel panic.
    pub(super) watchdog: Option<u64>,
}

/// NVIDIA's driver.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Nvidia {
    /// Whether it waits for a program to write to `/proc/driver/nvidia/suspend`. The file does not exist where the
    /// driver uses the kernel's notifiers (`NVreg_UseKernelSuspendNotifiers`).
    pub(super) by_procfs: bool,
    /// `NVreg_PreserveVideoMemoryAllocations`, where the driver shows it.
    pub(super) preserves: Option<bool>,
}

impl Drivers {
    pub(super) fn read(config: Option<&KernelConfig>) -> Drivers {
        let modules = fs::read_to_string("/proc/modules").unwrap_or_default();
        let has = |name: &str| {
            let is_module = modules.lines().any(|line| line.split(' ').next() == Some(name));
            is_module || Path::new("/sys/bus/pci/drivers").join(name).exists()
        };
        let nvidia = has("nvidia").then(|| Nvidia {
            by_procfs: Path::new("/proc/driver/nvidia/suspend").exists(),
            preserves: preserves(&fs::read_to_string("/proc/driver/nvidia/params").unwrap_or_default()),
        });
        let bound = fs::read_dir("/sys/bus/virtio/drivers/virtio_mem").into_iter().flatten().flatten();
        let mut virtio_mem: Vec<String> = bound
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| name.strip_prefix("virtio").is_some_and(|number| number.parse::<u32>().is_ok()))
            .collect();
        virtio_mem.sort();
        Drivers {
            can_be_told: hibernation_events::is_supported(),
            nvidia,
            has_amdgpu: has("amdgpu"),
            virtio_mem,
            watchdog: config.map(KernelConfig::text).and_then(watchdog),
        }
    }

    /// The checks.
    pub(super) fn judge(&self) -> Vec<Check> {
        vec![self.notifiers(), self.nvidia(), self.amdgpu(), self.virtio_mem(), self.watchdog()]
    }

    fn notifiers(&self) -> Check {
        let question =
            question("driver-events", "Drivers that are told of a hibernation save what is in their devices.");
        match self.can_be_told {
            true => question.ok("the kernel tells its drivers of a hibernation"),
            false => question.warning("the kernel lacks CONFIG_HIBERNATION_SNAPSHOT_DEV", SNAPSHOT_DEV),
        }
    }

    fn nvidia(&self) -> Check {
        let question = question("nvidia", "The driver loses what is in video memory, unless it is told before.");
        match self.nvidia {
            None => question.ok("the driver is not loaded"),
            Some(Nvidia { by_procfs: true, .. }) => question.warning(
                "the driver waits to be told by /proc/driver/nvidia/suspend",
                "set NVreg_PreserveVideoMemoryAllocations=1 for it, enable nvidia-hibernate.service and \
                 nvidia-resume.service, and hibernate by `systemctl hibernate`, which starts them; or, from version \
                 595 of the open driver on, set NVreg_UseKernelSuspendNotifiers=1",
            ),
            Some(_) if !self.can_be_told => question.failed(
                "the driver waits for the kernel's events, which this kernel does not send: it will refuse to freeze",
                format!("{SNAPSHOT_DEV}, or set NVreg_UseKernelSuspendNotifiers=0"),
            ),
            Some(Nvidia { preserves: Some(false), .. }) => question.warning(
                "the driver is told by the kernel's events, and does not save all of its video memory",
                "set NVreg_PreserveVideoMemoryAllocations=1 for it",
            ),
            Some(_) => question.ok("the driver is told by the kernel's events"),
        }
    }

    /// drivers/gpu/drm/amd/amdgpu/amdgpu_device.c, `amdgpu_device_evict_resources`: from Linux 7.0 on, a GPU in the
    /// processor keeps its buffers where they are unless the event was sent.
    fn amdgpu(&self) -> Check {
        let question = question("amdgpu", "The driver moves what is in video memory only if it is told before.");
        match (self.has_amdgpu, self.can_be_told) {
            (false, _) => question.ok("the driver is not loaded"),
            (true, true) => question.ok("the driver is told by the kernel's events"),
            (true, false) => question.warning(
                "with Linux 7 and a GPU in the processor, what is in video memory is lost: this kernel does not send \
                 its drivers the events",
                SNAPSHOT_DEV,
            ),
        }
    }

    /// drivers/virtio/virtio_mem.c, `virtio_mem_pm_notifier_cb`.
    fn virtio_mem(&self) -> Check {
        let question =
            question("virtio-mem", "Memory of virtio-mem is gone after a power-off, so that its driver refuses.");
        match self.virtio_mem.as_slice() {
            [] => question.ok("there is no such device"),
            devices => question.failed(
                format!("the driver virtio_mem has {}", devices.join(", ")),
                "remove the device from the virtual machine, or do not load the driver",
            ),
        }
    }

    fn watchdog(&self) -> Check {
        let question = question(
            "driver-watchdog",
            "A driver that takes longer to freeze or to come back makes the kernel panic, and the session is lost.",
        );
        match self.watchdog {
            None => question.ok("no driver is given a time in which to freeze"),
            Some(seconds) if seconds >= PATIENCE => {
                question.ok(format!("a driver has {seconds} s to freeze (CONFIG_DPM_WATCHDOG)"))
            }
            Some(seconds) => question.check(
                State::Warning,
                format!("a driver has only {seconds} s to freeze (CONFIG_DPM_WATCHDOG_TIMEOUT)"),
                Some(
                    "boot a kernel with CONFIG_DPM_WATCHDOG_TIMEOUT=60 or more, or without CONFIG_DPM_WATCHDOG".into(),
                ),
            ),
        }
    }
}

const SNAPSHOT_DEV: &str = "boot a kernel with CONFIG_HIBERNATION_SNAPSHOT_DEV=y";

/// SUSE's choice of `CONFIG_DPM_WATCHDOG_TIMEOUT`, in seconds; a disk that spins up takes half of it.
const PATIENCE: u64 = 60;

/// `PreserveVideoMemoryAllocations: 1` among the driver's parameters.
fn preserves(params: &str) -> Option<bool> {
    let value = params.lines().find_map(|line| line.strip_prefix("PreserveVideoMemoryAllocations:"))?;
    Some(value.trim() != "0")
}

/// `CONFIG_DPM_WATCHDOG_TIMEOUT`, which a kernel without `CONFIG_DPM_WATCHDOG` does not mention. One that has
/// `CONFIG_DPM_WATCHDOG_ENABLED`, and not switched on, does not use it.
fn watchdog(config: &str) -> Option<u64> {
    let value = |name: &str| config.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    let is_off = config.lines().any(|line| line == "# CONFIG_DPM_WATCHDOG_ENABLED is not set");
    value("CONFIG_DPM_WATCHDOG").filter(|value| *value == "y" && !is_off)?;
    value("CONFIG_DPM_WATCHDOG_TIMEOUT")?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn told() -> Drivers {
        Drivers { can_be_told: true, ..Drivers::default() }
    }

    fn state(drivers: &Drivers, id: &str) -> State {
        drivers.judge().into_iter().find(|check| check.id == id).unwrap().state
    }

    #[test]
    fn a_kernel_that_tells_its_drivers_is_well() {
        assert!(told().judge().iter().all(|check| check.state == State::Ok));
        assert_eq!(state(&Drivers::default(), "driver-events"), State::Warning);
        assert_eq!(state(&Drivers::default(), "amdgpu"), State::Ok);
    }

    #[test]
    fn nvidia_is_told_by_a_file_or_by_events() {
        let with = |by_procfs, preserves, can_be_told| {
            let nvidia = Some(Nvidia { by_procfs, preserves });
            state(&Drivers { nvidia, can_be_told, ..Drivers::default() }, "nvidia")
        };
        assert_eq!(with(true, Some(true), true), State::Warning);
        assert_eq!(with(false, Some(true), true), State::Ok);
        assert_eq!(with(false, None, true), State::Ok);
        assert_eq!(with(false, Some(false), true), State::Warning);
        assert_eq!(with(false, Some(true), false), State::Failed);
        assert_eq!(preserves("ResmanDebugLevel: 4\nPreserveVideoMemoryAllocations: 1\n"), Some(true));
        assert_eq!(preserves("PreserveVideoMemoryAllocations: 0\n"), Some(false));
        assert_eq!(preserves(""), None);
    }

    #[test]
    fn amdgpu_needs_the_events() {
        let drivers = |can_be_told| Drivers { has_amdgpu: true, can_be_told, ..Drivers::default() };
        assert_eq!(state(&drivers(true), "amdgpu"), State::Ok);
        assert_eq!(state(&drivers(false), "amdgpu"), State::Warning);
    }

    #[test]
    fn virtio_mem_fails_with_the_names_of_its_devices() {
        let drivers = Drivers { virtio_mem: vec!["virtio3".into()], ..told() };
        let check = drivers.judge().into_iter().find(|check| check.id == "virtio-mem").unwrap();
        assert!(check.state == State::Failed && check.found.contains("virtio3"), "{check:?}");
    }

    #[test]
    fn a_short_watchdog_of_drivers_is_a_warning() {
        assert_eq!(watchdog("CONFIG_DPM_WATCHDOG=y\nCONFIG_DPM_WATCHDOG_TIMEOUT=60\n"), Some(60));
        let off = "# CONFIG_DPM_WATCHDOG_ENABLED is not set\nCONFIG_DPM_WATCHDOG=y\nCONFIG_DPM_WATCHDOG_TIMEOUT=60\n";
        assert_eq!(watchdog(off), None);
        assert_eq!(watchdog("# CONFIG_DPM_WATCHDOG is not set\n"), None);
        let with = |seconds| state(&Drivers { watchdog: Some(seconds), ..told() }, "driver-watchdog");
        assert_eq!([with(12), with(60), with(120)], [State::Warning, State::Ok, State::Ok]);
    }

    #[test]
    fn facts_can_be_read_on_any_machine() {
        assert!(Drivers::read(None).watchdog.is_none());
    }
}
