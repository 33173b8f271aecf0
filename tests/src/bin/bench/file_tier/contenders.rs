//! Who is measured, and the commands that each runs.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// A program with its options, packing a vmcore into a file and, if it can, back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Contender {
    /// The agent's stages, with a codec as `bench pack` takes it.
    Dormouse(&'static str),
    /// The same, sealed.
    Sealed(&'static str),
    /// Debian's makedumpfile at a dump level, with an option that names its codec, on one thread or on all.
    Makedumpfile { level: u32, codec: &'static str, threads: bool },
    /// zstd with an option that names its level; it packs on all threads, and unpacks on one.
    Zstd(&'static str),
    /// lz4, which has one thread.
    Lz4,
    /// cp.
    Cp,
    /// zstd of a level over selected pages in memory, with nothing around it.
    Codec(&'static str),
    /// The same pages, copied from memory to memory.
    Memcpy,
}

use Contender::{Codec, Cp, Dormouse, Lz4, Makedumpfile, Memcpy, Sealed, Zstd};

const QUICK: &[Contender] = &[
    Dormouse("auto"),
    Sealed("auto"),
    Makedumpfile { level: 17, codec: "-l", threads: false },
    Zstd("-1"),
    Dormouse("zstd:1"),
    Sealed("zstd:1"),
    Makedumpfile { level: 17, codec: "-l", threads: true },
    Lz4,
    Cp,
    Codec("1"),
    Memcpy,
];

const MORE: &[Contender] = &[
    Dormouse("store"),
    Makedumpfile { level: 1, codec: "-l", threads: false },
    Makedumpfile { level: 17, codec: "-c", threads: false },
    Zstd("--fast"),
    Codec("-5"),
    Dormouse("zstd:-5"),
    Dormouse("zstd:3"),
    Makedumpfile { level: 1, codec: "-l", threads: true },
    Makedumpfile { level: 1, codec: "-c", threads: false },
    Makedumpfile { level: 1, codec: "-c", threads: true },
    Makedumpfile { level: 17, codec: "-c", threads: true },
    Codec("3"),
];

/// The contenders, in the order of their turns.
pub(super) fn all(quick: bool) -> Vec<Contender> {
    QUICK.iter().chain(if quick { &[] } else { MORE }).copied().collect()
}

/// Where the files of a measurement are.
#[derive(Debug)]
pub(super) struct Files {
    /// The directory of them all.
    pub(super) scratch: PathBuf,
    /// What is packed.
    pub(super) vmcore: PathBuf,
    /// What it is packed into.
    pub(super) packed: PathBuf,
    /// What that is unpacked into, by those that unpack into a file.
    pub(super) restored: PathBuf,
}

impl Contender {
    pub(super) fn name(self) -> String {
        match self {
            Dormouse(codec) => format!("dormouse {codec}"),
            Sealed(codec) => format!("dormouse {codec} sealed"),
            Makedumpfile { level, codec, threads } => {
                format!("makedumpfile -d {level} {codec}{}", if threads { " --num-threads" } else { "" })
            }
            Zstd(level) => format!("zstd {level}"),
            Lz4 => "lz4".to_owned(),
            Cp => "cp".to_owned(),
            Codec(level) => format!("codec alone zstd:{level}"),
            Memcpy => "memcpy".to_owned(),
        }
    }

    /// The one that does the same and seals it.
    pub(super) fn sealed(self) -> Option<Contender> {
        if let Dormouse(codec) = self { Some(Sealed(codec)) } else { None }
    }

    /// Whether it is none of ours.
    pub(super) fn is_peer(self) -> bool {
        !matches!(self, Dormouse(_) | Sealed(_) | Codec(_) | Memcpy)
    }

    /// The threads that work when it packs, and when it unpacks.
    pub(super) fn threads(self, threads: usize) -> (usize, usize) {
        match self {
            Dormouse(_) | Sealed(_) | Codec(_) | Memcpy | Makedumpfile { threads: true, .. } => (threads, threads),
            Zstd(_) => (threads, 1),
            Makedumpfile { threads: false, .. } | Lz4 | Cp => (1, 1),
        }
    }

    /// Makes what must be there before it packs: the place of an image.
    pub(super) fn prepare(self, files: &Files) -> Result<()> {
        match self {
            Dormouse(_) | Sealed(_) => super::dormouse::place(&files.vmcore, &files.packed),
            _ => Ok(()),
        }
    }

    /// The command that packs.
    pub(super) fn pack(self, files: &Files, threads: usize) -> Result<Command> {
        let mut command = match self {
            Dormouse(codec) | Sealed(codec) => {
                let mut command = part("pack")?;
                command.arg(&files.vmcore).arg(&files.packed).args(["--codec", codec]);
                command.arg("--threads").arg(threads.to_string());
                command.args(matches!(self, Sealed(_)).then_some("--sealed"));
                return Ok(command);
            }
            Codec(level) => return codec("compress", level, files, threads),
            Memcpy => return codec("copy", "1", files, threads),
            Makedumpfile { level, codec, threads: all } => {
                let mut command = Command::new("makedumpfile");
                // The end of its threads loads this library, and now and then fails to (`libgcc_s.so.1 must be
                // installed for pthread_exit to work`); one that is there already is found.
                command.env("LD_PRELOAD", "libgcc_s.so.1");
                command.arg(codec).arg("-d").arg(level.to_string());
                if all {
                    command.arg("--num-threads").arg(threads.to_string());
                }
                command
            }
            Zstd(level) => {
                let mut command = Command::new("zstd");
                command.args(["-q", "-f", level]).arg(format!("-T{threads}")).arg("-o");
                command.arg(&files.packed).arg(&files.vmcore);
                return Ok(command);
            }
            Lz4 => {
                let mut command = Command::new("lz4");
                command.args(["-q", "-f", "-1"]);
                command
            }
            Cp => copy(),
        };
        command.arg(&files.vmcore).arg(&files.packed);
        Ok(command)
    }

    /// The command that unpacks, if there is one: makedumpfile 1.7.2 has no way back from its own format.
    pub(super) fn unpack(self, files: &Files, threads: usize) -> Result<Option<Command>> {
        let mut command = match self {
            Dormouse(_) | Sealed(_) => {
                let mut command = part("unpack")?;
                command.arg(&files.packed).arg("--scratch").arg(&files.scratch);
                command.arg("--threads").arg(threads.to_string());
                command.args(matches!(self, Sealed(_)).then_some("--sealed"));
                return Ok(Some(command));
            }
            Codec(level) => return codec("decompress", level, files, threads).map(Some),
            Memcpy => return codec("copy", "1", files, threads).map(Some),
            Makedumpfile { .. } => return Ok(None),
            Zstd(_) => {
                let mut command = Command::new("zstd");
                command.args(["-q", "-f", "-d", "-o"]).arg(&files.restored).arg(&files.packed);
                return Ok(Some(command));
            }
            Lz4 => {
                let mut command = Command::new("lz4");
                command.args(["-q", "-f", "-d"]);
                command
            }
            Cp => copy(),
        };
        command.arg(&files.packed).arg(&files.restored);
        Ok(Some(command))
    }
}

/// A part of this program as a process of its own.
fn part(name: &str) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe().context("this program's path")?);
    command.arg(name);
    Ok(command)
}

fn codec(half: &str, level: &str, files: &Files, threads: usize) -> Result<Command> {
    let mut command = part("codec")?;
    command.arg(half).arg(&files.vmcore).arg(format!("--level={level}")).arg("--threads").arg(threads.to_string());
    Ok(command)
}

fn copy() -> Command {
    let mut command = Command::new("cp");
    // Every byte: neither holes nor shared blocks.
    command.args(["--sparse=never", "--reflink=never"]);
    command
}

/// How many pages makedumpfile keeps of a vmcore, as it says itself.
pub(super) fn pages_kept(level: u32, vmcore: &Path, packed: &Path) -> Result<u64> {
    let mut command = Command::new("makedumpfile");
    command.args(["--message-level", "31", "-f", "-l", "-d"]).arg(level.to_string()).arg(vmcore).arg(packed);
    let output = command.output().context("makedumpfile cannot be started")?;
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "makedumpfile cannot read {}: {text}", vmcore.display());
    remaining(&text).with_context(|| format!("makedumpfile does not say how many pages it keeps: {text}"))
}

fn remaining(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.trim().strip_prefix("Remaining pages"))?;
    u64::from_str_radix(line.trim_start_matches([' ', ':']).strip_prefix("0x")?.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn makedumpfile_says_what_it_keeps() {
        let text = "Original pages  : 0x0000000000040000\n  Remaining pages  : 0x0000000000017a0e\n  (The number";
        assert_eq!(remaining(text), Some(0x17a0e));
        assert_eq!(remaining("Original pages  : 0x40000"), None);
    }

    #[test]
    fn contenders_are_told_apart() {
        let mut names: Vec<_> = all(false).into_iter().map(Contender::name).collect();
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count);
        assert!(names.iter().all(|name| !name.contains(',')), "{names:?}");
    }
}
