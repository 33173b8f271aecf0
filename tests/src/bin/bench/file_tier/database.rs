//! What the in-memory database is filled with, as a stream of its commands (RESP).

use std::io::{Result, Write};

/// Words for the structured half.
const WORDS: [&str; 32] = [
    "active",
    "address",
    "amount",
    "archive",
    "berlin",
    "billing",
    "cancelled",
    "card",
    "checkout",
    "customer",
    "delivered",
    "discount",
    "express",
    "failed",
    "gift",
    "invoice",
    "item",
    "lisbon",
    "mobile",
    "nairobi",
    "order",
    "osaka",
    "paid",
    "pending",
    "quantity",
    "refund",
    "returned",
    "shipping",
    "standard",
    "toronto",
    "voucher",
    "warehouse",
];

/// Writes commands whose values have `bytes` bytes together: as many of random bytes as of structured text. Some keys
/// are set a second time with another length and some deleted, so that the heap is not as tidy as one that was only
/// filled.
pub(super) fn write(output: &mut impl Write, bytes: u64) -> Result<()> {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let (mut written, mut text, mut blobs, mut key) = (0, 0, 0, 0_u64);
    while written < bytes {
        let value = if text <= blobs { structured(&mut random, key) } else { random.bytes(random_len(key)) };
        let kind = if text <= blobs { "order" } else { "blob" };
        *(if text <= blobs { &mut text } else { &mut blobs }) += value.len() as u64;
        written += value.len() as u64;
        command(output, &[b"SET", format!("{kind}:{key:012}").as_bytes(), &value])?;
        if key.is_multiple_of(16) {
            let (earlier, len) = (format!("{kind}:{:012}", key / 2), random_len(key / 3));
            command(output, &[b"SET", earlier.as_bytes(), &random.bytes(len)])?;
        }
        if key % 16 == 7 {
            command(output, &[b"DEL", format!("{kind}:{:012}", key / 2).as_bytes()])?;
        }
        key += 1;
    }
    output.flush()
}

fn command(output: &mut impl Write, words: &[&[u8]]) -> Result<()> {
    write!(output, "*{}\r\n", words.len())?;
    for word in words {
        write!(output, "${}\r\n", word.len())?;
        output.write_all(word)?;
        output.write_all(b"\r\n")?;
    }
    Ok(())
}

/// 256 bytes to 4 KiB.
fn random_len(key: u64) -> usize {
    256 + usize::try_from(key * 2_654_435_761 % 3840).unwrap_or(0)
}

/// An order of a shop, as JSON.
fn structured(random: &mut Random, key: u64) -> Vec<u8> {
    let (state, city) = (random.word(), random.word());
    let mut text = format!("{{\"id\":{key},\"state\":\"{state}\",\"customer\":{{\"city\":\"{city}\"}},\"items\":[");
    for line in 0..key % 12 + 1 {
        let (name, first, second, number) = (random.word(), random.word(), random.word(), random.next());
        let (article, quantity, price, cents) =
            (number & 0xff_ffff, number >> 60, number >> 40 & 0xfff, number >> 52 & 0x3f);
        text += &format!(
            "{{\"line\":{line},\"article\":\"{name}-{article:06x}\",\"quantity\":{quantity},\
             \"price\":{price}.{cents:02},\"note\":\"{first} {second}\"}},"
        );
    }
    text.push_str("null]}");
    text.into_bytes()
}

/// xorshift64: the same numbers in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn word(&mut self) -> &'static str {
        WORDS[usize::from(self.next().to_be_bytes()[0]) % WORDS.len()]
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            bytes.extend(self.next().to_le_bytes());
        }
        bytes.truncate(len);
        bytes
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_stream_is_whole_commands_and_half_random() {
        let mut bytes = Vec::new();
        write(&mut bytes, 1 << 20).unwrap();
        let mut sums = std::collections::HashMap::from([("order", 0), ("blob", 0)]);
        let mut rest = bytes.as_slice();
        let line = |rest: &mut &[u8], mark: u8| {
            let end = rest.windows(2).position(|pair| pair == b"\r\n").unwrap();
            assert_eq!(rest[0], mark);
            let number: usize = std::str::from_utf8(&rest[1..end]).unwrap().parse().unwrap();
            *rest = &rest[end + 2..];
            number
        };
        while !rest.is_empty() {
            let words: Vec<&[u8]> = (0..line(&mut rest, b'*'))
                .map(|_| {
                    let len = line(&mut rest, b'$');
                    let (word, after) = rest.split_at(len);
                    rest = after.strip_prefix(b"\r\n").unwrap();
                    word
                })
                .collect();
            if let [b"SET", key, value] = words.as_slice() {
                let is_json = serde_json::from_slice::<serde_json::Value>(value).is_ok();
                *sums.get_mut(if is_json { "order" } else { "blob" }).unwrap() += value.len();
                assert!(key.starts_with(b"order:") || key.starts_with(b"blob:"));
            } else {
                assert!(matches!(words.as_slice(), [b"DEL", _]), "{words:?}");
            }
        }
        // Random bytes are a little more than half, for some of them replace text.
        assert!(sums["order"] > 500_000 && sums["blob"] > 500_000 && sums["blob"] < 700_000, "{sums:?}");
    }
}
