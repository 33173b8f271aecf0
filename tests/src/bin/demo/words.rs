//! Splits a command line as a shell does: at blanks, but not within quotes.

use anyhow::{Result, bail};

/// The words of `text`.
///
/// # Errors
/// Fails where a quote is not closed, or the text ends in a backslash.
pub(crate) fn split(text: &str) -> Result<Vec<String>> {
    let mut words = Vec::new();
    // Nothing between words: a word may be empty, if it is quoted.
    let mut word: Option<String> = None;
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match character {
            ' ' | '\t' | '\n' => words.extend(word.take()),
            '\'' => {
                let word = word.get_or_insert_default();
                loop {
                    match characters.next() {
                        Some('\'') => break,
                        Some(character) => word.push(character),
                        None => bail!("{text:?}: a quote (') is not closed"),
                    }
                }
            }
            '"' => {
                let word = word.get_or_insert_default();
                loop {
                    match characters.next() {
                        Some('"') => break,
                        // In double quotes it is for these alone.
                        Some('\\') => match characters.next() {
                            Some(escaped @ ('"' | '\\' | '$' | '`')) => word.push(escaped),
                            Some(other) => word.extend(['\\', other]),
                            None => bail!("{text:?}: a quote (\") is not closed"),
                        },
                        Some(character) => word.push(character),
                        None => bail!("{text:?}: a quote (\") is not closed"),
                    }
                }
            }
            '\\' => match characters.next() {
                Some(escaped) => word.get_or_insert_default().push(escaped),
                None => bail!("{text:?}: it ends in a backslash"),
            },
            character => word.get_or_insert_default().push(character),
        }
    }
    words.extend(word);
    Ok(words)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::split;

    #[test]
    fn words_and_quotes() {
        assert!(split(" \t").unwrap().is_empty());
        assert_eq!(split("-device nvdimm  -m 1G").unwrap(), ["-device", "nvdimm", "-m", "1G"]);
        assert_eq!(split("-a 'x  y' \"z \\\" $\"").unwrap(), ["-a", "x  y", "z \" $"]);
        assert_eq!(split("a'b'\"c\"\\ d ''").unwrap(), ["abc d", ""]);
        assert_eq!(split(r#""\n""#).unwrap(), [r"\n"]);
    }

    #[test]
    fn rejects_what_is_not_closed() {
        for text in ["'a", "a \"b", "a\\", "\"\\"] {
            assert!(split(text).is_err(), "{text:?}");
        }
    }
}
