//! The memory maps of the last boots, so that firmware that lays memory out otherwise at each power-on is known before
//! the first hibernation and not after it.
//!
//! The file has, for each boot, a line with its boot_id and then the outermost lines of its `/proc/iomem`.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use dormouse_image::{FirmwareKind, FirmwareRange, PfnRange};
use dormouse_linux::atomic_file::replace;
use dormouse_linux::procfs;

use crate::machine::iomem::{Iomem, subtract};

/// Where it is.
const FILE: &str = "/var/lib/dormouse/memory-maps";
/// How many boots are remembered.
const BOOTS: usize = 8;
const BOOT: &str = "boot ";

/// The memory map of one boot.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Map {
    boot: String,
    text: String,
    iomem: Iomem,
}

/// What a machine's maps have been like, the running system's included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum History {
    /// The same in this many boots.
    Same(usize),
    /// Of this many boots, some had ACPI's tables elsewhere, as this text says, and everything else where it was.
    Slides(usize, String),
    /// Of this many boots, some had something else elsewhere, as this text says.
    Differs(usize, String),
}

/// Records this boot's map. A system without a place for it has no history.
pub fn record() {
    let result = || -> anyhow::Result<()> {
        let known = std::fs::read_to_string(FILE).unwrap_or_default();
        let text = recorded(&known, &procfs::boot_id()?, &procfs::text("/proc/iomem")?)?;
        if let Some(directory) = PathBuf::from(FILE).parent() {
            std::fs::create_dir_all(directory)?;
        }
        Ok(replace(Path::new(FILE), text.as_bytes(), 0o600)?)
    };
    if let Err(error) = result() {
        log::debug!("{FILE}: {error:#}");
    }
}

/// What is recorded; `None` where nothing is, or only root may see it.
#[must_use]
pub fn read() -> Option<History> {
    history(&maps(&std::fs::read_to_string(FILE).ok()?))
}

/// The file's text with one boot more, or with the same one again.
fn recorded(known: &str, boot: &str, iomem: &str) -> anyhow::Result<String> {
    let iomem_of = |text: &str| Iomem::parse(text);
    let text: String = iomem.lines().filter(|line| !line.starts_with(' ')).map(|line| format!("{line}\n")).collect();
    let mut maps = maps(known);
    maps.retain(|map| map.boot != boot);
    maps.push(Map { boot: boot.to_owned(), iomem: iomem_of(&text)?, text });
    let first = maps.len().saturating_sub(BOOTS);
    let mut written = String::new();
    for map in maps.iter().skip(first) {
        write!(written, "{BOOT}{}\n{}", map.boot, map.text)?;
    }
    Ok(written)
}

/// The maps in the file's text; what cannot be read is left out.
fn maps(text: &str) -> Vec<Map> {
    let mut maps = Vec::new();
    for part in format!("\n{text}").split(&format!("\n{BOOT}")).skip(1) {
        let (boot, lines) = part.split_once('\n').unwrap_or((part, ""));
        let text = if lines.ends_with('\n') || lines.is_empty() { lines.to_owned() } else { format!("{lines}\n") };
        if let Ok(iomem) = Iomem::parse(&text) {
            maps.push(Map { boot: boot.trim().to_owned(), text, iomem });
        }
    }
    maps
}

fn history(maps: &[Map]) -> Option<History> {
    let (last, earlier) = maps.split_last()?;
    let mut slides = None;
    for map in earlier {
        match difference(&map.iomem, &last.iomem) {
            None => {}
            Some((true, text)) => slides = Some(text),
            Some((false, text)) => return Some(History::Differs(maps.len(), text)),
        }
    }
    Some(slides.map_or(History::Same(maps.len()), |text| History::Slides(maps.len(), text)))
}

