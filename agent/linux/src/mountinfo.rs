//! What is mounted: `/proc/self/mountinfo` (proc_pid_mountinfo(5)).

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use crate::procfs;

/// Where the kernel shows it.
pub const PATH: &str = "/proc/self/mountinfo";

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Its number, which `/proc/self/fdinfo` calls `mnt_id`.
    pub id: u64,
    /// The filesystem's device number, as `major:minor`. It is not always a block device's: btrfs has one of its own.
    pub number: String,
    /// Where it is mounted.
    pub point: PathBuf,
    /// The type of the filesystem.
    pub kind: String,
    /// What it was mounted from: a device's node, or whatever the filesystem takes for one.
    pub source: PathBuf,
}

/// The mounts that this process sees.
///
/// # Errors
/// The kernel's list cannot be read.
pub fn read() -> anyhow::Result<Vec<Mount>> {
    Ok(parse(&procfs::read(PATH)?))
}

/// The mounts that any process sees: those of this one first, then those of one process of each other mount namespace,
/// as containers and services with `PrivateMounts=` have. One look at each process, and one list for each namespace. A
/// namespace in which no process is left, and which a file keeps, is not looked at.
///
/// # Errors
/// The kernel's list for this process cannot be read.
pub fn read_all() -> anyhow::Result<Vec<Mount>> {
    let mut mounts = read()?;
    mounts.extend(other_namespaces(Path::new("/proc")));
    Ok(mounts)
}

/// The mounts of each mount namespace but that of `self`, by the processes in `proc`.
fn other_namespaces(proc: &Path) -> Vec<Mount> {
    let namespace = |process: &Path| fs::read_link(process.join("ns/mnt")).ok();
    let mut seen: HashSet<PathBuf> = namespace(&proc.join("self")).into_iter().collect();
    let mut mounts = Vec::new();
    for process in fs::read_dir(proc).into_iter().flatten().flatten() {
        let is_process = process.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit);
        let process = process.path();
        // Kernel threads are in the first namespace. A process that has gone in the meantime has no list; the next one
        // of its namespace has.
        let Some(found) = is_process.then(|| namespace(&process)).flatten().filter(|found| !seen.contains(found))
        else {
            continue;
        };
        if let Ok(text) = fs::read(process.join("mountinfo")) {
            mounts.extend(parse(&text));
            seen.insert(found);
        }
    }
    mounts
}

/// The mounts of a text. Lines that lack a field are left out.
#[must_use]
pub fn parse(text: &[u8]) -> Vec<Mount> {
    text.split(|byte| *byte == b'\n').filter_map(mount).collect()
}

/// A line: number, parent, device, root, mount point, options, any number of optional fields, a hyphen, type, source,
/// options.
fn mount(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let id = text(fields.next()?).parse().ok()?;
    let number = text(fields.nth(1)?);
    let point = path(fields.nth(1)?);
    fields.find(|field| *field == b"-")?;
    Some(Mount { id, number, point, kind: text(fields.next()?), source: path(fields.next()?) })
}

fn text(field: &[u8]) -> String {
    String::from_utf8_lossy(&unescaped(field)).into_owned()
}

fn path(field: &[u8]) -> PathBuf {
    OsString::from_vec(unescaped(field)).into()
}

