//! Real filesystems, made by their own programs, and the changes that a mount makes.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::os::unix::fs::FileExt;
use std::process::Command;
use std::time::Duration;

use dormouse_image::{DiskPlace, Filesystem, SessionRecord, SwapArea};
use dormouse_linux::block::layers::{NoPlace, Place};
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

/// The names of a machine with these disks, which are called by their numbers.
fn disks(files: &[&NamedTempFile]) -> Names {
    let named = files.iter().enumerate().map(|(number, file)| (file.path().to_owned(), vec![number.to_string()]));
    Names::of(named.collect())
}

/// A session with this filesystem on disk 0.
fn session(kind: &str, file: &NamedTempFile) -> SessionRecord {
    let Superblock { uuid, steady, .. } = read(file.path()).unwrap().unwrap();
    let superblock = Some(DiskPlace { disk: "0".to_owned(), offset: 0 });
    let mount = "/mnt".to_owned();
    let kind = kind.to_owned();
    let entry = Filesystem { kind, uuid, mount, mount_digest: steady, quiesced_digest: None, superblock };
    SessionRecord { filesystems: vec![entry], ..SessionRecord::default() }
}

fn settled(kind: &str, file: &NamedTempFile) -> SessionRecord {
    let mut session = session(kind, file);
    assert!(settle(&mut session, Duration::ZERO, || disks(&[file])).is_empty());
    assert!(session.filesystems[0].quiesced_digest.is_some());
    session
}

fn write(file: &NamedTempFile, at: u64) {
    let mut byte = [0];
    file.as_file().read_exact_at(&mut byte, at).unwrap();
    file.as_file().write_all_at(&[byte[0] ^ 0x55], at).unwrap();
}

#[test]
fn each_kind_is_known_by_its_uuid_and_the_same_until_it_is_written() {
    for (kind, file) in all() {
        let session = settled(kind, &file);
        let uuid = if kind == "vfat" { "1234-ABCD" } else { "01234567-89ab-cdef-0123-456789abcdef" };
        assert_eq!(session.filesystems[0].uuid, uuid, "{kind}");
        assert_eq!(compare(&session, &disks(&[&file])), Comparison::default(), "{kind}");
    }
}

/// What Linux writes when each is mounted, done by hand: no test may need a loop device.
#[test]
fn notices_what_a_mount_writes() {
    for (kind, file) in all() {
        let settled = settled(kind, &file);
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
        write(&file, at);
        let changed = compare(&settled, &disks(&[&file])).changed.unwrap_or_else(|| panic!("{kind}: not noticed"));
        assert!(changed.contains(kind) && changed.contains("/mnt"), "{changed}");
        // What the session itself may have written since is not a reason to refuse.
        let mut unsettled = settled;
        unsettled.filesystems[0].quiesced_digest = None;
        let unsettled = compare(&unsettled, &disks(&[&file]));
        assert_eq!(unsettled.changed.is_some(), kind == "ext4", "{kind}");
        assert_eq!(unsettled.unsure.is_empty(), kind == "ext4", "{kind}");
    }
}

fn be32(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(bytes[..4].try_into().unwrap())
}

#[test]
fn what_the_session_wrote_itself_is_no_change() {
    let file = made("mkfs.ext4", &["-q", "-F"], 16);
    let mut session = session("ext4", &file);
    // The time of the last write and the number of free blocks: the session at work.
    for at in [0x30, 0x0c] {
        write(&file, 1024 + at);
    }
    assert_eq!(compare(&session, &disks(&[&file])), Comparison::default());
    // Even a remount since A looked.
    write(&file, 1024 + 0x34);
    assert!(settle(&mut session, Duration::ZERO, || disks(&[&file])).is_empty());
    assert_eq!(compare(&session, &disks(&[&file])), Comparison::default());
    // From now on they are somebody else's.
    write(&file, 1024 + 0x30);
    assert!(compare(&session, &disks(&[&file])).changed.is_some());
}

#[test]
fn members_of_one_btrfs_are_alike() {
    let (file, other) = (made("mkfs.btrfs", &["-q", "-f"], 128), NamedTempFile::new().unwrap());
    std::fs::copy(file.path(), other.path()).unwrap();
    let (superblock, device) = (64 << 10, 0xc9);
    write(&other, superblock + device);
    assert_eq!(read(file.path()).unwrap(), read(other.path()).unwrap());
    write(&other, superblock + device + 98);
    assert_ne!(read(file.path()).unwrap(), read(other.path()).unwrap());
}

