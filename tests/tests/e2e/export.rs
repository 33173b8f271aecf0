//! An image as a core file: what other programs read from it, and whether it is the memory that was saved.

use std::collections::HashSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use dormouse::memory::select::{Physical, SelectError, SwapMap, Swapped};
use dormouse::store::{Access, Disk, Image};
use dormouse_image::{BLOCK, PhysRange};
use dormouse_linux::vmcoreinfo::{self, VmcoreInfo, find_note};
use dormouse_tests::artifacts::Artifacts;
use dormouse_tests::image;
use dormouse_tests::machine::GuestConfig;
use goblin::container::{Container, Ctx};
use goblin::elf::header::{EM_X86_64, ET_CORE};
use goblin::elf::program_header::{PT_LOAD, PT_NOTE};
use goblin::elf::{Elf, ProgramHeader};

use crate::{save, session, session_with};

/// Something that only this session's kernel log has.
const MARKER: &str = "the dormouse dreams of 4f1c7be2";

pub(crate) fn other_programs_read_a_hibernated_machine() -> Result<()> {
    let artifacts = Artifacts::from_environment()?;
    let mut config = GuestConfig::new(2, "1G".parse()?);
    config.memory_is_a_file = true;
    let mut guest = session(config)?;
    guest.succeed(&format!("echo '{MARKER}' >/dev/kmsg"))?;
    save(&mut guest)?;

    let directory = tempfile::tempdir()?;
    let (disk, core) = (guest.disk_file(0), directory.path().join("core"));
    let printed = export(&artifacts, &disk, &core)?;
    println!("{}", printed.trim());
    ensure!(printed.contains(" of memory in ") && !printed.contains(';'), "something is missing: {printed}");
    let error = export(&artifacts, &disk, &core).unwrap_or_else(|error| error.to_string());
    ensure!(error.contains("cannot create it"), "a file that was there: {error}");

    // The log, through makedumpfile: it needs VMCOREINFO, and the log's pages, wherever they were.
    let log = directory.path().join("dmesg");
    run(Command::new("makedumpfile").arg("--dump-dmesg").args([&core, &log]))?;
    let text = String::from_utf8_lossy(&std::fs::read(&log)?).into_owned();
    ensure!(text.contains(MARKER), "the kernel's log lacks the marker:\n{text}");
    ensure!(text.contains("Linux version"), "the kernel's log lacks its beginning:\n{text}");

    // The page tables and the page array, through makedumpfile too: it leaves out zero and free pages.
    let small = directory.path().join("small");
    run(Command::new("makedumpfile").args(["-c", "-d", "17"]).args([&core, &small]))?;
    let again = directory.path().join("dmesg of small");
    run(Command::new("makedumpfile").arg("--dump-dmesg").args([&small, &again]))?;
    ensure!(std::fs::read(&again)? == std::fs::read(&log)?, "the smaller file has another log");

    // Page by page against the memory that the emulator kept.
    let seen = Seen(File::open(guest.memory_file()).context("the memory that B left")?);
    compare(&seen, &disk, &core)?;

    // An export that fails leaves nothing.
    let chunk = image::some_chunk(&disk)?;
    image::flip_byte(&disk, chunk.offset + u64::from(chunk.stored_len / 2))?;
    let partial = directory.path().join("partial");
    let error = export(&artifacts, &disk, &partial).unwrap_or_else(|error| error.to_string());
    ensure!(error.contains("damaged") && !partial.exists(), "a damaged image: {error}");
    Ok(())
}

