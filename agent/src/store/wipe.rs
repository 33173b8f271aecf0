//! Taking an image's data off the disk when the session in it goes on or was given up.
//!
//! Piece by piece, from the beginning: so that a hibernation need not wait for it, and a power cut leaves no more than
//! work to be done. The state is that of before all the time. The commit record loses its save when all is gone, which
//! is how that is known later.

use std::ops::Range;

use dormouse_image::layout::HEADER_OFFSET;
use dormouse_image::{BLOCK, Commit, Locator, State, Uuid};

use crate::store::{Image, StoreError};

/// Bytes that are looked at and wiped at a time.
const PIECE: u64 = 1 << 20;
/// Of a save that did not end nobody knows how far it came. It was written forward, by a few requests of a piece at a
/// time: where this many bytes are zero, nothing of it follows.
const NOTHING_MORE: u64 = 16 << 20;

/// Data of an image that are being wiped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wiping {
    image: Uuid,
    seq: u64,
    /// What is left of it.
    left: Range<u64>,
    /// Whether its end is known, and not only where it is at the latest.
    is_end_known: bool,
    /// Bytes before `left` that were zero already.
    zero: u64,
}

impl Image {
    /// Whether nothing of a session is left on the device but its commit record: it was wiped, or never used.
    #[must_use]
    pub fn is_wiped(&self) -> bool {
        self.commit().save_id == Uuid::default()
    }

    /// Whether its data are of no use: the session in it went on or was given up.
    #[must_use]
    pub fn is_to_be_wiped(&self) -> bool {
        let is_over = matches!(self.commit().state, State::Consumed | State::Failed | State::Discarded);
        is_over && !self.is_wiped()
    }

    /// What there is to wipe. A save that did not end has written no more than `most` bytes.
    #[must_use]
    pub fn wiping(&self, most: u64) -> Option<Wiping> {
        let (commit, size) = (self.commit(), self.disk().size());
        let is_end_known = commit.last_index.is_some() && commit.data_end <= size;
        let end = if is_end_known { commit.data_end } else { most.min(size) };
        let end = end / BLOCK as u64 * BLOCK as u64;
        let left = HEADER_OFFSET..end.max(HEADER_OFFSET);
        let wiping = Wiping { image: commit.image, seq: commit.seq, left, is_end_known, zero: 0 };
        self.is_to_be_wiped().then_some(wiping)
    }

    /// Wipes up to `len` bytes more and makes that durable. Returns `None` when nothing is left to do: all is wiped, or
    /// the image has been changed since.
    ///
    /// # Errors
    /// [`StoreError`]. It can be tried again.
    pub fn wipe(&mut self, wiping: Wiping, len: u64) -> Result<Option<Wiping>, StoreError> {
        let Wiping { image, seq, left, is_end_known, mut zero } = wiping;
        if (self.commit().image, self.commit().seq) != (image, seq) || !self.is_to_be_wiped() {
            return Ok(None);
        }
        let mut at = left.start;
        let stop = left.end.min(left.start.saturating_add(len));
        while at < stop && (is_end_known || zero < NOTHING_MORE) {
            let piece = PIECE.min(stop - at);
            // Where all of it is known to be the image's, nothing need be read.
            zero = if !is_end_known && self.is_zero(at, piece)? { zero + piece } else { 0 };
            if zero == 0 {
                self.disk().clear(at, piece)?;
            }
            at += piece;
        }
        // One that is not durable is not given up for wiped.
        self.disk().flush()?;
        if at < left.end && (is_end_known || zero < NOTHING_MORE) {
            return Ok(Some(Wiping { image, seq, left: at..left.end, is_end_known, zero }));
        }
        let commit = Commit {
            seq: self.commit().seq.saturating_add(1),
            save_id: Uuid::default(),
            header: Locator::default(),
            last_index: Locator::default(),
            data_end: 0,
            seal: None,
            ..self.commit().clone()
        };
        self.record(commit)?;
        Ok(None)
    }

