//! `dormouse key`: its arguments, and where a new passphrase comes from.

use std::fs::File;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, Subcommand, ValueEnum};
use dormouse_linux::ask;
use dormouse_linux::units::parse_bytes;
use zeroize::Zeroizing;

use crate::cli::output::Output;
use crate::cycle::keys::{self, NewKey};
use crate::key::KeyError;
use crate::key::manage::{DEFAULT_FILE, parse_pcrs};
use crate::policy::Policy;

#[derive(Debug, Subcommand)]
pub(super) enum KeyCommand {
    /// Add a key: from then on images are sealed, and each key opens them
    ///
    /// A file is made on an encrypted filesystem that the boot's initramfs unlocks, best the root filesystem; ext4, XFS
    /// and btrfs will do. Neither hibernating nor resuming asks for anything then but what the boot asks for anyway. Do
    /// not copy or move it.
    ///
    /// A passphrase is asked for when the session is resumed, and not when it is hibernated.
    ///
    /// The machine's TPM opens the image for as long as the machine boots as it did; `dormouse prepare` makes that key
    /// again at each boot. After an update of firmware, boot loader, kernel or initramfs the next boot is another one:
    /// add a passphrase too.
    Add(AddArgs),
    /// List the keys of the image
    List,
    /// Take a key away; a key file goes with it
    Remove {
        /// The key's number, as `dormouse key list` prints it
        number: u32,
    },
}

#[derive(Debug, Args)]
pub(super) struct AddArgs {
    /// Where the key comes from: file (a new one on an encrypted filesystem), passphrase, or tpm2 (the machine's TPM)
    #[arg(hide_possible_values = true)]
    kind: KindOfKey,

    /// Of a key in a file: the file, which must not exist yet [default: /var/lib/dormouse/key]
    file: Option<PathBuf>,

    /// Of a passphrase: a file that holds it, in one line; - is standard input [default: it is asked for, twice]
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,

    /// Of a passphrase: how much memory trying one takes, as 256M [default: an eighth of the machine's, from 64M to
    /// 512M]
    #[arg(long, value_name = "SIZE", value_parser = parse_memory)]
    memory: Option<u32>,

    /// Of the TPM: the registers (PCRs) that must be as they were
    #[arg(long, value_name = "PCR,...", default_value = "0,2,4,7,8,9", value_parser = parse_pcrs)]
    pcrs: u32,

    /// Give up the image's keys if another system made them
    #[arg(long)]
    reset: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum KindOfKey {
    /// A secret in a new file of an encrypted filesystem
    File,
    /// A passphrase
    Passphrase,
    /// The machine's TPM
    Tpm2,
}

/// A size of memory, in KiB.
fn parse_memory(text: &str) -> Result<u32, String> {
    let kib = parse_bytes(text).map(|bytes| bytes >> 10);
    let kib = kib.filter(|kib| (8 << 10..=4 << 20).contains(kib)).and_then(|kib| u32::try_from(kib).ok());
    kib.ok_or_else(|| format!("`{text}` is not a size from 8M to 4G"))
}

pub(super) fn run(policy: &Policy, command: &KeyCommand, output: Output) -> anyhow::Result<()> {
    match command {
        KeyCommand::Add(arguments) => add(policy, arguments, output),
        KeyCommand::List => output.show(&keys::list(policy)?),
        KeyCommand::Remove { number } => output.show(&keys::remove(policy, *number)?),
    }
}

fn add(policy: &Policy, arguments: &AddArgs, output: Output) -> anyhow::Result<()> {
    let AddArgs { kind, file, from, memory, pcrs, reset } = arguments;
    let passphrase;
    let new = match kind {
        KindOfKey::File => NewKey::File(file.as_deref().unwrap_or(Path::new(DEFAULT_FILE))),
        KindOfKey::Passphrase => {
            passphrase = new_passphrase(from.as_deref())?;
            NewKey::Passphrase(&passphrase, *memory)
        }
        KindOfKey::Tpm2 => NewKey::Tpm2(*pcrs),
    };
    output.show(&keys::add(policy, &new, *reset)?)
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
        assert_eq!(parse_pcrs("0,2,4,7,8,9"), Ok(dormouse_linux::tpm::PCRS));
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
