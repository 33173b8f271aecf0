//! The image in a file that a server exports by NFS: nfs-ganesha on the host.

use anyhow::{Result, ensure};
use dormouse_image::State;
use dormouse_tests::artifacts::Artifacts;
use dormouse_tests::cycle::{self, unobserved};
use dormouse_tests::guest::Guest;
use dormouse_tests::image;
use dormouse_tests::machine::GuestConfig;
use dormouse_tests::nfs_server::{Server, Version};
use dormouse_tests::userland::{GuestPolicy, Userland};

use crate::{TWO_BOOTS, begin_save, demand_proofs, demand_same_session, lines_of_boot, power_cycle, save, told};

/// Off and on with the file by version 3, and again by version 4. Then a server that goes away during the save, and one
/// that is not there at the boot.
pub(crate) fn version_3_and_then_4() -> Result<()> {
    let mut server = Server::start(Version::Three)?;
    let url = server.url_for_guest("image");
    let mut config = GuestConfig::new(2, "512M".parse()?);
    config.disks.clear();
    config.link = "user,net=10.0.2.0/24".to_owned();
    let policy = format!("[image]\ndevice = \"{url}\"\ntrust_server = true\nwait = 3\n");
    let modules = ["virtio_pci", "nfsv3", "nfsv4"].map(str::to_owned).to_vec();
    let userland = Userland { policies: vec![GuestPolicy::standard(policy)], modules, ..Userland::default() };
    let mut guest = Guest::new(config, &userland, &Artifacts::from_environment()?)?;
    guest.boot()?;
    let printed = guest.succeed(&format!("dormouse image create --size 640M {url}"))?;
    ensure!(printed.contains(&url) && printed.contains("640 MiB"), "{printed}");
    let again = guest.run(&format!("dormouse image create --size 640M {url}"))?;
    ensure!(again.status != 0 && again.stderr.contains("exists"), "{again:?}");
    guest.cut_power();
    let file = server.directory().join("image");
    guest.boot()?;
    cycle::start_workload(&mut guest)?;
    power_cycle(&mut guest)?;
    ensure!(image::commit(&file)?.state == State::Consumed, "{:?}", image::commit(&file)?);
    // Nothing of it stays mounted.
    ensure!(!guest.succeed("cat /proc/mounts")?.contains("nfs"), "it is mounted");

    server.start_again(Version::Four)?;
    power_cycle(&mut guest)?;
    ensure!(image::commit(&file)?.state == State::Consumed, "{:?}", image::commit(&file)?);

    let before = cycle::check_workload(&mut guest)?;
    let (command, mut cursor) = begin_save(&mut guest)?;
    guest.wait_for(&mut cursor, "pages to nfs://", TWO_BOOTS)?;
    server.stop();
    let output = guest.answer(command, TWO_BOOTS)?;
    ensure!([1, 4].contains(&output.status) && output.stderr.contains("nfs://"), "{output:?}");
    demand_same_session(&mut guest, &before)?;

    server.start_again(Version::Three)?;
    let saved = save(&mut guest)?;
    server.stop();
    let lines = lines_of_boot(&mut guest)?;
    ensure!(lines.iter().any(|line| line.contains("nfs://") && line.contains("cannot open it")), "{:?}", told(&lines));
    guest.cut_power();
    server.start_again(Version::Three)?;
    let went_on = cycle::resume(&mut guest, saved, &mut unobserved)?;
    demand_proofs(&guest, &went_on)
}
