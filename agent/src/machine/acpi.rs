//! ACPI tables that lie elsewhere at the next power-on. Pure.
//!
//! Firmware puts them into memory that a kernel may reclaim, some of it at other pages at every power-on (Framework,
//! StarLabs, System76), with everything else where it was. The saved kernel goes on looking at the old pages, so they
//! are saved and written back like RAM. Where the new ones lie, it had RAM of its own, which only the jump itself may
//! write: until then, the tables there are the restore kernel's, which evaluates them, and its `/dev/mem` refuses them
//! (arch/x86/kernel/e820.c, `do_mark_busy`, in Linux 6.12).

use dormouse_image::{FirmwareKind, FirmwareRange, PfnRange, PhysRange, SessionRecord};
use dormouse_sys::PAGE_SIZE;

use crate::machine::iomem::{Iomem, subtract};

/// The most pages that a jump writes: it needs them twice in the restore kernel's little memory. 1 MiB.
const JUMP_MAX: u64 = (1 << 20) / PAGE_SIZE;
/// The most runs of them: `kexec_load(2)` takes 16 segments.
const JUMP_RUNS: usize = 12;
/// The most pages of tables that are saved: 16 MiB. No machine that was seen has a tenth of it.
const SAVED_MAX: u64 = (16 << 20) / PAGE_SIZE;

/// Where the firmware's root pointer is, and the table that it leads to; as far as they are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AcpiRoot {
    /// Its physical address.
    pub pointer: Option<u64>,
    /// The table's.
    pub table: Option<u64>,
}

/// The memory of a running kernel that a second one in `region` saves: RAM outside it, and the pages of ACPI tables.
#[must_use]
pub fn saved_frames(iomem: &Iomem, region: &PhysRange) -> Vec<PfnRange> {
    let ram = iomem.frames_outside(region);
    let tables = subtract(&own_frames(&iomem.firmware), &[region.frames()]);
    if pages(&tables) > SAVED_MAX {
        return ram;
    }
    merged(&[&ram, &tables])
}

/// What becomes of the saved pages that lie under the ACPI tables of the kernel that restores them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UnderTables {
    /// The jump writes them, and nothing before it.
    pub by_jump: Vec<PfnRange>,
    /// They hold the same tables as when they were saved: they are left alone.
    pub left: Vec<PfnRange>,
    /// Whether tables are where there were none.
    has_moved: bool,
}

impl UnderTables {
    /// Those of `session`, where the firmware describes `here`.
    #[must_use]
    pub fn of(session: &SessionRecord, here: &[FirmwareRange]) -> UnderTables {
        let under = intersection(&session.ram, &tables(here));
        let is_unmoved = all_covered(&session.firmware, here);
        let left = if is_unmoved { intersection(&under, &tables(&session.firmware)) } else { Vec::new() };
        let by_jump = subtract(&under, &left);
        let has_moved = !is_unmoved || !by_jump.is_empty();
        UnderTables { by_jump, left, has_moved }
    }

    /// All of them.
    #[must_use]
    pub fn all(&self) -> Vec<PfnRange> {
        merged(&[&self.by_jump, &self.left])
    }
}

/// Whether all that a session had of ACPI tables is among those that are here. Neighbours may be listed as one.
fn all_covered(saved: &[FirmwareRange], here: &[FirmwareRange]) -> bool {
    let of_tables = |list: &[FirmwareRange]| -> Vec<(u64, u64)> {
        list.iter().filter(is_table).map(|range| (range.start, range.end)).collect()
    };
    let here = of_tables(here);
    of_tables(saved).iter().all(|saved| here.iter().any(|here| here.0 <= saved.0 && saved.1 <= here.1))
}

