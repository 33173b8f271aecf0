//! GRUB, told to start D: a block that it reads and writes, what it does with it, and the line of its own configuration
//! that has it do so.
//!
//! ```text
//!   /etc/grub.d/42_dormouse ──grub-mkconfig──> grub.cfg ──sources──> /boot/dormouse/direct.cfg ──> direct.env
//! ```

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, ensure};
use dormouse_image::BLOCK;
use dormouse_linux::block::Names;
use nix::sys::statfs::{BTRFS_SUPER_MAGIC, fstatfs};

use crate::cycle::direct::{BLOCK_FILE, CONFIGURATION, DIRECTORY, file};
use crate::handoff::boot_block::BootBlock;
use crate::target::file::lower;

/// What GRUB does at each boot: it starts D where the block says so, once.
pub const GRUB: &str = include_str!("../../../configs/grub/direct.cfg");
/// The script that has `grub-mkconfig` make GRUB read that.
pub const DROP_IN: &str = include_str!("../../../configs/grub/42_dormouse");
/// Where that script goes. After the entries: those have numbers, which must not change.
pub const DROP_IN_FILE: &str = "/etc/grub.d/42_dormouse";
/// Where such scripts are.
pub const DROP_INS: &str = "/etc/grub.d";

/// What a configuration that is written by hand must have, after its entries; `$root` is the filesystem of `/boot`.
pub const BY_HAND: &str = "set dormouse_dir=($root)/dormouse; source $dormouse_dir/direct.cfg";

/// The command that makes GRUB's configuration again, as this system has it.
#[must_use]
pub fn update_command(root: &Path) -> Option<Vec<String>> {
    let is_program = |name: &str| ["usr/sbin", "usr/bin"].iter().any(|dir| root.join(dir).join(name).exists());
    let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
    let ways: [(&str, &str); 2] =
        [("grub2-mkconfig", "/boot/grub2/grub.cfg"), ("grub-mkconfig", "/boot/grub/grub.cfg")];
    if is_program("update-grub") {
        return Some(words(&["update-grub"]));
    }
    let way = ways.iter().find(|(program, _)| is_program(program));
    way.map(|(program, output)| words(&[program, "-o", output]))
}

/// Whether GRUB's configuration reads what it is to do; `None` where there is none that can be read.
#[must_use]
pub fn is_read(root: &Path) -> Option<bool> {
    let places = ["boot/grub/grub.cfg", "boot/grub2/grub.cfg"];
    let texts: Vec<String> = places.iter().filter_map(|path| fs::read_to_string(root.join(path)).ok()).collect();
    let is_named = |text: &String| text.lines().any(|line| line.contains("source") && line.contains(CONFIGURATION));
    (!texts.is_empty()).then(|| texts.iter().any(is_named))
}

/// Makes the block, if there is none, and disarms it: a file of one block, which neither GRUB nor B may have to move.
///
/// # Errors
/// The filesystem will not do: GRUB cannot write to it, or B cannot.
pub fn make_block() -> anyhow::Result<()> {
    let path = file(BLOCK_FILE);
    let about = || path.display().to_string();
    fs::create_dir_all(DIRECTORY).with_context(|| DIRECTORY.to_owned())?;
    let found = fs::read(&path).ok().filter(|bytes| bytes.len() == BLOCK).and_then(|bytes| BootBlock::decode(&bytes));
    if found.as_ref().is_none_or(|block| block.is_armed) {
        let command_line = found.map(|block| block.command_line).unwrap_or_default();
        let content = BootBlock { is_armed: false, command_line }.encode()?;
        let mut new =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path).with_context(about)?;
        new.write_all(&content).and_then(|()| new.sync_all()).with_context(about)?;
    }
    let block = File::open(&path).with_context(about)?;
    let kind = fstatfs(&block).with_context(about)?.filesystem_type();
    ensure!(kind != BTRFS_SUPER_MAGIC, "{}: it is on btrfs, to which GRUB does not write", about());
    let under = lower(&block, BLOCK as u64).with_context(about)?;
    let pieces = under.extents.len();
    ensure!(pieces == 1, "{}: it lies in {pieces} pieces", about());
    let node = under.node.display();
    ensure!(
        Names::read().unique(&under.node).is_some(),
        "{}: it is on {node}, which is not a disk or partition itself: GRUB does not write to what is put together or \
         encrypted",
        about()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn each_distribution_has_its_command() {
        let root = tempfile::tempdir().unwrap();
        let make = |path: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        };
        assert_eq!(update_command(root.path()), None);
        make("usr/bin/grub-mkconfig");
        assert_eq!(update_command(root.path()).unwrap(), ["grub-mkconfig", "-o", "/boot/grub/grub.cfg"]);
        make("usr/sbin/grub2-mkconfig");
        assert_eq!(update_command(root.path()).unwrap(), ["grub2-mkconfig", "-o", "/boot/grub2/grub.cfg"]);
        make("usr/sbin/update-grub");
        assert_eq!(update_command(root.path()).unwrap(), ["update-grub"]);
    }

    #[test]
    fn a_configuration_reads_it_or_does_not() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(is_read(root.path()), None);
        let path = root.path().join("boot/grub/grub.cfg");
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "set timeout=5\n").unwrap();
        assert_eq!(is_read(root.path()), Some(false));
        fs::write(&path, format!("{BY_HAND}\n")).unwrap();
        assert_eq!(is_read(root.path()), Some(true));
    }

    /// The names in GRUB's files are those of the program.
    #[test]
    fn configuration_has_the_programs_names() {
        for text in [GRUB, DROP_IN] {
            assert!(text.lines().all(|line| line.len() <= 120));
        }
        for name in [BLOCK_FILE, crate::cycle::direct::KERNEL, crate::cycle::direct::INITRAMFS] {
            assert!(GRUB.contains(&format!("$dormouse_dir/{name}")), "{name}");
        }
        assert!(GRUB.contains(&format!("$dormouse_dir/{}", crate::cycle::direct::ORDER)));
        assert!(DROP_IN.contains(DIRECTORY) && DROP_IN.contains(CONFIGURATION) && BY_HAND.contains(CONFIGURATION));
    }
}
