//! A kernel command line as arguments, and arguments as a kernel command line.
//!
//! The splitting follows the kernel's own `next_arg` (lib/cmdline.c in 6.12): blanks separate arguments
//! except between double quotes, quotes around a whole argument or a whole value do not belong to it, there
//! is no way to escape a quote, and whatever follows `--` is not the kernel's.

/// One argument of a kernel command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Argument<'a> {
    /// As written, quotes and all.
    pub raw: &'a str,
    /// What precedes the first equals sign.
    pub name: &'a str,
    /// What follows it, without quotes around the whole.
    pub value: Option<&'a str>,
}

impl<'a> Argument<'a> {
    fn new(raw: &'a str) -> Self {
        let bare = match raw.strip_prefix('"') {
            Some(inner) => inner.strip_suffix('"').unwrap_or(inner),
            None => raw,
        };
        // An equals sign in the first place does not end a name (`next_arg` takes position 0 as none).
        let equals = bare.char_indices().skip(1).find(|(_, c)| *c == '=');
        let (name, value) = match equals {
            Some((position, _)) => (&bare[..position], Some(&bare[position + 1..])),
            None => (bare, None),
        };
        let value = value.map(|value| match value.strip_prefix('"') {
            Some(inner) => inner.strip_suffix('"').unwrap_or(inner),
            None => value,
        });
        Self { raw, name, value }
    }

    /// Whether every quote that it opens is closed. One that is not swallows all arguments after it.
    pub fn is_closed(&self) -> bool {
        self.raw.matches('"').count().is_multiple_of(2)
    }

    /// Whether it is for Dormouse.
    pub fn is_ours(&self) -> bool {
        self.name == "dormouse" || self.name.starts_with("dormouse.")
    }
}

/// The arguments of a kernel command line, one after the other, `--` and what follows it included.
pub fn arguments(text: &str) -> impl Iterator<Item = Argument<'_>> {
    let mut rest = text;
    std::iter::from_fn(move || {
        rest = rest.trim_start_matches(is_blank);
        let mut in_quotes = false;
        let end = rest.find(|c| {
            in_quotes ^= c == '"';
            is_blank(c) && !in_quotes
        });
        let (raw, after) = rest.split_at(end.unwrap_or(rest.len()));
        rest = after;
        (!raw.is_empty()).then(|| Argument::new(raw))
    })
}

/// The kernel's `isspace` for ASCII.
fn is_blank(c: char) -> bool {
    c.is_ascii_whitespace() || c == '\x0b'
}

/// Joins arguments to a command line.
pub fn join<'a>(arguments: impl IntoIterator<Item = &'a str>) -> String {
    // Other blanks of Unicode belong to an argument.
    let trimmed = arguments.into_iter().map(|argument| argument.trim_matches(is_blank));
    let present: Vec<&str> = trimmed.filter(|argument| !argument.is_empty()).collect();
    present.join(" ")
}

/// `name=value`, the value in quotes where the kernel would otherwise split it or take quotes off it. The
/// value must not contain a quote, which a kernel command line cannot carry.
pub fn quoted(name: &str, value: &str) -> String {
    if value.is_empty() || value.contains(is_blank) { format!("{name}=\"{value}\"") } else { format!("{name}={value}") }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type NameAndValue<'a> = (&'a str, Option<&'a str>);

    fn split(text: &str) -> Vec<NameAndValue<'_>> {
        arguments(text).map(|argument| (argument.name, argument.value)).collect()
    }

    #[test]
    fn splits_as_the_kernel_does() {
        let table: [(&str, &[NameAndValue<'_>]); 9] = [
            ("", &[]),
            (" \t\n ", &[]),
            ("quiet  ro\n", &[("quiet", None), ("ro", None)]),
            ("a=b=c", &[("a", Some("b=c"))]),
            ("a=\"b c\" d", &[("a", Some("b c")), ("d", None)]),
            ("\"a=b c\" d", &[("a", Some("b c")), ("d", None)]),
            ("a=b\" \"c", &[("a", Some("b\" \"c"))]),
            ("=a=b", &[("=a", Some("b"))]),
            ("a=\"b c", &[("a", Some("b c"))]),
        ];
        for (text, expected) in table {
            assert_eq!(split(text), expected, "{text:?}");
        }
    }

    #[test]
    fn an_open_quote_is_noticed() {
        let closed: Vec<bool> = arguments("a=\"b\" c=\"d e").map(|argument| argument.is_closed()).collect();
        assert_eq!(closed, [true, false]);
    }

    #[test]
    fn joining_leaves_no_gaps() {
        assert_eq!(join(["a", "", " b c ", "d"]), "a b c d");
        assert_eq!(split(&join(["a=\u{3000}", "b\u{a0}"])), [("a", Some("\u{3000}")), ("b\u{a0}", None)]);
    }

    proptest! {
        #[test]
        fn a_quoted_value_is_read_back(value in "[^\"]{0,40}", next in "[a-z]{1,8}") {
            let line = join([quoted("name", &value).as_str(), next.as_str()]);
            prop_assert_eq!(split(&line), [("name", Some(value.as_str())), (next.as_str(), None)]);
        }

        #[test]
        fn no_text_is_lost_or_invented(text in any::<String>()) {
            let kept: String = arguments(&text).map(|argument| argument.raw).collect::<Vec<_>>().concat();
            let is_not_blank = |c: &char| !is_blank(*c);
            prop_assert_eq!(
                kept.chars().filter(is_not_blank).collect::<String>(),
                text.chars().filter(is_not_blank).collect::<String>()
            );
        }
    }
}
