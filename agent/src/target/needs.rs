//! What B and D need to reach a block device, a network interface or a watchdog: kernel modules, from its chain of
//! devices in sysfs.
//!
//! A disk's directory lies in that of its controller, that one in its bus's, up to the root of the bus. The kernel that
//! looks is the one that runs, and the modules are for another, which may have been built otherwise: a driver that is a
//! module here is named by its `driver/module` link, one that is built in here is looked for by the device's `modalias`
//! among the other's modules.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use dormouse_linux::block::Hardware;
use dormouse_linux::kmod::{self, ModulesError};
use dormouse_linux::link::Link;
use dormouse_linux::watchdogs::{self, HardwareWatchdog};
use serde::{Deserialize, Serialize};

/// What an initramfs must hold for a target to be reached from it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Needs {
    /// Names of kernel modules, without what these need themselves: see [`kmod::resolve`].
    pub modules: Vec<String>,
}

/// What drives a device on the way to a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Driver {
    /// A module of this name.
    Module(String),
    /// A module of this name, where the other kernel has one: what it does may be built in, or is done otherwise.
    IfThere(String),
    /// Something that is built into the kernel that runs; another finds it by the device's `modalias`.
    BuiltIn(String),
}

impl Driver {
    /// All drivers on the ways to a disk.
    pub(super) fn of(hardware: &Hardware) -> Vec<Driver> {
        Driver::on(hardware.ways())
    }

    /// All drivers on the way to a network interface.
    pub(super) fn of_link(link: &Link) -> Vec<Driver> {
        let ways = link.ways();
        Driver::on(ways.iter().map(PathBuf::as_path))
    }

    /// The drivers of these devices.
    fn on<'a>(ways: impl Iterator<Item = &'a Path>) -> Vec<Driver> {
        let driver = |link: &Path| match link.join("driver/module").canonicalize() {
            Ok(module) => module.file_name().map(|name| Driver::Module(name.to_string_lossy().into_owned())),
            // A place on the way, such as a SCSI target, which nothing drives, has neither.
            Err(_) if !link.join("driver").exists() => None,
            Err(_) => fs::read_to_string(link.join("modalias"))
                .ok()
                .map(|modalias| Driver::BuiltIn(modalias.trim_end().to_owned())),
        };
        ways.filter_map(driver).collect()
    }
}

impl Needs {
    /// What a disk needs of the kernel whose modules are in `directory`.
    ///
    /// # Errors
    /// The modules cannot be looked through.
    pub fn of(hardware: &Hardware, directory: &Path) -> Result<Needs, ModulesError> {
        Needs::of_drivers(&Driver::of(hardware), directory)
    }

    /// What a watchdog needs of the kernel whose modules are in `directory`.
    ///
    /// # Errors
    /// The modules cannot be looked through.
    pub fn of_watchdog(watchdog: &HardwareWatchdog, directory: &Path) -> Result<Needs, ModulesError> {
        if watchdog.has_device() {
            return Needs::of_drivers(&Driver::on(watchdog.ways()), directory);
        }
        // Which of the drivers has made it, sysfs does not show.
        let modules = watchdogs::loaded_drivers(Path::new("/sys"), directory);
        Ok(Needs { modules: modules.into_iter().collect() })
    }

