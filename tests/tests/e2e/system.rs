//! What looks after the machine between two hibernations: `dormouse prepare` and `dormouse doctor`; and systemd's sleep
//! hooks.

use anyhow::{Result, ensure};
use dormouse_image::State;
use dormouse_tests::cycle::{self, unobserved};
use dormouse_tests::guest::Guest;
use dormouse_tests::image;
use dormouse_tests::machine::GuestConfig;

use crate::{demand_proofs, lines_of_boot, reasons, save, session, session_with, stay_on, told};

/// Boots a system whose initramfs does not run `dormouse resume`.
fn boot_without_the_hook(guest: &mut Guest) -> Result<()> {
    guest.add_kernel_argument("rescue");
    guest.boot()?;
    guest.change(|config| config.kernel_arguments.clear());
    Ok(())
}

pub(crate) fn an_image_that_a_boot_has_missed_is_given_up() -> Result<()> {
    let mut guest = session(GuestConfig::new(1, "512M".parse()?))?;
    save(&mut guest)?;
    boot_without_the_hook(&mut guest)?;
    let doctor = guest.run("dormouse doctor")?;
    ensure!(doctor.stdout.contains("the image on /dev/vda is complete: a session waits in it"), "{doctor:?}");
    let printed = guest.succeed("dormouse prepare")?;
    let expected = "the image on /dev/vda is discarded (boot-did-not-ask): ";
    ensure!(printed.contains(expected) && printed.contains("resume-hook: failed"), "{printed}");
    // Nothing shows that the next boot would look for another one.
    let refused = guest.run("dormouse hibernate")?;
    ensure!(refused.status == 3 && refused.stderr.contains("this boot has not looked for an image"), "{refused:?}");
    // Once.
    let found: serde_json::Value = serde_json::from_str(&guest.succeed("dormouse prepare --json")?)?;
    ensure!(found["missed"].is_null() && found["diagnosis"]["ready"].is_boolean(), "{found}");
    guest.cut_power();
    let commit = image::commit(&guest.disk_file(0))?;
    ensure!(commit.state == State::Discarded && commit.reason.contains("does not run"), "{commit:?}");
    let lines = lines_of_boot(&mut guest)?;
    ensure!(reasons(&lines) == ["no image to resume: the one on /dev/vda is discarded"], "{:?}", told(&lines));
    ensure!(guest.run("workload check")?.status != 0, "the workload still runs");
    Ok(())
}

pub(crate) fn an_image_that_the_policy_keeps_is_kept_and_resumed() -> Result<()> {
    let config = GuestConfig::new(1, "512M".parse()?);
    let mut guest = session_with(config, "[resume]\nmismatch = \"keep\"\n")?;
    let saved = save(&mut guest)?;
    boot_without_the_hook(&mut guest)?;
    let printed = guest.succeed("dormouse prepare")?;
    ensure!(printed.contains("a session waits in the image on /dev/vda, and is kept by policy"), "{printed}");
    // Another hibernation would write over it.
    let refused = guest.run("dormouse hibernate --trust-boot --json")?;
    let json: serde_json::Value = serde_json::from_str(&refused.stdout)?;
    ensure!(refused.status == 3 && json["id"] == "image-waiting", "{refused:?}");
    guest.cut_power();
    let went_on = cycle::resume(&mut guest, saved, &mut unobserved)?;
    demand_proofs(&guest, &went_on)?;
    // The session that was resumed leaves its own image alone, which was marked before the jump.
    let printed = guest.succeed("dormouse prepare")?;
    ensure!(!printed.contains("/dev/vda is discarded"), "{printed}");
    guest.cut_power();
    let commit = image::commit(&guest.disk_file(0))?;
    ensure!(commit.state == State::Consumed, "{commit:?}");
    Ok(())
}

pub(crate) fn the_doctor_and_sleep_hooks() -> Result<()> {
    let mut guest = session(GuestConfig::new(2, "512M".parse()?))?;
    let doctor = guest.run("dormouse doctor")?;
    ensure!(doctor.status == 0 && doctor.stderr.is_empty(), "{doctor:?}");
    for id in ["kernel-jump", "kernel-return", "memory-map", "image-device", "image-size", "save-kernel", "resume-hook"]
    {
        ensure!(doctor.stdout.contains(&format!("[ ok ] {id} ")), "{id}: {}", doctor.stdout);
    }

    // A hibernation that has begun is waited for: what it leaves is what is looked at.
    let prepared = guest.run(
        "dmesg -c >/dev/null; dormouse hibernate --then return & pid=$!; \
         until dmesg | grep -q hibernate/prepare; do :; done; kill -STOP $pid; \
         dormouse prepare >/run/prepared & waits=$!; sleep 1; test -s /run/prepared && echo early; \
         kill -TERM $pid; kill -CONT $pid; wait $waits",
    )?;
    ensure!(prepared.status == 0 && prepared.stdout.is_empty(), "{prepared:?}");
    ensure!(prepared.stderr.contains("stopped by SIGTERM before the jump"), "{prepared:?}");
    guest.succeed("test -s /run/prepared")?;

    // What a hook prints on its stdout is not in the report, and how it ends changes nothing.
    let directory = "/usr/lib/systemd/system-sleep";
    guest.succeed(&format!(
        "mkdir -p {directory} && cd {directory} && \
         printf '#!/bin/sh\\necho \"$@ $SYSTEMD_SLEEP_ACTION\" >>/run/hooks\\necho noise\\nexit 1\\n' >hook && \
         busybox chmod 755 hook"
    ))?;
    let went_on = stay_on(&mut guest, "dormouse hibernate --then return --json --system-sleep")?;
    demand_proofs(&guest, &went_on)?;
    let told = guest.succeed("cat /run/hooks")?;
    ensure!(told == "pre hibernate hibernate\npost hibernate hibernate\n", "{told}");
    // They run, both times, around a hibernation that is refused as well; and the doctor has reported that it will be.
    guest.succeed("echo 1 >/proc/sys/kernel/kexec_load_disabled")?;
    let doctor = guest.run("dormouse doctor")?;
    ensure!(doctor.status == 1 && doctor.stdout.contains("[FAIL] kexec-allowed "), "{doctor:?}");
    let refused = guest.run("dormouse hibernate --system-sleep")?;
    ensure!(refused.status == 3 && refused.stderr.contains("kexec_load was refused"), "{refused:?}");
    ensure!(guest.succeed("cat /run/hooks")?.lines().count() == 4, "hooks did not run around a refusal");
    Ok(())
}
