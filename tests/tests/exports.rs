//! Images on what a real NBD server exports, nbdkit, which can be told to fail.

use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Context, Result, bail, ensure};
use dormouse::store::{Access, Disk, Nbd};
use dormouse_tests::artifacts::Artifacts;
use dormouse_tests::filesystem;
use dormouse_tests::machine::MIB;
use dormouse_tests::nbd_server::Server;

const SIZE: u64 = 64 * MIB;

fn dormouse(arguments: &[&str]) -> Result<Output> {
    let mut command = Command::new(Artifacts::from_environment()?.binary("dormouse"));
    command.arg("image").args(arguments).output().context("dormouse cannot be started")
}

fn succeed(arguments: &[&str]) -> Result<String> {
    let output = dormouse(arguments)?;
    ensure!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// The words of a refusal.
fn refused(arguments: &[&str]) -> Result<String> {
    let output = dormouse(arguments)?;
    let error = String::from_utf8(output.stderr)?;
    if output.status.success() {
        bail!("{arguments:?} was done");
    }
    Ok(error)
}

fn demand(text: &str, part: &str) -> Result<()> {
    ensure!(text.contains(part), "no {part:?} in {text:?}");
    Ok(())
}

#[test]
fn an_export_is_made_listed_and_shown() -> Result<()> {
    let directory = tempfile::tempdir()?;
    for name in ["image", "carries ext4"] {
        std::fs::File::create(directory.path().join(name))?.set_len(SIZE)?;
    }
    filesystem::make("ext4", &directory.path().join("carries ext4"))?;
    let server = Server::start(&["file", &format!("dir={}", directory.path().display())])?;
    let image = server.url("image");
    demand(&succeed(&["init", &image])?, "64 MiB")?;
    demand(&succeed(&["info", &image])?, "state     empty")?;
    demand(&refused(&["init", &server.url("carries ext4")])?, "ext4")?;
    let listed = succeed(&["list", &server.url("")])?;
    demand(&listed, &format!("{image}: empty"))?;
    demand(&listed, "carries ext4: no image")?;
    demand(&refused(&["info", &server.url("nothing")])?, "nothing")?;
    demand(&succeed(&["discard", &image])?, "nothing to discard")
}

#[test]
fn a_server_that_fails_is_told_of() -> Result<()> {
    for (arguments, expected) in [
        (&["--readonly", "memory", "64M"][..], "for reading only"),
        (&["--filter=error", "memory", "64M", "error-pwrite=ENOSPC", "error-pwrite-rate=100%"], "No space left"),
        (&["--filter=error", "memory", "64M", "error-pread=EIO", "error-pread-rate=100%"], "Input/output error"),
        (
            &["--filter=blocksize-policy", "memory", "64M", "blocksize-minimum=64K", "blocksize-preferred=64K"],
            "blocks of 65536 bytes at least",
        ),
    ] {
        let server = Server::start(arguments)?;
        let error = refused(&["init", &server.url("")])?;
        demand(&error, expected).with_context(|| format!("{arguments:?}"))?;
        demand(&error, &server.url(""))?;
    }
    Ok(())
}

/// What was written from several threads is there when the server has been asked to keep it, over a server that answers
/// late and in any order.
#[test]
fn what_was_written_is_read() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("disk");
    std::fs::File::create(&file)?.set_len(SIZE)?;
    let name = format!("file={}", file.display());
    let server = Server::start(&["--filter=delay", "file", &name, "wdelay=3ms", "rdelay=3ms"])?;
    let disk = Disk::new(Nbd::open(&server.url("").parse()?, Access::Write)?);
    ensure!(disk.size() == SIZE, "it has {} bytes", disk.size());
    std::thread::scope(|scope| {
        let work = |thread: u64| {
            for at in (thread * MIB..SIZE).step_by(usize::try_from(8 * MIB)?) {
                let bytes = vec![u8::try_from(at / MIB)? ^ 0xa5; usize::try_from(MIB)?];
                disk.write_copy(at, &bytes)?;
                ensure!(disk.read(at, bytes.len())?[..] == bytes[..], "other bytes at {at}");
            }
            Ok(())
        };
        let threads: Vec<_> = (0..8).map(|thread| scope.spawn(move || work(thread))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().unwrap_or_else(|_| bail!("a thread has failed")))
    })?;
    disk.flush()?;
    disk.clear(MIB, 2 * MIB)?;
    drop(disk);
    drop(server);
    holds(&file)
}

fn holds(file: &Path) -> Result<()> {
    let bytes = std::fs::read(file)?;
    for (number, part) in (0_u8..).zip(bytes.chunks(usize::try_from(MIB)?)) {
        let expected = if (1..3).contains(&number) { 0 } else { number ^ 0xa5 };
        ensure!(part.iter().all(|byte| *byte == expected), "MiB {number} is not what was written");
    }
    Ok(())
}
