//! Real filesystems, made by their own programs, and the changes that a mount makes.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::os::unix::fs::FileExt;
use std::process::Command;

use tempfile::NamedTempFile;

use super::*;

/// A file with a filesystem in it.
fn made(mkfs: &str, arguments: &[&str], mib: u64) -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    file.as_file().set_len(mib << 20).unwrap();
    let path = format!("/sbin/{mkfs}");
    let output = Command::new(&path).args(arguments).arg(file.path()).output();
    let output = output.unwrap_or_else(|error| panic!("{path}: {error}; scripts/test installs it"));
    assert!(output.status.success(), "{path}: {}", String::from_utf8_lossy(&output.stderr));
    file
}

fn all() -> Vec<(&'static str, NamedTempFile)> {
    vec![
        ("ext4", made("mkfs.ext4", &["-q", "-F", "-U", "01234567-89ab-cdef-0123-456789abcdef"], 16)),
        ("xfs", made("mkfs.xfs", &["-q", "-f", "-m", "uuid=01234567-89ab-cdef-0123-456789abcdef"], 320)),
        ("btrfs", made("mkfs.btrfs", &["-q", "-f", "-U", "01234567-89ab-cdef-0123-456789abcdef"], 128)),
        ("vfat", made("mkfs.vfat", &["-i", "1234abcd"], 16)),
        ("vfat", made("mkfs.vfat", &["-F", "32", "-i", "1234abcd"], 64)),
    ]
}

fn recorded(kind: &str, file: &NamedTempFile) -> Filesystem {
    let Superblock { uuid, steady, still } = read(file.path()).unwrap().unwrap();
    Filesystem {
        kind: kind.to_owned(),
        uuid,
        mount: "/mnt".to_owned(),
        mount_digest: steady,
        quiesced_digest: Some(still),
        superblock: None,
    }
}

fn compare_with(filesystem: &Filesystem, file: &NamedTempFile) -> Comparison {
    compare(std::slice::from_ref(filesystem), &[file.path().to_owned()])
}

#[test]
fn each_kind_is_known_by_its_uuid_and_the_same_until_it_is_written() {
    for (kind, file) in all() {
        let filesystem = recorded(kind, &file);
        let uuid = if kind == "vfat" { "1234-ABCD" } else { "01234567-89ab-cdef-0123-456789abcdef" };
        assert_eq!(filesystem.uuid, uuid, "{kind}");
        assert_eq!(compare_with(&filesystem, &file), Comparison::default(), "{kind}");
    }
}

/// What Linux writes when each is mounted, done by hand: no test may need a loop device.
#[test]
fn notices_what_a_mount_writes() {
    for (kind, file) in all() {
        let filesystem = recorded(kind, &file);
        let mut superblock = vec![0; 4096];
        file.as_file().read_exact_at(&mut superblock, 0).unwrap();
        let at = match kind {
            // The time of the mount.
            "ext4" => 1024 + 0x2c,
            // The generation.
            "btrfs" => (64 << 10) + 0x48,
            // The first block of the log.
            "xfs" => {
                let xfs = |at: usize| u64::from(be32(&superblock[at..]));
                let start = u64::from_be_bytes(superblock[48..56].try_into().unwrap());
                let bits = superblock[124];
                ((start >> bits) * xfs(84) + (start & ((1 << bits) - 1))) * xfs(4) + 3
            }
            // An entry of the table, which begins after the reserved sectors.
            _ => u64::from(u16::from_le_bytes([superblock[14], superblock[15]])) * 512 + 20,
        };
        let mut byte = [0];
        file.as_file().read_exact_at(&mut byte, at).unwrap();
        file.as_file().write_all_at(&[byte[0] ^ 0x55], at).unwrap();
        let changed = compare_with(&filesystem, &file).changed.unwrap_or_else(|| panic!("{kind}: not noticed"));
        assert!(changed.contains(kind) && changed.contains("/mnt"), "{changed}");
        // What the session itself may have written since is not a reason to refuse.
        let unsettled = Filesystem { quiesced_digest: None, ..filesystem };
        let unsettled = compare_with(&unsettled, &file);
        assert_eq!(unsettled.changed.is_some(), kind == "ext4", "{kind}");
        assert_eq!(unsettled.unsure.is_empty(), kind == "ext4", "{kind}");
    }
}