/// A field without its escapes: the kernel writes blanks, line ends, backslashes and hashes as a backslash and three
/// octal digits (`show_mountinfo` and `mangle`, fs/proc_namespace.c, Linux 6.12).
pub(crate) fn unescaped(mut field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    while let Some((first, rest)) = field.split_first() {
        let escaped = match field {
            [b'\\', a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..] => {
                Some((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'))
            }
            _ => None,
        };
        plain.push(escaped.unwrap_or(*first));
        field = if escaped.is_some() { &field[4..] } else { rest };
    }
    plain
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_fields_with_and_without_optional_ones() {
        let text = b"\
22 28 0:20 / /proc rw,nosuid shared:12 - proc proc rw
28 1 254:1 / / rw,relatime - ext4 /dev/vda1 rw,errors=remount-ro
29 28 0:40 /@home /home rw shared:2 master:7 - btrfs /dev/vda2 rw,subvolid=256,subvol=/@home
";
        let found = parse(text);
        assert_eq!(found.iter().map(|mount| mount.id).collect::<Vec<_>>(), [22, 28, 29]);
        let home = Mount {
            id: 29,
            number: "0:40".into(),
            point: "/home".into(),
            kind: "btrfs".into(),
            source: "/dev/vda2".into(),
        };
        assert_eq!(found[2], home);
    }

    #[test]
    fn replaces_octal_escapes_once() {
        let mounts = parse(br"1 2 254:1 / /mnt/a\040b\011\012\134040\043 rw - ext4 /dev/mapper/x\040y rw");
        assert_eq!(mounts[0].point, Path::new("/mnt/a b\t\n\\040#"));
        assert_eq!(mounts[0].source, Path::new("/dev/mapper/x y"));
        // Anything else is not the kernel's, and stays.
        for other in [r"\", r"\0", r"\04", r"\08x", r"\400", r"\x41"] {
            assert_eq!(unescaped(other.as_bytes()), other.as_bytes());
        }
        assert_eq!(unescaped(br"\377\303\274"), [0xff, 0xc3, 0xbc]);
    }

    #[test]
    fn keeps_paths_that_are_not_utf_8() {
        let mounts = parse(b"1 2 254:1 / /mnt/\xff rw - ext4 /dev/vda rw");
        assert_eq!(mounts[0].point.as_os_str().as_encoded_bytes(), b"/mnt/\xff");
    }

    #[test]
    fn leaves_out_lines_that_lack_fields() {
        let whole = "1 2 254:1 / /mnt rw,x shared:1 - ext4 /dev/vda rw";
        let fields: Vec<&str> = whole.split(' ').collect();
        for len in 0..fields.len() - 1 {
            assert_eq!(parse(fields[..len].join(" ").as_bytes()), [], "{len}");
        }
        assert_eq!(parse(fields[..fields.len() - 1].join(" ").as_bytes()).len(), 1);
        assert_eq!(parse(whole.replace(" - ", " ").as_bytes()), []);
        assert_eq!(parse(format!("x{whole}").as_bytes()), []);
        assert_eq!(parse(format!("\n \n{whole}\n\n").as_bytes()).len(), 1);
    }

    #[test]
    fn a_mount_point_called_hyphen_is_no_separator() {
        // The kernel writes whole paths; a relative one would be a bug of its own.
        assert_eq!(parse(b"1 2 254:1 / /- - - ext4 /dev/vda rw")[0].kind, "-");
        assert_eq!(parse(b"1 2 254:1 / /- rw - ext4 /dev/vda rw")[0].kind, "ext4");
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&text);
        }
    }

    #[test]
    fn each_namespace_is_read_once() {
        let proc = tempfile::tempdir().unwrap();
        let process = |name: &str, namespace: &str, mounts: &str| {
            let directory = proc.path().join(name);
            fs::create_dir_all(directory.join("ns")).unwrap();
            std::os::unix::fs::symlink(format!("mnt:[{namespace}]"), directory.join("ns/mnt")).unwrap();
            fs::write(directory.join("mountinfo"), mounts).unwrap();
        };
        process("self", "1", "");
        process("10", "1", "1 2 254:1 / / rw - ext4 /dev/vda rw");
        process("11", "2", "1 2 254:2 / /data rw - xfs /dev/vdb rw");
        process("12", "2", "1 2 254:2 / /data rw - xfs /dev/vdb rw");
        process("13", "3", "");
        process("bus", "4", "1 2 254:3 / /other rw - xfs /dev/vdc rw");
        let found = other_namespaces(proc.path());
        assert_eq!(found.iter().map(|mount| mount.number.as_str()).collect::<Vec<_>>(), ["254:2"]);
        assert!(read_all().unwrap().len() >= read().unwrap().len());
    }

    #[test]
    fn this_process_has_a_root() {
        assert!(read().unwrap().iter().any(|mount| mount.point == Path::new("/")));
    }
}
