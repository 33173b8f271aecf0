//! Dormouse's kernel module, asked for what it must refuse, and with allocations that fail.

use std::fmt::Debug;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use dormouse_sys::module::{DEVICE, Module, RawSegment, oldmem_ranges};
use dormouse_sys::phys::WriteWindow;
use nix::errno::Errno;
use nix::unistd::{Uid, setuid};

const PAGE: u64 = 4096;
const MIB: u64 = 1 << 20;
const OLDMEM: &str = "/dev/oldmem";
/// What may be free less after everything was given back, in KiB: pages that each CPU keeps for itself, what KASAN
/// keeps for a while. A leak would be of 100 MiB.
const SLACK_KIB: u64 = 32 << 10;

/// What is loaded, the entry, the segments, and the error that is wanted.
type Load<'a> = (&'a str, u64, &'a [RawSegment], Errno);
/// What is named, the ranges, and the error that is wanted.
type Ranges<'a> = (&'a str, &'a [(u64, u64)], Errno);

/// Demands an error with this number.
fn demand<T: Debug>(what: &str, result: io::Result<T>, wanted: Errno) -> Result<()> {
    match result {
        Err(error) if error.raw_os_error() == Some(wanted as i32) => Ok(()),
        other => bail!("{what}: {other:?} in place of {wanted}"),
    }
}

fn open() -> Result<Module> {
    Module::open().context(DEVICE)?.context("the module is of another version")
}

/// The largest range of this kernel's RAM above the first 16 MiB.
fn ram() -> Result<(u64, u64)> {
    let iomem = std::fs::read_to_string("/proc/iomem")?;
    let range = |line: &str| -> Option<(u64, u64)> {
        let (start, end) = line.strip_suffix(" : System RAM")?.split_once('-')?;
        let range = (u64::from_str_radix(start, 16).ok()?.max(16 * MIB), u64::from_str_radix(end, 16).ok()? + 1);
        (range.0 < range.1).then_some(range)
    };
    iomem.lines().filter_map(range).max_by_key(|(start, end)| end - start).context("/proc/iomem has no RAM")
}

fn segment(data: &[u8], start: u64, size: u64) -> RawSegment {
    RawSegment { data: data.as_ptr().expose_provenance() as u64, data_size: data.len() as u64, start, size }
}

/// What `/dev/dormouse` must refuse: segments at their extremes, a second opener, a jump without frozen processes, and
/// whoever is not root, which this process is not any more after it.
///
/// # Errors
/// Fails with what is not refused, or otherwise.
pub fn refusals() -> Result<()> {
    use Errno::{EADDRNOTAVAIL, EBUSY, EFAULT, EINVAL, ENOEXEC, EPERM};
    let module = open()?;
    demand("a second opener", Module::open(), EBUSY)?;
    demand("a jump to nowhere", module.jump(), ENOEXEC)?;
    let (start, _) = ram()?;
    let at = start / (2 * MIB) * (2 * MIB) + 2 * MIB;
    let data = vec![7; 2 * 4096];
    let good = segment(&data, at, 4 * PAGE);
    let with = |change: fn(&mut RawSegment)| {
        let mut segment = good;
        change(&mut segment);
        segment
    };
    let next = RawSegment { start: at + 4 * PAGE, ..good };
    let many: Vec<_> = (0..257).map(|n| RawSegment { start: at + n * 4 * PAGE, ..good }).collect();
    let (_, most) = many.split_last().context("none")?;
    let cases: &[Load<'_>] = &[
        ("no segment", at, &[], EINVAL),
        ("257 segments", at, &many, EINVAL),
        ("overlapping segments", at, &[good, RawSegment { start: at + 3 * PAGE, ..good }], EINVAL),
        ("a segment twice", at, &[good, good], EINVAL),
        ("descending segments", at, &[next, good], EINVAL),
        ("an entry after the end", at + 4 * PAGE, &[good], EINVAL),
        ("an entry before the start", at - 1, &[good], EINVAL),
        ("data longer than the segment", at, &[with(|s| s.data_size = s.size + 1)], EINVAL),
        ("data without an end", at, &[with(|s| s.data_size = u64::MAX)], EINVAL),
        ("data that is not mapped", at, &[with(|s| s.data = 8)], EFAULT),
        ("data of the kernel's", at, &[with(|s| s.data = 0xffff_8880_0000_0000)], EFAULT),
        ("a start within a page", at + 8, &[with(|s| s.start += 8)], EADDRNOTAVAIL),
        ("a size that is not of pages", at, &[with(|s| s.size -= 1)], EADDRNOTAVAIL),
        ("no size", at, &[with(|s| (s.size, s.data_size) = (0, 0))], EADDRNOTAVAIL),
        ("an end after the last address", at, &[with(|s| s.size = u64::MAX - 4095)], EADDRNOTAVAIL),
        ("an end at the last address", u64::MAX - 4095, &[with(|s| s.start = u64::MAX - 4095)], EADDRNOTAVAIL),
        ("a device", 0xfee0_0000, &[with(|s| s.start = 0xfee0_0000)], EADDRNOTAVAIL),
        ("no memory", 1 << 51, &[with(|s| s.start = 1 << 51)], EADDRNOTAVAIL),
        ("more than there is RAM", at, &[with(|s| s.size = 1 << 45)], EADDRNOTAVAIL),
    ];
    let before = free_kib()?;
    for (what, entry, segments, wanted) in cases {
        demand(what, module.load_raw(*entry, segments), *wanted)?;
        demand(&format!("a jump after {what}"), module.jump(), ENOEXEC)?;
    }
    demand_free(before, "what was refused")?;
    module.load_raw(at, most).context("256 segments")?;
    module.load_raw(at, &[good, next]).context("a good load after all")?;
    demand("a jump without frozen processes", module.jump(), EPERM)?;
    drop(module);
    demand_free(before, "what was loaded")?;
    setuid(Uid::from_raw(1000))?;
    demand("not root", Module::open(), EPERM)
}

