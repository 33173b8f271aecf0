//! What B adds to the list of A, and what C finds of it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use dormouse_image::{DiskPlace, SessionRecord};
use dormouse_linux::block::Names;
use dormouse_linux::wait::wait_for;

use super::{Look, SWAP, look, superblock};

/// A filesystem or a swap area of the session, at one of its places.
#[derive(Debug, Clone, Copy)]
struct Entry<'a> {
    kind: &'a str,
    uuid: &'a str,
    mount: &'a str,
    /// 0 where it is not known.
    mount_digest: u64,
    quiesced_digest: Option<u64>,
    place: Option<&'a DiskPlace>,
}

fn entries(session: &SessionRecord) -> Vec<Entry<'_>> {
    let filesystems = session.filesystems.iter().map(|found| Entry {
        kind: &found.kind,
        uuid: &found.uuid,
        mount: &found.mount,
        mount_digest: found.mount_digest,
        quiesced_digest: found.quiesced_digest,
        place: found.superblock.as_ref(),
    });
    let areas = session.swap_areas.iter().map(|found| Entry {
        kind: SWAP,
        uuid: &found.uuid,
        mount: "",
        mount_digest: found.mount_digest,
        quiesced_digest: found.quiesced_digest,
        place: found.superblock.as_ref(),
    });
    filesystems.chain(areas).collect()
}

/// What became of something at one of its places.
#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    AsItWas,
    /// Written since, on this device.
    Changed(PathBuf),
    /// No device has it.
    Absent,
    /// Too little was recorded.
    Unsure,
}

impl Entry<'_> {
    /// Whether enough was recorded to tell.
    fn is_certain(&self) -> bool {
        let has_steady = self.mount_digest != 0 && superblock::has_steady_fields(self.kind);
        self.place.is_some() && (self.quiesced_digest.is_some() || has_steady)
    }

    /// Whether it is the same filesystem or area at another of its places.
    fn is_same(&self, other: &Entry<'_>) -> bool {
        (self.kind, self.uuid, self.mount) == (other.kind, other.uuid, other.mount)
    }

    /// What is on the disk that A recorded. Where no disk has that name (it is plugged in elsewhere), what is on any
    /// that has the same filesystem at the same place. `None` where a disk cannot be read.
    fn looks(&self, names: &Names) -> Vec<(PathBuf, Option<Look>)> {
        let Some(place) = self.place else { return Vec::new() };
        let look = |node: &Path| look(node, place.offset, self.kind, self.uuid).ok();
        let named: Vec<_> = names.nodes(&place.disk).map(|node| (node.to_owned(), look(node))).collect();
        if !named.is_empty() {
            return named;
        }
        let is_it = |found: &Look| {
            let has_uuid = !self.uuid.is_empty() && found.uuid.as_deref() == Some(self.uuid);
            has_uuid || self.quiesced_digest == Some(found.still)
        };
        names.all().filter_map(|node| Some((node.to_owned(), Some(look(node).filter(is_it)?)))).collect()
    }

    fn state(&self, names: &Names) -> State {
        if !self.is_certain() {
            return State::Unsure;
        }
        // All that have the name: one of them is a copy, and which is not known.
        let looks = self.looks(names);
        let is_as_it_was = |found: &Look| match self.quiesced_digest {
            Some(still) => found.still == still,
            None => found.steady == Some(self.mount_digest),
        };
        let changed = looks.iter().find(|(_, found)| found.as_ref().is_some_and(|found| !is_as_it_was(found)));
        match changed {
            Some((node, _)) => State::Changed(node.clone()),
            None if looks.iter().any(|(_, found)| found.is_some()) => State::AsItWas,
            None => State::Absent,
        }
    }

    fn describe(&self) -> String {
        match self.kind {
            SWAP => format!("swap area {}", self.uuid).trim_end().to_owned(),
            kind => format!("{} ({})", self.mount, format!("{kind} {}", self.uuid).trim_end()),
        }
    }

    fn written(&self, node: &Path) -> String {
        let node = node.display();
        match self.kind {
            SWAP => format!(
                "the swap area {} on {node}, which the session uses, was written by another system since",
                self.uuid
            ),
            _ => format!(
                "the {} filesystem on {node}, which the session has mounted at {}, was written by another system since",
                self.kind, self.mount
            ),
        }
    }
}

