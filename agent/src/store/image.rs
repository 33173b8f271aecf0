//! An image device as a whole: its label, its state, its header.

use std::sync::Arc;

use dormouse_image::layout::{DATA_OFFSET, DEVICE_MIN, HEADER_OFFSET, LABEL_OFFSET};
use dormouse_image::seal::{Opener, SaveKey, Seal};
use dormouse_image::{
    BLOCK, Block, COMMIT_MAGIC, Commit, FormatError, Header, ImageDevice, Label, Slot, State, newest,
};
use dormouse_linux::procfs;

use crate::store::{Disk, StoreError};

/// Whether a block can be a slot of the commit record of this image, damaged though it may be: a write that was
/// interrupted leaves at least the magic, as both slots have it from the beginning.
fn is_slot_of(label: &Label, block: &[u8]) -> bool {
    block.starts_with(&COMMIT_MAGIC) && Commit::decode(block).map_or(true, |commit| commit.image == label.uuid)
}

/// Where the key of a sealed image comes from; `None` where there is none at hand.
pub type FindKey<'a> = &'a dyn Fn(&Image) -> anyhow::Result<Option<SaveKey>>;

/// An open image device with a valid label and commit record.
#[derive(Debug)]
pub struct Image {
    disk: Disk,
    label: Label,
    commit: Commit,
    /// For each leg, the slot with its newest record.
    slots: Vec<Slot>,
    /// Whether all legs have the same record.
    is_alike: bool,
    /// Of a sealed image whose key is known.
    opener: Option<Arc<Opener>>,
}

/// What one leg has.
struct OnLeg {
    label: Label,
    commit: Commit,
    slot: Slot,
}

impl OnLeg {
    /// Whether its data are those that `commit` describes.
    fn has_data_of(&self, commit: &Commit) -> bool {
        let of = |commit: &Commit| (commit.save_id, commit.header, commit.last_index);
        of(&self.commit) == of(commit)
    }
}

/// The record that counts of those of several legs: the newest, unless a session waits in it and another leg knows
/// better. A leg that is over with this save was there when the session went on or was given up; one with another save
/// was not there when this one was made, which is not so of legs that go together.
fn decided(records: &[&Commit]) -> Option<Commit> {
    let newest = *records.iter().max_by_key(|commit| commit.seq)?;
    let is_over = |commit: &&&Commit| {
        commit.save_id == newest.save_id && matches!(commit.state, State::Consumed | State::Discarded | State::Failed)
    };
    if let Some(over) = records.iter().filter(is_over).max_by_key(|commit| commit.seq) {
        return Some(Commit { seq: newest.seq, ..(**over).clone() });
    }
    if newest.state.is_waiting() && records.iter().any(|commit| commit.save_id != newest.save_id) {
        return newest.transition(State::Failed, "the disks of the mirror hold it and another save").ok();
    }
    Some(newest.clone())
}

impl Image {
    /// Reads label and commit record. Where it lies on several devices that hold the same, one that cannot be read
    /// counts as one that is missing.
    ///
    /// # Errors
    /// [`StoreError::NotInitialised`] where it has no label; otherwise what is wrong with it.
    pub fn open(disk: Disk) -> Result<Image, StoreError> {
        let legs = disk.legs();
        let mut found: Vec<Result<OnLeg, StoreError>> = legs.iter().map(Image::on_leg).collect();
        // What only a newer program understands may say that the session went on.
        let is_newer = |error: &StoreError| {
            matches!(error, StoreError::Format { source: FormatError::Newer { .. } | FormatError::Version { .. }, .. })
        };
        let fatal = found.iter().position(|leg| leg.as_ref().is_err_and(is_newer));
        let fatal = fatal.or_else(|| found.iter().all(Result::is_err).then_some(0));
        if let Some(Err(error)) = fatal.map(|at| found.swap_remove(at)) {
            return Err(error);
        }
        let on_legs: Vec<Option<OnLeg>> = found.into_iter().map(Result::ok).collect();
        let whole: Vec<&OnLeg> = on_legs.iter().flatten().collect();
        let records: Vec<&Commit> = whole.iter().map(|leg| &leg.commit).collect();
        let (Some(label), Some(commit)) = (whole.first().map(|leg| leg.label.clone()), decided(&records)) else {
            return Err(StoreError::NotInitialised { name: disk.name().to_owned() });
        };
        if let Some(other) = whole.iter().find(|leg| leg.label != label) {
            let (expected, found) = (label.uuid, other.label.uuid);
            let source = FormatError::Foreign { block: Block::Label, expected, found };
            return Err(StoreError::Format { name: disk.name().to_owned(), source });
        }
        let is_alike = whole.len() == legs.len() && records.windows(2).all(|pair| pair[0] == pair[1]);
        let has_data = |leg: &Option<OnLeg>| leg.as_ref().is_some_and(|leg| leg.has_data_of(&commit));
        let readable: Vec<usize> = (0..legs.len()).filter(|at| on_legs.get(*at).is_some_and(has_data)).collect();
        let slots = on_legs.iter().map(|leg| leg.as_ref().map_or(Slot::First, |leg| leg.slot)).collect();
        let disk = if legs.len() > 1 { Disk::mirror(&legs, &readable) } else { disk };
        Ok(Image { disk, label, commit, slots, is_alike, opener: None })
    }

