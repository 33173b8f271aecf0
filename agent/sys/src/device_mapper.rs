//! What device-mapper has made of which devices, and making such a device. Two requests are all that Dormouse needs to
//! see where something lies; the others are for its tests.

#![expect(unsafe_code, reason = "ioctl(2)")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// Where the requests go.
const CONTROL: &str = "/dev/mapper/control";

/// The length of `struct dm_ioctl`, and the places of its fields (include/uapi/linux/dm-ioctl.h, Linux 6.12).
const HEADER: usize = 312;
const DATA_SIZE: usize = 12;
const DATA_START: usize = 16;
const TARGET_COUNT: usize = 20;
const FLAGS: usize = 28;
const DEVICE: usize = 40;
const NAME: usize = 48;
const NAME_LEN: usize = 128;
const UUID: usize = 176;
const UUID_LEN: usize = 129;
/// The length of `struct dm_target_spec`, and the places of its fields; the target's arguments follow it.
const SPEC: usize = 40;
const SPEC_LEN: usize = 8;
const SPEC_NEXT: usize = 20;
const SPEC_KIND: usize = 24;
const SPEC_KIND_LEN: usize = 16;

/// What the target is made of is asked for, not how it is.
const STATUS_TABLE: u32 = 1 << 4;
/// The answer is longer than the room for it.
const BUFFER_FULL: u32 = 1 << 8;
/// The kernel wipes its copy: there may be a key in it.
const SECURE_DATA: u32 = 1 << 15;

/// The most room that is given to an answer.
const ROOM_MAX: usize = 16 << 20;

mod raw {
    //! The requests. The buffers are longer than `struct dm_ioctl`, and say so in it.
    nix::ioctl_readwrite!(dm_dev_create, 0xfd, 3, [u8; 312]);
    nix::ioctl_readwrite!(dm_dev_remove, 0xfd, 4, [u8; 312]);
    nix::ioctl_readwrite!(dm_dev_suspend, 0xfd, 6, [u8; 312]);
    nix::ioctl_readwrite!(dm_table_load, 0xfd, 9, [u8; 312]);
    nix::ioctl_readwrite!(dm_table_status, 0xfd, 12, [u8; 312]);
}

/// A piece of a device-mapper device. Sizes and places are in units of 512 bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Where it begins.
    pub start: u64,
    /// How long it is.
    pub len: u64,
    /// Its kind, such as `linear`.
    pub kind: String,
    /// For the kinds `linear` and `crypt`, which give each sector one sector of another device: which device, written
    /// `major:minor`, and which sector is the first.
    pub lower: Option<(String, u64)>,
    /// Whether it keeps something beside the sectors that tells whether they were changed: a `crypt` that
    /// authenticates.
    pub is_authenticated: bool,
}

impl Target {
    /// A piece with these arguments, as the kernel writes them.
    #[must_use]
    pub fn new(start: u64, len: u64, kind: &str, arguments: &str) -> Target {
        Target {
            start,
            len,
            kind: kind.to_owned(),
            lower: lower(kind, arguments),
            // Documentation/admin-guide/device-mapper/dm-crypt.rst, `integrity:<bytes>:<type>`.
            is_authenticated: kind == "crypt"
                && arguments.split_ascii_whitespace().skip(5).any(|option| option.starts_with("integrity:")),
        }
    }
}

/// The pieces of the device-mapper device with this number. Keys, which may be in the kernel's answer, are not kept.
///
/// # Errors
/// There is no such device, or the kernel does not answer as it should.
pub fn table(major: u32, minor: u32) -> io::Result<Vec<Target>> {
    let control = File::options().read(true).write(true).open(CONTROL)?;
    let mut room = 16 << 10;
    loop {
        let mut buffer = request(room, STATUS_TABLE | SECURE_DATA, None)?;
        put(&mut buffer, DEVICE, &number(major, minor).to_le_bytes())?;
        call(&control, &mut buffer, raw::dm_table_status)?;
        let is_full = u32_at(&buffer, FLAGS)? & BUFFER_FULL != 0;
        let found = if is_full { Ok(Vec::new()) } else { targets(&buffer) };
        wipe(&mut buffer);
        if !is_full {
            return found;
        }
        room *= 4;
        if room > ROOM_MAX {
            return Err(invalid("its table is too long"));
        }
    }
}

