//! A disk with GRUB on it: a machine that boots from its own disk, as an installed system does, by a BIOS or by UEFI.
//!
//! ```text
//!   1  BIOS boot partition   GRUB's core for a BIOS, which the first sector loads
//!   2  EFI system partition  GRUB's core for UEFI; and the host's: kernel, initramfs, arguments of the ordinary boot
//!   3  /boot of the guest    grub.cfg, and what Dormouse puts there
//! ```
//!
//! No guest mounts the second one, so the host can change how a machine boots whose session is hibernated.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::filesystem;
use crate::machine::MIB;

pub(crate) const SECTOR: u64 = 512;
/// The first sector of each partition.
const CORE: u64 = 34;
pub(crate) const HOST: u64 = 2048;
pub(crate) const BOOT: u64 = HOST + HOST_MIB * MIB / SECTOR;
pub(crate) const HOST_MIB: u64 = 256;
pub(crate) const BOOT_MIB: u64 = 256;
/// The size of such a disk, with room for the second table of partitions.
pub(crate) const DISK_BYTES: u64 = BOOT * SECTOR + (BOOT_MIB + 1) * MIB;
/// The number of the guest's `/boot`.
pub(crate) const BOOT_PARTITION: u32 = 3;
/// The size of a block of `/boot`, as a large filesystem has it.
const BLOCK: u64 = 4096;

/// The name of the host's filesystem, by which GRUB finds it.
const HOST_LABEL: &str = "GUEST";
const KERNEL: &str = "vmlinuz";
const INITRAMFS: &str = "initramfs";
const ARGUMENTS: &str = "guest.cfg";

/// GRUB's own files, from the packages grub-pc-bin and grub-efi-amd64-bin.
const BOOT_IMAGE: &str = "/usr/lib/grub/i386-pc/boot.img";
/// What GRUB's core has beside what reads the disk of its firmware: all that grub.cfg and Dormouse's part of it need.
const MODULES: &[&str] = &[
    "part_gpt",
    "ext2",
    "fat",
    "normal",
    "linux",
    "loadenv",
    "serial",
    "terminal",
    "echo",
    "test",
    "true",
    "configfile",
    "search",
    "search_label",
    "search_fs_uuid",
    "search_fs_file",
    "probe",
    "regexp",
    "sleep",
    "gzio",
    "cat",
    "reboot",
    "halt",
    "minicmd",
];
/// Where the core finds grub.cfg: on the disk that it was loaded from.
const PREFIX: &str = "(,gpt3)/grub";
/// What a distribution's grub.cfg amounts to; Dormouse's part is in a file of its own, behind the
/// entries.
const CONFIG: &str = "\
serial --unit=0 --speed=115200
terminal_input serial
terminal_output serial
search --no-floppy --label GUEST --set=host
source ($host)/guest.cfg
set default=guest
set timeout=0
menuentry 'The guest' --id guest {
    echo 'GRUB: an ordinary boot'
    linux ($host)/vmlinuz $guest_arguments
    initrd ($host)/initramfs
}
set dormouse_dir=($root)/dormouse
if [ -f $dormouse_dir/direct.cfg ]; then
    source $dormouse_dir/direct.cfg