/// Without KASLR the kernel lies at 16 MiB, and the policy puts the region there: its log, its page tables and
/// VMCOREINFO's proofs were all swapped.
pub(crate) fn a_kernel_in_the_region_is_read_too() -> Result<()> {
    let artifacts = Artifacts::from_environment()?;
    let mut config = GuestConfig::new(1, "768M".parse()?);
    config.kernel_arguments.push("nokaslr".to_owned());
    config.cpu_model = "qemu64".to_owned();
    let mut guest = session_with(config, "[region]\naddress = \"16M\"\n")?;
    guest.succeed(&format!("echo '{MARKER}' >/dev/kmsg"))?;
    save(&mut guest)?;

    let directory = tempfile::tempdir()?;
    let (disk, path, log) = (guest.disk_file(0), directory.path().join("core"), directory.path().join("dmesg"));
    let printed = export(&artifacts, &disk, &path)?;
    ensure!(!printed.contains(';'), "something is missing: {printed}");
    let header = Image::open(Disk::open(&disk, Access::Read)?)?.header()?;
    let core = Core::open(&path)?;
    let kernel = core.loads.first().context("no segments")?;
    let (start, end) = (kernel.p_paddr, kernel.p_paddr + kernel.p_filesz);
    ensure!(
        header.session.region.start <= start && end <= header.session.region.end,
        "the kernel is at {start:#x} to {end:#x}"
    );
    core.check_addresses()?;
    run(Command::new("makedumpfile").arg("--dump-dmesg").args([&path, &log]))?;
    let text = String::from_utf8_lossy(&std::fs::read(&log)?).into_owned();
    ensure!(text.contains(MARKER), "the kernel's log lacks the marker:\n{text}");
    Ok(())
}

fn export(artifacts: &Artifacts, disk: &Path, file: &Path) -> Result<String> {
    run(Command::new(artifacts.binary("dormouse")).args(["image", "export"]).args([disk, file]))
}

