//! The image with a server, by NBD: nbdkit on the host, which fails where it is told to.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, anyhow, ensure};
use dormouse_image::State;
use dormouse_image::layout::DATA_OFFSET;
use dormouse_tests::artifacts::Artifacts;
use dormouse_tests::console::Line;
use dormouse_tests::cycle::{self, unobserved};
use dormouse_tests::guest::Guest;
use dormouse_tests::image;
use dormouse_tests::machine::{BootLoader, GuestConfig, MIB, image_disk_bytes};
use dormouse_tests::nbd_server::Server;
use dormouse_tests::userland::{GuestPolicy, POLICY_PATH, Userland};

use crate::sealed_keys::{RIGHT, power_on_and_answer};
use crate::{
    TWO_BOOTS, begin_save, contains, demand_failed_save, demand_proofs, demand_refusal, demand_same_session, direct,
    ids, lines_of_boot, lines_until_ready, power_cycle, reasons, save, told,
};

const TRUSTED: &str = "trust_server = true\n";
/// Another host than the server, which sends something every 0.2 s: a route to it is none of B's.
const OTHER: &str = "10.0.2.100";

/// A machine without a disk of its own whose image is with a server.
struct Far {
    guest: Guest,
    server: Server,
    /// What the guest calls it.
    url: String,
    /// What the server keeps.
    image: PathBuf,
    directory: tempfile::TempDir,
}

/// The machine of these cases.
fn config() -> Result<GuestConfig> {
    let mut config = GuestConfig::new(2, "512M".parse()?);
    config.disks.clear();
    config.link = format!("user,guestfwd=tcp:{OTHER}:7-cmd:sh -c \"while echo tick; do sleep 0.2; done\"");
    Ok(config)
}

/// What a machine boots whose policy begins with this image and goes on with `policy`.
fn userland(url: &str, policy: &str) -> Userland {
    let policy = GuestPolicy::standard(format!("[image]\ndevice = \"{url}\"\n{policy}"));
    Userland { policies: vec![policy], modules: vec!["virtio_pci".to_owned()], ..Userland::default() }
}

/// Such a machine that is off; `filters` are nbdkit's, and `options` theirs, in which DIR is a directory of the case's
/// own.
fn machine(config: GuestConfig, policy: &str, filters: &[&str], options: &[&str]) -> Result<Far> {
    machine_of(Ipv4Addr::LOCALHOST.into(), config, policy, filters, options)
}

/// The same, of a server at this address of the host's.
fn machine_of(host: IpAddr, config: GuestConfig, policy: &str, filters: &[&str], options: &[&str]) -> Result<Far> {
    let directory = tempfile::tempdir()?;
    let image = directory.path().join("image");
    File::create(&image)?.set_len(image_disk_bytes(config.memory))?;
    let file = format!("file={}", image.display());
    let own = |option: &&str| option.replace("DIR", &directory.path().display().to_string());
    let options: Vec<String> = options.iter().map(own).collect();
    let mut arguments = filters.to_vec();
    arguments.extend(["file", &file]);
    arguments.extend(options.iter().map(String::as_str));
    let server = Server::start_at(host, &arguments)?;
    let url = server.url_for_guest("");
    let guest = Guest::new(config, &userland(&url, policy), &Artifacts::from_environment()?)?;
    Ok(Far { guest, server, url, image, directory })
}

/// The same, which is up with an image and the workload.
fn session(policy: &str, filters: &[&str], options: &[&str]) -> Result<Far> {
    let mut far = machine(config()?, policy, filters, options)?;
    far.guest.boot()?;
    begin(&mut far.guest, &far.url)?;
    Ok(far)
}

fn begin(guest: &mut Guest, url: &str) -> Result<()> {
    cycle::init_image(guest, url)?;
    cycle::start_workload(guest)
}