/// A piece of a device that is to be made: how many sectors it has, its kind, and its arguments.
pub type Piece<'a> = (u64, &'a str, &'a str);

/// Makes a device-mapper device of these pieces, one after the other. Returns its number.
///
/// # Errors
/// The kernel refuses, for example since there is such a device.
pub fn create(name: &str, uuid: &str, pieces: &[Piece<'_>]) -> io::Result<(u32, u32)> {
    let control = File::options().read(true).write(true).open(CONTROL)?;
    let mut buffer = request(HEADER, 0, Some(name))?;
    if uuid.len() >= UUID_LEN {
        return Err(invalid("its UUID is too long"));
    }
    put(&mut buffer, UUID, uuid.as_bytes())?;
    call(&control, &mut buffer, raw::dm_dev_create)?;
    let device = u64_at(&buffer, DEVICE)?;

    let len_of = |arguments: &str| (SPEC + arguments.len() + 1).next_multiple_of(8);
    let len: usize = pieces.iter().map(|(_, _, arguments)| len_of(arguments)).sum();
    let mut buffer = request(HEADER + len, SECURE_DATA, Some(name))?;
    put(&mut buffer, TARGET_COUNT, &u32::try_from(pieces.len()).map_err(io::Error::other)?.to_le_bytes())?;
    let (mut at, mut start) = (HEADER, 0_u64);
    for (sectors, kind, arguments) in pieces {
        let len = len_of(arguments);
        put(&mut buffer, at, &start.to_le_bytes())?;
        put(&mut buffer, at + SPEC_LEN, &sectors.to_le_bytes())?;
        put(&mut buffer, at + SPEC_NEXT, &u32::try_from(len).map_err(io::Error::other)?.to_le_bytes())?;
        put(&mut buffer, at + SPEC_KIND, kind.as_bytes())?;
        put(&mut buffer, at + SPEC, arguments.as_bytes())?;
        (at, start) = (at + len, start.saturating_add(*sectors));
    }
    let loaded = call(&control, &mut buffer, raw::dm_table_load);
    wipe(&mut buffer);
    loaded?;
    // Without the flag for suspending it, this is the request to let it go on.
    call(&control, &mut request(HEADER, 0, Some(name))?, raw::dm_dev_suspend)?;
    Ok((libc::major(device), libc::minor(device)))
}

/// Removes a device-mapper device.
///
/// # Errors
/// There is none, or it is in use.
pub fn remove(name: &str) -> io::Result<()> {
    let control = File::options().read(true).write(true).open(CONTROL)?;
    call(&control, &mut request(HEADER, 0, Some(name))?, raw::dm_dev_remove)
}

/// The kernel's number of a device, as it is written in a request (include/linux/kdev_t.h, `huge_encode_dev`).
fn number(major: u32, minor: u32) -> u64 {
    libc::makedev(major, minor)
}

/// A request with room for `len` bytes in all.
fn request(len: usize, flags: u32, name: Option<&str>) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; len];
    put(&mut buffer, 0, &4_u32.to_le_bytes())?;
    put(&mut buffer, DATA_SIZE, &u32::try_from(len).map_err(io::Error::other)?.to_le_bytes())?;
    put(&mut buffer, DATA_START, &u32::try_from(HEADER).map_err(io::Error::other)?.to_le_bytes())?;
    put(&mut buffer, FLAGS, &flags.to_le_bytes())?;
    match name {
        Some(name) if name.len() >= NAME_LEN => Err(invalid("its name is too long")),
        name => put(&mut buffer, NAME, name.unwrap_or_default().as_bytes()).map(|()| buffer),
    }
}

