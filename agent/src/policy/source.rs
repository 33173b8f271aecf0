//! The text of a policy file: reads it, and names line and key of what does not fit.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use dormouse_image::ImageDevice;
use serde::de::IgnoredAny;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::policy::error::PolicyError;
use crate::policy::keys::KEYS;
use crate::policy::table;

/// The text of a policy file.
pub(super) fn text(file: &Path) -> Result<String, PolicyError> {
    fs::read_to_string(file).map_err(|source| PolicyError::Read { file: file.to_owned(), source })
}

/// The image device with what this machine calls itself in the place of the words that stand for it.
pub(super) fn on_this_machine(device: ImageDevice) -> ImageDevice {
    let read = |path| fs::read_to_string(path).ok().map(|text| text.trim().to_owned()).filter(|text| !text.is_empty());
    let (hostname, machine_id) = (read("/proc/sys/kernel/hostname"), read("/etc/machine-id"));
    device.on_machine(hostname.as_deref(), machine_id.as_deref())
}

/// A policy's text with the name of its file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Source<'a> {
    pub(super) name: &'a str,
    pub(super) text: &'a str,
}

impl<'a> Source<'a> {
    /// The line, from 1, that something begins in.
    pub(super) fn line<T>(&self, at: &Spanned<T>) -> usize {
        self.line_of(at.span().start)
    }

    fn line_of(&self, offset: usize) -> usize {
        let before = self.text.as_bytes().iter().take(offset);
        1 + before.filter(|byte| **byte == b'\n').count()
    }

    /// Reads the text. Every key in it is known, and has a value of its type.
    pub(super) fn read(&self) -> Result<DeTable<'a>, PolicyError> {
        let tree = DeTable::parse(self.text).map_err(|error| PolicyError::Syntax {
            file: self.name.to_owned(),
            line: self.line_of(error.span().map_or(0, |span| span.start)),
            message: error.message().replace('\n', ", "),
        })?;
        for (section, content) in tree.get_ref() {
            self.check_section(section, content)?;
        }
        Ok(tree.into_inner())
    }

    fn check_section(
        &self,
        section: &Spanned<impl AsRef<str>>,
        content: &Spanned<DeValue<'_>>,
    ) -> Result<(), PolicyError> {
        let name = section.get_ref().as_ref();
        if !sections().any(|known| known == name) {
            // A key above the first section header most likely belongs into a section.
            return Err(self.unknown(section, name.to_owned(), named(name).or_else(|| nearest(name, sections()))));
        }
        let Some(table) = content.get_ref().as_table() else {
            let not_a_table = table::written::<BTreeMap<String, IgnoredAny>>(content.clone());
            return not_a_table.map(drop).map_err(|error| self.wrong_type(name, content, &error));
        };
        for (key, value) in table {
            let last = key.get_ref().as_ref();
            let whole = format!("{name}.{last}");
            let Some(known) = KEYS.iter().find(|known| known.name == whole) else {
                // A right key in a wrong section counts as near.
                let near = named(last).or_else(|| nearest(&whole, KEYS.iter().map(|key| key.name)));
                return Err(self.unknown(key, whole, near));
            };
            (known.fits)(value.clone()).map_err(|error| self.wrong_type(known.name, value, &error))?;
        }
        Ok(())
    }

    fn unknown<T>(&self, at: &Spanned<T>, key: String, nearest: Option<&'static str>) -> PolicyError {
        PolicyError::UnknownKey { file: self.name.to_owned(), line: self.line(at), key, nearest }
    }

    /// The error about a value that has another type than its key.
    pub(super) fn wrong_type<T>(&self, key: &str, at: &Spanned<T>, error: &toml::de::Error) -> PolicyError {
        let message = error.message().to_owned();
        PolicyError::WrongType { file: self.name.to_owned(), line: self.line(at), key: key.to_owned(), message }
    }
}

/// The section of each key.
fn sections() -> impl Iterator<Item = &'static str> {
    KEYS.iter().filter_map(|key| key.name.split('.').next())
}

/// The key that has this name in some section.
fn named(last: &str) -> Option<&'static str> {
    KEYS.iter().map(|key| key.name).find(|name| name.rsplit('.').next() == Some(last))
}

/// The candidate that takes the fewest changes to become `text`, unless it takes more changes than a third of its
/// letters.
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
        assert_eq!(nearest("save.levels", KEYS.iter().map(|key| key.name)), Some("save.level"));
        assert_eq!(nearest("save.encryption", KEYS.iter().map(|key| key.name)), None);
    }
}
