//! The boot loader's block, on the disk, with nothing mounted: armed by B, disarmed by D.

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use dormouse_image::BLOCK;
use dormouse_linux::block::Names;
use dormouse_linux::wait::wait_for;

use crate::handoff::order::LoaderBlock;
use crate::store::{Access, Device, Disk};

/// Tells the boot loader to start D: durably, and read back. Whoever else holds the disk leaves this block alone.
///
/// # Errors
/// The disk is not here, or the block is not what A has left there; or the disk fails. The next boot is an ordinary
/// one, unless it is only known to have failed after it was written.
pub(crate) fn arm(block: &LoaderBlock, wait: Duration) -> anyhow::Result<()> {
    let disk = open(block, wait)?;
    ensure!(
        disk.read(block.offset, BLOCK)?[..] == block.disarmed[..],
        "{disk}: the boot loader's block is not what it was when the session stopped"
    );
    write(&disk, block, &block.armed())
}

/// Sees to it that the boot loader does not start D again. It has written that itself, before it did.
///
/// # Errors
/// The disk is not here or fails, or something else is in the place of the block: it is left alone.
pub(super) fn disarm(block: &LoaderBlock, wait: Duration) -> anyhow::Result<()> {
    let disk = open(block, wait)?;
    let found = disk.read(block.offset, BLOCK)?;
    if found[..] == block.disarmed[..] {
        return Ok(());
    }
    ensure!(found[..] == block.armed()[..], "{disk}: something else is in the place of the boot loader's block");
    write(&disk, block, &block.disarmed)
}

fn write(disk: &Disk, block: &LoaderBlock, content: &[u8]) -> anyhow::Result<()> {
    disk.write_copy(block.offset, content)?;
    disk.flush()?;
    ensure!(disk.read(block.offset, BLOCK)?[..] == *content, "{disk}: what was written there is not what it has");
    Ok(())
}

/// The disk or partition, which the image may be on as well.
fn open(block: &LoaderBlock, wait: Duration) -> anyhow::Result<Disk> {
    let names = wait_for(wait, || Some(Names::read()).filter(|names| names.nodes(&block.disk).next().is_some()));
    let names = names.with_context(|| format!("{}: there is no such disk in this kernel", block.disk))?;
    let mut nodes = names.nodes(&block.disk);
    let (Some(node), None) = (nodes.next(), nodes.next()) else {
        bail!("{}: several disks have this name", block.disk);
    };
    Ok(Disk::new(Device::open_held(node, Access::Write)?))
}