/// The link that a boot's initramfs records, as its policy has it.
fn recorded_link(guest: &mut Guest) -> Result<String> {
    let recorded = guest.succeed("dormouse config show --boot")?;
    let link = recorded.lines().find(|line| line.starts_with("link = "));
    link.map(str::to_owned).context("no link is recorded")
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

/// Nothing is given to a server that is not trusted, unless it is sealed; nor is anything resumed from there that is
/// not, whoever has made it.
pub(crate) fn a_server_that_is_not_trusted() -> Result<()> {
    let mut far = session("", &[], &[])?;
    demand_refusal(&mut far.guest, "key-missing")?;
    far.guest.cut_power();
    let artifacts = Artifacts::from_environment()?;
    far.guest.set_userland(&userland(&far.url, TRUSTED), &artifacts)?;
    far.guest.boot()?;
    cycle::start_workload(&mut far.guest)?;
    save(&mut far.guest)?;
    far.guest.set_userland(&userland(&far.url, ""), &artifacts)?;
    let lines = lines_of_boot(&mut far.guest)?;
    ensure!(ids(&lines) == ["image-not-sealed"], "{:?}", told(&lines));
    Ok(())
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

/// A server that goes away while it is written to: the session goes on, and says that nobody could tell the server so.
/// When it is back, nothing of that save is resumed, and the next one works.
pub(crate) fn a_server_that_goes_away_during_a_save() -> Result<()> {
    let mut far = session(&format!("{TRUSTED}wait = 3\n"), &["--filter=delay"], &["wdelay=20ms"])?;
    let guest = &mut far.guest;
    let before = cycle::check_workload(guest)?;
    let (command, mut cursor) = begin_save(guest)?;
    guest.wait_for(&mut cursor, "pages to nbd://", TWO_BOOTS)?;
    far.server.stop();
    let output = guest.answer(command, TWO_BOOTS)?;
    ensure!(output.status == 4 && output.stderr.contains("nbd://"), "{output:?}");
    demand_same_session(guest, &before)?;
    far.server.start_again()?;
    let state = image::commit(&far.image)?.state;
    ensure!([State::Empty, State::Saving].contains(&state), "it is {state}");
    power_cycle(guest).map(drop)
}

/// A save kernel that waits and a restore kernel that the boot loader starts have the link from A, too.
pub(crate) fn no_extra_boot_on_either_side() -> Result<()> {
    let mut config = config()?;
    (config.boot_loader, config.menu_seconds) = (Some(BootLoader::Grub), Some(0));
    let policy = format!("{TRUSTED}[save]\nwarm = true\n[resume]\ndirect = true\n");
    let mut far = machine(config, &policy, &[], &[])?;
    let guest = &mut far.guest;
    direct::boot_beside_the_region(guest)?;
    begin(guest, &far.url)?;
    guest.succeed("dormouse setup --direct")?;
    for _ in 0..2 {
        cycle::warm(guest, POLICY_PATH)?;
        let before = cycle::check_workload(guest)?;
        let mut kernels = 0;
        let mut count = |line: &Line| kernels += usize::from(cycle::is_kernel_start(line));
        let saved = cycle::save(guest, before, "dormouse hibernate --then poweroff --json", &mut count)?;
        ensure!(kernels == 0, "{:#}", guest.explain(anyhow!("{kernels} kernels were booted to save")));
        let went_on = cycle::resume(guest, saved, &mut unobserved)?;
        demand_proofs(guest, &went_on)?;
        ensure!(went_on.report()?.direct, "{:#}", guest.explain(anyhow!("{:?}", went_on.report())));
    }
    Ok(())
}

/// A sealed image comes back by its passphrase. One in which the server has changed a byte of a chunk is refused, and
/// nothing of the session was with the server in clear.
pub(crate) fn a_server_that_changes_what_it_keeps() -> Result<()> {
    let mut far = session("key = \"passphrase\"\n", &[], &[])?;
    let guest = &mut far.guest;
    guest.succeed("printf '%s%s' hyacinth- under-glass >/run/marker")?;
    guest.succeed(&format!("echo {RIGHT} | dormouse key add passphrase --from - --memory 8M --json"))?;
    let saved = save(guest)?;
    ensure!(!contains(&far.image, "hyacinth-under-glass")?, "the session is with the server in clear");
    let (saved, begin, cursor) = power_on_and_answer(guest, saved, &[RIGHT])?;
    let went_on = cycle::follow_resume(guest, saved, begin, cursor, &mut unobserved)?;
    demand_proofs(guest, &went_on)?;

    let saved = save(guest)?;
    let file = File::options().read(true).write(true).open(&far.image)?;
    let (at, mut byte) = (DATA_OFFSET + 5 * MIB, [0]);
    file.read_exact_at(&mut byte, at)?;
    file.write_all_at(&[byte[0] ^ 1], at)?;
    let (_, _, mut cursor) = power_on_and_answer(guest, saved, &[RIGHT])?;
    guest.wait_for(&mut cursor, "the session was not resumed", TWO_BOOTS)?;
    let lines = lines_until_ready(guest, &mut cursor)?;
    ensure!(ids(&lines) == ["restore-failed"], "{:?}", told(&lines));
    ensure!(image::commit(&far.image)?.state == State::Discarded, "{:?}", image::commit(&far.image)?);
    Ok(())
}

/// Two machines with one policy, each of which comes back from an image of its own.
pub(crate) fn two_machines_and_one_policy() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let hosts = ["oak", "elm"];
    for host in hosts {
        File::create(directory.path().join(host))?.set_len(image_disk_bytes(config()?.memory))?;
    }
    let server = Server::start(&["file", &format!("dir={}", directory.path().display())])?;
    let userland = userland(&server.url_for_guest("{hostname}"), TRUSTED);
    let mut sessions = Vec::new();
    for host in hosts {
        let mut config = config()?;
        config.kernel_arguments.push(format!("hostname={host}"));
        let mut guest = Guest::new(config, &userland, &Artifacts::from_environment()?)?;
        guest.boot()?;
        begin(&mut guest, &server.url_for_guest(host))?;
        let saved = save(&mut guest)?;
        sessions.push((guest, saved));
    }
    for (mut guest, saved) in sessions {
        let went_on = cycle::resume(&mut guest, saved, &mut unobserved)?;
        demand_proofs(&guest, &went_on)?;
    }
    let listed = image::command(&Artifacts::from_environment()?, &["list"], Path::new(&server.url("")))?;
    ensure!(hosts.iter().all(|host| listed.contains(&format!("{host}: consumed"))), "{listed}");
    Ok(())
}

/// A boot whose initramfs sets up no network reaches the server by the link that was recorded, and leaves none behind;
/// where the policy requires it, it waits for a server that is not there.
pub(crate) fn a_boot_without_a_network_of_its_own() -> Result<()> {
    let mut far = session(TRUSTED, &[], &[])?;
    let guest = &mut far.guest;
    let link = recorded_link(guest)?;
    ensure!(link.contains("mac=52:54:00:12:34:56") && link.contains("address=10.0.2.15 mtu="), "{link}");
    guest.cut_power();
    let policy = format!("{TRUSTED}{link}\nwait = 2\n[resume]\nrequire = true\n");
    guest.set_userland(&userland(&far.url, &policy), &Artifacts::from_environment()?)?;
    // Of this boot alone: what comes back has its own.
    guest.add_kernel_argument("guest.network=none");
    let mut cursor = guest.power_on()?;
    let lines = lines_until_ready(guest, &mut cursor)?;
    ensure!(reasons(&lines) == [format!("no image to resume: the one on {} is empty", far.url)], "{:?}", told(&lines));
    let left = guest.succeed("ip address show dev eth0; ip route show")?;
    ensure!(!left.contains("10.0.2.") && !left.contains("UP"), "{left}");
    guest.succeed("ip address add 10.0.2.15/24 dev eth0 && ip link set eth0 up")?;
    cycle::start_workload(guest)?;
    let saved = save(guest)?;
    far.server.stop();
    let begin = Instant::now();
    let mut cursor = guest.power_on()?;
    guest.wait_for(&mut cursor, "still waiting (resume.require)", TWO_BOOTS)?;
    far.server.start_again()?;
    let went_on = cycle::follow_resume(guest, saved, begin, cursor, &mut unobserved)?;
    demand_proofs(guest, &went_on)
}

/// A server in another network.
pub(crate) fn a_server_behind_a_router() -> Result<()> {
    let outside = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    // Nothing is sent.
    outside.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).context("the host has no way to other networks")?;
    let network = "ip address add 10.0.2.15/24 dev eth0 && ip link set eth0 up && ip route add default via 10.0.2.2";
    by_link_alone(outside.local_addr()?.ip(), network, "address=10.0.2.15 gateway=10.0.2.2")
}