    fn is_zero(&self, at: u64, len: u64) -> Result<bool, StoreError> {
        let len = usize::try_from(len).unwrap_or(BLOCK);
        Ok(self.disk().read(at, len)?.iter().all(|byte| *byte == 0))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::store::faulty::{Fault, Faulty};
    use crate::store::tests::{device_with, open};

    const MOST: u64 = 64 << 20;

    fn wipe(image: &mut Image, len: u64) -> Result<usize, StoreError> {
        let mut steps = 0;
        let mut next = image.wiping(MOST);
        while let Some(wiping) = next {
            next = image.wipe(wiping, len)?;
            steps += 1;
        }
        Ok(steps)
    }

    fn is_clean(device: &Faulty) -> bool {
        device.bytes(HEADER_OFFSET..open(device).unwrap().disk().size()).iter().all(|byte| *byte == 0)
    }

    #[test]
    fn what_is_over_is_wiped_whole_and_keeps_its_state() {
        for state in [State::Consumed, State::Failed, State::Discarded] {
            let device = device_with(state, 2000);
            let mut image = open(&device).unwrap();
            let before = image.commit().clone();
            assert!(!is_clean(&device) && image.is_to_be_wiped(), "{state}");
            assert!(wipe(&mut image, 3 << 20).unwrap() > 1, "{state}");
            let image = open(&device).unwrap();
            let (now, then) = (image.commit(), &before);
            assert_eq!((now.state, &now.reason, now.totals), (state, &then.reason, then.totals));
            assert!(is_clean(&device) && image.is_wiped() && !image.is_to_be_wiped(), "{state}");
            assert!(matches!(image.header(), Err(StoreError::Incomplete { .. })));
            assert_eq!(image.wiping(MOST), None);
        }
    }

    #[test]
    fn what_may_be_resumed_or_read_is_left_alone() {
        for state in [State::Complete, State::Snapshot, State::Restoring, State::Empty] {
            assert_eq!(open(&device_with(state, 10)).unwrap().wiping(MOST), None, "{state}");
        }
        // Nor is anything that was saved in the meantime.
        let device = device_with(State::Consumed, 2000);
        let mut image = open(&device).unwrap();
        let wiping = image.wiping(MOST).unwrap();
        let wiping = image.wipe(wiping, 1 << 20).unwrap().unwrap();
        let mut image = crate::store::tests::save_again(image);
        let bytes = device.bytes(HEADER_OFFSET..image.commit().data_end);
        assert_eq!(image.wipe(wiping, MOST).unwrap(), None);
        assert_eq!(device.bytes(HEADER_OFFSET..image.commit().data_end), bytes);
    }

    #[test]
    fn power_that_fails_at_any_write_leaves_the_state_and_work_to_do() {
        let writes = {
            let device = device_with(State::Consumed, 2000);
            device.fail(Fault::Death(usize::MAX));
            wipe(&mut open(&device).unwrap(), 2 << 20).unwrap();
            device.writes()
        };
        assert!(writes > 5, "{writes}");
        for write in 0..writes {
            for is_lost in [false, true] {
                let device = device_with(State::Consumed, 2000);
                device.fail(Fault::Death(write));
                assert!(wipe(&mut open(&device).unwrap(), 2 << 20).is_err(), "{write}");
                device.power_cycle(is_lost);
                let mut image = open(&device).unwrap();
                assert_eq!(image.commit().state, State::Consumed, "{write} {is_lost}");
                assert!(image.is_wiped() || image.is_to_be_wiped());
                wipe(&mut image, MOST).unwrap();
                assert!(is_clean(&device), "{write} {is_lost}");
            }
        }
    }

    #[test]
    fn a_save_that_did_not_end_is_wiped_as_far_as_it_came() {
        let device = device_with(State::Failed, 0);
        let size = open(&device).unwrap().disk().size();
        // Some requests were still on their way, and far away there is something else.
        for at in [(2 << 20) + 4096, 9 << 20, size - 4096] {
            device.put(at, &[7; 4096]);
        }
        wipe(&mut open(&device).unwrap(), 1 << 20).unwrap();
        let end = size - 4096;
        assert!(device.bytes(HEADER_OFFSET..end).iter().all(|byte| *byte == 0));
        assert!(device.bytes(end..size).iter().all(|byte| *byte == 7));
    }
}
