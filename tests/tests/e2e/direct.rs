//! Machines with a boot loader (GRUB) that starts the restore kernel itself: kernel D, and no kernel C before it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use dormouse::console::phase::Phase;
use dormouse::handoff::report::Outcome;
use dormouse_image::State;
use dormouse_tests::artifacts::{Artifacts, KernelName};
use dormouse_tests::cycle::{self, Saved, WentOn, unobserved};
use dormouse_tests::grub::block_of;
use dormouse_tests::guest::Guest;
use dormouse_tests::image;
use dormouse_tests::machine::{BootLoader, Firmware, GuestConfig, MachineType};
use dormouse_tests::userland::POLICY_PATH;

use crate::sealed_keys::{PROMPT, RIGHT};
use crate::{TWO_BOOTS, demand_proofs, ids, lines_of_boot, lines_until_ready, save};

const POLICY: &str = "[resume]\ndirect = true\n";
/// What the entry of an ordinary boot prints: [`dormouse_tests::grub`].
const ORDINARY: &str = "GRUB: an ordinary boot";
/// How often A is booted until its kernel is where the restore kernel is not.
const MOST_BOOTS: usize = 20;

/// Two cycles with no kernel C. When the power goes in D, the next boot is an ordinary one, and resumes.
pub(crate) fn bios_two_cycles_and_a_power_cut() -> Result<()> {
    let mut guest = session(config()?, POLICY)?;
    direct_cycle(&mut guest)?;
    direct_cycle(&mut guest)?;

    let saved = save(&mut guest)?;
    cut_power_in_d(&mut guest)?;
    resumes_by_c(&mut guest, saved, false)
}

/// The boot loader starts D, and then the power goes.
fn cut_power_in_d(guest: &mut Guest) -> Result<()> {
    demand_armed(guest, true)?;
    let mut cursor = guest.power_on()?;
    let mut lines = Vec::new();
    let start = format!("dormouse: {}", Phase::RestoreStart);
    guest.follow(&mut cursor, TWO_BOOTS, &start, |line| {
        lines.push(line.text.clone());
        line.text.contains(&start).then_some(())
    })?;
    demand_no_c(&lines)?;
    guest.cut_power();
    demand_armed(guest, false)
}

pub(crate) fn uefi_goes_on_without_a_kernel_between() -> Result<()> {
    let mut config = config()?;
    (config.machine, config.firmware) = (MachineType::Q35, Firmware::Uefi);
    let mut guest = session(config, POLICY)?;
    guest.succeed("mount -t efivarfs none /sys/firmware/efi/efivars")?;
    direct_cycle(&mut guest)?;
    // The firmware's services answer the session, although D has not told them where they are mapped.
    let variable = "/sys/firmware/efi/efivars/DormouseTest-12345678-1234-1234-1234-123456789abc";
    guest.succeed(&format!("printf '\\007\\000\\000\\000x' > {variable}"))?;
    guest.succeed(&format!("test $(wc -c < {variable}) = 5"))?;
    direct_cycle(&mut guest)?;
    guest.succeed(&format!("test $(wc -c < {variable}) = 5"))?;
    Ok(())
}

/// With a save kernel that waits, one kernel boots between the command and the session that goes on.
pub(crate) fn ten_cycles_with_a_save_kernel_that_waits() -> Result<()> {
    let mut guest = session(config()?, &format!("[save]\nwarm = true\n{POLICY}"))?;
    let first = cycle::check_workload(&mut guest)?;
    for _ in 0..10 {
        cycle::warm(&mut guest, POLICY_PATH)?;
        let before = cycle::check_workload(&mut guest)?;
        let mut kernels = 0;
        let command = "dormouse hibernate --then poweroff --json";
        let saved =
            cycle::save(&mut guest, before, command, &mut |line| kernels += usize::from(cycle::is_kernel_start(line)))?;
        ensure!(kernels == 0, "{:#}", guest.explain(anyhow!("{kernels} kernels were booted to save")));
        resumes_directly(&mut guest, saved)?;
    }
    crate::demand_same_session(&mut guest, &first)
}

