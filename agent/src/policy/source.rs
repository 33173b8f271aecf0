//! The text of a policy file: reads it into the schema, and names line and key of what does not fit.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::policy::error::PolicyError;
use crate::policy::schema::{File, KEYS};

/// A policy's text with the name of its file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Source<'a> {
    pub(super) name: &'a str,
    pub(super) text: &'a str,
}

impl Source<'_> {
    /// The line, from 1, that a byte of the text lies in.
    pub(super) fn line(&self, offset: usize) -> usize {
        let before = self.text.as_bytes().iter().take(offset);
        1 + before.filter(|byte| **byte == b'\n').count()
    }

    /// Reads the text into the schema.
    ///
    /// Unknown keys are looked for first, in the tree: only there is the whole name of a key known.
    pub(super) fn read(&self) -> Result<File, PolicyError> {
        let tree = DeTable::parse(self.text).map_err(|error| self.syntax(&error))?;
        self.refuse_unknown_keys(tree.get_ref())?;
        toml::from_str(self.text).map_err(|error| match error.span() {
            Some(span) => PolicyError::WrongType {
                file: self.name.to_owned(),
                line: self.line(span.start),
                key: key_at(tree.get_ref(), &span),
                message: error.message().to_owned(),
            },
            None => self.syntax(&error),
        })
    }

    fn syntax(&self, error: &toml::de::Error) -> PolicyError {
        PolicyError::Syntax {
            file: self.name.to_owned(),
            line: self.line(error.span().map_or(0, |span| span.start)),
            message: error.message().replace('\n', ", "),
        }
    }

    fn refuse_unknown_keys(&self, tree: &DeTable<'_>) -> Result<(), PolicyError> {
        let sections = || KEYS.into_iter().filter_map(|key| key.split('.').next());
        for (section, content) in tree.iter() {
            let section_name = section.get_ref().as_ref();
            if !sections().any(|known| known == section_name) {
                // A key above the first section header most likely belongs into a section.
                let inside = KEYS.into_iter().find(|key| key.rsplit('.').next() == Some(section_name));
                let nearest = inside.or_else(|| nearest(section_name, sections()));
                return Err(self.unknown(section, section_name.to_owned(), nearest));
            }
            for key in content.get_ref().as_table().into_iter().flat_map(|table| table.keys()) {
                let whole = format!("{section_name}.{}", key.get_ref());
                if !KEYS.contains(&whole.as_str()) {
                    let nearest = nearest_key(key.get_ref(), &whole);
                    return Err(self.unknown(key, whole, nearest));
                }
            }
        }
        Ok(())
    }

    fn unknown<T>(&self, at: &Spanned<T>, key: String, nearest: Option<&'static str>) -> PolicyError {
        PolicyError::UnknownKey { file: self.name.to_owned(), line: self.line(at.span().start), key, nearest }
    }
}

/// The whole name of the innermost key whose value contains the span.
fn key_at(tree: &DeTable<'_>, span: &Range<usize>) -> String {
    let holds = |value: &Spanned<DeValue<'_>>| {
        let whole = value.span();
        whole.start <= span.start && span.end <= whole.end
    };
    for (section, content) in tree.iter() {
        for (key, value) in content.get_ref().as_table().into_iter().flat_map(|table| table.iter()) {
            if holds(value) {
                return format!("{}.{}", section.get_ref(), key.get_ref());
            }
        }
        if holds(content) {
            return section.get_ref().to_string();
        }
    }
    "the file".to_owned()
}

/// The known key nearest to `whole`; a right key in a wrong section counts as near.
fn nearest_key(last: &str, whole: &str) -> Option<&'static str> {
    let elsewhere = KEYS.into_iter().find(|key| key.rsplit('.').next() == Some(last));
    elsewhere.or_else(|| nearest(whole, KEYS.into_iter()))
}

/// The candidate that takes the fewest changes to become `text`, unless it takes so many that it is no
/// likely meaning: more than a third of its letters.
fn nearest(text: &str, candidates: impl Iterator<Item = &'static str>) -> Option<&'static str> {
    let name_length = |candidate: &str| candidate.rsplit('.').next().map_or(0, str::len);
    candidates
        .map(|candidate| (distance(text, candidate), candidate))
        .filter(|(changes, candidate)| *changes * 3 <= name_length(candidate).max(3))
        .min_by_key(|(changes, _)| *changes)
        .map(|(_, candidate)| candidate)
}

/// The number of letters inserted, deleted, replaced or exchanged with a neighbour between two words (the
/// optimal string alignment distance).
fn distance(left: &str, right: &str) -> usize {
    let (left, right) = (left.as_bytes(), right.as_bytes());
    let mut before: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=right.len()).collect();
    for (i, a) in left.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, b) in right.iter().enumerate() {
            let mut least = (above[j] + usize::from(a != b)).min(above[j + 1] + 1).min(row[j] + 1);
            let exchanged = i > 0 && j > 0 && *a == right[j - 1] && left[i - 1] == *b;
            if exchanged {
                least = least.min(before[j - 1] + 1);
            }
            row.push(least);
        }
        before = std::mem::replace(&mut above, row);
    }
    above[right.len()]
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn distance_counts_each_kind_of_change_once() {
        for (left, right, changes) in
            [("level", "level", 0), ("levle", "level", 1), ("leve", "level", 1), ("", "abc", 3), ("lavels", "level", 2)]
        {
            assert_eq!(distance(left, right), changes, "{left} {right}");
            assert_eq!(distance(right, left), changes, "{right} {left}");
        }
    }

    #[test]
    fn far_away_words_are_not_suggested() {
        assert_eq!(nearest("save.levels", KEYS.into_iter()), Some("save.level"));
        assert_eq!(nearest("save.encryption", KEYS.into_iter()), None);
    }
}
