//! Dormouse's module where the kernel checks itself, where a part of the machine does not obey, and beside a kernel
//! that can jump without it.

use anyhow::{Context, Result, ensure};
use dormouse::handoff::report::{Half, Outcome, Report};
use dormouse_tests::artifacts::{Artifacts, KernelName};
use dormouse_tests::cycle::{self, WentOn};
use dormouse_tests::guest::Guest;
use dormouse_tests::machine::GuestConfig;
use dormouse_tests::userland::{GuestPolicy, Userland};
use serde_json::Value;

use crate::{demand_proofs, demand_same_session, power_cycle, save, stay_on, stock};

/// What no kernel's log may have, of any of a machine's.
const COMPLAINTS: &[&str] =
    &["WARNING:", "BUG:", "Oops", "KASAN", "INFO: ", "Call Trace", "suspicious RCU", "sleeping function", "oldmem: "];
/// What has one of these words and is no complaint.
const HARMLESS: &[&str] = &["KernelAddressSanitizer initialized", "INFO: NMI handler"];
const BY_OLDMEM: &str = "A's memory is reached through /dev/oldmem";
const BY_MEM: &str = "A's memory is reached through /dev/mem";
/// With these a kernel does not complain of a host that is busy.
const PATIENT: &[&str] = &["nosoftlockup", "rcupdate.rcu_cpu_stall_suppress=1"];
/// Reserved memory in a session, for `/dev/oldmem` to reach: what, and between which addresses.
const RESERVED: (&str, u64, u64) = ("memmap=32M$512M", 512 << 20, 544 << 20);

/// Demands that none of the machine's kernels has complained since it was switched on first, and returns the lines.
fn demand_no_complaints(guest: &Guest) -> Result<Vec<String>> {
    let mut cursor = Default::default();
    let lines: Vec<String> = guest.console().since(&mut cursor).into_iter().map(|line| line.text).collect();
    let has = |line: &str, words: &[&str]| words.iter().any(|word| line.contains(word));
    let complaints: Vec<_> = lines.iter().filter(|line| has(line, COMPLAINTS) && !has(line, HARMLESS)).collect();
    ensure!(complaints.is_empty(), "{complaints:#?}");
    Ok(lines)
}

fn count(lines: &[String], text: &str) -> usize {
    lines.iter().filter(|line| line.contains(text)).count()
}

/// A guest whose kernel checks itself, in A, B, C and D. It needs room.
fn checked_session(arguments: &[&str]) -> Result<Guest> {
    let mut config = GuestConfig::new(2, "2G".parse()?);
    // An interrupt in the middle of `identify_cpu`, which drops LA57 for a moment, makes KASAN take any address of five
    // levels for a wild one (mm/kasan/report.c, `addr_has_metadata`; Linux 6.12).
    config.cpu_model = "max,la57=off".to_owned();
    config.kernel_arguments.extend(arguments.iter().chain(PATIENT).map(|&argument| argument.to_owned()));
    let policy = format!(
        "[save]\njump = \"module\"\n[region]\nsize = \"512M\"\n[kernel]\narguments = \"{}\"\n",
        PATIENT.join(" ")
    );
    stock::session_with(config, KernelName::Debug, &policy)
}

/// KASAN, lockdep and checks of sleeping in each kernel, none of which has `/dev/mem`.
pub(crate) fn a_kernel_that_checks_itself_comes_back() -> Result<()> {
    let mut guest = checked_session(&[])?;
    guest.succeed("test ! -e /dev/mem && dmesg | grep -q 'KernelAddressSanitizer initialized'")?;
    let snapshot = stay_on(&mut guest, "dormouse hibernate --then return --json")?;
    stock::demand(&mut guest, &snapshot, Outcome::Returned)?;
    let went_on = power_cycle(&mut guest)?;
    stock::demand(&mut guest, &went_on, Outcome::Resumed)?;
    let lines = demand_no_complaints(&guest)?;
    // Twice B has looked for a watchdog and whether D could write; then D has written.
    ensure!(count(&lines, BY_OLDMEM) >= 5 && count(&lines, BY_MEM) == 0, "not by /dev/oldmem");
    Ok(())
}

/// Loads the module again, with `/dev/oldmem` and without, and asks both devices for what they must refuse.
fn module_refuses(guest: &mut Guest) -> Result<()> {
    let file = guest.succeed("grep dormouse.ko /etc/modules")?;
    let load = |arguments: &str| format!("busybox rmmod dormouse && insmod /lib/modules/{} {arguments}", file.trim());
    // The module is asked, and not only the mode of the file.
    guest.succeed("busybox chmod 666 /dev/dormouse; workload module-refusals")?;
    guest.succeed(&load("oldmem=1"))?;
    guest.succeed("busybox chmod 666 /dev/oldmem")?;
    guest.succeed(&format!("workload oldmem {} {}", RESERVED.1, RESERVED.2))?;
    for device in ["/dev/dormouse", "/dev/oldmem"] {
        guest.succeed(&format!("exec 3<{device}; ! busybox rmmod dormouse 2>/dev/null"))?;
    }
    guest.succeed(&load(""))?;
    Ok(())
}

