//! Keys of sealed images on machines without LUKS: a passphrase that C asks for on the console, and a secret in a file
//! that C reads below its filesystem. An image of another key, an old one, and one that is not sealed stay where they
//! are.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use dormouse_image::{Commit, State};
use dormouse_tests::console::Cursor;
use dormouse_tests::cycle::{self, Saved, unobserved};
use dormouse_tests::guest::Guest;
use dormouse_tests::machine::{Disk, DiskKind, GuestConfig, MIB};
use dormouse_tests::qemu::copy_sparse;
use dormouse_tests::{filesystem, image};

use crate::{contains, demand_proofs, demand_refusal, ids, lines_of_boot, lines_until_ready, save, session_with};

pub(crate) const PROMPT: &str = "Passphrase of the hibernated session";
pub(crate) const RIGHT: &str = "correct horse battery";
/// Made up in the guest of these halves, so that it is nowhere as a whole but in a file in memory.
const MARKER: [&str; 2] = ["wisteria-", "by-the-gate"];
/// Both.
const MARKED: &[u8] = b"wisteria-by-the-gate";
const HOST: &str = "hollyhock-lodge";
const ARGUMENT: &str = "amberquarry=7331";

/// Hibernating asks nothing. C asks three times: the right passphrase resumes, three wrong ones leave the image for the
/// next boot. Nothing of the session is on the disk in clear.
pub(crate) fn a_passphrase_on_the_console() -> Result<()> {
    let mut config = GuestConfig::new(2, "512M".parse()?);
    config.kernel_arguments.push(ARGUMENT.to_owned());
    let mut guest = session_with(config, "key = \"passphrase\"\n")?;
    let [first, second] = MARKER;
    guest.succeed(&format!("echo {HOST} >/proc/sys/kernel/hostname && printf '%s%s' {first} {second} >/run/marker"))?;
    demand_refusal(&mut guest, "key-missing")?;
    let add = format!("echo {RIGHT} | dormouse key add passphrase --from - --memory 8M --json");
    let added: serde_json::Value = serde_json::from_str(&guest.succeed(&add)?)?;
    ensure!(added["id"] == 1 && added["kind"] == "passphrase", "{added}");

    let saved = save(&mut guest)?;
    let marker = MARKER.concat();
    for word in [marker.as_str(), HOST, ARGUMENT, RIGHT] {
        ensure!(!contains(&guest.disk_file(0), word)?, "{word} is on the disk in clear");
    }
    let (saved, begin, cursor) = power_on_and_answer(&mut guest, saved, &["wrong", RIGHT])?;
    let went_on = cycle::follow_resume(&mut guest, saved, begin, cursor, &mut unobserved)?;
    demand_proofs(&guest, &went_on)?;
    ensure!(guest.succeed("cat /run/marker")? == marker, "another marker");

    let saved = save(&mut guest)?;
    let (saved, lines) = three_wrong_answers(&mut guest, saved)?;
    ensure!(lines.iter().any(|line| line.ends_with("the image is kept")), "{lines:?}");
    ensure!(guest.run("workload check")?.status != 0, "the workload still runs");
    guest.cut_power();
    let (saved, begin, cursor) = power_on_and_answer(&mut guest, saved, &[RIGHT])?;
    let went_on = cycle::follow_resume(&mut guest, saved, begin, cursor, &mut unobserved)?;
    demand_proofs(&guest, &went_on)
}

/// Switches on and types these answers, each at its prompt.
pub(crate) fn power_on_and_answer(
    guest: &mut Guest,
    saved: Saved,
    answers: &[&str],
) -> Result<(Saved, Instant, Cursor)> {
    let begin = Instant::now();
    let mut cursor = guest.power_on()?;
    for (at, answer) in answers.iter().enumerate() {
        let prompt = if at == 0 { PROMPT.to_owned() } else { format!("That is not it. {PROMPT}") };
        guest.answer_prompt(&mut cursor, &prompt, answer, Duration::from_secs(120))?;
    }
    Ok((saved, begin, cursor))
}

/// Switches on and answers wrong each time: an ordinary boot, of which these are the console's lines.
pub(crate) fn three_wrong_answers(guest: &mut Guest, saved: Saved) -> Result<(Saved, Vec<String>)> {
    let (saved, _, mut cursor) = power_on_and_answer(guest, saved, &["one", "two", "three"])?;
    let lines = lines_until_ready(guest, &mut cursor)?;
    ensure!(ids(&lines) == ["image-no-key"], "{lines:?}");
    Ok((saved, lines))
}

/// The disk with the filesystem of the key file, and its partition.
const KEYS: usize = 1;
const START: u64 = MIB;
const SIZE: u64 = 48 * MIB;

