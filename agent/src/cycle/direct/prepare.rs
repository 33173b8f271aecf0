//! A's part: everything is put where the boot loader finds it, and the block says "no".

use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use dormouse_image::{BLOCK, ImageDevice, SessionRecord};
use dormouse_linux::atomic_file::replace;
use dormouse_linux::block::Names;
use dormouse_linux::cpio::Archive;
use dormouse_linux::procfs;

use crate::console::phase::Phase;
use crate::cycle::direct::systemd_boot::{Entry, SystemdBoot};
use crate::cycle::direct::{BLOCK_FILE, INITRAMFS, KERNEL, ORDER, file, put, settle};
use crate::cycle::last;
use crate::cycle::look;
use crate::cycle::place::Place;
use crate::handoff::boot_block::BootBlock;
use crate::handoff::order::{LoaderBlock, LookOrder, Order};
use crate::key;
use crate::launch::{loader_command_line, order_archive};
use crate::machine::{Machine, arch, compat, firmware_map};
use crate::policy::{Policy, SealKey, Then};
use crate::store::{Access, Device, Disk, Image};
use crate::target;
use crate::target::file::lower;

/// What the boot loader finds.
#[derive(Debug)]
pub(in crate::cycle) enum Prepared {
    /// GRUB: a block, which B arms.
    Grub(LoaderBlock),
    /// systemd-boot: an entry, which A has booted once.
    SystemdBoot(Entry),
}

/// Puts everything in its place, where the policy wants that and the boot loader can start D. `None` where the next
/// boot goes through C; why, the log says.
pub(in crate::cycle) fn prepare(
    policy: &Policy,
    machine: &Machine,
    place: &Place,
    image: &Image,
    session: &SessionRecord,
    then: Then,
    is_sealed: bool,
) -> Option<Prepared> {
    if !policy.resume.direct || then == Then::Return {
        return None;
    }
    match try_to(policy, machine, place, image, session, is_sealed) {
        Ok(prepared) => {
            let _ = fs::remove_file(reason_file());
            log::info!("{}: direct: the boot loader will start the restore kernel", Phase::HibernatePrepare);
            Some(prepared)
        }
        Err(why) => {
            note_reason(&format!("{why:#}"));
            log::warn!("{}: direct: no: {why:#}; the next boot goes through C", Phase::HibernatePrepare);
            None
        }
    }
}

/// For the doctor.
fn note_reason(why: &str) {
    if let Err(error) = replace(&reason_file(), format!("{why}\n").as_bytes(), 0o644) {
        log::debug!("{}: {error}", reason_file().display());
    }
}

fn reason_file() -> PathBuf {
    Path::new(last::DIRECTORY).join("direct")
}

/// Why the boot loader was not told to start D when this system hibernated last, where it was not.
pub(crate) fn why_not() -> Option<String> {
    fs::read_to_string(reason_file()).ok().map(|text| text.trim_end().to_owned())
}

/// Whether the block says that D is to be started.
///
/// # Errors
/// There is no such block.
pub(crate) fn is_armed() -> anyhow::Result<bool> {
    let path = file(BLOCK_FILE);
    let about = || path.display().to_string();
    let bytes = fs::read(&path).with_context(about)?;
    let block = BootBlock::decode(&bytes).filter(|_| bytes.len() == BLOCK).with_context(about);
    Ok(block.context("it is not the block that the boot loader reads")?.is_armed)
}

/// Notes that the session has come back by way of C although the boot loader was told to start D.
pub(in crate::cycle) fn note_way(is_direct: bool) {
    if !is_direct {
        let why = "the boot loader was told, and an ordinary boot resumed: another entry was chosen, or the restore \
                   kernel has refused, and has said why on the console";
        log::warn!("{}: direct: no: {why}", Phase::HibernateReturn);
        note_reason(why);
    }
}

impl Prepared {
    /// What B is told.
    pub(in crate::cycle) fn arming(&self) -> Option<LoaderBlock> {
        match self {
            Prepared::Grub(block) => Some(block.clone()),
            Prepared::SystemdBoot(_) => None,
        }
    }

    /// What A does, as the last thing before it jumps. `None` where it cannot: the next boot goes through C.
    pub(in crate::cycle) fn arm(self) -> Option<Prepared> {
        if let Prepared::SystemdBoot(entry) = &self
            && let Err(why) = entry.arm()
        {
            note_reason(&format!("{why:#}"));
            log::warn!("{}: direct: no: {why:#}; the next boot goes through C", Phase::HibernateJump);
            return None;
        }
        Some(self)
    }

    /// Takes back what B may have done, or A: the session goes on. A boot that did not read the block has left it
    /// armed.
    pub(in crate::cycle) fn take_back(self) {
        // An entry goes when it is dropped.
        let Prepared::Grub(block) = self else { return };
        let written = open_block_file().and_then(|file| write_block(&file, &block.disarmed));
        if let Err(error) = written {
            log::warn!(
                "{}: the boot loader may try to start a restore kernel at the next boot, in vain: {error:#}",
                Phase::HibernateReturn
            );
        }
    }
}

