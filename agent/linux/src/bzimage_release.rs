//! Which release a bzImage is of, so that modules are taken from the directory that belongs to it.

use std::path::Path;

use anyhow::Context;

use crate::procfs;

/// `kernel_version` of the setup header: where the version text is, counted from the second sector
/// (Documentation/arch/x86/boot.rst).
const KERNEL_VERSION: usize = 0x20e;
/// The longest text that is looked at. The kernel's own limit on a release is 64 bytes (`__NEW_UTS_LEN`).
const MAX_TEXT: usize = 256;
/// Enough of a bzImage to hold the text, in bytes: the setup code has at most 64 sectors.
const HEAD_LEN: u64 = 0x200 * 65;

/// The kernel release that a bzImage names.
///
/// # Errors
/// The file cannot be read, or names none.
pub fn of_file(bzimage: &Path) -> anyhow::Result<String> {
    of_bzimage(&procfs::head(bzimage, HEAD_LEN)?)
        .with_context(|| format!("{}: it is not a bzImage that names its release", bzimage.display()))
}

/// The kernel release that the beginning of a bzImage names, or `None` where they name none.
pub fn of_bzimage(head: &[u8]) -> Option<String> {
    if head.get(0x202..0x206)? != b"HdrS" {
        return None;
    }
    let pointer = head.get(KERNEL_VERSION..KERNEL_VERSION + 2)?;
    let offset = usize::from(u16::from_le_bytes(pointer.try_into().ok()?));
    if offset == 0 {
        return None;
    }
    let text = head.get(0x200 + offset..)?;
    let end = text.iter().take(MAX_TEXT).position(|byte| *byte == 0)?;
    let release = std::str::from_utf8(&text[..end]).ok()?.split_whitespace().next()?;
    // It becomes a part of a path.
    let plain = |c: char| c.is_ascii_alphanumeric() || "._+-~".contains(c);
    (release.chars().all(plain) && !release.starts_with('.')).then(|| release.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(offset: u16, text: &[u8]) -> Vec<u8> {
        let mut head = vec![0; 0x600];
        head[0x202..0x206].copy_from_slice(b"HdrS");
        head[KERNEL_VERSION..KERNEL_VERSION + 2].copy_from_slice(&offset.to_le_bytes());
        let start = 0x200 + usize::from(offset);
        let room = head.len().saturating_sub(start).min(text.len());
        head[start..start + room].copy_from_slice(&text[..room]);
        head
    }

    #[test]
    fn the_first_word_is_the_release() {
        let head = head(0x300, b"6.12.117-amd64 (build@host) #1 SMP\0");
        assert_eq!(of_bzimage(&head).as_deref(), Some("6.12.117-amd64"));
    }

    #[test]
    fn anything_else_names_none() {
        let not_a_kernel = vec![0; 0x600];
        let no_text = head(0, b"6.12\0");
        let outside = head(0x3ff, b"6");
        let a_path = head(0x300, b"../../etc\0");
        let empty = head(0x300, b"\0");
        for head in [not_a_kernel, no_text, outside, a_path, empty, Vec::new()] {
            assert_eq!(of_bzimage(&head), None);
        }
    }
}
