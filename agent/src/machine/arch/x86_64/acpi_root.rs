//! ACPI's root pointer.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::machine::acpi::AcpiRoot;

/// `acpi_rsdp_addr` in boot_params, which the kernel's decompressor fills in (Linux 6.12,
/// arch/x86/boot/compressed/misc.c, `extract_kernel`; Documentation/arch/x86/zero-page.rst).
const RSDP: std::ops::Range<usize> = 0x70..0x78;
/// `/dev/mem` may be read below it whatever the kernel restricts (arch/x86/mm/init.c, `devmem_is_allowed`).
const LOW: u64 = 1 << 20;

/// The pointer that only UEFI knows, or the one that the kernel was started with; and the table that it leads to, where
/// it can be read.
#[must_use]
pub fn acpi_root(by_uefi: Option<u64>, boot_params: &[u8]) -> AcpiRoot {
    let of_kernel = || boot_params.get(RSDP)?.try_into().ok().map(u64::from_le_bytes).filter(|address| *address != 0);
    let pointer = by_uefi.or_else(of_kernel);
    AcpiRoot { pointer, table: pointer.filter(|pointer| *pointer < LOW).and_then(table) }
}

fn table(pointer: u64) -> Option<u64> {
    let mut bytes = [0; 36];
    File::open("/dev/mem").ok()?.read_exact_at(&mut bytes, pointer).ok()?;
    root_table(&bytes)
}

/// The XSDT, or else the RSDT, of a root pointer (ACPI 6.5, 5.2.5.3).
fn root_table(bytes: &[u8; 36]) -> Option<u64> {
    let (head, rest) = bytes.split_at(20);
    let sum = |bytes: &[u8]| bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
    if head.get(..8)? != b"RSD PTR " || sum(head) != 0 {
        return None;
    }
    let rsdt = u64::from(u32::from_le_bytes(head.get(16..20)?.try_into().ok()?));
    let xsdt = u64::from_le_bytes(rest.get(4..12)?.try_into().ok()?);
    match head.get(15)? {
        0 => Some(rsdt),
        _ if sum(bytes) != 0 => None,
        _ => Some(if xsdt == 0 { rsdt } else { xsdt }),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn pointer(revision: u8, rsdt: u32, xsdt: u64) -> [u8; 36] {
        let mut bytes = [0; 36];
        bytes[..8].copy_from_slice(b"RSD PTR ");
        bytes[15] = revision;
        bytes[16..20].copy_from_slice(&rsdt.to_le_bytes());
        bytes[20] = 36;
        bytes[24..32].copy_from_slice(&xsdt.to_le_bytes());
        for (len, at) in [(20, 8), (36, 32)] {
            bytes[at] = 0_u8.wrapping_sub(bytes[..len].iter().fold(0, |sum: u8, byte| sum.wrapping_add(*byte)));
        }
        bytes
    }

    #[test]
    fn a_pointer_leads_to_its_table() {
        assert_eq!(root_table(&pointer(0, 0x7ffe_1000, 9)), Some(0x7ffe_1000));
        assert_eq!(root_table(&pointer(2, 0x7ffe_1000, 0x7ffe_2000)), Some(0x7ffe_2000));
        assert_eq!(root_table(&pointer(2, 0x7ffe_1000, 0)), Some(0x7ffe_1000));
        assert_eq!(root_table(&[0; 36]), None);
        let mut damaged = pointer(2, 0x7ffe_1000, 0x7ffe_2000);
        damaged[25] += 1;
        assert_eq!(root_table(&damaged), None);
    }

    #[test]
    fn the_pointer_of_uefi_comes_first() {
        let mut boot_params = vec![0; 4096];
        assert_eq!(acpi_root(None, &boot_params), AcpiRoot::default());
        assert_eq!(acpi_root(None, &[]), AcpiRoot::default());
        boot_params[0x70..0x78].copy_from_slice(&0x7ffe_0014_u64.to_le_bytes());
        assert_eq!(acpi_root(None, &boot_params).pointer, Some(0x7ffe_0014));
        assert_eq!(acpi_root(Some(0x3f77_e014), &boot_params), AcpiRoot { pointer: Some(0x3f77_e014), table: None });
    }
}
