//! Saves that fail and end in the session that was to be saved.

use anyhow::{Result, bail, ensure};
use dormouse_tests::artifacts::Artifacts;
use dormouse_tests::cycle;
use dormouse_tests::guest::Guest;
use dormouse_tests::machine::{Disk, DiskKind, GuestConfig, MIB};
use dormouse_tests::userland::{GuestPolicy, Userland};

use crate::{demand_proofs, power_cycle, session, stay_on};

/// The workload alone is more, and does not compress.
const TOO_SMALL: u64 = 64 * MIB;

pub(crate) fn a_policy_that_b_cannot_honour_brings_the_session_back() -> Result<()> {
    let mut guest = session(GuestConfig::new(2, "768M".parse()?))?;
    replace_in_b(&mut guest, "etc/dormouse.toml", "nonsense = 1")?;
    let aborted = stay_on(&mut guest, "dormouse hibernate --json")?;
    demand_proofs(&guest, &aborted)?;
    let output = &aborted.output;
    ensure!(output.status == 1, "{output:?}");
    for expected in ["/etc/dormouse.toml:1", "nonsense", "the session was not touched"] {
        ensure!(output.stderr.contains(expected), "{expected:?} is not in {:?}", output.stderr);
    }

    // Without an order it is not known where the report goes, and the way back is known all the same.
    replace_in_b(&mut guest, "dormouse-order", "nonsense")?;
    let aborted = stay_on(&mut guest, "dormouse hibernate --json")?;
    demand_proofs(&guest, &aborted)?;
    let output = &aborted.output;
    ensure!(output.status == 1 && output.stdout.contains("\"no-report\""), "{output:?}");

    guest.succeed("cp /run/good.img /var/lib/dormouse/initramfs0.img")?;
    power_cycle(&mut guest)?;
    Ok(())
}

/// Gives B this file. The kernel unpacks consecutive archives, and a later file replaces an earlier one.
fn replace_in_b(guest: &mut Guest, path: &str, content: &str) -> Result<()> {
    guest.succeed(&format!(
        "image=/var/lib/dormouse/initramfs0.img; [ -e /run/good.img ] || cp $image /run/good.img && \
         mkdir -p /run/bad/etc && cd /run/bad && echo '{content}' >{path} && cp /run/good.img $image && \
         head -c $((512 - $(stat -c %s $image) % 512)) /dev/zero >>$image && \
         echo {path} | cpio -o -H newc >>$image"
    ))?;
    Ok(())
}

pub(crate) fn a_device_that_is_too_small_and_then_one_that_is_not() -> Result<()> {
    let mut config = GuestConfig::new(2, "768M".parse()?);
    config.disks.push(Disk { kind: DiskKind::Virtio, bytes: TOO_SMALL });
    let policy = |disk: usize| -> Result<String> { Ok(format!("[image]\ndevice = \"{}\"\n", config.disk_path(disk)?)) };
    let small = GuestPolicy { path: "/etc/too-small.toml".to_owned(), text: policy(1)? };
    let userland = Userland { policies: vec![GuestPolicy::standard(policy(0)?), small], ..Userland::default() };
    let mut guest = Guest::new(config, &userland, &Artifacts::from_environment()?)?;
    guest.boot()?;
    for disk in 0..2 {
        let device = guest.config().disk_path(disk)?;
        cycle::init_image(&mut guest, &device)?;
    }
    cycle::start_workload(&mut guest)?;

    // The boot looks for the other one.
    let hibernate = "dormouse --config /etc/too-small.toml hibernate --then poweroff --json --trust-boot";
    let aborted = stay_on(&mut guest, hibernate)?;
    demand_proofs(&guest, &aborted)?;
    let output = &aborted.output;
    ensure!(output.status == 1, "{output:?}");
    // Both sizes are named, the device's and the image's.
    let sizes = mebibytes(&output.stderr);
    let [device, image] = sizes[..] else { bail!("not two sizes: {}", output.stderr) };
    ensure!(device * MIB == TOO_SMALL && image > device, "not the right sizes: {}", output.stderr);

    power_cycle(&mut guest)?;
    Ok(())
}

/// The numbers in a text that are followed by their unit.
fn mebibytes(text: &str) -> Vec<u64> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let sizes = words.windows(2).filter(|pair| pair[1].starts_with("MiB"));
    sizes.filter_map(|pair| pair[0].replace(',', "").parse().ok()).collect()
}