/// An update has given the machine another kernel to boot. D is what it was, and so is the session; where the power
/// goes in D, the new kernel is C.
pub(crate) fn an_update_to_the_kernel_of_debian_12_in_between() -> Result<()> {
    let mut guest = session(config()?, POLICY)?;
    let artifacts = Artifacts::from_environment()?;
    let saved = save(&mut guest)?;
    guest.boot_with(KernelName::Bookworm, &artifacts)?;
    resumes_directly(&mut guest, saved)?;
    let saved = save(&mut guest)?;
    cut_power_in_d(&mut guest)?;
    resumes_by_c(&mut guest, saved, false)
}

/// Where A's kernel lies where D would be, A says so, and the ordinary boot resumes.
pub(crate) fn a_kernel_that_is_in_the_way() -> Result<()> {
    let mut config = config()?;
    config.kernel_arguments.push("nokaslr".to_owned());
    let mut guest = Guest::with_policy(config, POLICY, &Artifacts::from_environment()?)?;
    guest.boot()?;
    ensure!(!cycle::is_beside_the_region(&mut guest)?, "the kernel is not where a boot loader puts it");
    begin(&mut guest)?;
    let mut from = guest.console().end();
    let saved = save(&mut guest)?;
    let lines = guest.console().since(&mut from);
    let reason = lines.iter().find(|line| line.text.contains("direct: no: "));
    let reason = reason.with_context(|| format!("{:#}", guest.explain(anyhow!("A does not say why"))))?;
    ensure!(reason.text.contains("the next boot goes through C"), "{}", reason.text);
    demand_armed(&guest, false)?;
    resumes_by_c(&mut guest, saved, false)
}

/// A save after which the session goes on asks nothing of the boot loader; one that ends in a reboot does.
pub(crate) fn a_return_and_a_reboot() -> Result<()> {
    let mut guest = session(config()?, POLICY)?;
    let went_on = crate::stay_on(&mut guest, "dormouse hibernate --then return --json")?;
    demand_proofs(&guest, &went_on)?;
    ensure!(went_on.report()?.outcome == Outcome::Returned, "{:?}", went_on.report());
    demand_armed(&guest, false)?;

    let mut from = guest.console().end();
    let went_on = crate::stay_on(&mut guest, "dormouse hibernate --then reboot --json")?;
    demand_resumed(&guest, &went_on)?;
    ensure!(went_on.report()?.direct, "{:?}", went_on.report());
    let lines = guest.console().since(&mut from);
    ensure!(!lines.iter().any(|line| line.text.contains(ORDINARY)), "an ordinary boot");
    demand_armed(&guest, false)
}

/// What D finds only while it writes memory ends in an ordinary boot, which says so and discards the image.
pub(crate) fn a_damaged_chunk() -> Result<()> {
    let mut guest = session(config()?, POLICY)?;
    save(&mut guest)?;
    let disk = guest.disk_file(0);
    let chunk = image::some_chunk(&disk)?;
    image::flip_byte(&disk, chunk.offset + u64::from(chunk.stored_len / 2))?;
    let lines = lines_of_boot(&mut guest)?;
    let told = || crate::told(&lines);
    ensure!(lines.iter().filter(|line| line.contains(ORDINARY)).count() == 1, "{:?}", told());
    ensure!(!lines.iter().any(|line| line.contains(&Phase::RestoreJump.to_string())), "D jumped: {:?}", told());
    ensure!(ids(&lines) == ["restore-failed"], "{:?}", told());
    guest.cut_power();
    let commit = image::commit(&disk)?;
    ensure!(commit.state == State::Discarded, "{commit:?}");
    demand_armed(&guest, false)
}

