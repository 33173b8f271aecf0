//! Who is measured, and by which commands.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::measure::{self, Cost};

/// The files of one workload, on the scratch folder.
pub(super) struct Files {
    pub(super) folder: PathBuf,
}

impl Files {
    pub(super) fn vmcore(&self) -> PathBuf {
        self.folder.join("vmcore")
    }

    fn packed(&self) -> PathBuf {
        self.folder.join("packed")
    }

    pub(super) fn image(&self) -> PathBuf {
        self.folder.join("image")
    }

    pub(super) fn memory(&self) -> PathBuf {
        self.folder.join("memory")
    }

    fn unpacked(&self) -> PathBuf {
        self.folder.join("unpacked")
    }
}

/// A contender.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Contender {
    /// Dormouse with this codec.
    Dormouse(&'static str),
    /// The bound of Dormouse with a level of zstd: the codec alone.
    Codec(i32),
    /// makedumpfile with this dump level and compression; on all threads or on one.
    Makedumpfile { level: &'static str, compression: &'static str, threaded: bool },
    /// The `zstd` command, at this level.
    Zstd(&'static str),
    /// The `lz4` command.
    Lz4,
    /// The `cp` command.
    Copy,
}

const fn makedumpfile(level: &'static str, compression: &'static str, threaded: bool) -> Contender {
    Contender::Makedumpfile { level, compression, threaded }
}

/// All, and those for a short run.
pub(super) const ALL: &[Contender] = &[
    Contender::Dormouse("auto"),
    makedumpfile("17", "-l", true),
    Contender::Dormouse("1"),
    makedumpfile("17", "-l", false),
    Contender::Codec(1),
    makedumpfile("17", "-c", true),
    Contender::Dormouse("-5"),
    makedumpfile("17", "-c", false),
    Contender::Codec(-5),
    makedumpfile("1", "-l", true),
    Contender::Dormouse("3"),
    makedumpfile("1", "-c", true),
    Contender::Codec(3),
    Contender::Zstd("-1"),
    Contender::Dormouse("store"),
    Contender::Zstd("--fast=1"),
    Contender::Lz4,
    Contender::Copy,
];
pub(super) const QUICK: &[Contender] = &[
    Contender::Dormouse("auto"),
    makedumpfile("17", "-l", true),
    Contender::Dormouse("1"),
    makedumpfile("17", "-l", false),
    Contender::Codec(1),
    makedumpfile("17", "-c", true),
    makedumpfile("1", "-l", true),
    Contender::Zstd("-1"),
    Contender::Lz4,
    Contender::Copy,
];

impl Contender {
    pub(super) fn name(self) -> String {
        match self {
            Contender::Dormouse("auto" | "store") => format!("dormouse {}", self.codec()),
            Contender::Dormouse(_) => format!("dormouse zstd {}", self.codec()),
            Contender::Codec(level) => format!("bound: zstd {level} alone"),
            Contender::Makedumpfile { level, compression, threaded } => {
                format!("makedumpfile -d {level} {compression}{}", if threaded { " threads" } else { "" })
            }
            Contender::Zstd(level) => format!("zstd -T0 {level}"),
            Contender::Lz4 => "lz4 -1".to_owned(),
            Contender::Copy => "cp".to_owned(),
        }
    }

    fn codec(self) -> &'static str {
        match self {
            Contender::Dormouse(codec) => codec,
            _ => "",
        }
    }

    /// How many threads it uses of `threads`.
    pub(super) fn threads(self, threads: usize) -> usize {
        match self {
            Contender::Makedumpfile { threaded: false, .. } | Contender::Lz4 | Contender::Copy => 1,
            _ => threads,
        }
    }

    /// Saves the vmcore.
    pub(super) fn save(self, files: &Files, threads: usize) -> Result<Cost> {
        let (vmcore, packed) = (files.vmcore(), files.packed());
        let cost = match self {
            Contender::Dormouse(codec) => {
                let image = files.image();
                measure::run(part("pack")?.arg(&vmcore).arg(&image).arg(codec).arg(threads.to_string()), None, None)
            }
            Contender::Codec(level) => {
                let level = level.to_string();
                measure::run(part("compress-alone")?.arg(&vmcore).arg(level).arg(threads.to_string()), None, None)
            }
            Contender::Makedumpfile { level, compression, threaded } => {
                let mut command = Command::new("makedumpfile");
                command.args(["-d", level, compression, "--message-level", "0"]);
                if threaded {
                    command.arg("--num-threads").arg(threads.to_string());
                }
                measure::run(command.arg(&vmcore).arg(&packed), None, Some(&packed))
            }
            Contender::Zstd(level) => {
                let threads = format!("-T{threads}");
                let mut command = Command::new("zstd");
                measure::run(
                    command.args(["-q", "-f", level, &threads]).arg(&vmcore).arg("-o").arg(&packed),
                    None,
                    Some(&packed),
                )
            }
            Contender::Lz4 => measure::run(
                Command::new("lz4").args(["-q", "-f", "-1"]).arg(&vmcore).arg(&packed),
                None,
                Some(&packed),
            ),
            Contender::Copy => {
                measure::run(Command::new("cp").arg("--sparse=never").arg(&vmcore).arg(&packed), None, Some(&packed))
            }
        };
        let cost = cost.with_context(|| self.name());
        remove(&packed)?;
        cost
    }

    /// Whether it can bring back what it saved.
    pub(super) fn restores(self) -> bool {
        match self {
            // Its other way round is a filter too; one of each compression says what it costs.
            Contender::Makedumpfile { level, threaded, .. } => level == "1" && threaded,
            Contender::Zstd(level) => level == "-1",
            _ => true,
        }
    }

    /// Makes what [`Contender::restore`] begins with.
    fn prepare(self, files: &Files, threads: usize) -> Result<()> {
        let (vmcore, packed) = (files.vmcore(), files.packed());
        let mut command = match self {
            Contender::Codec(_) => return Ok(()),
            Contender::Dormouse(_) => {
                return self.save(files, threads).map(|_| ());
            }
            Contender::Makedumpfile { level, compression, .. } => {
                let mut command = Command::new("makedumpfile");
                command.args(["-d", level, compression, "--message-level", "0"]).arg(&vmcore).arg(&packed);
                command
            }
            Contender::Zstd(level) => {
                let mut command = Command::new("zstd");
                command.args(["-q", "-f", level, "-T0"]).arg(&vmcore).arg("-o").arg(&packed);
                command
            }
            Contender::Lz4 => {
                let mut command = Command::new("lz4");
                command.args(["-q", "-f", "-1"]).arg(&vmcore).arg(&packed);
                command
            }
            Contender::Copy => {
                let mut command = Command::new("cp");
                command.arg(&vmcore).arg(&packed);
                command
            }
        };
        measure::run(&mut command, None, None).map(|_| ())
    }

    /// Brings back what it saved.
    pub(super) fn restore(self, files: &Files, threads: usize) -> Result<Cost> {
        self.prepare(files, threads).with_context(|| self.name())?;
        let (packed, unpacked, memory) = (files.packed(), files.unpacked(), files.memory());
        let number = threads.to_string();
        let cost = match self {
            Contender::Dormouse(_) => {
                measure::run(part("unpack")?.arg(files.image()).arg(&memory).arg(number), None, None)
            }
            Contender::Codec(level) => measure::run(
                part("decompress-alone")?.arg(files.vmcore()).arg(&memory).arg(level.to_string()).arg(number),
                None,
                None,
            ),
            Contender::Makedumpfile { level, .. } => measure::run(
                Command::new("makedumpfile")
                    .args(["-E", "-d", level, "--message-level", "0"])
                    .arg(&packed)
                    .arg(&unpacked),
                None,
                Some(&unpacked),
            ),
            Contender::Zstd(_) => measure::run(
                Command::new("zstd").args(["-q", "-d", "-f", "--no-sparse"]).arg(&packed).arg("-o").arg(&unpacked),
                None,
                Some(&unpacked),
            ),
            Contender::Lz4 => measure::run(
                Command::new("lz4").args(["-q", "-d", "-f", "--no-sparse"]).arg(&packed).arg(&unpacked),
                None,
                Some(&unpacked),
            ),
            Contender::Copy => measure::run(
                Command::new("cp").arg("--sparse=never").arg(&packed).arg(&unpacked),
                None,
                Some(&unpacked),
            ),
        };
        for file in [&packed, &unpacked, &memory] {
            remove(file)?;
        }
        cost.with_context(|| self.name())
    }
}

/// A part of this program.
fn part(name: &str) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe().context("this program's own path")?);
    command.arg(name);
    Ok(command)
}

fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("{}: cannot be removed", path.display()))
        }
        _ => Ok(()),
    }
}