    /// Reads label and commit record of one device.
    fn on_leg(disk: &Disk) -> Result<OnLeg, StoreError> {
        let name = || disk.name().to_owned();
        let format = |source| StoreError::Format { name: name(), source };
        if disk.size() < DEVICE_MIN {
            return Err(StoreError::TooSmall { name: name(), size: disk.size(), needed: DEVICE_MIN });
        }
        let label = Label::decode(&disk.read(LABEL_OFFSET, BLOCK)?).map_err(|error| match error {
            FormatError::Magic(_) => StoreError::NotInitialised { name: name() },
            error => format(error),
        })?;
        let origin = disk.origin();
        if let Some(offset) = origin.filter(|offset| *offset != label.offset()) {
            return Err(StoreError::Misplaced { name: name(), offset, expected: label.offset() });
        }
        let first = disk.read(Slot::First.offset(), BLOCK)?;
        let second = disk.read(Slot::Second.offset(), BLOCK)?;
        // Blocks of a file that nothing holds in their place may have become another file's.
        let may_be_gone = origin.is_some_and(|offset| offset != 0);
        if may_be_gone && ![&first, &second].iter().all(|slot| is_slot_of(&label, slot)) {
            return Err(StoreError::Gone { name: name() });
        }
        let (commit, slot) = newest(&first, &second).map_err(format)?;
        if commit.image != label.uuid {
            return Err(format(FormatError::Foreign {
                block: Block::Commit,
                expected: label.uuid,
                found: commit.image,
            }));
        }
        Ok(OnLeg { label, commit, slot })
    }

    /// Makes an empty image device of `disk`, whatever is on it.
    ///
    /// # Errors
    /// [`StoreError::TooSmall`], [`StoreError::Io`], [`StoreError::Flush`].
    pub fn create(disk: Disk, label: Label) -> Result<Image, StoreError> {
        let name = || disk.name().to_owned();
        if disk.size() < DEVICE_MIN {
            return Err(StoreError::TooSmall { name: name(), size: disk.size(), needed: DEVICE_MIN });
        }
        let format = |source| StoreError::Format { name: name(), source };
        let commit = Commit { changed_unix: label.created_unix, ..Commit::empty(label.uuid) };
        let bytes = commit.encode().map_err(format)?;
        for slot in [Slot::First, Slot::Second] {
            disk.write_copy(slot.offset(), &bytes)?;
        }
        // The label last: without it nothing else is looked at.
        disk.flush()?;
        disk.write_copy(LABEL_OFFSET, &label.encode().map_err(format)?)?;
        disk.flush()?;
        let slots = vec![Slot::First; disk.legs().len()];
        Ok(Image { disk, label, commit, slots, is_alike: true, opener: None })
    }

    /// The device.
    #[must_use]
    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    /// Its label.
    #[must_use]
    pub fn label(&self) -> &Label {
        &self.label
    }

    /// The name by which it is found where nothing is mounted.
    #[must_use]
    pub fn name(&self) -> ImageDevice {
        match self.disk.remote() {
            Some(remote) => ImageDevice::of_remote(remote),
            None => ImageDevice::of_image(self.label.uuid, self.label.offset()),
        }
    }