/// Adds the digests that can be taken when the session lies still. Returns those of which nobody will be able to tell
/// whether another system has written to them. Disks turn up in their own time: those without which that would be so
/// are waited for.
#[must_use]
pub fn settle(session: &mut SessionRecord, wait: Duration, names: impl Fn() -> Names) -> Vec<String> {
    let all_certain = wait_for(wait, || {
        settle_now(session, &names());
        // What has no place is not seen, however long anybody waits.
        let is_late = |entry: &Entry<'_>| entry.place.is_some() && !entry.is_certain();
        (!entries(session).iter().any(is_late)).then_some(())
    });
    if all_certain.is_none() {
        log::info!("some disks did not turn up within {} s", wait.as_secs());
    }
    let entries = entries(session);
    let is_lost = |entry: &&Entry<'_>| !entries.iter().any(|other| other.is_same(entry) && other.is_certain());
    let mut lost: Vec<String> = entries.iter().filter(is_lost).map(Entry::describe).collect();
    lost.dedup();
    lost
}

fn settle_now(session: &mut SessionRecord, names: &Names) {
    let digest = |entry: &Entry<'_>| {
        let is_named = entry.place.is_some_and(|place| names.nodes(&place.disk).next().is_some());
        // Of two, one is a copy. And what is found by its UUID alone must be what A saw.
        match &entry.looks(names)[..] {
            [(_, Some(found))] if is_named || found.steady.is_none_or(|steady| steady == entry.mount_digest) => {
                Some(found.still)
            }
            _ => None,
        }
    };
    let found: Vec<Option<u64>> =
        entries(session).iter().map(|entry| entry.quiesced_digest.or_else(|| digest(entry))).collect();
    let digests = session.filesystems.iter_mut().map(|found| &mut found.quiesced_digest);
    let digests = digests.chain(session.swap_areas.iter_mut().map(|found| &mut found.quiesced_digest));
    for (place, digest) in digests.zip(found) {
        *place = digest;
    }
}

/// What became of the filesystems and swap areas of a session.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Comparison {
    /// The first that is not as the session left it, in words.
    pub changed: Option<String>,
    /// Those of which too little is recorded to tell, whatever turns up.
    pub unsure: Vec<String>,
    /// Those that no device has.
    pub absent: Vec<String>,
}

/// Compares the filesystems and swap areas of a session with what is on the disks.
///
/// Of several disks that are alike (RAID 1), those that are there count: what writes to the whole writes to each.
#[must_use]
pub fn compare(session: &SessionRecord, names: &Names) -> Comparison {
    let entries = entries(session);
    let states: Vec<State> = entries.iter().map(|entry| entry.state(names)).collect();
    let mut comparison = Comparison::default();
    for (at, entry) in entries.iter().enumerate() {
        if let State::Changed(node) = &states[at] {
            comparison.changed.get_or_insert_with(|| entry.written(node));
        }
        let same: Vec<usize> = (0..entries.len()).filter(|other| entries[*other].is_same(entry)).collect();
        let is_any = |state: &State| same.iter().any(|other| states[*other] == *state);
        if same.first() != Some(&at) || is_any(&State::AsItWas) {
            continue;
        }
        if is_any(&State::Absent) {
            comparison.absent.push(entry.describe());
        } else if is_any(&State::Unsure) {
            comparison.unsure.push(entry.describe());
        }
    }
    comparison
}

/// The same with the disks that `names` finds, until all of them are there or `wait` is over: they turn up in their own
/// time. What would tell nothing is not waited for.
#[must_use]
pub fn compare_within(session: &SessionRecord, wait: Duration, names: impl Fn() -> Names) -> Comparison {
    let mut last = None;
    let decided = wait_for(wait, || {
        let comparison = compare(session, &names());
        if comparison.absent.is_empty() || comparison.changed.is_some() {
            return Some(comparison);
        }
        if last.is_none() && !wait.is_zero() {
            log::info!("waiting for the disks of {}, for {} s at most", comparison.absent.join(", "), wait.as_secs());
        }
        last = Some(comparison);
        None
    });
    decided.or(last).unwrap_or_default()
}