/// Each allocation in loading fails once, and the module is asked for what it must refuse; then it jumps all the same.
pub(crate) fn what_the_module_refuses_and_allocations_that_fail() -> Result<()> {
    let mut guest = checked_session(&[RESERVED.0])?;
    let session = cycle::check_workload(&mut guest)?;
    // Those that may sleep fail, too, and single pages; silently. CPUs keep few free pages for themselves, which are
    // not counted.
    guest.succeed(
        "mount -t debugfs debugfs /sys/kernel/debug && cd /sys/kernel/debug && \
         for of in failslab fail_page_alloc; do echo 0 >$of/verbose && echo N >$of/ignore-gfp-wait || exit 1; done && \
         echo 0 >fail_page_alloc/min-order && echo 1000000 >/proc/sys/vm/percpu_pagelist_high_fraction",
    )?;
    for megabytes in [1, 64] {
        println!("{megabytes} MiB: {}", guest.succeed(&format!("workload module-failures --megabytes {megabytes}"))?);
    }
    module_refuses(&mut guest)?;
    demand_same_session(&mut guest, &session)?;
    let snapshot = stay_on(&mut guest, "dormouse hibernate --then return --json")?;
    stock::demand(&mut guest, &snapshot, Outcome::Returned)?;
    demand_no_complaints(&guest)?;
    Ok(())
}

/// A snapshot, for whom `jump` decides.
fn snapshot(guest: &mut Guest, jump: &str) -> Result<(WentOn, Report)> {
    guest.succeed(&format!("sed -i 's/^jump = .*/jump = \"{jump}\"/' /etc/dormouse.toml"))?;
    let went_on = stay_on(guest, "dormouse hibernate --then return --json")?;
    let report = went_on.report()?;
    ensure!(report.outcome == Outcome::Returned, "{report:?}");
    Ok((went_on, report))
}

/// A hibernation that fails with these words, with nothing changed.
fn demand_failure(guest: &mut Guest, words: &[&str]) -> Result<()> {
    let session = cycle::check_workload(guest)?;
    let output = guest.run("dormouse hibernate --then poweroff --json")?;
    let json: Value = serde_json::from_str(&output.stdout).with_context(|| format!("{output:?}"))?;
    let message = json["message"].as_str().unwrap_or_default();
    ensure!(output.status == 1 && json["id"] == "not-frozen", "{output:?}");
    ensure!(words.iter().all(|word| message.contains(word)), "not {words:?}: {message}");
    demand_same_session(guest, &session)?;
    ensure!(guest.succeed("cat /sys/devices/system/cpu/online")?.trim() == "0-1", "a CPU is offline");
    ensure!(guest.succeed("cat /sys/module/pm_witness/parameters/frozen")?.trim() == "0", "the device is frozen");
    Ok(())
}

/// Makes a step of CPU 1's way down or up fail, once.
fn fail_cpu(guest: &mut Guest, step: &str) -> Result<()> {
    let cpu = "/sys/devices/system/cpu";
    guest.succeed(&format!(
        "state=$(sed -n 's/^ *\\([0-9]*\\): {}$/\\1/p' {cpu}/hotplug/states) && echo $state >{cpu}/cpu1/hotplug/fail",
        step.replace('/', "\\/")
    ))?;
    Ok(())
}

