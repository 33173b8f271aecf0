//! One power-off cycle in each shape of machine.

use anyhow::Result;
use dormouse_tests::machine::{DiskKind, Firmware, GuestConfig, MachineType};

use crate::{power_cycle, session};

fn shape(machine: MachineType, disk: DiskKind, firmware: Firmware) -> Result<GuestConfig> {
    let mut config = GuestConfig::new(2, "1G".parse()?).disk(disk);
    config.machine = machine;
    config.firmware = firmware;
    Ok(config)
}

pub(crate) fn q35_with_nvme_uefi_5_level_paging_and_kaslr() -> Result<()> {
    let mut guest = session(shape(MachineType::Q35, DiskKind::Nvme, Firmware::Uefi)?)?;
    // QEMU's `max` model has it, and a kernel that has it uses it. The kernel's place is random unless told otherwise.
    guest.succeed("grep -qw la57 /proc/cpuinfo")?;
    guest.succeed("! grep -qw nokaslr /proc/cmdline")?;
    guest.succeed("[ -d /sys/firmware/efi ]")?;
    power_cycle(&mut guest)?;
    Ok(())
}

pub(crate) fn pc_with_ahci() -> Result<()> {
    power_cycle(&mut session(shape(MachineType::Pc, DiskKind::Ahci, Firmware::Bios)?)?)?;
    Ok(())
}

pub(crate) fn q35_with_virtio_scsi_and_4_level_paging() -> Result<()> {
    let mut config = shape(MachineType::Q35, DiskKind::Scsi, Firmware::Bios)?;
    config.cpu_model = "qemu64".to_owned();
    let mut guest = session(config)?;
    guest.succeed("! grep -qw la57 /proc/cpuinfo")?;
    power_cycle(&mut guest)?;
    Ok(())
}

pub(crate) fn q35_with_usb_storage() -> Result<()> {
    let mut guest = session(shape(MachineType::Q35, DiskKind::Usb, Firmware::Bios)?)?;
    power_cycle(&mut guest)?;
    Ok(())
}
