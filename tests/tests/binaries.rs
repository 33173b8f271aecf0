//! What the built binaries are: small, static, and the same initramfs from the same inputs.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use dormouse_tests::artifacts::Artifacts;
use dormouse_tests::machine::MIB;
use goblin::elf::Elf;
use goblin::elf::program_header::{PT_DYNAMIC, PT_INTERP};

/// The most that `dormouse-init` may have, in bytes: 110 KB of it are the client of NBD and the network, 40 KB page
/// selection on several threads and what reports say of time.
const AGENT_MAX: usize = 4_290_000;

#[test]
fn dormouse_init_is_small_and_static() -> Result<()> {
    let bytes = std::fs::read(Artifacts::from_environment()?.binary("dormouse-init"))?;
    ensure!(bytes.len() <= AGENT_MAX, "dormouse-init has {} bytes", bytes.len());
    demand_static(&bytes)
}

#[test]
fn dormouse_is_static() -> Result<()> {
    demand_static(&std::fs::read(Artifacts::from_environment()?.binary("dormouse"))?)
}

/// No program interpreter, and no library to be found at run time. A static PIE has a dynamic section, for its own
/// relocations.
fn demand_static(bytes: &[u8]) -> Result<()> {
    let elf = Elf::parse(bytes)?;
    let has = |kind: u32| elf.program_headers.iter().any(|header| header.p_type == kind);
    ensure!(!has(PT_INTERP), "a program interpreter is needed");
    ensure!(!has(PT_DYNAMIC) || elf.libraries.is_empty(), "libraries are needed: {:?}", elf.libraries);
    Ok(())
}

#[test]
fn the_initramfs_is_small_and_reproducible() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let first = build_initramfs(&directory.path().join("first"))?;
    ensure!(first.len() as u64 <= 3 * MIB, "the initramfs has {} bytes", first.len());
    ensure!(first == build_initramfs(&directory.path().join("second"))?, "the same inputs gave other bytes");
    Ok(())
}

fn build_initramfs(output: &Path) -> Result<Vec<u8>> {
    let artifacts = Artifacts::from_environment()?;
    let policy = output.with_extension("toml");
    std::fs::write(&policy, "[image]\ndevice = \"PARTLABEL=dormouse\"\n")?;
    let built = Command::new(artifacts.binary("dormouse"))
        .arg("--config")
        .arg(&policy)
        .arg("build-initramfs")
        .arg("--output")
        .arg(output)
        .arg("--init")
        .arg(artifacts.binary("dormouse-init"))
        .args(["--modules", "nvme,ahci,sd_mod,virtio_blk", "--modules-dir"])
        .arg(artifacts.modules())
        .output()
        .context("dormouse cannot be started")?;
    ensure!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    Ok(std::fs::read(output)?)
}