/// Nothing is asked. What is not the image that was written last, by a holder of the key, is refused before D is
/// started.
pub(crate) fn a_key_file_and_images_that_are_not_its() -> Result<()> {
    let mut config = GuestConfig::new(2, "512M".parse()?);
    config.can_be_dumped = true;
    config.disks.push(Disk { kind: DiskKind::Virtio, bytes: 64 * MIB });
    let mut guest = crate::session_prepared(config, "key = \"file\"\n", |guest| partition(&guest.disk_file(KEYS)))?;
    guest.succeed("mkdir -p /run/keys && mount -t ext4 /dev/vdb1 /run/keys")?;
    let added = guest.succeed("dormouse key add file /run/keys/key")?;
    ensure!(added.contains("key 1 (file)") && added.contains("is not encrypted by dm-crypt"), "{added}");
    guest.succeed("[ $(stat -c %a /run/keys/key) = 400 ]")?;
    let [first, second] = MARKER;
    guest.succeed(&format!("printf '%s%s' {first} {second} >/run/marker"))?;
    // This boot has not looked for that key. The next ones will have: they resume by it.
    demand_refusal(&mut guest, "boot-evidence")?;
    let disk = guest.disk_file(0);
    let before = cycle::check_workload(&mut guest)?;
    let trusting = "dormouse hibernate --then poweroff --json --trust-boot";
    let saved = cycle::save(&mut guest, before, trusting, &mut unobserved)?;
    let old = disk.with_extension("old");
    copy_sparse(&disk, &old)?;
    let went_on = cycle::resume(&mut guest, saved, &mut unobserved)?;
    demand_proofs(&guest, &went_on)?;

    // A file that was moved is no key any more: refused in A, with nothing changed.
    guest.succeed(
        "cp /run/keys/key /run/keys/copy && mv /run/keys/key /run/keys/own && mv /run/keys/copy /run/keys/key",
    )?;
    demand_refusal(&mut guest, "key-file")?;
    guest.succeed("mv /run/keys/own /run/keys/key")?;
    // What was just copied stays in A's page cache, which is A's own; it is free from here on.
    guest.succeed("sync && echo 3 >/proc/sys/vm/drop_caches")?;

    let saved = save(&mut guest)?;
    let good = disk.with_extension("good");
    copy_sparse(&disk, &good)?;
    let commit = image::commit(&disk)?;
    let other = Commit { data_end: commit.data_end + 4096, ..commit.clone() };
    let other = Commit { last_index: moved(&other), ..other };
    let cases: [(&str, Option<Commit>, &str); 4] = [
        ("the image of the last session, put back", None, "image-replayed"),
        ("a commit record by somebody without the key", Some(other), "image-forged"),
        (
            "an image that is not sealed",
            Some(Commit { seal: None, ..commit.clone().without_key() }),
            "image-not-sealed",
        ),
        ("keys that are wiped", Some(commit.clone().without_key()), "header-damaged"),
    ];
    for (what, commit, id) in cases {
        copy_sparse(if commit.is_some() { &good } else { &old }, &disk)?;
        if let Some(commit) = commit {
            image::write_commit(&disk, &commit)?;
        }
        let lines = lines_of_boot(&mut guest)?;
        ensure!(ids(&lines) == [id], "{what}: {lines:?}");
        ensure!(!lines.iter().any(|line| line.contains("restore/")), "{what}: D was started");
        guest.cut_power();
        ensure!(image::commit(&disk)?.state == State::Discarded, "{what}: it is not discarded");
    }
    copy_sparse(&good, &disk)?;
    let went_on = cycle::resume(&mut guest, saved, &mut unobserved)?;
    demand_proofs(&guest, &went_on)?;
    guest.succeed("dormouse key list --json | grep -q '\"is_unchanged\":true'")?;
    no_secret_in_memory(&guest)
}

/// A, B, C and D have all had the secret of the key file in memory, or what it opens.
fn no_secret_in_memory(guest: &Guest) -> Result<()> {
    let disk = std::fs::read(guest.disk_file(KEYS))?;
    let magic = b"DMSECRET";
    let at = disk.windows(magic.len()).position(|bytes| bytes == magic).context("the key file's secret")?;
    let secret = disk.get(at + 16..at + 48).context("the key file's secret")?;
    let core = tempfile::NamedTempFile::new()?;
    guest.dump_memory(core.path())?;
    let memory = std::fs::read(core.path())?;
    ensure!(memory.windows(MARKED.len()).any(|bytes| bytes == MARKED), "the dump does not hold the session's memory");
    let found = memory.windows(secret.len()).position(|bytes| bytes == secret);
    ensure!(found.is_none(), "the key file's secret is in the session's memory, at byte {found:?} of the dump");
    Ok(())
}

/// The last index block of a record, at the end of the stream that it states.
fn moved(commit: &Commit) -> dormouse_image::Locator {
    let index = commit.last_index;
    dormouse_image::Locator { offset: commit.data_end - u64::from(index.len), ..index }
}

/// One partition, with an ext4 filesystem.
fn partition(disk: &Path) -> Result<()> {
    filesystem::partition(disk, &format!("start={}, size={}", START / 512, SIZE / 512))?;
    let ext4 = filesystem::ext4(SIZE)?;
    File::options().write(true).open(disk)?.write_all_at(&std::fs::read(ext4.path())?, START)?;
    Ok(())
}
