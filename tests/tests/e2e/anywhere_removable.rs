//! The image in a file on a USB stick that has a filesystem of its own, and is plugged in elsewhere, or not at all.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use dormouse_tests::artifacts::Artifacts;
use dormouse_tests::cycle::{self, unobserved};
use dormouse_tests::filesystem;
use dormouse_tests::guest::Guest;
use dormouse_tests::machine::{GuestConfig, MIB, MachineType};
use dormouse_tests::userland::{GuestPolicy, Userland};

use crate::{demand_proofs, lines_of_boot, power_cycle, save, told};

/// In this port of the controller.
fn plugged(stick: &Path, port: u32) -> Vec<String> {
    let drive = format!("if=none,id=stick,format=raw,cache=writeback,file={}", stick.display());
    let device = format!("usb-storage,bus=sticks.0,port={port},drive=stick,serial=OWN");
    ["-device", "qemu-xhci,id=sticks", "-drive", &drive, "-device", &device].map(str::to_owned).to_vec()
}

/// A stick with ext4 is taken, and one with FAT refused with the reason. The session comes back from another port; a
/// boot without the stick goes on, and the next one with it resumes.
pub(crate) fn a_stick_in_another_port() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let [stick, fat] = ["stick", "fat"].map(|name| directory.path().join(name));
    for (path, kind, mib) in [(&stick, "ext4", 900), (&fat, "vfat", 64)] {
        std::fs::File::create(path)?.set_len(mib * MIB)?;
        filesystem::make(kind, path)?;
    }
    let mut config = GuestConfig::new(2, "512M".parse()?);
    config.machine = MachineType::Q35;
    config.disks.clear();
    config.modules.push("vfat".to_owned());
    config.qemu_arguments = plugged(&stick, 1);
    let other = format!("if=none,id=fat,format=raw,file={}", fat.display());
    config
        .qemu_arguments
        .extend(["-drive", &other, "-device", "usb-storage,bus=sticks.0,drive=fat"].map(str::to_owned));
    let userland = |device: &str| {
        let policies = vec![GuestPolicy::standard(format!("[image]\ndevice = \"{device}\"\nwait = 20\n"))];
        let modules = ["xhci_pci", "usb_storage", "sd_mod"].map(str::to_owned).to_vec();
        Userland { policies, modules, ..Userland::default() }
    };
    let artifacts = Artifacts::from_environment()?;
    let mut guest = Guest::new(config, &userland("/dev/disk"), &artifacts)?;
    guest.boot()?;
    guest.succeed(
        "mkdir -p /run/files /run/fat; for try in $(seq 300); do \
         mount -t ext4 /dev/sda /run/files 2>/dev/null || mount -t ext4 /dev/sdb /run/files 2>/dev/null && break; \
         sleep 0.1; done; mount -t vfat /dev/sda /run/fat 2>/dev/null || mount -t vfat /dev/sdb /run/fat",
    )?;
    let refused = guest.run("dormouse image create --size 40M /run/fat/image")?;
    ensure!(refused.status != 0 && refused.stderr.contains("it is on vfat"), "{refused:?}");
    let printed = guest.succeed("dormouse image create --size 640M /run/files/image")?;
    guest.succeed("printf '[image]\\ndevice = \"/run/files/image\"\\n' >/run/file.toml; umount /run/fat")?;
    let policy = guest.succeed("dormouse --config /run/file.toml config show --boot")?;
    let device = policy.lines().find_map(|line| line.strip_prefix("device = \"")?.strip_suffix('"'));
    let device = device.with_context(|| format!("{printed}{policy}"))?.to_owned();
    guest.succeed("umount /run/files")?;
    guest.cut_power();

    guest.change(|config| config.qemu_arguments = plugged(&stick, 1));
    guest.set_userland(&userland(&device), &artifacts)?;
    guest.boot()?;
    cycle::start_workload(&mut guest)?;
    power_cycle(&mut guest)?;
    let saved = save(&mut guest)?;
    guest.change(|config| config.qemu_arguments = plugged(&stick, 3));
    let went_on = cycle::resume(&mut guest, saved, &mut unobserved)?;
    demand_proofs(&guest, &went_on)?;

    // The session finds its stick gone from the one port, and in the other.
    guest.succeed(
        "for try in $(seq 300); do ls -l /sys/block | grep -q -e '-3/.*sd' && exit; sleep 0.1; done; exit 1",
    )?;
    let saved = save(&mut guest)?;
    guest.change(|config| config.qemu_arguments = ["-device", "qemu-xhci,id=sticks"].map(str::to_owned).to_vec());
    let lines = lines_of_boot(&mut guest)?;
    ensure!(lines.iter().any(|line| line.contains("not found within 20 s")), "{:?}", told(&lines));
    guest.cut_power();
    guest.change(|config| config.qemu_arguments = plugged(&stick, 2));
    let went_on = cycle::resume(&mut guest, saved, &mut unobserved)?;
    demand_proofs(&guest, &went_on)
}
