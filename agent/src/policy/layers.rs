//! The files of one policy, and which of them counts for a key.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::policy::error::{PolicyError, Problem};
use crate::policy::kinds::Kind;
use crate::policy::source::Source;
use crate::policy::table;

/// The files of one policy as they are written, the one that counts least first.
pub(super) struct Layers<'a> {
    main: &'a str,
    files: Vec<(Source<'a>, DeTable<'a>)>,
}

impl<'a> Layers<'a> {
    /// Reads each of them. `main` names the main file, even if it is not among them.
    pub(super) fn read(main: &'a str, sources: &[Source<'a>]) -> Result<Layers<'a>, PolicyError> {
        let files = sources.iter().map(|source| Ok((*source, source.read()?)));
        Ok(Layers { main, files: files.collect::<Result<_, PolicyError>>()? })
    }

    /// What the last of the files that has `key` writes for it.
    fn written(&self, key: &str) -> Option<(&Source<'a>, &Spanned<DeValue<'a>>)> {
        let (section, name) = key.split_once('.')?;
        self.files.iter().rev().find_map(|(source, table)| {
            let value = table.get(section)?.get_ref().as_table()?.get(name)?;
            Some((source, value))
        })
    }

    /// The value of `key`: what is written, checked, or else the default.
    pub(super) fn value<K: Kind>(
        &self,
        key: &'static str,
        kind: &K,
        default: impl FnOnce() -> Option<K::Value>,
    ) -> Result<K::Value, PolicyError> {
        let Some((source, value)) = self.written(key) else {
            return default().ok_or_else(|| PolicyError::MissingKey { file: self.main.to_owned(), key });
        };
        let written = table::written(value.clone()).map_err(|error| source.wrong_type(key, value, &error))?;
        kind.check(written).map_err(|problem| self.invalid(key, problem))
    }

    /// The error about what is written for `key`.
    pub(super) fn invalid(&self, key: &'static str, problem: Problem) -> PolicyError {
        let written = self.written(key);
        let (file, line) = written.map_or((self.main, 1), |(source, value)| (source.name, source.line(value)));
        PolicyError::Invalid { file: file.to_owned(), line, key, problem }
    }
}
