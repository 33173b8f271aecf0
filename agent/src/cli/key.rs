//! `dormouse key`: its arguments, and where a new passphrase comes from.

use std::fs::File;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, Subcommand};
use dormouse_linux::units::parse_bytes;
use dormouse_linux::{ask, tpm};
use zeroize::Zeroizing;

use crate::cli::output::Output;
use crate::cycle::keys::{self, NewKey};
use crate::key::KeyError;
use crate::key::manage::{DEFAULT_FILE, parse_pcrs};
use crate::policy::Policy;

#[derive(Debug, Subcommand)]
pub(super) enum KeyCommand {
    /// Add a key: from then on images are sealed, and each key opens them
    #[command(subcommand)]
    Add(AddCommand),
    /// List the keys of the image
    List,
    /// Take a key away; a key file goes with it
    Remove {
        /// The key's number, as `dormouse key list` prints it
        number: u32,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum AddCommand {
    /// A secret in a new file of an encrypted filesystem, which the boot unlocks before it resumes
    ///
    /// Neither hibernating nor resuming asks for anything then but what the boot asks for anyway. The file must be on a
    /// filesystem that the boot's initramfs unlocks, best the root filesystem; ext4, XFS and btrfs will do. Do not
    /// copy or move it.
    File {
        /// The file; it must not exist yet
        #[arg(default_value = DEFAULT_FILE)]
        file: PathBuf,
        #[command(flatten)]
        common: Common,
    },
    /// A passphrase, which is asked for when the session is resumed, and not when it is hibernated
    Passphrase {
        /// A file with the passphrase, in one line; - is standard input [default: it is asked for, twice]
        #[arg(long, value_name = "FILE")]
        from: Option<PathBuf>,
        /// How much memory trying a passphrase takes, as 256M [default: an eighth of the machine's, from 64M to 512M]
        #[arg(long, value_name = "SIZE", value_parser = parse_memory)]
        memory: Option<u32>,
        #[command(flatten)]
        common: Common,
    },
    /// The machine's TPM, which opens the image for as long as the machine boots as it did
    ///
    /// `dormouse prepare` makes this key again at each boot. After an update of firmware, boot loader, kernel or
    /// initramfs the next boot is another one: add a passphrase too.
    Tpm2 {
        /// The registers (PCRs) that must be as they were, separated by commas
        #[arg(long, value_name = "PCR,...", default_value = "0,2,4,7,8,9", value_parser = parse_pcrs)]
        pcrs: u32,
        #[command(flatten)]
        common: Common,
    },
}

#[derive(Debug, Clone, Copy, Args)]
pub(super) struct Common {
    /// Give up the image's keys if another system made them
    #[arg(long)]
    reset: bool,
}

/// A size of memory, in KiB.
fn parse_memory(text: &str) -> Result<u32, String> {
    let kib = parse_bytes(text).map(|bytes| bytes >> 10);
    let kib = kib.filter(|kib| (8 << 10..=4 << 20).contains(kib)).and_then(|kib| u32::try_from(kib).ok());
    kib.ok_or_else(|| format!("`{text}` is not a size from 8M to 4G"))
}

pub(super) fn run(policy: &Policy, command: &KeyCommand, output: Output) -> anyhow::Result<()> {
    match command {
        KeyCommand::Add(AddCommand::File { file, common }) => {
            output.show(&keys::add(policy, &NewKey::File(file), common.reset)?)
        }
        KeyCommand::Add(AddCommand::Passphrase { from, memory, common }) => {
            let passphrase = new_passphrase(from.as_deref())?;
            output.show(&keys::add(policy, &NewKey::Passphrase(&passphrase, *memory), common.reset)?)
        }
        KeyCommand::Add(AddCommand::Tpm2 { pcrs, common }) => {
            output.show(&keys::add(policy, &NewKey::Tpm2(*pcrs), common.reset)?)
        }
        KeyCommand::List => output.show(&keys::list(policy)?),
        KeyCommand::Remove { number } => output.show(&keys::remove(policy, *number)?),
    }
}

fn new_passphrase(from: Option<&Path>) -> anyhow::Result<Zeroizing<Vec<u8>>> {
    match from {
        Some(path) if path == Path::new("-") => read(&mut io::stdin(), path),
        Some(path) => {
            let mut file = File::open(path).with_context(|| format!("{}: cannot be opened", path.display()))?;
            read(&mut file, path)
        }
        None if !io::stdin().is_terminal() => {
            Err(KeyError::Passphrase("there is no terminal to ask for the passphrase; name a file with --from").into())
        }
        None => {
            let first = ask::here("New passphrase of the image").map_err(KeyError::from)?;
            let second = ask::here("Once more").map_err(KeyError::from)?;
            if first != second {
                return Err(KeyError::Passphrase("the two passphrases differ").into());
            }
            Ok(first)
        }
    }
}

fn read(source: &mut dyn io::Read, path: &Path) -> anyhow::Result<Zeroizing<Vec<u8>>> {
    ask::read_from(source).with_context(|| format!("{}: cannot be read", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rejects_memory_that_no_passphrase_may_take() {
        assert_eq!(parse_memory("256M"), Ok(256 << 10));
        for text in ["", "x", "4M", "5G", "8"] {
            assert!(parse_memory(text).is_err(), "{text}");
        }
        assert_eq!(parse_pcrs("0,2,4,7,8,9"), Ok(tpm::PCRS));
    }

    #[test]
    fn a_passphrase_comes_from_a_file() {
        let directory = std::env::temp_dir().join(format!("dormouse-passphrase-{}", std::process::id()));
        let written = std::fs::write(&directory, "correct horse\n");
        let passphrase = new_passphrase(Some(&directory));
        let _ = std::fs::remove_file(&directory);
        assert!(written.is_ok());
        assert_eq!(passphrase.map(|passphrase| passphrase.to_vec()).ok(), Some(b"correct horse".to_vec()));
        assert!(new_passphrase(Some(Path::new("/nonexistent"))).is_err());
    }
}
