//! From the names of kernel modules to the modules themselves, in the order in which they must be loaded.
//!
//! The directory is one of depmod(8)'s: `modules.dep` lists where each module is and what it needs,
//! `modules.softdep` what should be loaded before it where it exists, `modules.builtin` what is part of the
//! kernel itself, `modules.alias` which module drives a device. B and D insert modules as plain files, so that
//! compressed ones are unpacked here.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;
use glob::Pattern;
use lzma_rust2::XzReader;
use thiserror::Error;

/// Far above any module, and small enough to be unpacked in memory.
const MAX_MODULE: u64 = 64 << 20;
/// How many names an error lists.
const LISTED: usize = 24;

/// A kernel module, ready to be inserted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    /// Its file name in the initramfs, such as `usb-storage.ko`.
    pub file_name: String,
    /// The ELF file, not compressed.
    pub bytes: Vec<u8>,
}

/// Why modules could not be gathered.
#[derive(Debug, Error)]
pub enum ModulesError {
    /// One of depmod's files is missing or cannot be read.
    #[error("{}: cannot read it; is this a kernel's module directory? `depmod` makes this file", file.display())]
    Index {
        /// The file.
        file: PathBuf,
        /// What the system reported.
        source: io::Error,
    },
    /// A line of `modules.dep` without a colon.
    #[error("{}:{line}: not a line of the form `module: what it needs`", file.display())]
    Line {
        /// `modules.dep`.
        file: PathBuf,
        /// Line, from 1.
        line: usize,
    },
    /// No such module.
    #[error("there is no kernel module `{name}` in {}, which has {}", dir.display(), listing(*count, similar))]
    Unknown {
        /// As asked for.
        name: String,
        /// Where it was looked for.
        dir: PathBuf,
        /// How many modules there are.
        count: usize,
        /// Modules that begin alike, or the first ones.
        similar: Vec<String>,
    },
    /// A module's file cannot be read.
    #[error("kernel module {}: cannot read it", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// What the system or the decompressor reported.
        source: io::Error,
    },
    /// Something that is not a module.
    #[error("kernel module {}: this is not an ELF file", file.display())]
    NotElf {
        /// The file.
        file: PathBuf,
    },
    /// Larger than any module.
    #[error("kernel module {}: more than {MAX_MODULE} bytes", file.display())]
    TooLarge {
        /// The file.
        file: PathBuf,
    },
}

fn listing(count: usize, names: &[String]) -> String {
    let more = if names.len() < count { ", ..." } else { "" };
    format!("{count} modules: {}{more}", names.join(", "))
}

/// Gathers the named modules and everything they need, each once, dependencies first. Names may be written
/// with dashes or underscores; one that is built into the kernel needs nothing and is left out.
///
/// # Errors
/// The directory is not depmod's, a name is unknown, or a module's file cannot be used.
pub fn resolve(dir: &Path, names: &[String]) -> Result<Vec<Module>, ModulesError> {
    paths(dir, names)?.iter().map(|path| load(&dir.join(path))).collect()
}

/// The file of a module, named as in an initramfs's list, anywhere under `directory`. This goes without depmod's files:
/// of those, mkinitcpio keeps only the binary ones.
///
/// # Errors
/// There is no such file.
pub fn find(dir: &Path, name: &str) -> Result<PathBuf, ModulesError> {
    let all = format!("{}/**/*.ko*", Pattern::escape(&dir.to_string_lossy()));
    let files = glob::glob(&all).into_iter().flatten().flatten();
    let mut found: BTreeMap<String, PathBuf> =
        files.map(|file| (name_of_path(&file.to_string_lossy()), file)).collect();
    found.remove(&name_of_path(name)).ok_or_else(|| unknown(dir, name, found.keys()))
}

/// The names of the same modules in the same order.
///
/// # Errors
/// The directory is not depmod's, or a name is unknown.
pub fn order(dir: &Path, names: &[String]) -> Result<Vec<String>, ModulesError> {
    Ok(paths(dir, names)?.iter().map(|path| name_of_path(path)).collect())
}