/// Refuses tables that have moved, unless the session can go on with its own.
///
/// # Errors
/// Why it cannot, as a clause.
pub fn check_move(session: &SessionRecord, here: &[FirmwareRange], root: AcpiRoot) -> Result<(), String> {
    let under = UnderTables::of(session, here);
    if !under.has_moved {
        return Ok(());
    }
    if !subtract(&own_frames(&session.firmware), &session.ram).is_empty() {
        return Err("the image does not hold them".to_owned());
    }
    let others = |list: &[FirmwareRange]| -> Vec<FirmwareRange> {
        list.iter().filter(|range| !is_table(range)).copied().collect()
    };
    let (saved, found) = (others(&session.firmware), others(here));
    let differs = |a: &[FirmwareRange], b: &[FirmwareRange]| a.iter().find(|range| !b.contains(range)).copied();
    if let Some(range) = differs(&saved, &found).or_else(|| differs(&found, &saved)) {
        return Err(format!("so has something else, at {:#x}-{:#x}", range.start, range.end));
    }
    let (count, runs) = (pages(&under.by_jump), under.by_jump.len());
    if count > JUMP_MAX || runs > JUMP_RUNS {
        return Err(format!("{count} pages of the session in {runs} places lie under them, which are too many"));
    }
    // Another hibernation of the session begins with what the pointer leads to. One among the tables came with them.
    let is_among =
        |address: u64| here.iter().any(|range| is_table(&range) && (range.start..range.end).contains(&address));
    match (root.pointer, root.table) {
        (Some(pointer), _) if is_among(pointer) => Ok(()),
        (Some(_), Some(table)) if !is_among(table) => Ok(()),
        (Some(pointer), Some(_)) => {
            Err(format!("the pointer to them at {pointer:#x} has stayed, and leads to the new ones"))
        }
        _ => Err("it cannot be found out where the pointer to them is".to_owned()),
    }
}

fn is_table(range: &&FirmwareRange) -> bool {
    range.kind == FirmwareKind::AcpiTables && range.start >= 1 << 20
}

fn tables(list: &[FirmwareRange]) -> Vec<PfnRange> {
    let ranges = list.iter().filter(is_table);
    PfnRange::merge(ranges.map(|range| PhysRange { start: range.start, end: range.end }.frames()))
}

/// The frames of tables, without those that the firmware has something else in.
fn own_frames(list: &[FirmwareRange]) -> Vec<PfnRange> {
    let others = list.iter().filter(|range| range.kind != FirmwareKind::AcpiTables);
    let others = PfnRange::merge(others.map(|range| PhysRange { start: range.start, end: range.end }.frames()));
    subtract(&tables(list), &others)
}

fn pages(list: &[PfnRange]) -> u64 {
    list.iter().map(PfnRange::pages).sum()
}

fn merged(lists: &[&[PfnRange]]) -> Vec<PfnRange> {
    let mut all: Vec<PfnRange> = lists.iter().flat_map(|list| list.iter().copied()).collect();
    all.sort_by_key(|range| range.start);
    PfnRange::merge(all)
}

