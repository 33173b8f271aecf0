//! What `dormouse hibernate` and `dormouse image init` refuse before anything is frozen or written.

use anyhow::{Result, ensure};
use dormouse_tests::artifacts::Artifacts;
use dormouse_tests::channel::Output;
use dormouse_tests::guest::Guest;
use dormouse_tests::machine::{Disk, DiskKind, GuestConfig, MIB};
use dormouse_tests::userland::{GuestPolicy, Userland};
use dormouse_tests::{cycle, filesystem};

use crate::{demand_nothing_loaded, demand_proofs, session, stay_on};

pub(crate) fn devices_that_belong_to_something_else() -> Result<()> {
    let mut config = GuestConfig::new(1, "512M".parse()?);
    config.disks.extend([Disk { kind: DiskKind::Virtio, bytes: 64 * MIB }; 4]);
    let policy = |disk: usize| -> Result<GuestPolicy> {
        let device = config.disk_path(disk)?;
        let path = if disk == 0 { "/etc/dormouse.toml".to_owned() } else { format!("/etc/disk{disk}.toml") };
        Ok(GuestPolicy { path, text: format!("[image]\ndevice = \"{device}\"\n") })
    };
    let policies = (0..5).map(policy).collect::<Result<Vec<_>>>()?;
    let mut guest = Guest::new(config, &Userland { policies, ..Userland::default() }, &Artifacts::from_environment()?)?;
    filesystem::make("ext4", &guest.disk_file(1))?;
    filesystem::make("xfs", &guest.disk_file(3)).or_else(|_| filesystem::make("ext4", &guest.disk_file(3)))?;
    filesystem::partition(&guest.disk_file(4), ",,L")?;
    guest.boot()?;
    cycle::init_image(&mut guest, "/dev/vda")?;
    guest.succeed("mkdir -p /run/files && mount -t ext4 /dev/vdb /run/files && echo mine >/run/files/word")?;
    guest.succeed("mkswap /dev/vdc && swapon /dev/vdc")?;

    let cases = [
        ("/dev/vdb", 1, "in use", "in use", true),
        ("/dev/vdc", 2, "in use", "in use", true),
        ("/dev/vdd", 3, "it carries", "not initialised", false),
        ("/dev/vde", 4, "it carries a GPT partition table", "not initialised", false),
    ];
    for (device, disk, init, hibernate, in_use) in cases {
        refused(&mut guest, &format!("dormouse image init {device}"), &[device, init])?;
        if in_use {
            refused(&mut guest, &format!("dormouse image init --force {device}"), &[device, init])?;
        }
        refused(&mut guest, &format!("dormouse --config /etc/disk{disk}.toml hibernate"), &[device, hibernate])?;
    }
    guest.succeed("sync; grep -qw mine /run/files/word && swapoff /dev/vdc && swapon /dev/vdc")?;
    let status = guest.succeed("dormouse status")?;
    ensure!(status.contains("/dev/vde") && status.contains("not initialised"), "{status}");
    Ok(())
}

pub(crate) fn kernels_and_memory_that_will_not_do() -> Result<()> {
    let config = GuestConfig::new(1, "512M".parse()?);
    let device = config.disk_path(0)?;
    let text = |more: &str| format!("[image]\ndevice = \"{device}\"\n{more}");
    let policies = vec![
        GuestPolicy::standard(text("")),
        GuestPolicy { path: "/etc/large.toml".to_owned(), text: text("[region]\nsize = \"384M\"\n") },
        GuestPolicy { path: "/etc/nowhere.toml".to_owned(), text: text("[region]\naddress = \"8G\"\n") },
    ];
    let mut guest = Guest::new(config, &Userland { policies, ..Userland::default() }, &Artifacts::from_environment()?)?;
    guest.boot()?;
    cycle::init_image(&mut guest, "/dev/vda")?;
    // The jump would swap more than half of memory.
    refused(&mut guest, "dormouse --config /etc/large.toml hibernate", &["region.size"])?;
    refused(&mut guest, "dormouse --config /etc/nowhere.toml hibernate", &["region"])?;
    // What is set aside for the region must be free.
    guest.succeed("head -c 360000000 /dev/urandom >/run/fill || true")?;
    refused(&mut guest, "dormouse hibernate", &["memory"])?;
    guest.succeed("rm /run/fill")?;
    guest.succeed("sed 's/.*/[disabled]/' /sys/power/disk >/run/disk && mount --bind /run/disk /sys/power/disk")?;
    refused(&mut guest, "dormouse hibernate", &["/sys/power/disk", "lockdown"])?;
    guest.succeed("umount /sys/power/disk")?;
    // For good, hence last.
    guest.succeed("echo 1 >/proc/sys/kernel/kexec_load_disabled")?;
    refused(&mut guest, "dormouse hibernate", &["kexec_load was refused", "kernel.kexec_load_disabled=0"])?;
    Ok(())
}

pub(crate) fn a_second_hibernation_and_signals() -> Result<()> {
    let mut guest = session(GuestConfig::new(2, "768M".parse()?))?;
    let before = cycle::check_workload(&mut guest)?;
    for signal in ["TERM", "INT"] {
        // It says that it loads, and is stopped before it jumps.
        let output = guest.run(&format!(
            "dmesg -c >/dev/null; dormouse hibernate --then return & pid=$!; \
             until dmesg | grep -q hibernate/load; do :; done; kill -{signal} $pid; wait $pid"
        ))?;
        let expected = format!("stopped by SIG{signal} before the jump");
        ensure!(output.status == 3 && output.stderr.contains(&expected), "{output:?}");
        demand_nothing_loaded(&mut guest)?;
    }
    // While one of them is under way, and stopped where it is, another does not begin. Then it may.
    let output = guest.run(
        "dmesg -c >/dev/null; dormouse hibernate --then return & pid=$!; \
         until dmesg | grep -q hibernate/prepare; do :; done; kill -STOP $pid; \
         dormouse hibernate --then return; echo second $?; kill -TERM $pid; kill -CONT $pid; wait $pid",
    )?;
    ensure!(output.status == 3 && output.stdout == "second 3\n", "{output:?}");
    for expected in ["is running; try again when it has finished", "stopped by SIGTERM before the jump"] {
        ensure!(output.stderr.contains(expected), "{output:?}");
    }
    demand_nothing_loaded(&mut guest)?;
    let went_on = stay_on(&mut guest, "dormouse hibernate --then return --json")?;
    demand_proofs(&guest, &went_on)?;
    ensure!(went_on.report()?.stored_pages > 0, "{went_on:?}");
    demand_nothing_loaded(&mut guest)?;
    let after = cycle::check_workload(&mut guest)?;
    ensure!(after.boot_id == before.boot_id, "another session");
    Ok(())
}

/// A command that must be refused with these messages, and leave nothing loaded.
fn refused(guest: &mut Guest, command: &str, expected: &[&str]) -> Result<()> {
    let output: Output = guest.run(command)?;
    ensure!(output.status == 3, "{command}: {output:?}");
    for expected in expected {
        ensure!(output.stderr.contains(expected), "{command}: {expected:?} is not in {:?}", output.stderr);
    }
    demand_nothing_loaded(guest)
}
