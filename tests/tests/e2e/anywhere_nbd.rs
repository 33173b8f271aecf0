//! The image with a server, by NBD: nbdkit on the host, which fails where it is told to.

use std::fs::File;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use dormouse_image::State;
use dormouse_tests::artifacts::Artifacts;
use dormouse_tests::cycle::{self, unobserved};
use dormouse_tests::guest::Guest;
use dormouse_tests::image;
use dormouse_tests::machine::{GuestConfig, image_disk_bytes};
use dormouse_tests::nbd_server::Server;
use dormouse_tests::userland::{GuestPolicy, Userland};

use crate::{
    TWO_BOOTS, begin_save, demand_failed_save, demand_proofs, demand_refusal, lines_of_boot, power_cycle, save, told,
};

const TRUSTED: &str = "trust_server = true\n";
/// Another host than the server, which sends something every 0.2 s: a route to it is none of B's.
const OTHER: &str = "10.0.2.100";

/// A machine without a disk of its own whose image is with a server.
struct Far {
    guest: Guest,
    server: Server,
    /// What the server keeps.
    image: PathBuf,
    directory: tempfile::TempDir,
}

/// A session on it, whose policy goes on with `policy`; `filters` are nbdkit's, and `options` theirs, in which DIR is a
/// directory of the case's own.
fn session(policy: &str, filters: &[&str], options: &[&str]) -> Result<Far> {
    let directory = tempfile::tempdir()?;
    let mut config = GuestConfig::new(2, "512M".parse()?);
    let image = directory.path().join("image");
    File::create(&image)?.set_len(image_disk_bytes(config.memory))?;
    let file = format!("file={}", image.display());
    let own = |option: &&str| option.replace("DIR", &directory.path().display().to_string());
    let options: Vec<String> = options.iter().map(own).collect();
    let mut arguments = filters.to_vec();
    arguments.extend(["file", &file]);
    arguments.extend(options.iter().map(String::as_str));
    let server = Server::start(&arguments)?;
    config.disks.clear();
    config.link = format!("guestfwd=tcp:{OTHER}:7-cmd:sh -c \"while echo tick; do sleep 0.2; done\"");
    let url = server.url_for_guest("");
    let policy = GuestPolicy::standard(format!("[image]\ndevice = \"{url}\"\n{policy}"));
    let userland = Userland { policies: vec![policy], modules: vec!["virtio_pci".to_owned()], ..Userland::default() };
    let mut guest = Guest::new(config, &userland, &Artifacts::from_environment()?)?;
    guest.boot()?;
    cycle::init_image(&mut guest, &url)?;
    cycle::start_workload(&mut guest)?;
    Ok(Far { guest, server, image, directory })
}

/// Twice off and on, over a server that answers late.
pub(crate) fn a_machine_without_a_disk_of_its_own() -> Result<()> {
    let mut far = session(TRUSTED, &["--filter=delay"], &["wdelay=2ms", "rdelay=2ms"])?;
    for _ in 0..2 {
        power_cycle(&mut far.guest)?;
        ensure!(image::commit(&far.image)?.state == State::Consumed, "{:?}", image::commit(&far.image)?);
    }
    let status = far.guest.succeed("dormouse status --json")?;
    ensure!(status.contains("nbd://"), "{status}");
    Ok(())
}

/// Nothing is given to a server that is not trusted, unless it is sealed.
pub(crate) fn a_server_that_is_not_trusted() -> Result<()> {
    let mut far = session("", &[], &[])?;
    demand_refusal(&mut far.guest, "key-missing")
}

/// A save that the server fails costs the session none of its connections to others.
pub(crate) fn a_save_that_fails_and_a_connection_that_lives() -> Result<()> {
    let filter = ["error-pwrite=ENOSPC", "error-pwrite-rate=100%", "error-pwrite-file=DIR/full"];
    let mut far = session(TRUSTED, &["--filter=error"], &filter)?;
    let guest = &mut far.guest;
    guest.succeed(&format!(
        "sleep 99999 </dev/null 2>/dev/null | nc {OTHER} 7 >/run/ticks 2>/dev/null & echo $! >/run/nc"
    ))?;
    let ticks = "sleep 2; wc -l </run/ticks; kill -0 $(cat /run/nc)";
    let count = |text: String| text.trim().parse::<u64>().with_context(|| text);
    let first = count(guest.succeed(ticks)?)?;
    ensure!(first > 0, "nothing comes from the other host");
    let (command, mut cursor) = begin_save(guest)?;
    guest.wait_for(&mut cursor, "pages to nbd://", TWO_BOOTS)?;
    File::create(far.directory.path().join("full"))?;
    let output = guest.answer(command, TWO_BOOTS)?;
    demand_failed_save(guest, &output, &["nbd://", "No space left on device"])?;
    let (second, third) = (count(guest.succeed(ticks)?)?, count(guest.succeed(ticks)?)?);
    ensure!(first < second && second < third, "the connection did not live: {first}, {second}, {third}");
    std::fs::remove_file(far.directory.path().join("full"))?;
    power_cycle(guest).map(drop)
}

/// A server that goes away in the middle of a restore, and one that is not there at the boot: the image stays, and is
/// resumed when it is back.
pub(crate) fn a_server_that_goes_away() -> Result<()> {
    let mut far = session(&format!("{TRUSTED}wait = 3\n"), &["--filter=delay"], &["rdelay=20ms"])?;
    let guest = &mut far.guest;
    let saved = save(guest)?;
    far.server.stop();
    let lines = lines_of_boot(guest)?;
    ensure!(lines.iter().any(|line| line.contains("nbd://") && line.contains("refused")), "{:?}", told(&lines));
    guest.cut_power();
    far.server.start_again()?;
    let begin = Instant::now();
    let mut cursor = guest.power_on()?;
    guest.wait_for(&mut cursor, "dormouse: restore/write", TWO_BOOTS)?;
    far.server.stop();
    guest.wait_for(&mut cursor, "the session was not resumed", TWO_BOOTS)?;
    far.server.start_again()?;
    let went_on = cycle::follow_resume(guest, saved, begin, cursor, &mut unobserved)?;
    demand_proofs(guest, &went_on)
}