fn run(command: &mut Command) -> Result<String> {
    let output =
        command.output().with_context(|| format!("{command:?} cannot be started; scripts/test installs it"))?;
    if !output.status.success() {
        let printed = String::from_utf8_lossy(&output.stderr);
        bail!("{command:?} failed: {}{printed}", String::from_utf8_lossy(&output.stdout));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Memory as the emulator kept it, of a machine whose memory all lies below the hole for PCI.
struct Seen(File);

impl Seen {
    fn page(&self, pfn: u64) -> Result<Page> {
        page_at(&self.0, pfn * BLOCK as u64)
    }
}

impl Physical for Seen {
    fn look<T>(&self, address: u64, len: u64, look: impl FnOnce(&[u8]) -> T) -> Result<T, SelectError> {
        let to_page_end = BLOCK as u64 - address % BLOCK as u64;
        let mut bytes = vec![0; usize::try_from(len.min(to_page_end)).unwrap_or(BLOCK)];
        self.0.read_exact_at(&mut bytes, address).map_err(|source| SelectError::Memory { address, source })?;
        Ok(look(&bytes))
    }
}

type Page = [u8; BLOCK];

fn page_at(file: &File, offset: u64) -> Result<Page> {
    let mut page = [0; BLOCK];
    file.read_exact_at(&mut page, offset).with_context(|| format!("the page at {offset:#x}"))?;
    Ok(page)
}

/// A core file, read by its program headers alone.
struct Core {
    file: File,
    loads: Vec<ProgramHeader>,
    info: VmcoreInfo,
}

impl Core {
    fn open(path: &Path) -> Result<Core> {
        let file = File::open(path)?;
        let mut front = vec![0; 1 << 16];
        file.read_exact_at(&mut front, 0)?;
        let header = Elf::parse_header(&front)?;
        ensure!((header.e_type, header.e_machine) == (ET_CORE, EM_X86_64), "{header:?}");
        let ctx = Ctx::new(Container::Big, header.endianness()?);
        let headers = ProgramHeader::parse(&front, usize::try_from(header.e_phoff)?, header.e_phnum.into(), ctx)?;
        let notes = headers.iter().find(|header| header.p_type == PT_NOTE).context("no notes")?;
        let notes = front.get(notes.file_range()).context("notes beyond 64 KiB")?;
        let note = find_note(notes, vmcoreinfo::NOTE).context("no VMCOREINFO")?;
        let loads = headers.into_iter().filter(|header| header.p_type == PT_LOAD).collect();
        Ok(Core { file, loads, info: VmcoreInfo::parse(&note) })
    }

    /// A page by its page frame number; each segment that has it must show the same.
    fn page(&self, pfn: u64) -> Result<Page> {
        let address = pfn * BLOCK as u64;
        let holds = |load: &&ProgramHeader| (load.p_paddr..load.p_paddr + load.p_filesz).contains(&address);
        let mut offsets = self.loads.iter().filter(holds).map(|load| load.p_offset + (address - load.p_paddr));
        let offset = offsets.next().with_context(|| format!("page frame {pfn:#x} is in no segment"))?;
        ensure!(offsets.all(|other| other == offset), "page frame {pfn:#x} appears twice");
        page_at(&self.file, offset)
    }

    /// The first bytes at a virtual address, by the segments' virtual addresses.
    fn at(&self, address: u64) -> Result<[u8; 8]> {
        let holds =
            |load: &&ProgramHeader| load.p_vaddr != 0 && (load.p_vaddr..load.p_vaddr + load.p_memsz).contains(&address);
        let load = self.loads.iter().find(holds).with_context(|| format!("no segment has {address:#x}"))?;
        let mut bytes = [0; 8];
        self.file.read_exact_at(&mut bytes, load.p_offset + (address - load.p_vaddr))?;
        Ok(bytes)
    }

    /// Demands that the kernel's image and its direct map are where the kernel reports them, as gdb finds them.
    fn check_addresses(&self) -> Result<()> {
        let symbol = |name| self.info.symbol(name).with_context(|| format!("no {name} in VMCOREINFO"));
        let name = self.at(symbol("init_uts_ns")?)?;
        ensure!(&name[..6] == b"Linux\0", "the kernel's name is {name:?}");
        self.at(symbol("mem_section")?)?;
        ensure!(self.loads.iter().all(|load| load.p_vaddr != 0), "a segment without virtual address: {:?}", self.loads);
        Ok(())
    }
}

/// Compares every page of the core with the memory that B left.
fn compare(seen: &Seen, disk: &Path, path: &Path) -> Result<()> {
    let header = Image::open(Disk::open(disk, Access::Read)?)?.header()?;
    let swapped = Swapped { low: &header.session.low, region: header.session.region };
    let map = SwapMap::find(seen, header.entry, swapped)?;
    let (_, chunks) = image::pages(disk)?;
    let extents = chunks.iter().flat_map(|chunk| &chunk.extents);
    let stored: HashSet<u64> = extents.flat_map(|extent| extent.range().start..extent.range().end).collect();
    let core = Core::open(path)?;

    let (mut moved, mut left) = (0, 0);
    let mut holders = HashSet::new();
    let ranges = header.session.low.iter().chain([&header.session.region]).map(PhysRange::frames);
    for pfn in ranges.flat_map(|range| range.start..range.end) {
        let holder = map.holder(pfn);
        holders.insert(holder);
        let content = if stored.contains(&holder) { seen.page(holder)? } else { [0; BLOCK] };
        ensure!(core.page(pfn)? == content, "page frame {pfn:#x}, which {holder:#x} held, is not what it was");
        moved += u64::from(content != [0; BLOCK]);
        ensure!(holder == pfn || core.page(holder)? == [0; BLOCK], "page frame {holder:#x} holds {pfn:#x} still");
    }
    for pfn in header.session.ram.iter().flat_map(|range| range.start..range.end).filter(|pfn| !holders.contains(pfn)) {
        let content = if stored.contains(&pfn) { seen.page(pfn)? } else { [0; BLOCK] };
        ensure!(core.page(pfn)? == content, "page frame {pfn:#x} is not what it was");
        left += u64::from(content != [0; BLOCK]);
    }
    println!("{moved} pages were put back to where they belong, {left} are where they were");
    ensure!(moved > 256, "only {moved} pages of the region held something");
    ensure!(left > 10_000, "only {left} pages outside the region held something");
    core.check_addresses()
}