    /// The newest commit record.
    #[must_use]
    pub fn commit(&self) -> &Commit {
        &self.commit
    }

    /// Gives the image another state, and returns when that is durable.
    ///
    /// # Errors
    /// A transition that the rules forbid; a device that fails.
    pub fn transition(&mut self, next: State, reason: &str) -> Result<(), StoreError> {
        let commit = self.commit.transition(next, reason).map_err(|source| self.format(source))?;
        self.record(commit)
    }

    /// This image as it will be with `commit`, for looking into it before that is written.
    pub(super) fn as_if(&self, commit: Commit, opener: Option<Opener>) -> Image {
        let (disk, label, slots) = (self.disk.clone(), self.label.clone(), self.slots.clone());
        Image { disk, label, commit, slots, is_alike: self.is_alike, opener: opener.map(Arc::new) }
    }

    /// Whether it is sealed.
    #[must_use]
    pub fn is_sealed(&self) -> bool {
        self.commit.seal.is_some()
    }

    /// Looks into it with a key from now on; with none, into an image that is not sealed. Each is refused where it is
    /// the other: what anybody could have written must not pass for what the holder of a key has.
    ///
    /// # Errors
    /// [`StoreError::Format`]: [`FormatError::Sealed`], [`FormatError::NotSealed`], [`FormatError::KeyWiped`], and
    /// [`FormatError::Forged`] where the key is another one, or the commit record was not written with it.
    pub fn unlock(&mut self, key: Option<&SaveKey>) -> Result<(), StoreError> {
        self.opener = match key {
            Some(key) => Some(Arc::new(Opener::new(&self.commit, key).map_err(|source| self.format(source))?)),
            None => None,
        };
        self.opener().map(|_| ())
    }

    /// Looks into it from now on, with the key that `find` has for it where it is sealed.
    ///
    /// # Errors
    /// Those of `find` and of [`Image::unlock`]; [`FormatError::Sealed`] where there is no key.
    pub fn unlock_by(&mut self, find: FindKey<'_>) -> anyhow::Result<()> {
        let key = if self.is_sealed() { find(self)? } else { None };
        Ok(self.unlock(key.as_ref())?)
    }

    /// Overwrites the key with which it was unlocked.
    pub fn lock(&mut self) {
        self.opener = None;
    }

    /// What opens its blocks and chunks; `None` where it is not sealed.
    ///
    /// # Errors
    /// [`FormatError::Sealed`] where it is, and has not been unlocked; [`FormatError::KeyWiped`].
    pub(super) fn opener(&self) -> Result<Option<Arc<Opener>>, StoreError> {
        match (&self.commit.seal, &self.opener) {
            (None, _) => Ok(None),
            (Some(_), Some(opener)) => Ok(Some(Arc::clone(opener))),
            (Some(seal), None) if seal.is_wiped() => Err(self.format(FormatError::KeyWiped(self.commit.state))),
            (Some(_), None) => Err(self.format(FormatError::Sealed)),
        }
    }

    /// Marks that the session goes on, so that no boot resumes it again. One durable slot is enough for that: an error
    /// of the other one is returned as a value, and need not keep the session from going on.
    ///
    /// # Errors
    /// As [`Image::transition`]; no slot is known to have the new state then.
    pub fn consume(&mut self) -> Result<Option<StoreError>, StoreError> {
        let commit = self.commit.transition(State::Consumed, "").map_err(|source| self.format(source))?;
        let (commit, error) = self.put(commit)?;
        self.is_now(commit);
        Ok(error)
    }

    /// Writes a commit record to both slots. If either fails, the next record begins with the same slot again, so that
    /// what is half done does not stay.
    pub(super) fn record(&mut self, commit: Commit) -> Result<(), StoreError> {
        let (commit, error) = self.put(commit)?;
        if let Some(error) = error {
            return Err(error);
        }
        self.is_now(commit);
        Ok(())
    }

    /// Notes that this record is on the device. One without keys needs none any more.
    fn is_now(&mut self, commit: Commit) {
        self.slots.iter_mut().for_each(|slot| *slot = slot.other());
        if commit.seal.as_ref().is_none_or(Seal::is_wiped) {
            self.opener = None;
        }
        self.commit = commit;
        self.is_alike = true;
    }

