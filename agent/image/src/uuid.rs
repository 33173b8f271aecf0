//! Identities of 16 bytes: of an image device, of a save, of a boot.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// 16 bytes, written in the usual 8-4-4-4-12 form.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Uuid(pub [u8; 16]);

/// Text that is not a UUID.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("`{0}` is not a UUID of the form 01234567-89ab-cdef-0123-456789abcdef")]
pub struct UuidError(pub String);

impl Uuid {
    /// A version 4 UUID (RFC 9562) of random bytes.
    #[must_use]
    pub fn from_random(mut bytes: [u8; 16]) -> Uuid {
        bytes[6] = bytes[6] & 0x0f | 0x40;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        Uuid(bytes)
    }
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, byte) in self.0.iter().enumerate() {
            if matches!(at, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Uuid {
    type Err = UuidError;

    fn from_str(text: &str) -> Result<Uuid, UuidError> {
        let error = || UuidError(text.chars().take(64).collect());
        let bytes = text.as_bytes();
        let dashes = bytes.len() == 36 && [8, 13, 18, 23].iter().all(|at| bytes[*at] == b'-');
        let digits: Vec<u8> = bytes.iter().filter(|byte| byte.is_ascii_hexdigit()).copied().collect();
        if !dashes || digits.len() != 32 {
            return Err(error());
        }
        let mut uuid = Uuid::default();
        for (byte, pair) in uuid.0.iter_mut().zip(digits.chunks_exact(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| error())?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| error())?;
        }
        Ok(uuid)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn text_and_back() {
        let text = "01234567-89ab-cdef-0123-456789abcdef";
        let uuid: Uuid = text.parse().unwrap();
        assert_eq!((uuid.0[0], uuid.0[15], uuid.to_string().as_str()), (0x01, 0xef, text));
        assert_eq!(text.to_uppercase().parse(), Ok(uuid));
    }

    #[test]
    fn rejects_non_uuid_text() {
        for text in [
            "",
            "x",
            "0123456789abcdef0123456789abcdef",
            "01234567-89ab-cdef-0123-456789abcdeg",
            "01234567+89ab-cdef-0123-456789abcdef",
            "01234567-89ab-cdef-0123-456789abcde-",
            "é1234567-89ab-cdef-0123-456789abcde",
        ] {
            assert!(text.parse::<Uuid>().is_err(), "{text}");
        }
    }

    #[test]
    fn random_bytes_become_a_version_4_uuid() {
        let uuid = Uuid::from_random([0xff; 16]);
        assert_eq!((uuid.0[6] >> 4, uuid.0[8] >> 6), (4, 2));
        assert_eq!(uuid.0[0], 0xff);
    }
}