    /// What a disk that has these drivers needs of the kernel whose modules are in `directory`.
    ///
    /// # Errors
    /// The modules cannot be looked through.
    pub fn of_drivers(drivers: &[Driver], directory: &Path) -> Result<Needs, ModulesError> {
        let mut names = BTreeSet::new();
        for driver in drivers {
            match driver {
                Driver::Module(name) => names.extend([name.clone()]),
                Driver::IfThere(name) => names.extend(kmod::has(directory, name).then(|| name.clone())),
                Driver::BuiltIn(modalias) => names.extend(kmod::by_alias(directory, modalias)?),
            }
        }
        Ok(Needs { modules: names.into_iter().collect() })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::symlink;
    use std::path::PathBuf;

    use tempfile::TempDir;

    use super::*;

    /// A sysfs of directories, files `modalias`, and links `driver`, whose target has a link `module` where the driver
    /// is a module.
    struct Sysfs(TempDir);

    impl Sysfs {
        fn new() -> Sysfs {
            Sysfs(tempfile::tempdir().unwrap())
        }

        fn root(&self) -> PathBuf {
            self.0.path().canonicalize().unwrap()
        }

        fn directory(&self, place: &str) -> PathBuf {
            let directory = self.root().join(place);
            fs::create_dir_all(&directory).unwrap();
            directory
        }

        /// A device at `place` with `driver`, which is the module of that name, dashes apart, or built in.
        fn driven(&self, place: &str, driver: &str, module: Option<&str>, modalias: Option<&str>) {
            let (device, driver) = (self.directory(place), self.directory(&format!("bus/drivers/{driver}")));
            symlink(&driver, device.join("driver")).unwrap();
            if let Some(module) = module {
                let module = self.directory(&format!("module/{module}"));
                let _ = symlink(module, driver.join("module"));
            }
            if let Some(modalias) = modalias {
                fs::write(device.join("modalias"), format!("{modalias}\n")).unwrap();
            }
        }

        fn needed(&self, place: &str, directory: &Path) -> Vec<String> {
            self.directory(place);
            Needs::of(&Hardware::at(&self.root(), Path::new(place)).unwrap(), directory).unwrap().modules
        }
    }

    const PCI: &str = "devices/pci0000:00/0000:00:04.0";

    #[test]
    fn every_driver_on_the_way_is_named() {
        let (sysfs, none) = (Sysfs::new(), Path::new("/nonexistent"));
        let port = format!("{PCI}/ata1");
        sysfs.driven(PCI, "ahci", Some("ahci"), Some("pci:v1"));
        sysfs.driven(&format!("{port}/host0/target0:0:0/0:0:0:0"), "sd", Some("sd_mod"), Some("scsi:t-0x00"));
        // What is not on the way does not count.
        sysfs.driven("devices/pci0000:00/0000:00:05.0", "e1000e", Some("e1000e"), None);
        let disk = format!("{port}/host0/target0:0:0/0:0:0:0/block/sda");
        assert_eq!(sysfs.needed(&disk, none), ["ahci", "sd_mod"]);
        assert_eq!(sysfs.needed(&format!("{disk}/sda2"), none), ["ahci", "sd_mod"]);
    }

    #[test]
    fn names_a_module_for_what_is_built_in_here() {
        let sysfs = Sysfs::new();
        let modules = tempfile::tempdir().unwrap();
        fs::write(
            modules.path().join("modules.alias"),
            "alias virtio:d00000002v* virtio_blk\nalias pci:v1* virtio_pci\n",
        )
        .unwrap();
        sysfs.driven(PCI, "virtio-pci", Some("virtio_pci"), Some("pci:v1"));
        sysfs.driven(&format!("{PCI}/virtio1"), "virtio_blk", None, Some("virtio:d00000002v00001AF4"));
        let disk = format!("{PCI}/virtio1/block/vda");
        assert_eq!(sysfs.needed(&disk, modules.path()), ["virtio_blk", "virtio_pci"]);
        // A kernel without such a module has it built in, too.
        assert_eq!(sysfs.needed(&disk, Path::new("/nonexistent")), ["virtio_pci"]);
    }

    #[test]
    fn an_nvme_namespace_with_multipath_needs_what_its_controller_needs() {
        let sysfs = Sysfs::new();
        sysfs.driven(PCI, "nvme", Some("nvme"), Some("pci:v2"));
        let controller = sysfs.directory(&format!("{PCI}/nvme/nvme0"));
        let subsystem = "devices/virtual/nvme-subsystem/nvme-subsys0";
        symlink(controller, sysfs.directory(subsystem).join("nvme0")).unwrap();
        assert_eq!(sysfs.needed(&format!("{subsystem}/nvme0n1/nvme0n1p3"), Path::new("/nonexistent")), ["nvme"]);
    }
}