fn call(
    control: &File,
    buffer: &mut [u8],
    request: unsafe fn(i32, *mut [u8; HEADER]) -> nix::Result<i32>,
) -> io::Result<()> {
    if buffer.len() < HEADER {
        return Err(invalid("a request is too short"));
    }
    // SAFETY: the descriptor is open for the whole call, and `buffer` has the length that its field DATA_SIZE gives,
    // which `request` has put there: the kernel reads and writes no more (drivers/md/dm-ioctl.c, `copy_params`).
    unsafe { request(control.as_raw_fd(), buffer.as_mut_ptr().cast()) }?;
    Ok(())
}

/// Overwrites what may hold a key.
fn wipe(buffer: &mut [u8]) {
    buffer.fill(0);
    std::hint::black_box(buffer);
}

/// Reads the answer to a request for a table.
///
/// # Errors
/// It is not such an answer.
pub fn targets(buffer: &[u8]) -> io::Result<Vec<Target>> {
    let first = u32_at(buffer, DATA_START)? as usize;
    let mut at = first;
    let mut end = first;
    let mut found = Vec::new();
    for _ in 0..u32_at(buffer, TARGET_COUNT)? {
        // Each takes its place in the answer, so there are no more of them than it has room for.
        if at < end {
            return Err(invalid("the targets of its table overlap"));
        }
        end = at.saturating_add(SPEC);
        let kind = text(buffer, at + SPEC_KIND, SPEC_KIND_LEN)?;
        let arguments = text(buffer, at + SPEC, buffer.len())?;
        found.push(Target::new(u64_at(buffer, at)?, u64_at(buffer, at + SPEC_LEN)?, kind, arguments));
        // Counted from the first target (include/uapi/linux/dm-ioctl.h, at `struct dm_target_spec`).
        at = first.saturating_add(u32_at(buffer, at + SPEC_NEXT)? as usize);
    }
    Ok(found)
}

/// `linear`: device and sector. `crypt`: cipher, key, what is added to a sector's number, device and sector, options
/// (Documentation/admin-guide/device-mapper/linear.rst and dm-crypt.rst).
fn lower(kind: &str, arguments: &str) -> Option<(String, u64)> {
    let before = match kind {
        "linear" => 0,
        "crypt" => 3,
        _ => return None,
    };
    let mut fields = arguments.split_ascii_whitespace().skip(before);
    let (device, sector) = (fields.next()?, fields.next()?.parse().ok()?);
    // Paths are made of it: nothing but two numbers.
    let (major, minor) = device.split_once(':')?;
    Some((format!("{}:{}", major.parse::<u32>().ok()?, minor.parse::<u32>().ok()?), sector))
}

/// A text that ends with a zero, of at most `len` bytes.
fn text(buffer: &[u8], at: usize, len: usize) -> io::Result<&str> {
    let bytes = buffer.get(at..).ok_or_else(|| invalid("its table is cut off"))?;
    let bytes = &bytes[..len.min(bytes.len())];
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    std::str::from_utf8(&bytes[..end]).map_err(|_| invalid("its table is not a text"))
}

fn put(buffer: &mut [u8], at: usize, bytes: &[u8]) -> io::Result<()> {
    let place = at.checked_add(bytes.len()).and_then(|end| buffer.get_mut(at..end));
    place.ok_or_else(|| invalid("a request is too short"))?.copy_from_slice(bytes);
    Ok(())
}

fn bytes_at<const N: usize>(buffer: &[u8], at: usize) -> io::Result<[u8; N]> {
    let bytes = at.checked_add(N).and_then(|end| buffer.get(at..end)).and_then(|bytes| bytes.try_into().ok());
    bytes.ok_or_else(|| invalid("its table is cut off"))
}