pub(crate) fn a_server_by_ipv6() -> Result<()> {
    let network = "cd /proc/sys/net/ipv6/conf/eth0 && echo 0 >accept_dad && echo 0 >accept_ra && \
                   ip link set eth0 up && ip address add fec0::15/64 dev eth0";
    by_link_alone(Ipv6Addr::LOCALHOST.into(), network, "address=fec0::15 mtu=")
}

/// Off and on again with a server at an address of the host's. A brings its network up by `network`; a boot has the
/// link alone, of which this is a part.
fn by_link_alone(host: IpAddr, network: &str, part_of_link: &str) -> Result<()> {
    let mut config = config()?;
    config.link = "user".to_owned();
    config.kernel_arguments.push("guest.network=none".to_owned());
    let mut far = machine_of(host, config, &format!("{TRUSTED}wait = 2\n"), &[], &[])?;
    let guest = &mut far.guest;
    guest.boot()?;
    guest.succeed(network)?;
    let link = recorded_link(guest)?;
    ensure!(link.contains(part_of_link), "{link}");
    cycle::init_image(guest, &far.url)?;
    guest.cut_power();
    guest.set_userland(&userland(&far.url, &format!("{TRUSTED}{link}\n")), &Artifacts::from_environment()?)?;
    let lines = lines_of_boot(guest)?;
    ensure!(reasons(&lines) == [format!("no image to resume: the one on {} is empty", far.url)], "{:?}", told(&lines));
    guest.succeed(network)?;
    cycle::start_workload(guest)?;
    power_cycle(guest)?;
    ensure!(image::commit(&far.image)?.state == State::Consumed, "{:?}", image::commit(&far.image)?);
    Ok(())
}