#[test]
fn a_disk_that_turns_up_late_is_waited_for_and_one_that_tells_nothing_is_not() {
    let file = made("mkfs.ext4", &["-q", "-F"], 16);
    let session = session("ext4", &file);
    let looks = std::cell::Cell::new(0);
    let late = || {
        looks.set(looks.get() + 1);
        if looks.get() < 3 { Names::default() } else { disks(&[&file]) }
    };
    assert_eq!((compare_within(&session, Duration::from_secs(60), late), looks.get()), (Comparison::default(), 3));
    let never = compare_within(&session, Duration::ZERO, Names::default);
    assert!(never.absent.len() == 1 && never.absent[0].contains("/mnt") && never.unsure.is_empty(), "{never:?}");
    // On device-mapper, or on a disk that B did not see.
    for change in [
        (|found: &mut Filesystem| found.superblock = None) as fn(&mut Filesystem),
        |found| found.mount_digest = 0,
        |found| found.kind = "xfs".to_owned(),
    ] {
        let mut unknown = session.clone();
        change(&mut unknown.filesystems[0]);
        let began = std::time::Instant::now();
        let found = compare_within(&unknown, Duration::from_secs(60), Names::default);
        assert!(found.unsure.len() == 1 && found.absent.is_empty() && began.elapsed().as_secs() < 5, "{found:?}");
    }
}

/// A copy of the whole disk has all of its names, unless the hardware has one.
#[test]
fn of_two_disks_with_one_name_both_must_be_as_they_were() {
    let (file, copy) = (made("mkfs.ext4", &["-q", "-F"], 16), NamedTempFile::new().unwrap());
    std::fs::copy(file.path(), copy.path()).unwrap();
    let session = settled("ext4", &file);
    let both = || Names::of([&file, &copy].map(|file| (file.path().to_owned(), vec!["0".to_owned()])).into());
    assert_eq!(compare(&session, &both()), Comparison::default());
    write(&copy, 1024 + 0x2c);
    assert!(compare(&session, &both()).changed.is_some());
    // With another name it is nobody's.
    assert_eq!(compare(&session, &disks(&[&file, &copy])), Comparison::default());
    // And where the disk itself is gone, whatever has its filesystem counts.
    assert!(compare(&session, &Names::of(vec![(copy.path().to_owned(), vec!["1".to_owned()])])).changed.is_some());
    let moved = Names::of(vec![(file.path().to_owned(), vec!["1".to_owned()])]);
    assert_eq!(compare(&session, &moved), Comparison::default());
}

/// Below dm-linear; with another filesystem at the beginning of the disk.
#[test]
fn a_filesystem_in_the_middle_of_a_disk_is_compared() {
    for (kind, file) in all() {
        let disk = made("mkfs.ext4", &["-q", "-F"], 16);
        let start = 12 << 20;
        let bytes = std::fs::read(file.path()).unwrap();
        disk.as_file().write_all_at(&bytes, start).unwrap();
        let mut session = session(kind, &file);
        session.filesystems[0].superblock = Some(DiskPlace { disk: "0".to_owned(), offset: start });
        assert!(settle(&mut session, Duration::ZERO, || disks(&[&disk])).is_empty(), "{kind}");
        assert_eq!(session.filesystems[0].quiesced_digest, Some(read(file.path()).unwrap().unwrap().still), "{kind}");
        write(&disk, 1024 + 0x30);
        assert_eq!(compare(&session, &disks(&[&disk])), Comparison::default(), "{kind}");
        disk.as_file().write_all_at(&[0; 4096], start + if kind == "btrfs" { 64 << 10 } else { 0 }).unwrap();
        assert!(compare(&session, &disks(&[&disk])).changed.is_some(), "{kind}");
    }
}

/// Nothing is known of it but where it lies, and that its bytes change when it is written.
#[test]
fn a_filesystem_that_is_encrypted_is_compared_as_bytes() {
    let file = NamedTempFile::new().unwrap();
    let noise: Vec<u8> = (0..1_u32 << 20).map(|at| at.wrapping_mul(2_654_435_761).to_le_bytes()[2]).collect();
    std::fs::write(file.path(), noise).unwrap();
    let entry = Filesystem {
        kind: "ext4".to_owned(),
        uuid: "01234567-89ab-cdef-0123-456789abcdef".to_owned(),
        mount: "/".to_owned(),
        mount_digest: 0,
        quiesced_digest: None,
        superblock: Some(DiskPlace { disk: "0".to_owned(), offset: 8192 }),
    };
    let mut session = SessionRecord { filesystems: vec![entry], ..SessionRecord::default() };
    // B must have seen it.
    let unseen = settle(&mut session.clone(), Duration::ZERO, Names::default);
    assert!(unseen.len() == 1 && unseen[0].starts_with("/ (ext4 "), "{unseen:?}");
    assert!(settle(&mut session, Duration::ZERO, || disks(&[&file])).is_empty());
    assert_eq!(compare(&session, &disks(&[&file])), Comparison::default());
    write(&file, 4096);
    assert_eq!(compare(&session, &disks(&[&file])), Comparison::default());
    write(&file, 8192 + 1500);
    assert!(compare(&session, &disks(&[&file])).changed.is_some());
}

