//! A save kernel that a `dormouse hibernate` left loaded which was killed before the jump: a `kexec -e` would jump into
//! it, and its order is of another time.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::cycle::{around, last};
use crate::launch;

/// A note that what is loaded is ours, for as long as it may be.
#[derive(Debug)]
#[must_use]
pub(super) struct Mark(PathBuf);

/// Unloads what is left of an earlier hibernation. To be called under the lock.
pub(super) fn unload() {
    unload_as_marked(&place(), around::loaded().is_some(), || {
        if let Err(error) = launch::unload() {
            log::warn!("a save kernel that an earlier hibernation left loaded stays loaded: {error}");
        }
    });
}

/// What is loaded is not ours any more.
pub(super) fn disown() {
    drop(Mark(place()));
}

/// Notes that a save kernel of ours is about to be loaded.
pub(super) fn mark() -> Mark {
    mark_at(place())
}

fn place() -> PathBuf {
    Path::new(last::DIRECTORY).join("loaded")
}

fn mark_at(place: PathBuf) -> Mark {
    if let Err(error) = fs::write(&place, "") {
        log::debug!("{}: {error}", place.display());
    }
    Mark(place)
}

fn unload_as_marked(place: &Path, is_loaded: bool, unload: impl FnOnce()) {
    if place.exists() {
        if is_loaded {
            unload();
        }
        drop(Mark(place.to_owned()));
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        match fs::remove_file(&self.0) {
            Err(error) if error.kind() != ErrorKind::NotFound => log::debug!("{}: {error}", self.0.display()),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::cell::Cell;

    use super::*;

    #[test]
    fn unloads_only_what_a_killed_hibernation_has_left() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("loaded");
        let unloaded = |is_loaded| {
            let is_unloaded = Cell::new(false);
            unload_as_marked(&place, is_loaded, || is_unloaded.set(true));
            is_unloaded.get()
        };
        // Somebody else's.
        assert!(!unloaded(true));
        std::mem::forget(mark_at(place.clone()));
        assert!(unloaded(true) && !unloaded(true));
        std::mem::forget(mark_at(place.clone()));
        assert!(!unloaded(false) && !place.exists());
        // One that ends in its time leaves nothing.
        drop(mark_at(place.clone()));
        assert!(!unloaded(true));
    }
}