/// Whether the directory has a module of this name, whatever the name's directory.
#[must_use]
pub fn has(dir: &Path, name: &str) -> bool {
    order(dir, &[name.to_owned()]).is_ok_and(|names| !names.is_empty())
}

/// Where they are in the directory.
fn paths(dir: &Path, names: &[String]) -> Result<Vec<String>, ModulesError> {
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let index = Index::read(dir)?;
    let mut order = Order { index: &index, seen: BTreeSet::new(), paths: Vec::new() };
    for name in names {
        order.require(name)?;
    }
    Ok(order.paths.into_iter().map(str::to_owned).collect())
}

/// The names of the modules that `directory` has below a directory of that name, such as `drivers/watchdog`. None where
/// it is no directory of depmod's.
#[must_use]
pub fn below(dir: &Path, place: &str) -> BTreeSet<String> {
    let (start, within) = (format!("{place}/"), format!("/{place}/"));
    let text = read_index(&dir.join("modules.dep")).unwrap_or_default();
    let paths = text.lines().filter_map(|line| Some(line.split_once(':')?.0));
    paths.filter(|path| path.starts_with(&start) || path.contains(&within)).map(name_of_path).collect()
}

/// The modules in `directory` that drive a device with this `modalias`, as sysfs has it.
///
/// # Errors
/// depmod's file exists and cannot be read.
pub fn by_alias(dir: &Path, modalias: &str) -> Result<Vec<String>, ModulesError> {
    let text = optional(read_index(&dir.join("modules.alias")))?;
    let matching = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let (Some("alias"), Some(pattern), Some(name)) = (words.next(), words.next(), words.next()) else {
            return None;
        };
        // modprobe matches them with fnmatch(3), as this does.
        Pattern::new(pattern).is_ok_and(|pattern| pattern.matches(modalias)).then(|| canonical(name))
    });
    Ok(matching.collect::<BTreeSet<_>>().into_iter().collect())
}

/// depmod's files, by canonical module name.
#[derive(Debug)]
struct Index {
    dir: PathBuf,
    modules: BTreeMap<String, Entry>,
    softdeps: BTreeMap<String, Vec<String>>,
    builtin: BTreeSet<String>,
}

/// A line of `modules.dep`.
#[derive(Debug)]
struct Entry {
    path: String,
    /// Canonical names in the order of the line: a module stands after those that need it.
    needs: Vec<String>,
}

impl Index {
    fn read(dir: &Path) -> Result<Self, ModulesError> {
        let dep = dir.join("modules.dep");
        let mut modules = BTreeMap::new();
        for (number, line) in read_index(&dep)?.lines().enumerate() {
            let Some((path, needs)) = line.split_once(':') else {
                return Err(ModulesError::Line { file: dep, line: number + 1 });
            };
            let needs = needs.split_whitespace().map(name_of_path).collect();
            modules.insert(name_of_path(path), Entry { path: path.to_owned(), needs });
        }
        // depmod always writes these two, but neither is needed to load what modules.dep names.
        let builtin = optional(read_index(&dir.join("modules.builtin")))?;
        let softdep = optional(read_index(&dir.join("modules.softdep")))?;
        Ok(Self {
            dir: dir.to_owned(),
            modules,
            softdeps: softdep.lines().filter_map(softdep_line).collect(),
            builtin: builtin.lines().map(name_of_path).collect(),
        })
    }

    fn unknown(&self, name: &str) -> ModulesError {
        unknown(&self.dir, name, self.modules.keys())
    }
}

fn unknown<'a>(dir: &Path, name: &str, known: impl ExactSizeIterator<Item = &'a String> + Clone) -> ModulesError {
    let beginning: String = canonical(name).chars().take(3).collect();
    let alike: Vec<String> =
        known.clone().filter(|known| known.starts_with(&beginning)).take(LISTED).cloned().collect();
    let similar = if alike.is_empty() { known.clone().take(LISTED).cloned().collect() } else { alike };
    ModulesError::Unknown { name: name.to_owned(), dir: dir.to_owned(), count: known.len(), similar }
}