fn u32_at(buffer: &[u8], at: usize) -> io::Result<u32> {
    bytes_at(buffer, at).map(u32::from_le_bytes)
}

fn u64_at(buffer: &[u8], at: usize) -> io::Result<u64> {
    bytes_at(buffer, at).map(u64::from_le_bytes)
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// An answer with these targets: start, length, kind, arguments.
    fn answer(pieces: &[(u64, u64, &str, &str)]) -> Vec<u8> {
        let mut buffer = request(HEADER + 1024, 0, None).unwrap();
        put(&mut buffer, TARGET_COUNT, &u32::try_from(pieces.len()).unwrap().to_le_bytes()).unwrap();
        let mut at = 0;
        for (start, len, kind, arguments) in pieces {
            let spec = HEADER + at;
            at = (at + SPEC + arguments.len() + 1).next_multiple_of(8);
            put(&mut buffer, spec, &start.to_le_bytes()).unwrap();
            put(&mut buffer, spec + SPEC_LEN, &len.to_le_bytes()).unwrap();
            put(&mut buffer, spec + SPEC_NEXT, &u32::try_from(at).unwrap().to_le_bytes()).unwrap();
            put(&mut buffer, spec + SPEC_KIND, kind.as_bytes()).unwrap();
            put(&mut buffer, spec + SPEC, arguments.as_bytes()).unwrap();
        }
        buffer
    }

    #[test]
    fn reads_linear_and_crypt_targets_and_names_others() {
        let found = targets(&answer(&[
            (0, 8192, "linear", "254:16 2048"),
            (8192, 100, "crypt", "aes-xts-plain64 :64:logon:cryptsetup:x 0 8:3 32768 1 allow_discards"),
            (8292, 5, "striped", "2 128 98:2 2048 98:18 2048"),
            (8297, 8, "crypt", "capi:gcm(aes)-random :32:logon:x 0 253:0 0 1 integrity:28:aead"),
        ]))
        .unwrap();
        let target = |start, len, kind: &str, lower: Option<(&str, u64)>| Target {
            start,
            len,
            kind: kind.to_owned(),
            lower: lower.map(|(device, sector)| (device.to_owned(), sector)),
            is_authenticated: start == 8297,
        };
        let expected = [
            target(0, 8192, "linear", Some(("254:16", 2048))),
            target(8192, 100, "crypt", Some(("8:3", 32768))),
            target(8292, 5, "striped", None),
            target(8297, 8, "crypt", Some(("253:0", 0))),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn rejects_answers_that_are_cut_off() {
        let whole = answer(&[(0, 8, "linear", "8:1 0"), (8, 8, "linear", "8:1 9")]);
        for len in 0..HEADER + 88 {
            assert!(targets(&whole[..len]).is_err(), "{len}");
        }
        let mut astray = whole;
        put(&mut astray, HEADER + SPEC_NEXT, &u32::MAX.to_le_bytes()).unwrap();
        assert!(targets(&astray).is_err());
        // The second in the place of the first.
        put(&mut astray, HEADER + SPEC_NEXT, &0_u32.to_le_bytes()).unwrap();
        assert!(targets(&astray).is_err());
        // Too few fields are no place.
        assert_eq!(lower("linear", "8:1"), None);
        assert_eq!(lower("crypt", "aes-xts-plain64 key 0 8:1"), None);
        assert_eq!(lower("linear", "8:1 x"), None);
        // Found by fuzzing: a device that is not two numbers.
        for device in ["\u{b}tt", "8:", "8:../1", "x:1", "8"] {
            assert_eq!(lower("linear", &format!("{device} 0")), None, "{device:?}");
        }
    }

    #[test]
    fn a_device_that_is_not_there_has_no_table() {
        assert!(table(4095, 1).is_err());
        assert!(request(HEADER, 0, Some(&"x".repeat(NAME_LEN))).is_err());
    }
}
