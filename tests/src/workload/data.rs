//! A tmpfs file of random bytes, whose checksum is kept in this process and in a file beside it.

use std::fs::{self, File};
use std::hash::Hasher;
use std::io::{BufWriter, Read, Write};
use std::path::Path;

use anyhow::{Context, Result};
use twox_hash::XxHash3_64;

use super::report::Data;
use super::role::{self, Answer};
use super::{DIRECTORY, pattern};

const BLOCK: usize = 1 << 20;

/// Writes the file and keeps its checksum, for ever.
///
/// # Errors
/// Fails where the file cannot be written.
pub fn run(megabytes: u64, seed: u64) -> Result<()> {
    let (file, note) = (Path::new(DIRECTORY).join("data"), Path::new(DIRECTORY).join("data.xxh3"));
    let kept = write(&file, megabytes, seed).with_context(|| format!("{}: cannot be written", file.display()))?;
    fs::write(&note, &kept.checksum).with_context(|| format!("{}: cannot be written", note.display()))?;
    role::serve(Path::new(DIRECTORY), "data", || {
        let evidence = read(&file).unwrap_or_default();
        let noted = fs::read_to_string(&note).unwrap_or_default();
        let fault = if evidence != kept {
            Some(format!("{} holds {evidence:?} and must hold {kept:?}", file.display()))
        } else if noted != kept.checksum {
            Some(format!("{} holds {noted:?}, this process {:?}", note.display(), kept.checksum))
        } else {
            None
        };
        Answer { evidence, fault }
    })
}

fn write(path: &Path, megabytes: u64, seed: u64) -> Result<Data> {
    let mut file = BufWriter::with_capacity(BLOCK, File::create(path)?);
    let mut block = vec![0; BLOCK];
    let mut hash = XxHash3_64::new();
    let words = u64::try_from(BLOCK / 8)?;
    for number in 0..megabytes {
        pattern::fill(&mut block, seed, number * words);
        hash.write(&block);
        file.write_all(&block)?;
    }
    file.flush()?;
    Ok(Data { bytes: megabytes * words * 8, checksum: format!("{:016x}", hash.finish()) })
}

fn read(path: &Path) -> Result<Data> {
    let mut file = File::open(path)?;
    let mut block = vec![0; BLOCK];
    let mut hash = XxHash3_64::new();
    let mut bytes = 0;
    loop {
        let read = file.read(&mut block)?;
        if read == 0 {
            return Ok(Data { bytes, checksum: format!("{:016x}", hash.finish()) });
        }
        hash.write(block.get(..read).unwrap_or_default());
        bytes += u64::try_from(read)?;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn written_data_is_read_and_a_change_is_seen() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("data");
        let kept = write(&path, 3, 9).unwrap();
        assert_eq!(kept.bytes, 3 << 20);
        assert_eq!(read(&path).unwrap(), kept);
        let mut bytes = fs::read(&path).unwrap();
        bytes[1 << 20] ^= 0x80;
        fs::write(&path, bytes).unwrap();
        assert_ne!(read(&path).unwrap(), kept);
    }
}
