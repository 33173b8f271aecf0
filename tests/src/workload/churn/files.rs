//! Files that are written, read back, renamed, read again after a while and deleted.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use crate::random::Random;
use crate::workload::pattern;

const REST: Duration = Duration::from_millis(10);

/// Files that are kept; their content is known for as long as a few hundred operations.
const KEPT: usize = 48;
const LONGEST: u64 = 512 << 10;

/// The directory of its own, in the one that is given.
const OWN: &str = "churn";

/// Works on files in `directory`, for ever.
///
/// # Errors
/// Fails where the directory cannot be used.
pub fn run(directory: &Path, seed: u64) -> Result<()> {
    let mut files = Files::new(directory, seed)?;
    super::run("files", REST, move || files.operation())
}

#[derive(Debug)]
struct Files {
    directory: PathBuf,
    random: Random,
    kept: Vec<Kept>,
    number: u64,
}

/// A file and what is in it.
#[derive(Debug)]
struct Kept {
    name: String,
    bytes: usize,
    seed: u64,
}

impl Files {
    fn new(directory: &Path, seed: u64) -> Result<Files> {
        let directory = directory.join(OWN);
        fs::create_dir(&directory).with_context(|| format!("{}: cannot be created", directory.display()))?;
        Ok(Files { directory, random: Random::new(seed), kept: Vec::new(), number: 0 })
    }

    /// Makes a file, and takes leave of an older one.
    fn operation(&mut self) -> Result<()> {
        self.number += 1;
        let words = self.random.within(1..=LONGEST / 8);
        let file = Kept {
            name: format!("file-{}", self.number),
            bytes: usize::try_from(words * 8)?,
            seed: self.random.word(),
        };
        let first = self.directory.join(format!("new-{}", self.number));
        self.write(&first, &file)?;
        self.compare(&first, &file)?;
        let path = self.directory.join(&file.name);
        fs::rename(&first, &path).with_context(|| format!("{}: cannot be renamed", first.display()))?;
        File::open(&self.directory).and_then(|opened| opened.sync_all()).context("the directory cannot be synced")?;
        self.kept.push(file);
        if self.kept.len() > KEPT {
            let old = self.kept.swap_remove(self.random.place(KEPT));
            let path = self.directory.join(&old.name);
            self.compare(&path, &old)?;
            fs::remove_file(&path).with_context(|| format!("{}: cannot be removed", path.display()))?;
        }
        self.demand_all()
    }

    fn write(&self, path: &Path, kept: &Kept) -> Result<()> {
        let mut bytes = vec![0; kept.bytes];
        pattern::fill(&mut bytes, kept.seed, 0);
        let file = File::create_new(path).and_then(|mut file| file.write_all(&bytes).map(|()| file));
        let synced = file.and_then(|file| file.sync_all());
        synced.with_context(|| format!("{}: cannot be written", path.display()))
    }

    /// Reads a file and compares it: every other time from the disk, otherwise perhaps from the page cache.
    fn compare(&mut self, path: &Path, kept: &Kept) -> Result<()> {
        let mut bytes = Vec::new();
        let mut file = File::open(path).with_context(|| format!("{}: cannot be opened", path.display()))?;
        if self.random.one_in(2) {
            // Its pages are clean, so that they are dropped.
            posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).context("posix_fadvise")?;
        }
        file.read_to_end(&mut bytes).with_context(|| format!("{}: cannot be read", path.display()))?;
        ensure!(bytes.len() == kept.bytes, "{}: {} bytes in place of {}", path.display(), bytes.len(), kept.bytes);
        match pattern::mismatch(&bytes, kept.seed, 0) {
            None => Ok(()),
            Some(word) => bail!("{}: byte {} is not what was written", path.display(), word * 8),
        }
    }

    /// The directory holds exactly the files that are kept.
    fn demand_all(&self) -> Result<()> {
        let directory = fs::read_dir(&self.directory).context("the directory cannot be read")?;
        let names = directory.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        let mut names: Vec<String> = names.collect::<Result<_>>().context("the directory cannot be read")?;
        let mut expected: Vec<&str> = self.kept.iter().map(|kept| kept.name.as_str()).collect();
        names.sort_unstable();
        expected.sort_unstable();
        ensure!(names == expected, "the directory holds {names:?} and must hold {expected:?}");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn after_operations(count: usize) -> (Files, tempfile::TempDir) {
        let directory = tempfile::tempdir().unwrap();
        let mut files = Files::new(directory.path(), 7).unwrap();
        for _ in 0..count {
            files.operation().unwrap();
        }
        (files, directory)
    }

    #[test]
    fn files_come_and_go() {
        let (files, directory) = after_operations(KEPT + 20);
        assert_eq!(files.kept.len(), KEPT);
        assert_eq!(fs::read_dir(directory.path().join(OWN)).unwrap().count(), KEPT);
        assert!(files.kept.iter().any(|kept| kept.name == format!("file-{}", KEPT + 20)));
    }

    #[test]
    fn a_changed_byte_and_a_file_too_many_are_errors() {
        let (mut files, directory) = after_operations(2);
        let path = directory.path().join(OWN).join("file-2");
        let mut bytes = fs::read(&path).unwrap();
        bytes[9] ^= 1;
        fs::write(&path, &bytes).unwrap();
        let kept = files.kept.pop().unwrap();
        let error = files.compare(&path, &kept).unwrap_err().to_string();
        assert!(error.contains("byte 8 "), "{error}");
        assert!(files.demand_all().is_err(), "one is there that is not kept any more");
    }
}
