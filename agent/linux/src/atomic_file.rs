//! Files that are replaced whole.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Writes a file with these permissions, and the directories that it is in, so that it is at any time the old or the
/// new one, also after a power cut.
///
/// # Errors
/// The file, or a directory, cannot be written. What was at its place stays.
pub fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let dir = path.parent().filter(|dir| *dir != Path::new("")).unwrap_or(Path::new("."));
    fs::create_dir_all(dir)?;
    // It is removed where a step fails.
    let mut temporary = tempfile::Builder::new().prefix(".dormouse.").tempfile_in(dir)?;
    temporary.write_all(bytes)?;
    temporary.as_file().set_permissions(fs::Permissions::from_mode(mode))?;
    temporary.as_file().sync_all()?;
    temporary.persist(path).map_err(|error| error.error)?;
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_with_its_directories_and_nothing_beside_it() {
        let top = tempfile::tempdir().unwrap();
        let path = top.path().join("a/b");
        for (text, mode) in [("old", 0o644), ("new", 0o600)] {
            replace(&path, text.as_bytes(), mode).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, mode);
        }
        assert_eq!(fs::read_dir(top.path().join("a")).unwrap().count(), 1);
        // A directory is in the way.
        fs::create_dir(top.path().join("c")).unwrap();
        assert!(replace(&top.path().join("c"), b"", 0o644).is_err());
        assert_eq!(fs::read_dir(top.path()).unwrap().count(), 2);
    }
}