/// The load order in the making: a walk through the dependencies, deepest first.
struct Order<'a> {
    index: &'a Index,
    seen: BTreeSet<String>,
    paths: Vec<&'a str>,
}

impl Order<'_> {
    fn require(&mut self, name: &str) -> Result<(), ModulesError> {
        let canonical = canonical(name);
        let Some(entry) = self.index.modules.get(&canonical) else {
            return if self.index.builtin.contains(&canonical) { Ok(()) } else { Err(self.index.unknown(name)) };
        };
        // Marked before its dependencies are visited, so that a circle of soft ones ends.
        if !self.seen.insert(canonical.clone()) {
            return Ok(());
        }
        for soft in self.index.softdeps.get(&canonical).into_iter().flatten() {
            // Soft dependencies are wishes, and often name something that this kernel does not have.
            if self.index.modules.contains_key(soft) {
                self.require(soft)?;
            }
        }
        for needed in entry.needs.iter().rev() {
            self.require(needed)?;
        }
        self.paths.push(&entry.path);
        Ok(())
    }
}

fn read_index(file: &Path) -> Result<String, ModulesError> {
    fs::read_to_string(file).map_err(|source| ModulesError::Index { file: file.to_owned(), source })
}

fn optional(text: Result<String, ModulesError>) -> Result<String, ModulesError> {
    match text {
        Err(ModulesError::Index { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        other => other,
    }
}

/// The modules that `softdep NAME pre: A B post: C` wants loaded before NAME.
fn softdep_line(line: &str) -> Option<(String, Vec<String>)> {
    let mut words = line.split_whitespace();
    if words.next() != Some("softdep") {
        return None;
    }
    let name = canonical(words.next()?);
    let before = words.skip_while(|word| *word != "pre:").skip(1).take_while(|word| *word != "post:");
    Some((name, before.map(canonical).collect()))
}

/// The kernel takes dashes in module names for underscores.
fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

/// `kernel/drivers/usb/storage/usb-storage.ko.zst` is the module `usb_storage`.
#[must_use]
pub fn name_of_path(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    canonical(file.split_once(".ko").map_or(file, |(stem, _)| stem))
}

/// The module in a file, unpacked.
///
/// # Errors
/// The file cannot be read, or it is not a module.
pub fn load(file: &Path) -> Result<Module, ModulesError> {
    let (file_name, bytes) = unpack(file)?;
    if !bytes.starts_with(b"\x7fELF") {
        return Err(ModulesError::NotElf { file: file.to_owned() });
    }
    Ok(Module { file_name, bytes })
}

/// A file that may be compressed, as its name says: the name without that, and the content.
pub(crate) fn unpack(file: &Path) -> Result<(String, Vec<u8>), ModulesError> {
    let name = file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let failed = |source| ModulesError::Read { file: file.to_owned(), source };
    let opened = File::open(file).map_err(failed)?;
    let (plain, read): (&str, io::Result<Vec<u8>>) = match name.rsplit_once('.') {
        Some((plain, "zst")) => (plain, zstd::Decoder::new(opened).and_then(read_bounded)),
        Some((plain, "xz")) => (plain, read_bounded(XzReader::new(opened, false))),
        Some((plain, "gz")) => (plain, read_bounded(GzDecoder::new(opened))),
        _ => (&name, read_bounded(opened)),
    };
    let (file_name, bytes) = (plain.to_owned(), read.map_err(failed)?);
    if u64::try_from(bytes.len()).is_ok_and(|length| length > MAX_MODULE) {
        return Err(ModulesError::TooLarge { file: file.to_owned() });
    }
    Ok((file_name, bytes))
}

/// Reads at most one byte more than a module may have.
fn read_bounded(reader: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader.take(MAX_MODULE + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests;
