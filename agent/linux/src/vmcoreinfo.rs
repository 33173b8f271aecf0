//! VMCOREINFO: what a kernel reports about its own memory layout, as lines of `KEY=value` in an ELF note.
//!
//! Numbers are signed decimal, symbols hexadecimal without a prefix, sizes and offsets decimal
//! (include/linux/vmcore_info.h, Linux 6.12).

use std::collections::HashMap;

/// The name of the ELF note, with its final zero.
pub const NOTE: &[u8] = b"VMCOREINFO\0";

/// Whether a page begins as VMCOREINFO's note does, whose first line is `OSRELEASE` (kernel/vmcore_info.c, Linux 6.12).
#[must_use]
pub fn begins_note(page: &[u8]) -> bool {
    // The name's length, the content's, which may be any, and the type; the name, padded; the content.
    let (Some(head), Some(rest)) = (page.get(..12), page.get(12..)) else { return false };
    head[..4] == [11, 0, 0, 0] && head[8..] == [0; 4] && rest.starts_with(b"VMCOREINFO\0\0OSRELEASE=")
}

/// The content of the note called `name` among `notes`.
#[must_use]
pub fn find_note(mut notes: &[u8], name: &[u8]) -> Option<Vec<u8>> {
    loop {
        let word = |at: usize| notes.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes);
        let (name_len, content_len) = (word(0)? as usize, word(4)? as usize);
        let content = 12 + name_len.next_multiple_of(4);
        if notes.get(12..12 + name_len)? == name {
            return notes.get(content..content + content_len).map(<[u8]>::to_vec);
        }
        notes = notes.get(content + content_len.next_multiple_of(4)..)?;
    }
}

/// The lines of one VMCOREINFO note.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VmcoreInfo {
    values: HashMap<String, String>,
}

impl VmcoreInfo {
    /// Reads the note's text. Lines that are not `KEY=value` are skipped; the first of two lines with one key holds.
    #[must_use]
    pub fn parse(text: &[u8]) -> VmcoreInfo {
        let mut values = HashMap::new();
        for line in String::from_utf8_lossy(text).lines() {
            if let Some((key, value)) = line.split_once('=') {
                values.entry(key.to_string()).or_insert_with(|| value.trim_end_matches('\0').to_string());
            }
        }
        VmcoreInfo { values }
    }

    /// The value of a key as it is written.
    #[must_use]
    pub fn text(&self, key: &str) -> Option<&str> {
        self.values.get(key).map(String::as_str)
    }

    /// `NUMBER(name)`, as its 64 bits.
    #[must_use]
    pub fn number(&self, name: &str) -> Option<u64> {
        let value: i64 = self.text(&format!("NUMBER({name})"))?.parse().ok()?;
        Some(value.cast_unsigned())
    }

    /// `SYMBOL(name)`: a virtual address.
    #[must_use]
    pub fn symbol(&self, name: &str) -> Option<u64> {
        u64::from_str_radix(self.text(&format!("SYMBOL({name})"))?, 16).ok()
    }

    /// `SIZE(name)`, `OFFSET(name)` or `LENGTH(name)`, in bytes or elements; `kind` is the word before the parenthesis.
    #[must_use]
    pub fn measure(&self, kind: &str, name: &str) -> Option<usize> {
        self.text(&format!("{kind}({name})"))?.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_read_as_it_is_written() {
        let info = VmcoreInfo::parse(
            b"OSRELEASE=6.12.117\nSYMBOL(init_top_pgt)=ffffffff9c80c000\nSIZE(page)=64\nOFFSET(page._mapcount)=48\n\
              NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)=-268435456\nNUMBER(phys_base)=-16777216\nSIZE(page)=7\nnothing\n\0",
        );
        assert_eq!(info.text("OSRELEASE"), Some("6.12.117"));
        assert_eq!(info.symbol("init_top_pgt"), Some(0xffff_ffff_9c80_c000));
        assert_eq!(info.measure("SIZE", "page"), Some(64));
        assert_eq!(info.measure("OFFSET", "page._mapcount"), Some(48));
        assert_eq!(info.number("PAGE_BUDDY_MAPCOUNT_VALUE"), Some(0xffff_ffff_f000_0000));
        assert_eq!(info.number("phys_base"), Some(0xffff_ffff_ff00_0000));
        assert_eq!(info.symbol("page"), None);
    }
}
