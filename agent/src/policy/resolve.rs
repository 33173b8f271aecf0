//! From the files as written to the policy that holds: which of them counts for a key, defaults, and every check of a value.

use std::path::PathBuf;
use std::time::Duration;

use dormouse_linux::kernel_args;
use dormouse_linux::units::parse_bytes;
use toml::Spanned;

use crate::policy::error::{PolicyError, Problem};
use crate::policy::schema::{File, Written};
use crate::policy::source::Source;
use crate::policy::values::{Compression, Then, Unfit, Verbosity, Verify};
use crate::policy::{
    ConsolePolicy, DEFAULT_INITRAMFS, DEFAULT_KERNEL, DEFAULT_LEVEL, DEFAULT_REGION_SIZE, DEFAULT_STALL, DEFAULT_WAIT,
    GuardPolicy, ImagePolicy, KernelPolicy, LOWEST_REGION, MAX_ARGUMENTS, MAX_MEMORY, MAX_PHYSICAL, MAX_REGION_SIZE,
    MAX_STALL, MAX_THREADS, MAX_WAIT, MIN_MEMORY, MIN_REGION_SIZE, MIN_STALL, Policy, REGION_ALIGNMENT, RegionPolicy,
    ResumePolicy, SavePolicy,
};

/// Checks every value once and fills in the defaults.
pub(super) fn resolve(mut files: Layers<'_>) -> Result<Policy, PolicyError> {
    let device = files.at("image.device", |file| &mut file.image.device).required(|text| Ok(text.parse()?))?;
    let wait = files.at("image.wait", |file| &mut file.image.wait).value(DEFAULT_WAIT, wait)?;

    let size = files.at("region.size", |file| &mut file.region.size).value(DEFAULT_REGION_SIZE, region_size)?;
    let address = files
        .at("region.address", |file| &mut file.region.address)
        .value(None, |text| region_address(&text, size).map(Some))?;

    let kernel = KernelPolicy {
        image: files.at("kernel.image", |file| &mut file.kernel.image).value(PathBuf::from(DEFAULT_KERNEL), path)?,
        initramfs: files
            .at("kernel.initramfs", |file| &mut file.kernel.initramfs)
            .value(PathBuf::from(DEFAULT_INITRAMFS), path)?,
        arguments: files.at("kernel.arguments", |file| &mut file.kernel.arguments).value(String::new(), arguments)?,
    };
    Ok(Policy {
        image: ImagePolicy { device, wait },
        region: RegionPolicy { size, address },
        kernel,
        save: save(&mut files, size)?,
        resume: ResumePolicy {
            enabled: files.at("resume.enabled", |file| &mut file.resume.enabled).value(true, Ok)?,
            mismatch: files.at("resume.mismatch", |file| &mut file.resume.mismatch).value(
                Unfit::default(),
                |word| {
                    let known = Unfit::ALL.into_iter().find(|unfit| unfit.as_str() == word);
                    known.ok_or(Problem::Word { word, allowed: "\"discard\", \"keep\"" })
                },
            )?,
        },
        guard: GuardPolicy {
            stall: files.at("guard.stall", |file| &mut file.guard.stall).value(Some(DEFAULT_STALL), stall)?,
            watchdog: files.at("guard.watchdog", |file| &mut file.guard.watchdog).value(true, Ok)?,
        },
        console: ConsolePolicy {
            verbosity: files
                .at("console.verbosity", |file| &mut file.console.verbosity)
                .value(Verbosity::default(), verbosity)?,
        },
    })
}

fn save(files: &mut Layers<'_>, region_size: u64) -> Result<SavePolicy, PolicyError> {
    let level = files.at("save.level", |file| &mut file.save.level).value(DEFAULT_LEVEL, level)?;
    Ok(SavePolicy {
        compression: files.at("save.compression", |file| &mut file.save.compression).value(
            Compression::Auto,
            |word| match word.as_str() {
                "auto" => Ok(Compression::Auto),
                "zstd" => Ok(Compression::Zstd { level }),
                "store" => Ok(Compression::Store),
                _ => Err(Problem::Word { word, allowed: "\"auto\", \"zstd\", \"store\"" }),
            },
        )?,
        threads: files.at("save.threads", |file| &mut file.save.threads).value(0, threads)?,
        memory: files.at("save.memory", |file| &mut file.save.memory).value(default_memory(region_size), memory)?,
        drop_caches: files.at("save.drop_caches", |file| &mut file.save.drop_caches).value(false, Ok)?,
        skip_free: files.at("save.skip_free", |file| &mut file.save.skip_free).value(true, Ok)?,
        verify: files.at("save.verify", |file| &mut file.save.verify).value(Verify::default(), |word| {
            let known = Verify::ALL.into_iter().find(|verify| verify.as_str() == word);
            known.ok_or(Problem::Word { word, allowed: "\"off\", \"checksum\", \"memory\"" })
        })?,
        escape: files.at("save.escape", |file| &mut file.save.escape).value(true, Ok)?,
        then: files.at("save.then", |file| &mut file.save.then).value(Then::default(), |word| {
            word.parse::<Then>().map_err(|_| Problem::Word { word, allowed: "\"poweroff\", \"reboot\", \"return\"" })
        })?,
    })
}

/// The files of one policy as they are written, the one that counts least first.
pub(super) struct Layers<'a> {
    main: &'a str,
    files: Vec<(Source<'a>, File)>,
}

impl<'a> Layers<'a> {
    /// Reads each of them into the schema. The first is the main file, which `main` names even if it is not among them.
    pub(super) fn read(main: &'a str, sources: &[Source<'a>]) -> Result<Layers<'a>, PolicyError> {
        let files = sources.iter().map(|source| Ok((*source, source.read()?)));
        Ok(Layers { main, files: files.collect::<Result<_, PolicyError>>()? })
    }

    /// What the last of the files that has this key says, with the place of it.
    fn at<W>(&mut self, key: &'static str, of: impl Fn(&mut File) -> &mut Written<W>) -> Key<'a, W> {
        let written = self.files.iter_mut().rev().find_map(|(source, file)| Some((*source, of(file).take()?)));
        Key { key, main: self.main, written }
    }
}

/// A key of the policy with what is written for it, for the errors about its value.
struct Key<'a, W> {
    key: &'static str,
    main: &'a str,
    written: Option<(Source<'a>, Spanned<W>)>,
}

impl<W> Key<'_, W> {
    /// The value that is written, checked, or else the default.
    fn value<V>(self, default: V, check: impl FnOnce(W) -> Result<V, Problem>) -> Result<V, PolicyError> {
        let key = self.key;
        self.written.map_or(Ok(default), |(source, value)| checked(key, &source, value, check))
    }

    /// The value that must be written, checked.
    fn required<V>(self, check: impl FnOnce(W) -> Result<V, Problem>) -> Result<V, PolicyError> {
        match self.written {
            Some((source, value)) => checked(self.key, &source, value, check),
            None => Err(PolicyError::MissingKey { file: self.main.to_owned(), key: self.key }),
        }
    }
}

fn checked<W, V>(
    key: &'static str,
    source: &Source<'_>,
    value: Spanned<W>,
    check: impl FnOnce(W) -> Result<V, Problem>,
) -> Result<V, PolicyError> {
    let line = source.line(value.span().start);
    check(value.into_inner()).map_err(|problem| PolicyError::Impossible {
        file: source.name.to_owned(),
        line,
        key,
        problem,
    })
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
    for argument in kernel_args::arguments(&text) {
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
