//! The CPUs in ACPI's MADT (ACPI 6.5, 5.2.12): what the machine has, whatever a kernel was told to leave out.

use std::collections::BTreeSet;

/// The table's own fields, before its structures.
const FIXED: usize = 44;
/// Processor Local APIC: ACPI's number, APIC's number, flags of 4 bytes.
const LOCAL_APIC: u8 = 0;
/// Processor Local x2APIC: two reserved bytes, x2APIC's number of 4 bytes, flags of 4 bytes.
const LOCAL_X2APIC: u8 = 9;
/// The processor is there. Without it, there may be one later.
const ENABLED: u32 = 1;

/// How many CPUs the table lists as there. What is not a table lists none.
///
/// As the kernel reads it (arch/x86/kernel/acpi/boot.c, `acpi_parse_lapic` and `acpi_parse_x2apic` in Linux 6.12):
/// numbers with all bits set are nobody's, and where there are local APICs, numbers below 255 belong to them alone.
pub fn cpus(table: &[u8]) -> u32 {
    let (mut local, mut extended) = (BTreeSet::new(), BTreeSet::new());
    let mut rest = table.get(FIXED..).unwrap_or_default();
    while let [kind, len, ..] = *rest {
        let Some((entry, after)) = rest.split_at_checked(len.into()).filter(|(entry, _)| entry.len() >= 2) else {
            break;
        };
        let word = |at: usize| {
            let bytes = entry.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
            bytes.map_or(0, u32::from_le_bytes)
        };
        match kind {
            LOCAL_APIC if word(4) & ENABLED != 0 && entry[3] != u8::MAX => drop(local.insert(entry[3])),
            LOCAL_X2APIC if word(8) & ENABLED != 0 && word(4) != u32::MAX => drop(extended.insert(word(4))),
            _ => {}
        }
        rest = after;
    }
    if !local.is_empty() {
        extended.retain(|id| *id >= u8::MAX.into());
    }
    u32::try_from(local.len() + extended.len()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn local(id: u8, flags: u8) -> Vec<u8> {
        vec![LOCAL_APIC, 8, id, id, flags, 0, 0, 0]
    }

    fn extended(id: u32, flags: u8) -> Vec<u8> {
        let mut entry = vec![LOCAL_X2APIC, 16, 0, 0];
        entry.extend(id.to_le_bytes());
        entry.extend([flags, 0, 0, 0, 0, 0, 0, 0]);
        entry
    }

    fn table(entries: &[Vec<u8>]) -> Vec<u8> {
        [vec![7; FIXED], entries.concat()].concat()
    }

    #[test]
    fn counts_what_is_there() {
        // An I/O APIC is none; a place for one, and numbers that are nobody's, are none either.
        let io_apic = vec![1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let bytes = table(&[local(0, 1), io_apic, local(2, 1), local(3, 0), local(4, 2), local(255, 1)]);
        assert_eq!(cpus(&bytes), 2);
        assert_eq!(cpus(&table(&[extended(0, 1), extended(300, 1), extended(301, 0), extended(u32::MAX, 1)])), 2);
    }

    #[test]
    fn counts_no_cpu_twice() {
        let twice = [local(0, 1), local(1, 1), local(1, 1), extended(0, 1), extended(1, 1), extended(256, 1)];
        assert_eq!(cpus(&table(&twice)), 3);
    }

    #[test]
    fn damaged_tables_end_early() {
        assert_eq!(cpus(&[]), 0);
        assert_eq!(cpus(&[7; FIXED]), 0);
        let whole = table(&[local(0, 1), local(1, 1)]);
        assert_eq!(cpus(&whole[..whole.len() - 1]), 1);
        assert_eq!(cpus(&table(&[local(0, 1), vec![0, 0], local(1, 1)])), 1);
        assert_eq!(cpus(&table(&[local(0, 1), vec![0, 1], local(1, 1)])), 1);
        // Too short for its kind.
        assert_eq!(cpus(&table(&[vec![0, 3, 1], vec![9, 4, 1, 1]])), 0);
    }
}