#[test]
fn of_a_mirror_each_leg_that_is_there_counts() {
    let (file, leg) = (made("mkfs.ext4", &["-q", "-F"], 16), NamedTempFile::new().unwrap());
    std::fs::copy(file.path(), leg.path()).unwrap();
    let mut session = session("ext4", &file);
    let mut second = session.filesystems[0].clone();
    second.superblock = Some(DiskPlace { disk: "1".to_owned(), offset: 0 });
    session.filesystems.push(second);
    assert!(settle(&mut session, Duration::ZERO, || disks(&[&file, &leg])).is_empty());
    assert_eq!(compare(&session, &disks(&[&file, &leg])), Comparison::default());
    assert_eq!(compare(&session, &disks(&[&file])), Comparison::default());
    assert_eq!(compare(&session, &Names::default()).absent.len(), 1);
    write(&leg, 1024 + 0x2c);
    assert!(compare(&session, &disks(&[&file, &leg])).changed.is_some());
}

#[test]
fn a_swap_area_that_was_written_is_noticed() {
    let file = NamedTempFile::new().unwrap();
    file.as_file().set_len(16 << 20).unwrap();
    let mut header = vec![0; 4096];
    header[1024] = 1;
    header[1028..1032].copy_from_slice(&4095_u32.to_le_bytes());
    header[4086..].copy_from_slice(b"SWAPSPACE2");
    file.as_file().write_all_at(&header, 0).unwrap();
    let place = Some(DiskPlace { disk: "0".to_owned(), offset: 0 });
    let uuid = "00000000-0000-0000-0000-000000000000".to_owned();
    let area = SwapArea { uuid, mount_digest: 7, quiesced_digest: None, superblock: place };
    let mut session = SessionRecord { swap_areas: vec![area], ..SessionRecord::default() };
    // What B has not seen is unsure, for the header does not change.
    assert_eq!(compare(&session, &disks(&[&file])).unsure.len(), 1);
    assert!(settle(&mut session, Duration::ZERO, || disks(&[&file])).is_empty());
    assert_eq!(compare(&session, &disks(&[&file])), Comparison::default());
    write(&file, 4096);
    let changed = compare(&session, &disks(&[&file])).changed.unwrap();
    assert!(changed.contains("the swap area 00000000"), "{changed}");
}

/// No program of these is needed: the fields are put where the kernel's sources have them.
#[test]
fn knows_f2fs_and_exfat() {
    let file = NamedTempFile::new().unwrap();
    file.as_file().set_len(32 << 20).unwrap();
    let put = |at: u64, bytes: &[u8]| file.as_file().write_all_at(bytes, at).unwrap();
    for (at, value) in [(0, 0xf2f5_2010_u32), (16, 12), (20, 9), (76, 512)] {
        put(1024 + at, &value.to_le_bytes());
    }
    put(1024 + 108, &[0x11; 16]);
    let found = read(file.path()).unwrap().unwrap();
    assert_eq!((found.uuid.as_str(), found.reach), ("11111111-1111-1111-1111-111111111111", (4 << 20) + 4096));
    for checkpoint in [2 << 20, 4 << 20] {
        write(&file, checkpoint);
        let after = read(file.path()).unwrap().unwrap();
        assert!(after.still != found.still && after.steady == found.steady);
        write(&file, checkpoint);
    }
    file.as_file().set_len(0).unwrap();
    file.as_file().set_len(32 << 20).unwrap();
    put(3, b"EXFAT   ");
    // Table, its length, the heap, the root directory's cluster, the serial number.
    for (at, value) in [(80, 2048_u32), (84, 64), (88, 4096), (96, 5), (100, 0x1234_abcd)] {
        put(at, &value.to_le_bytes());
    }
    put(108, &[9, 3]);
    let root = 4096 * 512 + 3 * 4096;
    put(root + 32, &[0x81]);
    put(root + 32 + 20, &2_u32.to_le_bytes());
    put(root + 32 + 24, &1000_u64.to_le_bytes());
    let found = read(file.path()).unwrap().unwrap();
    assert_eq!(found.uuid, "1234-ABCD");
    for at in [2048 * 512 + 40, 4096 * 512 + 999, root + 2000] {
        write(&file, at);
        assert_ne!(read(file.path()).unwrap().unwrap().still, found.still, "{at}");
        write(&file, at);
    }
    assert_eq!(read(file.path()).unwrap().unwrap(), found);
}

