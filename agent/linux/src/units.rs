//! Numbers of bytes as people read and write them.

/// MiB with a thousands separator, for people.
#[must_use]
pub fn mib(bytes: u64) -> String {
    thousands(bytes.div_ceil(1 << 20)) + " MiB"
}

/// A number with thousands separators.
#[must_use]
pub fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

const SUFFIXES: [(char, u64); 3] = [('G', 1 << 30), ('M', 1 << 20), ('K', 1 << 10)];

/// Reads a number of bytes with an optional suffix K, M or G (powers of 1024). `None` if it is not one, or
/// does not fit into 64 bits.
pub fn parse_bytes(text: &str) -> Option<u64> {
    let suffix = SUFFIXES.iter().find_map(|&(letter, unit)| Some((text.strip_suffix(letter)?, unit)));
    let (digits, unit) = suffix.unwrap_or((text, 1));
    // `u64::from_str` would also take a leading plus sign.
    if !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    digits.parse::<u64>().ok()?.checked_mul(unit)
}

/// Writes a number of bytes with the largest suffix that keeps it whole: what [`parse_bytes`] reads.
pub fn format_bytes(bytes: u64) -> String {
    let whole = SUFFIXES.iter().find(|(_, unit)| bytes != 0 && bytes.is_multiple_of(*unit));
    match whole {
        Some((letter, unit)) => format!("{}{letter}", bytes / unit),
        None => bytes.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_readable() {
        assert_eq!(
            [mib(0), mib(1), mib(512 << 20), mib(1204 << 20), mib(5 << 50)].join("; "),
            "0 MiB; 1 MiB; 512 MiB; 1,204 MiB; 5,368,709,120 MiB"
        );
    }
}