/// What is in both. Each must ascend and not overlap.
fn intersection(a: &[PfnRange], b: &[PfnRange]) -> Vec<PfnRange> {
    subtract(a, &subtract(a, b))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// A machine of 1 GiB with 13 pages of tables, as firmware lays them out that moves them.
    fn iomem(tables: u64) -> Iomem {
        let end = tables + 0xd000;
        let text = format!(
            "00001000-0009fbff : System RAM\n000f0000-000fffff : Reserved\n00100000-{:08x} : System RAM\n\
             {tables:08x}-{:08x} : ACPI Tables\n{end:08x}-3fff0fff : System RAM\n3fff1000-3fffffff : ACPI Non-volatile \
             Storage\n40000000-4fffffff : Reserved\n",
            tables - 1,
            end - 1,
        );
        Iomem::parse(&text).unwrap()
    }

    const REGION: PhysRange = PhysRange { start: 16 << 20, end: 144 << 20 };
    /// By UEFI, in the tables' first page.
    const AMONG: fn(u64) -> AcpiRoot = |tables| AcpiRoot { pointer: Some(tables + 0x14), table: None };

    fn session(tables: u64) -> SessionRecord {
        let iomem = iomem(tables);
        let ram = saved_frames(&iomem, &REGION);
        SessionRecord { ram, firmware: iomem.firmware, region: REGION, ..SessionRecord::default() }
    }

    fn frames(start: u64, end: u64) -> Vec<PfnRange> {
        vec![PfnRange { start, end }]
    }

    #[test]
    fn tables_are_saved_like_ram() {
        let saved = session(0x3fe0_0000).ram;
        assert_eq!(saved, [PfnRange { start: 0x100, end: 0x1000 }, PfnRange { start: 0x9000, end: 0x3fff1 }]);
        // A page that they share with something else of the firmware's is not.
        let text = "00100000-2fffffff : System RAM\n30000000-300007ff : ACPI Tables\n30000800-30000fff : Reserved\n\
                    30001000-300027ff : ACPI Tables\n30003000-3fffffff : ACPI Non-volatile Storage\n";
        let saved = saved_frames(&Iomem::parse(text).unwrap(), &REGION);
        assert_eq!(saved.last(), Some(&PfnRange { start: 0x3_0001, end: 0x3_0003 }));
        // Nor is more than any firmware has.
        let text = "00100000-2fffffff : System RAM\n30000000-3fffffff : ACPI Tables\n";
        assert_eq!(saved_frames(&Iomem::parse(text).unwrap(), &REGION).last().unwrap().end, 0x3_0000);
    }

    #[test]
    fn tables_that_have_not_moved_are_left_alone() {
        let (session, here) = (session(0x3fe0_0000), iomem(0x3fe0_0000).firmware);
        let under = UnderTables::of(&session, &here);
        let expected = UnderTables { by_jump: vec![], left: frames(0x3fe00, 0x3fe0d), has_moved: false };
        assert_eq!(under, expected);
        assert_eq!(check_move(&session, &here, AcpiRoot::default()), Ok(()));
    }

    #[test]
    fn what_lies_under_moved_tables_comes_back_with_the_jump() {
        for moved in [0x3fdf_d000, 0x3fe0_3000, 0x3fd0_0000] {
            let (session, here) = (session(0x3fe0_0000), iomem(moved).firmware);
            let under = UnderTables::of(&session, &here);
            assert_eq!((under.by_jump.clone(), under.left), (frames(moved >> 12, (moved >> 12) + 13), vec![]));
            assert_eq!(check_move(&session, &here, AMONG(moved)), Ok(()));
        }
    }

    #[test]
    fn a_page_that_tables_share_with_ram_holds_nothing_else() {
        let text = "00100000-300007ff : System RAM\n30000800-30002fff : ACPI Tables\n";
        let iomem = Iomem::parse(text).unwrap();
        let ram = saved_frames(&iomem, &REGION);
        let session = SessionRecord { ram, firmware: iomem.firmware.clone(), ..SessionRecord::default() };
        let under = UnderTables::of(&session, &iomem.firmware);
        assert_eq!((under.by_jump, under.left), (vec![], frames(0x3_0000, 0x3_0003)));
        assert_eq!(check_move(&session, &iomem.firmware, AcpiRoot::default()), Ok(()));
    }

    #[test]
    fn rejects_a_move_with_which_the_session_cannot_go_on() {
        let (old, new) = (0x3fe0_0000, 0x3fdf_d000);
        let why = |session: &SessionRecord, here: &[FirmwareRange], root| check_move(session, here, root).unwrap_err();
        let here = iomem(new).firmware;
        let mut unsaved = session(old);
        unsaved.ram = iomem(old).frames_outside(&REGION);
        assert_eq!(why(&unsaved, &here, AMONG(new)), "the image does not hold them");
        let mut other = here.clone();
        other.last_mut().unwrap().end += 0x1000;
        assert_eq!(why(&session(old), &other, AMONG(new)), "so has something else, at 0x40000000-0x50000000");
        let mut large = here.clone();
        large.iter_mut().find(|range| range.kind == FirmwareKind::AcpiTables).unwrap().start = 0x3000_0000;
        assert!(why(&session(old), &large, AMONG(new)).contains("too many"));
        // A BIOS leaves its pointer below 1 MiB.
        let below = |table| AcpiRoot { pointer: Some(0xf_52e0), table };
        assert!(why(&session(old), &here, below(Some(new + 0x30))).contains("leads to the new ones"));
        assert_eq!(check_move(&session(old), &here, below(Some(0x4000_0000))), Ok(()));
        assert!(why(&session(old), &here, below(None)).contains("cannot be found out"));
        assert!(why(&session(old), &here, AcpiRoot::default()).contains("cannot be found out"));
    }
}
