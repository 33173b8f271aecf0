//! Errors with their causes, in one line.

use std::error::Error;

/// The text of `error` and of each of its causes, outermost first, separated by colons: what anyhow prints with `{:#}`,
/// for an error that is only borrowed.
#[must_use]
pub fn in_full(error: &(dyn Error + 'static)) -> String {
    std::iter::successors(Some(error), |error| (*error).source())
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Outer(std::io::Error);

    impl std::fmt::Display for Outer {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("outer")
        }
    }

    impl Error for Outer {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            Some(&self.0)
        }
    }

    #[test]
    fn causes_follow_in_order() {
        assert_eq!(in_full(&Outer(std::io::Error::other("inner"))), "outer: inner");
        assert_eq!(in_full(&std::io::Error::other("alone")), "alone");
    }
}