/// D asks for the passphrase. Three wrong ones leave it to the ordinary boot, which asks too.
pub(crate) fn a_sealed_image_is_unlocked_in_d() -> Result<()> {
    let mut guest = session(config()?, &format!("key = \"passphrase\"\n{POLICY}"))?;
    guest.succeed(&format!("echo {RIGHT} | dormouse key add passphrase --from - --memory 8M"))?;
    for wrong in [false, true] {
        let saved = save(&mut guest)?;
        let begin = Instant::now();
        let (mut from, mut cursor) = (guest.console().end(), guest.power_on()?);
        let again = format!("That is not it. {PROMPT}");
        let answers: &[(&str, &str)] = if wrong {
            &[(PROMPT, "one"), (&again, "two"), (&again, "three"), (PROMPT, RIGHT)]
        } else {
            &[(PROMPT, RIGHT)]
        };
        for (prompt, answer) in answers {
            guest.answer_prompt(&mut cursor, prompt, answer, Duration::from_secs(120))?;
        }
        let went_on = cycle::follow_resume(&mut guest, saved, begin, cursor, &mut unobserved)?;
        demand_proofs(&guest, &went_on)?;
        let lines = guest.console().since(&mut from);
        let is_ordinary = lines.iter().any(|line| line.text.contains(ORDINARY));
        ensure!(is_ordinary == wrong, "{:#}", guest.explain(anyhow!("an ordinary boot: {is_ordinary}")));
    }
    Ok(())
}

/// D refuses the machine, and so does C with its own reason. When the machine is again what it was, the session goes
/// on.
pub(crate) fn another_memory_size() -> Result<()> {
    let mut guest = session(config()?, &format!("{POLICY}mismatch = \"keep\"\n"))?;
    let saved = save(&mut guest)?;
    let mib = guest.config().memory.mib;
    guest.change(|config| config.memory.mib = mib - 128);
    // An ordinary boot that goes on writes to the session's filesystem; this one leaves it alone.
    guest.add_kernel_argument("guest.boot=");
    let lines = lines_of_boot(&mut guest)?;
    demand_refused_in_d(&guest, &lines)?;
    ensure!(ids(&lines) == ["machine-memory"], "{:?}", crate::told(&lines));
    guest.cut_power();
    guest.change(|config| {
        config.memory.mib = mib;
        config.kernel_arguments.clear();
    });
    resumes_by_c(&mut guest, saved, false)
}

/// Without its ranges of memory on its command line, D would write over itself: it refuses before it looks at the
/// image.
pub(crate) fn a_restore_kernel_that_is_not_confined() -> Result<()> {
    let mut guest = session(config()?, POLICY)?;
    let saved = save(&mut guest)?;
    edit_environment(&guest, |text| text.split(' ').map(without_memmap).collect::<Vec<_>>().join(" "))?;
    resumes_by_c(&mut guest, saved, true)
}

/// A word of the environment block, which may have the name of the variable before it and the end of its line in it,
/// without the range of memory that it gives.
fn without_memmap(word: &str) -> String {
    let Some((before, range)) = word.split_once("memmap=") else { return word.to_owned() };
    let after = range.find('\n').map_or("", |end| &range[end..]);
    format!("{before}{after}")
}

/// Somebody chooses the ordinary entry, with `noresume`: the image is discarded as ever.
pub(crate) fn an_ordinary_boot_is_chosen() -> Result<()> {
    let mut config = config()?;
    config.menu_seconds = Some(10);
    let mut guest = session(config, POLICY)?;
    save(&mut guest)?;
    guest.add_kernel_argument("noresume");
    let mut cursor = guest.power_on()?;
    let entry = "Resume from hibernation";
    ensure!(guest.console().wait_for_prompt(&mut cursor, entry, Instant::now() + TWO_BOOTS), "no entry {entry:?}");
    // One up, and enter.
    guest.send_keys(b"\x1b[A\r")?;
    let lines = lines_until_ready(&mut guest, &mut cursor)?;
    ensure!(ids(&lines) == ["boot-argument"], "{:?}", crate::told(&lines));
    guest.cut_power();
    // It is gone for good: the next boot has neither entry nor image.
    guest.change(|config| config.kernel_arguments.clear());
    let lines = lines_of_boot(&mut guest)?;
    ensure!(!lines.iter().any(|line| line.contains(entry) || line.contains("restore/")), "{lines:?}");
    Ok(())
}