/// Loads again and again, each time with another allocation that fails, until none does. `megabytes` is what is loaded;
/// with more than one, not each allocation has its turn.
///
/// # Errors
/// Fails where a failure ends in anything but `ENOMEM`, or leaves something allocated.
pub fn failing_allocations(megabytes: u64) -> Result<()> {
    let fail_nth = OpenOptions::new().read(true).write(true).open("/proc/self/fail-nth")?;
    let (start, _) = ram()?;
    let (low, at) = (start / (2 * MIB) * (2 * MIB) + 2 * MIB, start / (2 * MIB) * (2 * MIB) + 32 * MIB);
    let data = vec![7; 3 * 4096 + 5];
    let segments =
        [segment(&data, low, 4 * PAGE), segment(&data[..1], low + 8 * PAGE, PAGE), segment(&data, at, megabytes * MIB)];
    let load = || open().and_then(|module| Ok(module.load_raw(at, &segments)?));
    load().context("without a failure")?;
    let before = free_kib()?;
    let (mut nth, mut failed) = (1_u64, 0_u64);
    loop {
        fail_nth.write_all_at(nth.to_string().as_bytes(), 0)?;
        let loaded = load();
        let mut left = [0; 24];
        let read = fail_nth.read_at(&mut left, 0)?;
        fail_nth.write_all_at(b"0", 0)?;
        let was_none = left.get(..read).is_some_and(|left| left.trim_ascii() != b"0");
        match loaded {
            Ok(()) if was_none => break,
            // Whatever can do without is tried otherwise.
            Ok(()) => {}
            Err(error) => {
                let number = error.chain().find_map(|cause| cause.downcast_ref::<io::Error>()?.raw_os_error());
                ensure!(!was_none, "allocation {nth}: none has failed, and yet: {error:#}");
                ensure!(number == Some(Errno::ENOMEM as i32), "allocation {nth}: {error:#}");
                failed += 1;
            }
        }
        nth += if megabytes > 1 { 1 + nth / 3 } else { 1 };
    }
    ensure!(failed > 8, "only {failed} allocations have failed");
    demand_free(before, "failed loads")?;
    load().context("after all failures")?;
    println!("{failed} failed, none after {nth}");
    Ok(())
}

fn free_kib() -> Result<u64> {
    // What waits on lists of each CPU's own is counted as free after this.
    std::fs::write("/proc/sys/vm/stat_refresh", "1")?;
    let meminfo = std::fs::read_to_string("/proc/meminfo")?;
    let field = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    field.and_then(|field| field.trim().strip_suffix(" kB")?.parse().ok()).context("MemAvailable")
}

fn demand_free(before: u64, after: &str) -> Result<()> {
    let now = free_kib()?;
    ensure!(now + SLACK_KIB > before, "{before} KiB were available, {now} are after {after}");
    Ok(())
}

