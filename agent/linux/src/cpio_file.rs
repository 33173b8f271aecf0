//! Files out of an initramfs, without unpacking the rest.

/// The content of the file `path` in an initramfs: one archive or several in the `newc` form, uncompressed or, as a
/// whole, compressed by zstd. `None` where it is not there, or the archive has another form.
#[must_use]
pub fn find(initramfs: &[u8], path: &str) -> Option<Vec<u8>> {
    let [found] = find_each(initramfs, [path]);
    found
}

/// The same of several files, for which it is decompressed once.
#[must_use]
pub fn find_each<const N: usize>(initramfs: &[u8], paths: [&str; N]) -> [Option<Vec<u8>>; N] {
    let unpacked = initramfs.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]).then(|| zstd::decode_all(initramfs));
    let archives = match &unpacked {
        Some(unpacked) => unpacked.as_ref().map_or(&[][..], Vec::as_slice),
        None => initramfs,
    };
    paths.map(|path| in_archives(archives, path))
}

fn in_archives(mut rest: &[u8], path: &str) -> Option<Vec<u8>> {
    let path = path.trim_start_matches('/');
    loop {
        // Between two archives there are zeroes.
        rest = rest.get(rest.iter().position(|byte| *byte != 0)?..)?;
        let header = rest.get(..110).filter(|header| header.starts_with(b"070701"))?;
        let field = |number: usize| {
            let digits = header.get(6 + number * 8..14 + number * 8)?;
            usize::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
        };
        let (size, name_size) = (field(6)?, field(11)?);
        let start = (110_usize.checked_add(name_size)?).checked_next_multiple_of(4)?;
        let end = start.checked_add(size)?;
        let name = rest.get(110..110 + name_size.checked_sub(1)?)?;
        if name == path.as_bytes() {
            return rest.get(start..end).map(<[u8]>::to_vec);
        }
        rest = rest.get(end.checked_next_multiple_of(4)?.min(rest.len())..)?;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::cpio::Archive;

    #[test]
    fn finds_a_file_in_any_of_several_archives() {
        let archive = |name: &str, bytes: &[u8]| Archive::new().file(name, 0o644, bytes.to_vec()).finish().unwrap();
        let both = [archive("/kernel/microcode", b"12345"), archive("/etc/dormouse/modules", b"ahci\n")].concat();
        assert_eq!(find(&both, "/etc/dormouse/modules").unwrap(), b"ahci\n");
        assert_eq!(find(&both, "kernel/microcode").unwrap(), b"12345");
        assert_eq!(find(&both, "/etc/dormouse"), Some(Vec::new()));
        assert_eq!(find(&both, "/etc/other"), None);
        let compressed = zstd::encode_all(both.as_slice(), 1).unwrap();
        assert_eq!(find(&compressed, "/etc/dormouse/modules").unwrap(), b"ahci\n");
    }

    #[test]
    fn whatever_else_it_is_nothing_is_found() {
        let whole = Archive::new().file("/a", 0o644, vec![7; 100]).finish().unwrap();
        assert!((0..200).all(|len| find(&whole[..len], "/a").is_none()));
        for bytes in [&b""[..], b"\x1f\x8b", b"070701zz", &[0; 600], b"\x28\xb5\x2f\xfd"] {
            assert_eq!(find(bytes, "/a"), None);
        }
    }
}
