//! From the file as written to the policy that holds: defaults, and every check of a value.

use std::path::PathBuf;
use std::time::Duration;

use toml::Spanned;

use super::error::{PolicyError, Problem};
use super::schema::{File, Save, Written};
use super::source::Source;
use super::values::{Compression, ImageDevice, Then, Unfit, Verbosity, Verify, parse_bytes};
use super::{
    ConsolePolicy, DEFAULT_INITRAMFS, DEFAULT_KERNEL, DEFAULT_LEVEL, DEFAULT_REGION_SIZE, DEFAULT_STALL, DEFAULT_WAIT,
    GuardPolicy, ImagePolicy, KernelPolicy, LOWEST_REGION, MAX_ARGUMENTS, MAX_MEMORY, MAX_PHYSICAL, MAX_REGION_SIZE,
    MAX_STALL, MAX_THREADS, MAX_WAIT, MIN_MEMORY, MIN_REGION_SIZE, MIN_STALL, Policy, REGION_ALIGNMENT, RegionPolicy,
    ResumePolicy, SavePolicy,
};
use crate::cmdline;

/// Checks every value once and fills in the defaults.
pub(super) fn resolve(source: &Source<'_>, file: File) -> Result<Policy, PolicyError> {
    let at = |key| Key { source, key };
    let device = at("image.device").required(file.image.device, |text| Ok(text.parse::<ImageDevice>()?))?;
    let wait = at("image.wait").value(file.image.wait, DEFAULT_WAIT, wait)?;

    let size_at = file.region.size;
    let size = at("region.size").value(size_at, DEFAULT_REGION_SIZE, region_size)?;
    let address =
        at("region.address").value(file.region.address, None, |text| region_address(&text, size).map(Some))?;

    let kernel = KernelPolicy {
        image: at("kernel.image").value(file.kernel.image, PathBuf::from(DEFAULT_KERNEL), path)?,
        initramfs: at("kernel.initramfs").value(file.kernel.initramfs, PathBuf::from(DEFAULT_INITRAMFS), path)?,
        arguments: at("kernel.arguments").value(file.kernel.arguments, String::new(), arguments)?,
    };
    Ok(Policy {
        image: ImagePolicy { device, wait },
        region: RegionPolicy { size, address },
        kernel,
        save: save(source, file.save, size)?,
        resume: ResumePolicy {
            enabled: file.resume.enabled.is_none_or(Spanned::into_inner),
            mismatch: at("resume.mismatch").value(file.resume.mismatch, Unfit::default(), |word| {
                let known = Unfit::ALL.into_iter().find(|unfit| unfit.as_str() == word);
                known.ok_or(Problem::Word { word, allowed: "\"discard\", \"keep\"" })
            })?,
        },
        guard: GuardPolicy {
            stall: at("guard.stall").value(file.guard.stall, Some(DEFAULT_STALL), stall)?,
            watchdog: file.guard.watchdog.is_none_or(Spanned::into_inner),
        },
        console: ConsolePolicy {
            verbosity: at("console.verbosity").value(file.console.verbosity, Verbosity::default(), verbosity)?,
        },
    })
}

fn save(source: &Source<'_>, written: Save, region_size: u64) -> Result<SavePolicy, PolicyError> {
    let at = |key| Key { source, key };
    let level = at("save.level").value(written.level, DEFAULT_LEVEL, level)?;
    Ok(SavePolicy {
        compression: at("save.compression").value(written.compression, Compression::Auto, |word| {
            match word.as_str() {
                "auto" => Ok(Compression::Auto),
                "zstd" => Ok(Compression::Zstd { level }),
                "store" => Ok(Compression::Store),
                _ => Err(Problem::Word { word, allowed: "\"auto\", \"zstd\", \"store\"" }),
            }
        })?,
        threads: at("save.threads").value(written.threads, 0, threads)?,
        memory: at("save.memory").value(written.memory, default_memory(region_size), memory)?,
        drop_caches: written.drop_caches.is_some_and(Spanned::into_inner),
        skip_free: written.skip_free.is_none_or(Spanned::into_inner),
        verify: at("save.verify").value(written.verify, Verify::default(), |word| {
            let known = Verify::ALL.into_iter().find(|verify| verify.as_str() == word);
            known.ok_or(Problem::Word { word, allowed: "\"off\", \"checksum\", \"memory\"" })
        })?,
        escape: written.escape.is_none_or(Spanned::into_inner),
        then: at("save.then").value(written.then, Then::default(), |word| {
            word.parse::<Then>().map_err(|_| Problem::Word { word, allowed: "\"poweroff\", \"reboot\", \"return\"" })
        })?,
    })
}

/// A key of the file, for the errors about its value.
struct Key<'a> {
    source: &'a Source<'a>,
    key: &'static str,
}

