//! What the running system has of an image's keys, without changing any.

use std::path::PathBuf;

use dormouse_image::KeySource;

use crate::key::{KeyError, Ring, file, manage, read_keys, ring};
use crate::store::Image;

/// What is known of an image's keys.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeyFacts {
    /// Their kinds, as the policy calls them.
    pub kinds: Vec<&'static str>,
    /// The files with secrets, each of which is where its slot says.
    pub files: Vec<PathBuf>,
    /// Whether the image has what this system has put there; `false` where somebody has changed it.
    pub is_unchanged: bool,
}

/// Looks at the keys of `image`: as a hibernation does, but for what it puts right.
///
/// # Errors
/// They are those of another system, or a key file is not where its slot says.
pub fn check(image: &Image) -> Result<KeyFacts, KeyError> {
    let uuid = image.label().uuid;
    let in_image = read_keys(image);
    let Some(ring) = Ring::load(uuid)? else {
        let has_some = in_image?.is_some_and(|keys| !keys.slots.is_empty());
        return if has_some { Err(KeyError::Foreign(ring::path(uuid))) } else { Ok(KeyFacts::default()) };
    };
    let mut facts =
        KeyFacts { is_unchanged: matches!(in_image, Ok(Some(keys)) if keys == ring.keys), ..KeyFacts::default() };
    for slot in &ring.keys.slots {
        facts.kinds.push(manage::word(slot.source.kind()));
        if let KeySource::File(place) = &slot.source {
            let path = ring.file(slot.id)?;
            drop(file::secret(path, place)?);
            facts.files.push(path.to_owned());
        }
    }
    Ok(facts)
}
