//! Variables of UEFI's, as efivarfs shows them (Documentation/filesystems/efivarfs.rst): four bytes of attributes, and
//! then the value.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use dormouse_sys::immutable;

/// Where efivarfs is mounted.
pub const DIRECTORY: &str = "/sys/firmware/efi/efivars";

/// `EFI_VARIABLE_NON_VOLATILE`, `_BOOTSERVICE_ACCESS` and `_RUNTIME_ACCESS`.
const ATTRIBUTES: u32 = 7;

/// A variable, which need not be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Variable(PathBuf);

impl Variable {
    /// That of a vendor, a UUID, with this name.
    #[must_use]
    pub fn new(name: &str, vendor: &str) -> Variable {
        Variable(Path::new(DIRECTORY).join(format!("{name}-{vendor}")))
    }

    /// Its file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Its value as text, up to the first zero; `None` where it is not there.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn text(&self) -> io::Result<Option<String>> {
        match fs::read(&self.0) {
            // One that a boot loader has removed while this system was hibernated: efivarfs has its name yet, and shows
            // it as empty.
            Ok(bytes) => Ok(bytes.get(4..).map(decode)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Gives it this text, and makes it where it is not there: kept by the firmware, seen at boot and at runtime.
    ///
    /// # Errors
    /// The firmware does not take it.
    pub fn set_text(&self, text: &str) -> io::Result<()> {
        self.make_mutable()?;
        let bytes = [&ATTRIBUTES.to_le_bytes()[..], &encode(text)].concat();
        // Whole, by one write(2).
        let written = OpenOptions::new().write(true).create(true).truncate(false).open(&self.0)?.write(&bytes)?;
        if written == bytes.len() { Ok(()) } else { Err(ErrorKind::WriteZero.into()) }
    }

    /// Removes it, where it is there.
    ///
    /// # Errors
    /// The firmware does not remove it.
    pub fn remove(&self) -> io::Result<()> {
        match self.make_mutable().and_then(|()| fs::remove_file(&self.0)) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }

    fn make_mutable(&self) -> io::Result<()> {
        match File::open(&self.0) {
            Ok(file) => immutable::clear(&file),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// UTF-16, with a final zero.
fn encode(text: &str) -> Vec<u8> {
    text.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect()
}

fn decode(bytes: &[u8]) -> String {
    let units = bytes.chunks_exact(2).filter_map(|pair| pair.try_into().ok()).map(u16::from_le_bytes);
    let units: Vec<u16> = units.take_while(|unit| *unit != 0).collect();
    String::from_utf16_lossy(&units)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_variable_is_set_whole_read_and_removed() {
        let directory = tempfile::tempdir().unwrap();
        let variable = Variable(directory.path().join("LoaderEntryOneShot"));
        assert_eq!(variable.text().unwrap(), None);
        variable.remove().unwrap();
        variable.set_text("a.b").unwrap();
        assert_eq!(fs::read(variable.path()).unwrap(), b"\x07\0\0\0a\0.\0b\0\0\0");
        assert_eq!(variable.text().unwrap().unwrap(), "a.b");
        variable.set_text("c.d").unwrap();
        assert_eq!(variable.text().unwrap().unwrap(), "c.d");
        fs::write(variable.path(), "").unwrap();
        assert_eq!(variable.text().unwrap(), None);
        variable.remove().unwrap();
        assert_eq!(variable.text().unwrap(), None);
    }

    #[test]
    fn what_is_no_text_is_read_as_far_as_it_is() {
        assert_eq!(decode(&[]), "");
        assert_eq!(decode(&[b'a', 0, 0xff]), "a");
        assert_eq!(decode(&[b'a', 0, 0x00, 0xd8]), "a\u{fffd}");
    }
}