/// Where the policy does not ask for it, the ordinary boot resumes, whatever boots the machine.
pub(crate) fn by_default_an_ordinary_boot_resumes() -> Result<()> {
    for (machine, firmware) in [(MachineType::Pc, Firmware::Bios), (MachineType::Q35, Firmware::Uefi)] {
        let mut config = config()?;
        (config.machine, config.firmware) = (machine, firmware);
        let mut guest = crate::session(config)?;
        let saved = save(&mut guest)?;
        resumes_by_c(&mut guest, saved, false)?;
    }
    Ok(())
}

fn config() -> Result<GuestConfig> {
    let mut config = GuestConfig::new(2, "768M".parse()?);
    (config.boot_loader, config.menu_seconds) = (Some(BootLoader::Grub), Some(0));
    Ok(config)
}

/// A session with the workload on a machine whose boot loader is set up for it.
fn session(config: GuestConfig, policy: &str) -> Result<Guest> {
    let mut guest = Guest::with_policy(config, policy, &Artifacts::from_environment()?)?;
    boot_beside_the_region(&mut guest)?;
    begin(&mut guest)?;
    Ok(guest)
}

/// Sets up the boot loader and starts the workload.
fn begin(guest: &mut Guest) -> Result<()> {
    let device = guest.config().disk_path(0)?;
    cycle::init_image(guest, &device)?;
    guest.succeed("dormouse setup --direct")?;
    cycle::start_workload(guest)
}

/// Boots until the kernel is not where the restore kernel will be.
pub(crate) fn boot_beside_the_region(guest: &mut Guest) -> Result<()> {
    for number in 1..=MOST_BOOTS {
        guest.boot()?;
        if cycle::is_beside_the_region(guest)? {
            return Ok(());
        }
        println!("boot {number}: the kernel is where the restore kernel will be; once more");
        guest.cut_power();
    }
    bail!("in {MOST_BOOTS} boots the kernel was where the restore kernel will be")
}

/// A hibernation with all of its proofs, whose resume is D's alone.
fn direct_cycle(guest: &mut Guest) -> Result<()> {
    let saved = save(guest)?;
    resumes_directly(guest, saved)
}

/// The session goes on by way of D alone.
fn resumes_directly(guest: &mut Guest, saved: Saved) -> Result<()> {
    demand_armed(guest, true)?;
    let mut lines = Vec::new();
    let went_on = cycle::resume(guest, saved, &mut |line| lines.push(line.text.clone()))?;
    demand_resumed(guest, &went_on)?;
    ensure!(went_on.report()?.direct, "{:?}", went_on.report());
    demand_no_c(&lines).map_err(|error| guest.explain(error))?;
    demand_armed(guest, false)
}

fn demand_resumed(guest: &Guest, went_on: &WentOn) -> Result<()> {
    demand_proofs(guest, went_on)?;
    ensure!(went_on.report()?.outcome == Outcome::Resumed, "{:?}", went_on.report());
    Ok(())
}

