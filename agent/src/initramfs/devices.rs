//! Which kernel modules a block device needs, from its chain of devices in sysfs.
//!
//! A disk's folder lies in that of its controller, that one in its bus's, up to the root of the bus. The kernel that looks is the one
//! that runs, and the modules are for another, which may have been built otherwise: a driver that is a module here is named by
//! its `driver/module` link, one that is built in here is looked for by the device's `modalias` among the other's modules.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::modules::{self, ModulesError};

/// Where the kernel shows its devices.
const SYSFS: &str = "/sys";

/// Why it cannot be said what a device needs.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DevicesError {
    /// No block device.
    #[error("{}: it is no block device that sysfs lists: {source}; name the modules with --modules", path.display())]
    NoDevice {
        /// What was asked for.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is made of other devices by something that B does not do.
    #[error(
        "{}: {name} is made of other block devices (device-mapper, RAID), which the save kernel does not assemble; use a \
         partition or a disk",
        path.display()
    )]
    Stacked {
        /// What was asked for.
        path: PathBuf,
        /// What the kernel calls the device.
        name: String,
    },
    /// No hardware is behind it.
    #[error("{}: {name} is no hardware, so the save kernel does not have it; use a partition or a disk", path.display())]
    Virtual {
        /// What was asked for.
        path: PathBuf,
        /// What the kernel calls the device.
        name: String,
    },
    /// The modules cannot be looked through.
    #[error(transparent)]
    Modules(#[from] ModulesError),
}

/// The names of the modules that the block device `path` needs of the kernel whose modules are in `folder`; without what these
/// modules need themselves, see [`modules::resolve`].
///
/// # Errors
/// [`DevicesError`]: there is no such device, or B could not have it.
pub fn modules_of(path: &Path, folder: &Path) -> Result<Vec<String>, DevicesError> {
    let no_device = |source| DevicesError::NoDevice { path: path.to_owned(), source };
    let metadata = fs::metadata(path).map_err(no_device)?;
    if !metadata.file_type().is_block_device() {
        return Err(no_device(io::ErrorKind::InvalidInput.into()));
    }
    let number = metadata.rdev();
    let (major, minor) = (nix::sys::stat::major(number), nix::sys::stat::minor(number));
    let sysfs = Path::new(SYSFS);
    let device = sysfs.join(format!("dev/block/{major}:{minor}")).canonicalize().map_err(no_device)?;
    needed(path, sysfs, &device, folder)
}

/// The same of the device whose folder in `sysfs` is `device`.
fn needed(path: &Path, sysfs: &Path, device: &Path, folder: &Path) -> Result<Vec<String>, DevicesError> {
    let mut names = BTreeSet::new();
    for chain in chains(path, sysfs, device)? {
        for link in chain.ancestors().take_while(|link| link.parent() != Some(sysfs)) {
            match (link.join("driver/module").canonicalize(), fs::read_to_string(link.join("modalias"))) {
                (Ok(module), _) => names.extend(module.file_name().map(|name| name.to_string_lossy().into_owned())),
                (Err(_), Ok(modalias)) if link.join("driver").exists() => {
                    names.extend(modules::by_alias(folder, modalias.trim_end())?);
                }
                // A place on the way, such as a SCSI target, which nothing drives.
                _ => {}
            }
        }
    }
    Ok(names.into_iter().collect())
}