/// Linux 6.12 with `CONFIG_KEXEC_JUMP` and the module: each jumps where the policy says so. Then, by the module, a
/// device that does not freeze, a CPU that does not go down, and one that does not come back.
pub(crate) fn by_the_kernel_or_the_module_and_what_does_not_obey() -> Result<()> {
    let mut config = GuestConfig::new(2, "1G".parse()?);
    config.kernel_arguments.push(RESERVED.0.to_owned());
    config.modules.push("pm_witness".to_owned());
    let mut guest = stock::session_with(config, KernelName::Module, "[save]\njump = \"auto\"\n")?;
    for (jump, by_module) in [("auto", false), ("kernel", false), ("module", true)] {
        let (went_on, report) = snapshot(&mut guest, jump)?;
        demand_proofs(&guest, &went_on)?;
        let before = report.before.context("nothing of the jump")?;
        ensure!(before.by_module == by_module, "{jump}: {before}");
        let status = guest.succeed("dormouse status")?;
        let by = if by_module { "jump by the module" } else { "jump by the kernel" };
        ensure!(status.contains(by), "{jump}: {status}");
    }

    let witness = "/sys/module/pm_witness/parameters/awake";
    guest.succeed(&format!("echo Y >{witness}"))?;
    demand_failure(&mut guest, &["a device: pm_witness pm_witness: failed to freeze"])?;
    guest.succeed(&format!("echo N >{witness}"))?;
    // Which has something to do in both directions, so that it fails in the first.
    fail_cpu(&mut guest, "workqueue:online")?;
    demand_failure(&mut guest, &["CPU 1 cannot be taken down"])?;

    // Which has something to do on the way up alone.
    fail_cpu(&mut guest, "irq/affinity:online")?;
    let session = cycle::check_workload(&mut guest)?;
    let output = guest.run("dormouse hibernate --then return --json")?;
    ensure!(output.status == 0, "{output:?}");
    let json: Value = serde_json::from_str(&output.stdout)?;
    ensure!(json["report"]["before"]["lost_cpus"] == 1, "{output:?}");
    ensure!(guest.succeed("dormouse status")?.contains("one CPU has not come back"));
    ensure!(guest.succeed("cat /sys/devices/system/cpu/online")?.trim() == "0", "no CPU is lost");
    guest.succeed("dmesg | grep -q 'dormouse: CPU 1 has not come back'")?;
    guest.succeed("echo 1 >/sys/devices/system/cpu/cpu1/online")?;
    demand_same_session(&mut guest, &session)?;

    module_refuses(&mut guest)?;
    let went_on = power_cycle(&mut guest)?;
    ensure!(went_on.report()?.before.is_some_and(|before| before.by_module && before.lost_cpus == 0));
    ensure!(guest.succeed("cat /sys/module/pm_witness/parameters/frozen")?.trim() == "0");
    Ok(())
}

/// 4 GiB that are not empty, restored through `/dev/oldmem`, and then through `/dev/mem` by a D that refuses the
/// module. What mapping takes is reported.
pub(crate) fn debian_13_restores_4_gib_by_each_device() -> Result<()> {
    const BY_MEM_POLICY: &str = "/etc/by-mem.toml";
    let mut config = GuestConfig::new(2, "5G".parse()?);
    (config.kernel, config.has_module) = (KernelName::Trixie, true);
    let image = format!("[image]\ndevice = \"{}\"\n", config.disk_path(0)?);
    let by_mem = format!("{image}[kernel]\narguments = \"module_blacklist=dormouse\"\n");
    let policies = vec![GuestPolicy::standard(image), GuestPolicy { path: BY_MEM_POLICY.to_owned(), text: by_mem }];
    let userland = Userland { policies, ..Userland::default() };
    let mut guest = Guest::new(config, &userland, &Artifacts::from_environment()?)?;
    guest.boot()?;
    let device = guest.config().disk_path(0)?;
    cycle::init_image(&mut guest, &device)?;
    cycle::start_workload(&mut guest)?;
    // Programs: 2 MiB and more are different before they come again, and they compress as programs do.
    let bytes: u64 = guest.succeed("stat -c %s /usr/bin/dormouse")?.trim().parse()?;
    for _ in 0..4 {
        let times = 900_000_000 / bytes;
        guest.succeed(&format!("for time in $(seq {times}); do cat /usr/bin/dormouse >>/run/full || exit 1; done"))?;
    }

    let mut restored = Vec::new();
    for (device, line, argument) in
        [("/dev/oldmem", BY_OLDMEM, ""), ("/dev/mem", BY_MEM, &*format!("guest.policy={BY_MEM_POLICY}"))]
    {
        let saved = save(&mut guest)?;
        guest.set_kernel_arguments(vec![argument.to_owned()]);
        let mut lines = Vec::new();
        let went_on = cycle::resume(&mut guest, saved, &mut |line| lines.push(line.text.clone()))?;
        demand_proofs(&guest, &went_on)?;
        ensure!(count(&lines, line) == 1, "not by {device}");
        let report = went_on.report()?;
        ensure!(report.stored_pages > 800_000, "{report:?}");
        let restore = report.restore.context("nothing of the restore")?;
        println!(
            "{device}: {:.2} s, {} ms of it in mapping ({:.2} %)",
            restore.seconds,
            restore.spent.mapping_ms,
            share(&restore)
        );
        restored.push(restore);
    }
    let [oldmem, _] = restored.as_slice() else { anyhow::bail!("{restored:?}") };
    ensure!(oldmem.spent.mapping_ms > 0 && share(oldmem) < 3.0, "mapping takes {:.2} %", share(oldmem));
    Ok(())
}

/// What of a restore is mapping, in per cent.
fn share(half: &Half) -> f64 {
    f64::from(half.spent.mapping_ms) / half.seconds / 10.0
}