impl Key<'_> {
    /// The value that is written, checked, or else the default.
    fn value<W, V>(
        &self,
        written: Written<W>,
        default: V,
        check: impl FnOnce(W) -> Result<V, Problem>,
    ) -> Result<V, PolicyError> {
        written.map_or(Ok(default), |value| self.checked(value, check))
    }

    /// The value that must be written, checked.
    fn required<W, V>(
        &self,
        written: Written<W>,
        check: impl FnOnce(W) -> Result<V, Problem>,
    ) -> Result<V, PolicyError> {
        match written {
            Some(value) => self.checked(value, check),
            None => Err(PolicyError::MissingKey { file: self.source.name.to_owned(), key: self.key }),
        }
    }

    fn checked<W, V>(&self, value: Spanned<W>, check: impl FnOnce(W) -> Result<V, Problem>) -> Result<V, PolicyError> {
        let line = self.source.line(value.span().start);
        check(value.into_inner()).map_err(|problem| PolicyError::Impossible {
            file: self.source.name.to_owned(),
            line,
            key: self.key,
            problem,
        })
    }
}

fn wait(seconds: i64) -> Result<Duration, Problem> {
    match u64::try_from(seconds) {
        Ok(whole) if whole <= MAX_WAIT => Ok(Duration::from_secs(whole)),
        _ => Err(Problem::Wait(seconds)),
    }
}

fn stall(seconds: i64) -> Result<Option<Duration>, Problem> {
    match u64::try_from(seconds) {
        Ok(0) => Ok(None),
        Ok(whole) if (MIN_STALL..=MAX_STALL).contains(&whole) => Ok(Some(Duration::from_secs(whole))),
        _ => Err(Problem::Stall(seconds)),
    }
}

fn aligned_bytes(text: &str) -> Result<u64, Problem> {
    let bytes = parse_bytes(text).ok_or_else(|| Problem::Size(text.to_owned()))?;
    if bytes.is_multiple_of(REGION_ALIGNMENT) { Ok(bytes) } else { Err(Problem::Alignment(text.to_owned())) }
}

fn region_size(text: String) -> Result<u64, Problem> {
    let size = aligned_bytes(&text)?;
    if (MIN_REGION_SIZE..=MAX_REGION_SIZE).contains(&size) { Ok(size) } else { Err(Problem::RegionSize(text)) }
}

fn region_address(text: &str, size: u64) -> Result<u64, Problem> {
    let address = aligned_bytes(text)?;
    if address < LOWEST_REGION {
        return Err(Problem::RegionAddress(text.to_owned()));
    }
    match address.checked_add(size) {
        Some(end) if end <= MAX_PHYSICAL => Ok(address),
        _ => Err(Problem::RegionEnd { size, address: text.to_owned() }),
    }
}

fn path(text: String) -> Result<PathBuf, Problem> {
    if text.contains(char::is_control) {
        return Err(Problem::PathCharacter(text));
    }
    if text.starts_with('/') { Ok(PathBuf::from(text)) } else { Err(Problem::Path(text)) }
}

fn arguments(text: String) -> Result<String, Problem> {
    if text.len() > MAX_ARGUMENTS {
        return Err(Problem::ArgumentsLength(text.len()));
    }
    if let Some(character) = text.chars().find(|c| c.is_control()) {
        return Err(Problem::ArgumentsHide(character.escape_default().to_string()));
    }
    for argument in cmdline::arguments(&text) {
        if argument.name == "--" || !argument.is_closed() {
            return Err(Problem::ArgumentsHide(argument.raw.to_owned()));
        }
        if argument.is_ours() {
            return Err(Problem::ArgumentsOurs(argument.raw.to_owned()));
        }
    }
    Ok(text)
}

fn level(level: i64) -> Result<i32, Problem> {
    match i32::try_from(level) {
        Ok(0) => Err(Problem::LevelZero),
        Ok(possible) if (-7..=19).contains(&possible) => Ok(possible),
        _ => Err(Problem::Level(level)),
    }
}

fn threads(threads: i64) -> Result<usize, Problem> {
    match usize::try_from(threads) {
        Ok(number) if number <= MAX_THREADS => Ok(number),
        _ => Err(Problem::Threads(threads)),
    }
}

/// Three sixteenths of the region: 24 MiB of the usual 128, beside which a kernel, its initramfs and the contexts of eight
/// threads fit well. More than 64 MiB make no device faster.
fn default_memory(region_size: u64) -> u64 {
    (region_size / 16 * 3).clamp(MIN_MEMORY, 64 << 20)
}

fn memory(text: String) -> Result<u64, Problem> {
    let bytes = parse_bytes(&text).ok_or_else(|| Problem::Size(text.clone()))?;
    if (MIN_MEMORY..=MAX_MEMORY).contains(&bytes) { Ok(bytes) } else { Err(Problem::Memory(text)) }
}

fn verbosity(word: String) -> Result<Verbosity, Problem> {
    let known = Verbosity::ALL.into_iter().find(|verbosity| verbosity.as_str() == word);
    known.ok_or(Problem::Word { word, allowed: "\"quiet\", \"normal\", \"verbose\"" })
}