fi
if [ -n \"$guest_timeout\" ]; then
    set timeout=$guest_timeout
fi
";

/// Makes such a disk of an empty file of [`DISK_BYTES`], whose `/boot` has what is in the directory `boot` and a
/// grub.cfg. Temporary files go to `directory`.
///
/// # Errors
/// Fails where a program is missing or refuses.
pub(crate) fn make(disk: &Path, boot: &Path, directory: &Path) -> Result<()> {
    filesystem::partition(disk, &table("0FC63DAF-8483-4772-8E79-3D69D8477DE4"))?;
    put_bios_core(disk, directory)?;
    let mut fat = Command::new("/sbin/mkfs.fat");
    fat.args(["-F", "16", "-s", "16", "-n", HOST_LABEL, "--offset", &HOST.to_string()]).arg(disk);
    run(fat.arg((HOST_MIB * MIB / 1024).to_string()))?;
    let efi = directory.join("grub.efi");
    make_core("x86_64-efi", &[], &efi)?;
    for folder in ["::/EFI", "::/EFI/BOOT"] {
        run(on_partition("mmd", disk, HOST).arg(folder))?;
    }
    put(disk, &efi, "EFI/BOOT/BOOTX64.EFI")?;
    let grub = boot.join("grub");
    fs::create_dir_all(&grub).with_context(|| format!("{}: cannot be made", grub.display()))?;
    fs::write(grub.join("grub.cfg"), CONFIG).context("grub.cfg")?;
    let mut ext4 = Command::new("/sbin/mke2fs");
    // GRUB 2.06 reads no filesystem with this feature.
    ext4.args(["-q", "-F", "-t", "ext4", "-O", "^metadata_csum_seed", "-b", &BLOCK.to_string()]);
    ext4.args(["-E", &format!("offset={}", BOOT * SECTOR), "-d"]).args([boot, disk]);
    run(ext4.arg((BOOT_MIB * MIB / BLOCK).to_string()))
}

/// The table of partitions, with one of this type for the guest's `/boot`.
pub(crate) fn table(boot: &str) -> String {
    format!(
        "first-lba: {CORE}\n\
         start={CORE}, size={}, type=21686148-6449-6E6F-744E-656564454649\n\
         start={HOST}, size={}, type=C12A7328-F81F-11D2-BA4B-00C93EC93B3B\n\
         start={BOOT}, size={}, type={boot}",
        HOST - CORE,
        HOST_MIB * MIB / SECTOR,
        BOOT_MIB * MIB / SECTOR,
    )
}

/// Puts the kernel and the initramfs of the ordinary boot where grub.cfg has them, or another boot loader.
///
/// # Errors
/// Fails where mcopy does.
pub(crate) fn put_boot_files(disk: &Path, kernel: &Path, initramfs: &Path) -> Result<()> {
    put(disk, kernel, KERNEL)?;
    put(disk, initramfs, INITRAMFS)
}

/// Gives the kernel of the ordinary boot its command line, and the menu the seconds that it is shown for, where those
/// are not what Dormouse's part of grub.cfg wants.
///
/// # Errors
/// Fails where mcopy does, and where GRUB could not read the line.
pub(crate) fn put_arguments(disk: &Path, line: &str, menu_seconds: Option<u32>) -> Result<()> {
    ensure!(!line.contains(['\'', '\n']), "GRUB's own quotes are around the kernel's command line: {line}");
    let seconds = menu_seconds.map_or_else(String::new, |seconds| seconds.to_string());
    let text = format!("set guest_arguments='{line}'\nset guest_timeout='{seconds}'\n");
    let mut file = tempfile::NamedTempFile::new().context("a file for the kernel's arguments")?;
    file.write_all(text.as_bytes()).context("a file for the kernel's arguments")?;
    put(disk, file.path(), ARGUMENTS)
}

/// Where a file of the guest's `/boot`, of at most one block, lies on the disk.
///
/// # Errors
/// Fails where there is no such file, as far as a boot loader sees it.
pub fn block_of(disk: &Path, path: &str) -> Result<u64> {
    let mut debugfs = Command::new("/sbin/debugfs");
    debugfs.args(["-R", &format!("bmap {path} 0")]).arg(format!("{}?offset={}", disk.display(), BOOT * SECTOR));
    let output = debugfs.output().context("debugfs (e2fsprogs) cannot be started; scripts/test installs it")?;
    let block = String::from_utf8_lossy(&output.stdout).trim().parse().unwrap_or(0);
    ensure!(block > 0, "/boot/{path}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(BOOT * SECTOR + block * BLOCK)
}

/// GRUB for a BIOS: the first sector loads the core's first one, which loads the rest.
fn put_bios_core(disk: &Path, directory: &Path) -> Result<()> {
    let core = directory.join("grub.core");
    make_core("i386-pc", &["biosdisk"], &core)?;
    let boot = fs::read(BOOT_IMAGE).with_context(|| format!("{BOOT_IMAGE}: the package grub-pc-bin holds it"))?;
    let core = fs::read(&core).context("GRUB's core")?;
    ensure!(core.len() as u64 <= (HOST - CORE) * SECTOR, "GRUB's core of {} bytes does not fit", core.len());
    let disk = File::options().write(true).open(disk).with_context(|| format!("{}", disk.display()))?;
    let (boot, core) = placed(boot, core)?;
    disk.write_all_at(&boot, 0).and_then(|()| disk.write_all_at(&core, CORE * SECTOR)).context("GRUB's core")
}

/// GRUB's first sector, up to where the table of partitions is, and its core, each of which knows where the core is.
fn placed(mut boot: Vec<u8>, mut core: Vec<u8>) -> Result<(Vec<u8>, Vec<u8>)> {
    /// `GRUB_BOOT_MACHINE_KERNEL_SECTOR`: where the first sector has that of the core.
    const OF_CORE: std::ops::Range<usize> = 0x5c..0x64;
    /// Where the core's first sector has that of the rest: `struct grub_pc_bios_boot_blocklist`.
    const OF_REST: std::ops::Range<usize> = 500..508;
    const TABLE: usize = 440;
    let place = |bytes: &mut [u8], at, sector: u64| -> Result<()> {
        let bytes: &mut [u8] = bytes.get_mut(at).context("GRUB's core is cut short")?;
        bytes.copy_from_slice(&sector.to_le_bytes());
        Ok(())
    };
    place(&mut boot, OF_CORE, CORE)?;
    place(&mut core, OF_REST, CORE + 1)?;
    boot.truncate(TABLE);
    Ok((boot, core))
}

fn make_core(format: &str, modules: &[&str], output: &Path) -> Result<()> {
    let mut mkimage = Command::new("grub-mkimage");
    mkimage.args(["-O", format, "-p", PREFIX, "-o"]).arg(output).args(modules).args(MODULES);
    run(&mut mkimage)
}

/// Copies a file of the host's into the host's partition.
pub(crate) fn put(disk: &Path, from: &Path, to: &str) -> Result<()> {
    run(on_partition("mcopy", disk, HOST).arg("-o").arg(from).arg(format!("::/{to}")))
}

/// A program of mtools on the partition that begins at this sector.
pub(crate) fn on_partition(program: &str, disk: &Path, start: u64) -> Command {
    let mut command = Command::new(program);
    command.arg("-i").arg(format!("{}@@{}", disk.display(), start * SECTOR));
    command
}

pub(crate) fn run(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output =
        command.output().with_context(|| format!("{program} cannot be started; scripts/test installs what has it"))?;
    ensure!(
        output.status.success(),
        "{program}: {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_disk_has_grub_and_the_files_of_boot() {
        let directory = tempfile::tempdir().unwrap();
        let (disk, boot) = (directory.path().join("disk"), directory.path().join("boot"));
        File::create_new(&disk).unwrap().set_len(DISK_BYTES).unwrap();
        fs::create_dir(&boot).unwrap();
        fs::write(boot.join("config"), "a kernel's").unwrap();
        make(&disk, &boot, directory.path()).unwrap();
        put_arguments(&disk, "quiet noresume", None).unwrap();
        assert!(put_arguments(&disk, "it's", None).is_err());

        let file = File::open(&disk).unwrap();
        let read = |at: u64, len: usize| {
            let mut bytes = vec![0; len];
            file.read_exact_at(&mut bytes, at).unwrap();
            bytes
        };
        assert_eq!(read(510, 2), [0x55, 0xaa]);
        assert_eq!(read(0x5c, 8), CORE.to_le_bytes());
        assert_eq!(read(CORE * SECTOR + 500, 8), (CORE + 1).to_le_bytes());
        assert_eq!(read(block_of(&disk, "config").unwrap(), 10), b"a kernel's");
        let config = read(block_of(&disk, "grub/grub.cfg").unwrap(), CONFIG.len());
        assert_eq!(config, CONFIG.as_bytes());
        for name in [KERNEL, INITRAMFS, ARGUMENTS] {
            assert!(CONFIG.contains(&format!("($host)/{name}")), "{name}");
        }
        assert!(CONFIG.contains(&format!("--label {HOST_LABEL}")));
        assert!(block_of(&disk, "nothing").is_err());
    }
}
