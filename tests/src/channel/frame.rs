//! One message, one line: `~dm1 <XXH3-64 of the JSON, 16 hex digits> <JSON>`.

use twox_hash::XxHash3_64;

use super::Message;

const MARK: &str = "~dm1";

/// The line of a message. It begins with a line end too, which ends whatever garbage stands before it.
///
/// # Errors
/// Fails where the message cannot be written as JSON, which no message of ours does.
pub fn encode(message: &Message) -> serde_json::Result<Vec<u8>> {
    let json = serde_json::to_string(message)?;
    Ok(format!("\n{MARK} {:016x} {json}\n", XxHash3_64::oneshot(json.as_bytes())).into_bytes())
}

/// The message of a line, or nothing where the line is not a whole one of ours.
#[must_use]
pub fn decode(line: &[u8]) -> Option<Message> {
    let line = std::str::from_utf8(line).ok()?.trim_end();
    let (checksum, json) = line.strip_prefix(MARK)?.strip_prefix(' ')?.split_once(' ')?;
    if u64::from_str_radix(checksum, 16).ok()? != XxHash3_64::oneshot(json.as_bytes()) {
        return None;
    }
    serde_json::from_str(json).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn messages_survive_the_line_and_damage_is_noticed() {
        let message = Message::Run { server: "b".into(), request: 7, command: "echo 'a\nb' \u{1b}ü".into() };
        let line = encode(&message).unwrap();
        let body = &line[1..line.len() - 1];
        assert!(!body.contains(&b'\n'), "a message is one line");
        assert_eq!(decode(body), Some(message.clone()));
        assert_eq!(decode(&[body, b"\r\n"].concat()), Some(message));
        for place in 0..body.len() {
            let mut damaged = body.to_vec();
            damaged[place] ^= 1;
            assert_eq!(decode(&damaged), None, "byte {place} was flipped unnoticed");
            assert_eq!(decode(&body[..place]), None);
        }
    }
}