/// The folders of hardware at which the ways to `device` begin: one, but for NVMe with several controllers or one that may have several.
fn chains(path: &Path, sysfs: &Path, device: &Path) -> Result<Vec<PathBuf>, DevicesError> {
    let virtuals = sysfs.join("devices/virtual");
    if !device.starts_with(&virtuals) {
        return Ok(vec![device.to_owned()]);
    }
    // A namespace of NVMe's multipath hangs in its subsystem, in which links lead to the controllers (drivers/nvme/host/multipath.c).
    if let Some(subsystem) = device.ancestors().find(|folder| folder.parent() == Some(&virtuals.join("nvme-subsystem")))
    {
        let entries = fs::read_dir(subsystem).into_iter().flatten().flatten();
        let controllers = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_symlink()));
        let places: Vec<PathBuf> = controllers
            .filter(|entry| entry.file_name().to_string_lossy().starts_with("nvme"))
            .filter_map(|entry| entry.path().canonicalize().ok())
            .collect();
        if !places.is_empty() {
            return Ok(places);
        }
    }
    let name = device.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let is_stacked =
        |folder: &Path| fs::read_dir(folder.join("slaves")).is_ok_and(|mut slaves| slaves.next().is_some());
    let path = path.to_owned();
    if is_stacked(device) || device.parent().is_some_and(is_stacked) {
        Err(DevicesError::Stacked { path, name })
    } else {
        Err(DevicesError::Virtual { path, name })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::symlink;

    use tempfile::TempDir;

    use super::*;

    /// A sysfs of folders, files `modalias`, and links `driver`, whose target has a link `module` where the driver is one.
    struct Sysfs(TempDir);

    impl Sysfs {
        fn new() -> Sysfs {
            Sysfs(tempfile::tempdir().unwrap())
        }

        fn root(&self) -> PathBuf {
            self.0.path().canonicalize().unwrap()
        }

        fn folder(&self, place: &str) -> PathBuf {
            let folder = self.root().join(place);
            fs::create_dir_all(&folder).unwrap();
            folder
        }

        /// A device at `place` with `driver`, which is the module of that name, dashes apart, or built in.
        fn driven(&self, place: &str, driver: &str, module: Option<&str>, modalias: Option<&str>) {
            let (device, driver) = (self.folder(place), self.folder(&format!("bus/drivers/{driver}")));
            symlink(&driver, device.join("driver")).unwrap();
            if let Some(module) = module {
                let module = self.folder(&format!("module/{module}"));
                let _ = symlink(module, driver.join("module"));
            }
            if let Some(modalias) = modalias {
                fs::write(device.join("modalias"), format!("{modalias}\n")).unwrap();
            }
        }

        fn needed(&self, place: &str, folder: &Path) -> Result<Vec<String>, DevicesError> {
            needed(Path::new("/dev/disk"), &self.root(), &self.folder(place), folder)
        }
    }

    const PCI: &str = "devices/pci0000:00/0000:00:04.0";

    #[test]
    fn every_driver_on_the_way_is_named() {
        let (sysfs, none) = (Sysfs::new(), Path::new("/nonexistent"));
        let port = format!("{PCI}/ata1");
        sysfs.driven(PCI, "ahci", Some("ahci"), Some("pci:v1"));
        sysfs.driven(&format!("{port}/host0/target0:0:0/0:0:0:0"), "sd", Some("sd_mod"), Some("scsi:t-0x00"));
        // What is beside the way does not count.
        sysfs.driven("devices/pci0000:00/0000:00:05.0", "e1000e", Some("e1000e"), None);
        let disk = format!("{port}/host0/target0:0:0/0:0:0:0/block/sda");
        assert_eq!(sysfs.needed(&disk, none).unwrap(), ["ahci", "sd_mod"]);
        assert_eq!(sysfs.needed(&format!("{disk}/sda2"), none).unwrap(), ["ahci", "sd_mod"]);
    }

    #[test]
    fn what_is_built_in_here_may_be_a_module_there() {
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
        assert_eq!(sysfs.needed(&disk, modules.path()).unwrap(), ["virtio_blk", "virtio_pci"]);
        // A kernel without such a module has it built in, too.
        assert_eq!(sysfs.needed(&disk, Path::new("/nonexistent")).unwrap(), ["virtio_pci"]);
    }

    #[test]
    fn an_nvme_namespace_with_multipath_leads_to_its_controllers() {
        let sysfs = Sysfs::new();
        sysfs.driven(PCI, "nvme", Some("nvme"), Some("pci:v2"));
        let controller = sysfs.folder(&format!("{PCI}/nvme/nvme0"));
        let subsystem = "devices/virtual/nvme-subsystem/nvme-subsys0";
        symlink(controller, sysfs.folder(subsystem).join("nvme0")).unwrap();
        let partition = format!("{subsystem}/nvme0n1/nvme0n1p3");
        assert_eq!(sysfs.needed(&partition, Path::new("/nonexistent")).unwrap(), ["nvme"]);
    }

    #[test]
    fn what_the_save_kernel_cannot_have_is_refused() {
        let sysfs = Sysfs::new();
        sysfs.folder("devices/virtual/block/dm-0/slaves/sda2");
        let said = |place: &str| sysfs.needed(place, Path::new("/nonexistent")).unwrap_err().to_string();
        let stacked = said("devices/virtual/block/dm-0");
        assert!(stacked.contains("/dev/disk: dm-0 is made of other block devices"), "{stacked}");
        sysfs.folder("devices/virtual/block/md0/slaves/sda1");
        assert!(said("devices/virtual/block/md0/md0p1").contains("md0p1 is made of other"), "a partition of it");
        assert!(said("devices/virtual/block/loop0").contains("loop0 is no hardware"), "a loop device");
    }

    #[test]
    fn what_is_no_block_device_is_refused() {
        let error = modules_of(Path::new("/proc/self/status"), Path::new("/nonexistent")).unwrap_err();
        assert!(matches!(error, DevicesError::NoDevice { .. }), "{error}");
    }
}