/// What `/dev/oldmem` must refuse and what it must do, where `start` to `end` is reserved and not in use.
///
/// # Errors
/// Fails with what is not so.
pub fn oldmem(start: u64, end: u64) -> Result<()> {
    use Errno::{EBUSY, EINVAL, EPERM};
    let open = || OpenOptions::new().read(true).write(true).open(OLDMEM);
    let mut page = [0; 4096];
    let (ram, ram_end) = ram()?;
    let refused: &[Ranges<'_>] = &[
        ("no range", &[], EINVAL),
        ("4097 ranges", &vec![(start, start + PAGE); 4097], EINVAL),
        ("RAM", &[(ram, ram + PAGE)], EPERM),
        ("the last page of RAM", &[(ram_end / PAGE * PAGE - PAGE, ram_end / PAGE * PAGE)], EPERM),
        ("RAM after what is reserved", &[(start, end), (end, end + PAGE)], EPERM),
        ("the first megabyte", &[(0x9_f000, 0x10_0000)], EPERM),
        ("the first page", &[(0, PAGE)], EPERM),
        ("a page before", &[(start - PAGE, end)], EPERM),
        ("a page after", &[(start, end + PAGE)], EPERM),
        ("a start within a page", &[(start + 8, end)], EPERM),
        ("an end within a page", &[(start, end - 8)], EPERM),
        ("nothing", &[(start, start)], EPERM),
        ("less than nothing", &[(end, start)], EPERM),
        ("a range twice", &[(start, end), (start, end)], EPERM),
        ("descending ranges", &[(start + PAGE, end), (start, start + PAGE)], EPERM),
        ("a device", &[(0xfee0_0000, 0xfee0_1000)], EPERM),
        ("no memory", &[(1 << 51, (1 << 51) + PAGE)], EPERM),
        ("all addresses", &[(0, u64::MAX - 4095)], EPERM),
    ];
    let file = open().context(OLDMEM)?;
    demand("a read before a range is named", file.read_at(&mut page, start), EPERM)?;
    demand("a mapping before a range is named", WriteWindow::map(&file, start, 4096), EPERM)?;
    for (what, ranges, wanted) in refused {
        demand(what, oldmem_ranges(&file, ranges.iter().copied()), *wanted)?;
        demand(&format!("a read after {what}"), file.read_at(&mut page, start), EPERM)?;
    }
    // A page at the start and one at the end are left out.
    let (first, last) = (start + PAGE, end - PAGE);
    let middle = start + (end - start) / 2;
    oldmem_ranges(&file, [(first, last)]).context("a good range")?;
    demand("a second opener", open(), EBUSY)?;
    demand("ranges once more", oldmem_ranges(&file, [(first, last)]), EBUSY)?;
    for at in [0, start, last, ram, 1 << 51, 1 << 62] {
        demand(&format!("a read at {at:#x}"), file.read_at(&mut page, at), EPERM)?;
        demand(&format!("a write at {at:#x}"), file.write_at(&page, at), EPERM)?;
    }
    let map = |at, len: u64| WriteWindow::map(&file, at, usize::try_from(len).map_err(io::Error::other)?);
    demand("a mapping of RAM", map(ram, PAGE), EPERM)?;
    demand("a mapping from before", map(start, 2 * PAGE), EPERM)?;
    demand("a mapping to after", map(last - PAGE, 2 * PAGE), EPERM)?;
    demand("a mapping of all and more", map(first, last - first + PAGE), EPERM)?;

    // Up to the end and not beyond; by each of the views.
    let len = file.read_at(&mut [0; 3 * 4096], last - 2 * PAGE).context("a read across the end")?;
    ensure!(len == 2 * 4096, "a read across the end returned {len} bytes");
    let whole = usize::try_from(last - first)?;
    let window = map(first, last - first).context("all of it")?;
    let pattern: Vec<u8> = (0..whole).map(|at| u8::try_from(at / 4096 % 251).unwrap_or(0)).collect();
    window.with(0..whole, |bytes| bytes.copy_from_slice(&pattern))?;
    let mut read = vec![0; whole];
    file.read_exact_at(&mut read, first)?;
    ensure!(read == pattern, "read(2) shows other than was written to the mapping");
    file.write_all_at(&[0xa5; 3 * 4096], middle - PAGE)?;
    let at = usize::try_from(middle - PAGE - first)?;
    ensure!(window.with(at..at + 3 * 4096, |bytes| bytes == [0xa5; 3 * 4096])?, "the mapping does not show a write(2)");
    if Path::new("/dev/mem").exists() {
        let memory = OpenOptions::new().read(true).write(true).open("/dev/mem")?;
        let other = WriteWindow::map(&memory, first, whole)?;
        other.with(at..at + 4096, |bytes| bytes.fill(0x5a))?;
        ensure!(window.with(at..at + 4096, |bytes| bytes == [0x5a; 4096])?, "/dev/mem shows other memory");
        ensure!(other.with(0..4096, |bytes| bytes == &pattern[..4096])?, "/dev/mem shows other memory");
    }
    // The file's end is not the mapping's, and it stays open as long.
    drop(file);
    ensure!(window.with(0..4096, |bytes| bytes == &pattern[..4096])?, "the mapping ends with the file");
    demand("an opener while it is mapped", open(), EBUSY)?;
    drop(window);
    // Another opener starts from nothing, and sees the same.
    let file: File = OpenOptions::new().read(true).custom_flags(nix::libc::O_CLOEXEC).open(OLDMEM)?;
    demand("another's read", file.read_at(&mut page, first), EPERM)?;
    oldmem_ranges(&file, [(first, middle), (middle, last)]).context("another's ranges")?;
    file.read_exact_at(&mut page, last - PAGE)?;
    ensure!(Some(&page[..]) == pattern.get(whole - 4096..), "the last page is another one");
    demand("a write by whoever opened it to read", file.write_at(&page, first), Errno::EBADF)?;
    drop(file);
    setuid(Uid::from_raw(1000))?;
    demand("not root", File::open(OLDMEM), EPERM)
}
