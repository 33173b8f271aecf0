//! The block of a disk that a boot loader reads at every boot: whether it is to start D, and with which command line.
//! Pure.
//!
//! It is an environment block of GRUB's, as large as one block of the filesystem that holds it: GRUB writes to its
//! sectors in place, and so does B. Lines of `name=value` follow a first line that marks it; a backslash stands before
//! a backslash or a line feed of a value; `#` fills the rest.

use dormouse_image::BLOCK;
use thiserror::Error;

/// How it begins.
const MARK: &str = "# GRUB Environment Block\n";
/// The variable that GRUB itself sets back before it starts D.
const ARMED: &str = "dormouse_armed";
/// The variable with D's command line.
const COMMAND_LINE: &str = "dormouse_direct";

/// What is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootBlock {
    /// Whether the boot loader is to start D.
    pub is_armed: bool,
    /// With which command line.
    pub command_line: String,
}

/// It does not fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the restore kernel's command line of {0} bytes does not fit into the boot loader's block")]
pub struct TooLong(usize);

impl BootBlock {
    /// Its bytes.
    ///
    /// # Errors
    /// [`TooLong`].
    pub fn encode(&self) -> Result<Vec<u8>, TooLong> {
        let armed = if self.is_armed { '1' } else { '0' };
        let line = self.command_line.replace('\\', "\\\\").replace('\n', "\\\n");
        let mut bytes = format!("{MARK}{ARMED}={armed}\n{COMMAND_LINE}={line}\n").into_bytes();
        if bytes.len() > BLOCK {
            return Err(TooLong(self.command_line.len()));
        }
        bytes.resize(BLOCK, b'#');
        Ok(bytes)
    }

    /// Reads one that this program has written, and the boot loader has changed perhaps. `None` for anything else.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<BootBlock> {
        let text = std::str::from_utf8(bytes).ok()?.strip_prefix(MARK)?;
        let is_armed = match value(text, ARMED)?.as_str() {
            "0" => false,
            "1" => true,
            _ => return None,
        };
        Some(BootBlock { is_armed, command_line: value(text, COMMAND_LINE)? })
    }

    /// Which byte of a block arms it.
    #[must_use]
    pub fn arming_byte() -> usize {
        MARK.len() + ARMED.len() + 1
    }
}

/// The value of a variable.
fn value(text: &str, name: &str) -> Option<String> {
    let mut rest = text;
    loop {
        let end = end_of_line(rest)?;
        if let Some(value) = rest.get(..end)?.strip_prefix(name).and_then(|value| value.strip_prefix('=')) {
            let mut plain = String::with_capacity(value.len());
            let mut chars = value.chars();
            while let Some(char) = chars.next() {
                plain.extend(if char == '\\' { chars.next() } else { Some(char) });
            }
            return Some(plain);
        }
        rest = rest.get(end + 1..)?;
    }
}

/// Where the first line ends whose line feed has no backslash before it.
fn end_of_line(text: &str) -> Option<usize> {
    let mut is_escaped = false;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'\n' if !is_escaped => return Some(at),
            b'\\' if !is_escaped => is_escaped = true,
            _ => is_escaped = false,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn block(command_line: &str) -> BootBlock {
        BootBlock { is_armed: false, command_line: command_line.to_owned() }
    }

    /// As GRUB reads it.
    #[test]
    fn golden_block() {
        let bytes = block("console=ttyS0 a\\b").encode().unwrap();
        let text = "# GRUB Environment Block\ndormouse_armed=0\ndormouse_direct=console=ttyS0 a\\\\b\n####";
        assert!(bytes.starts_with(text.as_bytes()) && bytes.len() == 4096 && bytes.ends_with(b"####"));
    }

    #[test]
    fn one_byte_arms_it() {
        let mut bytes = block("quiet").encode().unwrap();
        assert_eq!(bytes[BootBlock::arming_byte()], b'0');
        bytes[BootBlock::arming_byte()] = b'1';
        assert_eq!(BootBlock::decode(&bytes), Some(BootBlock { is_armed: true, ..block("quiet") }));
        assert_eq!(bytes, BootBlock { is_armed: true, ..block("quiet") }.encode().unwrap());
    }

    #[test]
    fn what_does_not_fit_or_is_something_else_is_refused() {
        assert_eq!(block(&"x".repeat(5000)).encode(), Err(TooLong(5000)));
        for text in [
            "",
            "# GRUB Environment Block\n#####",
            "dormouse_armed=0\n",
            "# GRUB Environment Block\ndormouse_armed=2\n",
        ] {
            assert_eq!(BootBlock::decode(text.as_bytes()), None);
        }
    }

    proptest! {
        #[test]
        fn any_command_line_comes_back(line in "[ -~\\\\\n]{0,300}", is_armed: bool) {
            let block = BootBlock { is_armed, command_line: line };
            prop_assert_eq!(BootBlock::decode(&block.encode().unwrap()), Some(block));
        }

        #[test]
        fn noise_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = BootBlock::decode(&[MARK.as_bytes(), &bytes].concat());
        }
    }
}