fn be32(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(bytes[..4].try_into().unwrap())
}

#[test]
fn a_mount_count_that_the_session_wrote_itself_is_no_change() {
    let file = made("mkfs.ext4", &["-q", "-F"], 16);
    let mut filesystems = vec![Filesystem { quiesced_digest: None, ..recorded("ext4", &file) }];
    // The time of the last write and the number of free blocks: the session at work.
    for at in [0x30, 0x0c] {
        file.as_file().write_all_at(&[0x77], 1024 + at).unwrap();
    }
    assert_eq!(compare(&filesystems, &[file.path().to_owned()]), Comparison::default());
    settle(&mut filesystems, &[file.path().to_owned()]);
    assert_eq!(filesystems[0].quiesced_digest, Some(recorded("ext4", &file).quiesced_digest.unwrap()));
    // From now on they are somebody else's.
    file.as_file().write_all_at(&[0x78], 1024 + 0x30).unwrap();
    assert!(compare(&filesystems, &[file.path().to_owned()]).changed.is_some());
}

#[test]
fn names_missing_filesystems_and_accepts_one_of_several() {
    let (file, copy) = (made("mkfs.ext4", &["-q", "-F"], 16), NamedTempFile::new().unwrap());
    std::fs::copy(file.path(), copy.path()).unwrap();
    let filesystem = recorded("ext4", &file);
    let unsure = compare(std::slice::from_ref(&filesystem), &[]).unsure;
    assert!(unsure.len() == 1 && unsure[0].contains("/mnt"), "{unsure:?}");
    copy.as_file().write_all_at(&[0x99], 1024 + 0x2c).unwrap();
    // A disk that turns up late.
    let looks = std::cell::Cell::new(0);
    let late = compare_within(std::slice::from_ref(&filesystem), Duration::from_secs(60), || {
        looks.set(looks.get() + 1);
        if looks.get() < 3 { Vec::new() } else { vec![file.path().to_owned()] }
    });
    assert_eq!((late, looks.get()), (Comparison::default(), 3));
    let never = compare_within(std::slice::from_ref(&filesystem), Duration::ZERO, Vec::new);
    assert!(never.is_incomplete && never.unsure.len() == 1);
    let both = [copy.path().to_owned(), file.path().to_owned()];
    assert_eq!(compare(std::slice::from_ref(&filesystem), &both).changed, None);
    assert!(compare(std::slice::from_ref(&filesystem), &both[..1]).changed.is_some());
}

#[test]
fn mounts_on_block_devices_are_listed() {
    let numbers = tempfile::tempdir().unwrap();
    let disk = numbers.path().join("block/vda/vda1");
    std::fs::create_dir_all(&disk).unwrap();
    std::os::unix::fs::symlink(&disk, numbers.path().join("254:1")).unwrap();
    let text = "\
22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/root rw
23 22 0:21 / /proc rw,nosuid - proc proc rw
24 22 0:40 /@home /home rw - btrfs /dev/nvme0n1p3 rw,subvolid=257
25 22 254:9 / /gone rw - xfs /dev/vdz rw
26 22 0:45 / /run rw - tmpfs tmpfs rw
27 22 254:1 /var /srv rw master:1 - ext4 /dev/root rw
nonsense
";
    let found = mounted(&dormouse_linux::mountinfo::parse(text.as_bytes()), numbers.path());
    let found: Vec<_> =
        found.iter().map(|found| (found.kind.as_str(), found.mount.as_str(), found.device.to_str().unwrap())).collect();
    assert_eq!(
        found,
        [
            ("ext4", "/", "/dev/vda1"),
            ("btrfs", "/home", "/dev/nvme0n1p3"),
            ("xfs", "/gone", "/dev/vdz"),
            ("ext4", "/srv", "/dev/vda1"),
        ]
    );
}

#[test]
fn anything_else_is_no_filesystem() {
    for bytes in [vec![], vec![0; 100], vec![0xff; 100_000], b"XFSB".repeat(30_000)] {
        let file = NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        // An error or nothing; never a panic.
        assert!(!matches!(read(file.path()), Ok(Some(_))));
    }
}