fn try_to(
    policy: &Policy,
    machine: &Machine,
    place: &Place,
    image: &Image,
    session: &SessionRecord,
    is_sealed: bool,
) -> anyhow::Result<Prepared> {
    // As D will ask.
    compat::check(session, &firmware_map::machine()?)
        .context("by the firmware's memory map alone, the restore kernel would not know this machine again")?;
    if look::needs_unlock(policy, image) {
        bail!("the image's key is in a file, which only a boot that has unlocked its volumes has");
    }
    if policy.image.key == SealKey::Tpm2 {
        // It has measured command line, kernel and initramfs.
        bail!("the image's key is in the TPM, which opens it to a boot like this session's alone");
    }
    if let Some(needed) = key::memory_of_passphrase(image).filter(|_| is_sealed) {
        let room = place.region.len() / 2;
        ensure!(
            needed <= room,
            "a passphrase takes {needed} bytes of memory, and the restore kernel may use {room} (half of region.size)"
        );
    }
    let [kernel, initramfs] = [&policy.kernel.image, &policy.kernel.initramfs].map(procfs::read);
    let (kernel, initramfs) = (kernel?, initramfs?);
    let microcode = microcode(machine)?;
    let len = (initramfs.len() + microcode.len()) as u64;
    let line = loader_command_line(machine, policy, place.region, &kernel, len, is_sealed)?;
    if let Some(loader) = SystemdBoot::find() {
        let order = [microcode, order(place, &image.name(), None)?].concat();
        let entry = loader?.put([(KERNEL, &kernel), (INITRAMFS, &initramfs), (ORDER, &order)], &line)?;
        return Ok(Prepared::SystemdBoot(entry));
    }
    let block_file = open_block_file()?;
    let content = BootBlock { is_armed: false, command_line: line }.encode()?;
    write_block(&block_file, &content)?;
    let block = find_block(&block_file, content)?;
    // The kernel looks for microcode in what comes first.
    let order = [microcode, order(place, &image.name(), Some(&block))?].concat();
    let files = [(KERNEL, &kernel[..]), (INITRAMFS, &initramfs), (ORDER, &order)];
    let mut is_changed = false;
    for (name, bytes) in files {
        is_changed |= put(&file(name), bytes)?;
    }
    if is_changed {
        settle()?;
    }
    Ok(Prepared::Grub(block))
}

/// The CPU's microcode, in an archive: no other kernel loads it before D, and the session's has loaded it. Empty where
/// the system has none for it.
fn microcode(machine: &Machine) -> anyhow::Result<Vec<u8>> {
    let Some((name, in_archive)) = arch::microcode_file(&machine.cpu) else { return Ok(Vec::new()) };
    match fs::read(Path::new("/lib/firmware").join(name)) {
        Ok(bytes) => Ok(Archive::new().file(in_archive, 0o644, bytes).finish()?),
        Err(_) => Ok(Vec::new()),
    }
}

/// The order for D.
fn order(place: &Place, image: &ImageDevice, block: Option<&LoaderBlock>) -> anyhow::Result<Vec<u8>> {
    let order = Order::Look(LookOrder {
        image: image.clone(),
        block: block.cloned(),
        region: place.region,
        low: place.low.clone(),
        link: target::link_to(image)?,
    });
    Ok(order_archive(&order)?.to_vec())
}

fn open_block_file() -> anyhow::Result<File> {
    let path = file(BLOCK_FILE);
    OpenOptions::new().read(true).write(true).open(&path).map_err(|error| match error.kind() {
        ErrorKind::NotFound => anyhow::anyhow!("{}: there is none; run `dormouse setup --direct`", path.display()),
        _ => anyhow::Error::new(error).context(path.display().to_string()),
    })
}

/// Writes the block in place: its file must stay where it is. What is on the disk is not what the kernel believes,
/// where B, the boot loader or D have written there, so that it is always written.
fn write_block(file: &File, content: &[u8]) -> anyhow::Result<()> {
    let about = || self::file(BLOCK_FILE).display().to_string();
    let len = file.metadata().with_context(about)?.len();
    ensure!(len == BLOCK as u64, "{}: it has {len} bytes, not {BLOCK}; run `dormouse setup --direct`", about());
    file.write_all_at(content, 0).and_then(|()| file.sync_all()).with_context(about)
}

/// Where the block lies, which must be there on the disk.
fn find_block(file: &File, content: Vec<u8>) -> anyhow::Result<LoaderBlock> {
    let about = || self::file(BLOCK_FILE).display().to_string();
    let under = lower(file, BLOCK as u64).with_context(about)?;
    let [piece] = under.extents[..] else { bail!("{}: it lies in several pieces", about()) };
    let names = Names::read();
    let node = under.node.display();
    let disk = names.unique(&under.node);
    let disk = disk.with_context(|| format!("{}: {node} is no disk or partition that B finds", about()))?;
    let device = Disk::new(Device::open_held(&under.node, Access::Read)?);
    ensure!(
        device.read(piece.offset, BLOCK)?[..] == content[..],
        "{}: it is not at byte {} of {node}, where its filesystem says it is",
        about(),
        piece.offset
    );
    Ok(LoaderBlock { disk: disk.to_owned(), offset: piece.offset, disarmed: content, at: BootBlock::arming_byte() })
}