    /// Whether all of its devices have the same record.
    #[must_use]
    pub(super) fn are_legs_alike(&self) -> bool {
        self.is_alike
    }

    /// Gives all of its devices the record that counts, where they do not have it: one of them was not there when it
    /// was written.
    ///
    /// # Errors
    /// As [`Image::transition`].
    pub fn settle_legs(&mut self) -> Result<(), StoreError> {
        if self.are_legs_alike() {
            return Ok(());
        }
        let commit = self.commit.clone();
        self.record(Commit { seq: commit.seq.saturating_add(1), ..commit })
    }

    /// Writes a commit record to both slots, the one with the older record first, each durable before the next step.
    /// Returns it as it was written, and the error of the second slot.
    fn put(&self, commit: Commit) -> Result<(Commit, Option<StoreError>), StoreError> {
        let commit = Commit { changed_unix: procfs::now_unix(), ..commit };
        let bytes = commit.encode().map_err(|source| self.format(source))?;
        let legs = self.disk.legs();
        let write = |which: fn(Slot) -> Slot| -> Result<(), StoreError> {
            let write = |(leg, slot): (&Disk, &Slot)| leg.write_through(which(*slot).offset(), &bytes);
            // One that fails keeps none of the others from getting it.
            let results: Vec<Result<(), StoreError>> = legs.iter().zip(&self.slots).map(write).collect();
            results.into_iter().collect()
        };
        write(Slot::other)?;
        let error = write(|slot| slot).err();
        Ok((commit, error))
    }

    /// Marks that a restore begins, and counts it.
    ///
    /// # Errors
    /// As [`Image::transition`].
    pub fn begin_restore(&mut self) -> Result<(), StoreError> {
        let mut commit = self.commit.transition(State::Restoring, "").map_err(|source| self.format(source))?;
        commit.attempts = commit.attempts.saturating_add(1);
        self.record(commit)
    }

    /// Counts a boot that keeps the image although the machine differs.
    ///
    /// # Errors
    /// As [`Image::transition`].
    pub fn keep(&mut self) -> Result<(), StoreError> {
        let commit = self.commit.clone();
        self.record(Commit { seq: commit.seq.saturating_add(1), kept: commit.kept.saturating_add(1), ..commit })
    }

    /// Reads and checks the header of the saved session.
    ///
    /// # Errors
    /// [`StoreError::Incomplete`] where no save is complete; otherwise what is wrong with it. A sealed image must have
    /// been unlocked.
    pub fn header(&self) -> Result<Header, StoreError> {
        let commit = &self.commit;
        let is_saved = commit.state.is_waiting() || matches!(commit.state, State::Snapshot | State::Consumed);
        if !is_saved || self.is_wiped() {
            return Err(StoreError::Incomplete { name: self.disk_name(), state: commit.state });
        }
        let place = |field, value, why| self.format(FormatError::Field { block: Block::Commit, field, value, why });
        let locator = commit.header;
        let end = locator.offset.saturating_add(locator.len.into());
        if locator.offset != HEADER_OFFSET || end > DATA_OFFSET || !locator.is_some() {
            return Err(place("header's place", locator.offset, "at 65536, before the stream"));
        }
        if commit.data_end > self.disk.size() {
            let (name, size) = (self.disk_name(), self.disk.size());
            return Err(StoreError::Beyond { name, end: commit.data_end, size });
        }
        let opener = self.opener()?;
        // At most 960 KiB, as just checked.
        let mut bytes = self.disk.read(locator.offset, locator.len as usize)?;
        let header = match opener {
            Some(opener) => opener.header(&locator, &mut bytes),
            None => locator.check(Block::Header, &bytes).and_then(|()| Header::decode(&bytes)),
        };
        let header = header.map_err(|source| self.format(source))?;
        for (expected, found) in [(self.label.uuid, header.session.image), (commit.save_id, header.session.save_id)] {
            if expected != found {
                return Err(self.format(FormatError::Foreign { block: Block::Header, expected, found }));
            }
        }
        Ok(header)
    }

    pub(super) fn disk_name(&self) -> String {
        self.disk.name().to_owned()
    }

    /// Puts the device's name to what is wrong with its content.
    pub(super) fn format(&self, source: FormatError) -> StoreError {
        StoreError::Format { name: self.disk_name(), source }
    }
}