/// What A lists of a filesystem of this kind on `file`, whose bytes lie where `place` says.
fn listed(kind: &str, file: &NamedTempFile, place: &dyn Fn(&str, u64) -> Result<Place, NoPlace>) -> session::Mounted {
    let names = disks(&[file]);
    let mut mounted = session::Mounted::default();
    let (mount, number) = ("/mnt".to_owned(), Some("8:1".to_owned()));
    let entry = session::OnDevice { kind: kind.to_owned(), mount, number, device: file.path().to_owned() };
    mounted.add_filesystem(entry, &session::Finder { names: &names, place });
    mounted
}

#[test]
fn a_lists_each_kind_with_its_place() {
    for (kind, file) in all() {
        let place = |_: &str, _| Ok(Place { legs: vec![(file.path().to_owned(), 0)], is_encrypted: false });
        let found = listed(kind, &file, &place);
        assert_eq!((found.filesystems, found.unsure), (session(kind, &file).filesystems, vec![]), "{kind}");
        // Encrypted, its bytes tell nothing while the session works, and what they are is not looked for.
        let place = |_: &str, _| Ok(Place { legs: vec![(file.path().to_owned(), 7 << 20)], is_encrypted: true });
        let found = listed(kind, &file, &place);
        assert!(found.unsure.is_empty() && found.filesystems.len() == 1, "{kind}");
        let entry = &found.filesystems[0];
        assert_eq!((entry.mount_digest, entry.superblock.as_ref().unwrap().offset), (0, 7 << 20), "{kind}");
    }
}

#[test]
fn a_names_what_cannot_be_compared() {
    let (file, other) = (made("mkfs.ext4", &["-q", "-F"], 16), made("mkfs.ext4", &["-q", "-F"], 16));
    let at = |path: &Path| Place { legs: vec![(path.to_owned(), 0)], is_encrypted: false };
    let node = || "/dev/dm-0".into();
    type Lookup<'a> = Box<dyn Fn(&str, u64) -> Result<Place, NoPlace> + 'a>;
    let thin: Lookup<'_> = Box::new(|_, _| Err(NoPlace::Target { node: node(), kind: "thin".into() }));
    let astray: Lookup<'_> = Box::new(|_, _| Ok(at(other.path())));
    let network: Lookup<'_> = Box::new(|_, _| Err(NoPlace::InFile { node: node(), file: "/nonexistent".into() }));
    for (place, reason) in [(thin, "device-mapper's thin"), (astray, "something else"), (network, "/nonexistent lies")]
    {
        let found = listed("ext4", &file, &*place);
        assert!(found.unsure.len() == 1 && found.unsure[0].contains(reason), "{:?}", found.unsure);
        assert!(found.unsure[0].starts_with("/mnt (ext4 on ") && found.filesystems[0].superblock.is_none());
    }
    // NTFS, whose volume does not tell.
    let blank = NamedTempFile::new().unwrap();
    blank.as_file().set_len(1 << 20).unwrap();
    let found = listed("ntfs3", &blank, &|_, _| Ok(at(blank.path())));
    assert!(found.unsure[0].contains("what a mount of this type changes is not known"), "{:?}", found.unsure);
    // In a file of a filesystem that is compared itself, it needs no entry.
    let in_file = |_: &str, _| Err(NoPlace::InFile { node: node(), file: file.path().to_owned() });
    assert_eq!(listed("ext4", &file, &in_file), session::Mounted::default());
    // Of XFS, the log must lie in one piece with the superblock.
    let xfs = made("mkfs.xfs", &["-q", "-f"], 320);
    let in_pieces = |_: &str, len| match len {
        ..=4096 => Ok(at(xfs.path())),
        _ => Err(NoPlace::Pieces { node: node() }),
    };
    assert!(listed("xfs", &xfs, &in_pieces).unsure[0].contains("in several pieces"));
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
28 22 7:3 / /snap/core ro - squashfs /dev/loop3 ro
30 22 0:47 / /run/user/portal rw - fuse.portal /dev/fuse rw
31 22 0:48 / /dev/shm rw - tmpfs /dev/shm rw
29 22 0:46 / /two rw - bcachefs /dev/vdx:/dev/vdy rw
nonsense
";
    let found = session::mounted(&dormouse_linux::mountinfo::parse(text.as_bytes()), numbers.path());
    let found: Vec<_> = found
        .iter()
        .map(|found| {
            (found.kind.as_str(), found.mount.as_str(), found.device.to_str().unwrap(), found.number.as_deref())
        })
        .collect();
    assert_eq!(
        found,
        [
            ("ext4", "/", "/dev/vda1", Some("254:1")),
            ("btrfs", "/home", "/dev/nvme0n1p3", None),
            ("bcachefs", "/two", "/dev/vdx", None),
            ("bcachefs", "/two", "/dev/vdy", None),
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