/// The session goes on by way of C. `by_d` says whether D is to have been tried in the same boot.
fn resumes_by_c(guest: &mut Guest, saved: Saved, by_d: bool) -> Result<()> {
    let mut lines = Vec::new();
    let went_on = cycle::resume(guest, saved, &mut |line| lines.push(line.text.clone()))?;
    demand_resumed(guest, &went_on)?;
    if by_d {
        demand_refused_in_d(guest, &lines)?;
    }
    let position = |text: &str| lines.iter().position(|line| line.contains(text));
    let (ordinary, resume) = (position(ORDINARY), position(&format!("dormouse: {}", Phase::ResumeJump)));
    let in_order = ordinary.zip(resume).is_some_and(|(ordinary, resume)| ordinary < resume);
    ensure!(in_order, "{:#}", guest.explain(anyhow!("not by C, or C was not booted by GRUB")));
    Ok(())
}

/// Nothing on the console is from a kernel C, and one kernel was booted.
fn demand_no_c(lines: &[String]) -> Result<()> {
    let of_c = lines.iter().find(|line| line.contains(ORDINARY) || line.contains("dormouse: resume/"));
    ensure!(of_c.is_none(), "an ordinary boot: {of_c:?}");
    let kernels = lines.iter().filter(|line| line.contains("Linux version ")).count();
    ensure!(kernels == 1, "{kernels} kernels were booted");
    let started = lines.iter().filter(|line| line.contains(&format!("dormouse: {}", Phase::RestoreStart))).count();
    ensure!(started == 1, "kernel D was started {started} times");
    Ok(())
}

/// D was started by the boot loader, wrote to no memory, and left it to the ordinary boot after it.
fn demand_refused_in_d(guest: &Guest, lines: &[String]) -> Result<()> {
    let ordinary = lines.iter().position(|line| line.contains(ORDINARY)).context("no ordinary boot followed")?;
    let direct = &lines[..ordinary];
    let demand = |holds: bool, what: &str| if holds { Ok(()) } else { Err(guest.explain(anyhow!("{what}"))) };
    let reached = |phase: Phase| direct.iter().any(|line| line.contains(&format!("dormouse: {phase}")));
    demand(reached(Phase::RestoreStart), "D was not started by the boot loader")?;
    demand(!reached(Phase::RestoreWrite), "D wrote to memory")?;
    demand(!direct.iter().any(|line| line.contains("dormouse: resume/")), "C was booted before D")?;
    demand(direct.iter().any(|line| line.contains("an ordinary boot follows")), "D does not say what follows")?;
    demand_armed(guest, false)
}

/// Whether the boot loader will start D, as it reads it on the disk.
fn demand_armed(guest: &Guest, armed: bool) -> Result<()> {
    let text = String::from_utf8(environment(guest)?.1)?;
    let wanted = format!("dormouse_armed={}\n", u8::from(armed));
    ensure!(text.contains(&wanted), "not {}: {text:?}", wanted.trim());
    Ok(())
}

/// Where GRUB's environment block for Dormouse lies, and what it holds.
fn environment(guest: &Guest) -> Result<(u64, Vec<u8>)> {
    let disk = guest.boot_disk_file();
    let at = block_of(&disk, "dormouse/direct.env")?;
    let mut block = vec![0; 4096];
    File::open(&disk)?.read_exact_at(&mut block, at)?;
    ensure!(block.starts_with(b"# GRUB Environment Block\n"), "at {at}: {:?}", String::from_utf8_lossy(&block));
    Ok((at, block))
}

/// Changes the lines of the block of a machine that is off. Its length stays.
fn edit_environment(guest: &Guest, edit: impl FnOnce(&str) -> String) -> Result<()> {
    let (at, block) = environment(guest)?;
    let text = String::from_utf8(block.clone())?;
    let edited = edit(text.trim_end_matches('#'));
    ensure!(edited != text.trim_end_matches('#'), "nothing to edit in {text:?}");
    let mut edited = edited.into_bytes();
    ensure!(edited.len() <= block.len(), "the block has {} bytes: {edited:?}", block.len());
    edited.resize(block.len(), b'#');
    Ok(File::options().write(true).open(guest.boot_disk_file())?.write_all_at(&edited, at)?)
}