/// Whether only ACPI's tables are elsewhere in `now`, and what is; `None` where nothing is.
fn difference(before: &Iomem, now: &Iomem) -> Option<(bool, String)> {
    let is_table = |range: &&FirmwareRange| range.kind == FirmwareKind::AcpiTables;
    let tables = |iomem: &Iomem| frames(iomem.firmware.iter().filter(is_table));
    let others = |iomem: &Iomem| -> Vec<FirmwareRange> {
        iomem.firmware.iter().filter(|range| !is_table(range)).copied().collect()
    };
    let usable = |iomem: &Iomem| {
        let mut all = [iomem.ram_frames(), tables(iomem)].concat();
        all.sort_by_key(|range| range.start);
        PfnRange::merge(all)
    };
    let (old, new) = (others(before), others(now));
    if let Some(range) = old.iter().find(|range| !new.contains(range)) {
        return Some((false, format!("{:#x}-{:#x} was something else", range.start, range.end)));
    }
    if let Some(range) = new.iter().find(|range| !old.contains(range)) {
        return Some((false, format!("{:#x}-{:#x} is something else now", range.start, range.end)));
    }
    let (old, new) = (usable(before), usable(now));
    let lost = subtract(&old, &new).into_iter().map(|range| (range, "no memory now"));
    let mut found = lost.chain(subtract(&new, &old).into_iter().map(|range| (range, "memory now")));
    if let Some((range, what)) = found.next() {
        return Some((false, format!("{:#x}-{:#x} is {what}", range.bytes().start, range.bytes().end)));
    }
    let (old, new) = (tables(before), tables(now));
    let at = |list: &[PfnRange]| {
        let texts = list.iter().map(|range| format!("{:#x}-{:#x}", range.bytes().start, range.bytes().end));
        texts.collect::<Vec<_>>().join(", ")
    };
    (old != new).then(|| (true, format!("at {}, then at {}", at(&old), at(&new))))
}

fn frames<'a>(ranges: impl Iterator<Item = &'a FirmwareRange>) -> Vec<PfnRange> {
    PfnRange::merge(ranges.map(|range| dormouse_image::PhysRange { start: range.start, end: range.end }.frames()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn iomem(tables: u64, end: u64) -> String {
        format!(
            "00001000-0009fbff : System RAM\n00100000-{:08x} : System RAM\n  01000000-01ffffff : Kernel code\n\
             {tables:08x}-{:08x} : ACPI Tables\n{:08x}-{:08x} : System RAM\n40000000-4fffffff : Reserved\n",
            tables - 1,
            tables + 0xcfff,
            tables + 0xd000,
            end - 1,
        )
    }

    fn after(boots: &[(&str, String)]) -> (usize, Option<History>) {
        let text = boots.iter().fold(String::new(), |known, (boot, iomem)| recorded(&known, boot, iomem).unwrap());
        (text.matches(BOOT).count(), history(&maps(&text)))
    }

    #[test]
    fn the_last_boots_are_remembered() {
        let same = || iomem(0x3f00_0000, 0x4000_0000);
        assert_eq!(after(&[]), (0, None));
        assert_eq!(after(&[("a", same())]), (1, Some(History::Same(1))));
        assert_eq!(after(&[("a", same()), ("a", same())]), (1, Some(History::Same(1))));
        let boots: Vec<_> = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"].map(|boot| (boot, same())).to_vec();
        assert_eq!(after(&boots), (BOOTS, Some(History::Same(BOOTS))));
        assert!(recorded("", "a", "00000000-00000000 : System RAM\n").is_err());
        assert_eq!(history(&maps("nonsense\nboot x\nnonsense\n")), None);
    }

    #[test]
    fn tables_that_slide_are_distinguished() {
        let first = || ("a", iomem(0x3f00_0000, 0x4000_0000));
        let (_, found) = after(&[first(), ("b", iomem(0x3eff_d000, 0x4000_0000))]);
        let text = "at 0x3f000000-0x3f00d000, then at 0x3effd000-0x3f00a000";
        assert_eq!(found, Some(History::Slides(2, text.to_owned())));
        let less = ("b", iomem(0x3eff_d000, 0x3fff_0000));
        let text = "0x3fff0000-0x40000000 is no memory now";
        assert_eq!(after(&[first(), less]).1, Some(History::Differs(2, text.to_owned())));
        let moved = ("b", iomem(0x3f00_0000, 0x4000_0000).replace("4fffffff", "4ffeffff"));
        let text = "0x40000000-0x50000000 was something else";
        assert_eq!(
            after(&[first(), moved, first()]).1.map(|found| matches!(found, History::Differs(2, _))),
            Some(true)
        );
        let moved = ("b", iomem(0x3f00_0000, 0x4000_0000).replace("4fffffff", "4ffeffff"));
        assert_eq!(after(&[first(), moved]).1, Some(History::Differs(2, text.to_owned())));
    }
}
