//! The same blocks on two devices: an image below a mirror.

use std::error::Error;
use std::{fmt, io};

use crate::store::{Blocks, Disk};

/// Blocks of which several devices hold the same.
#[derive(Debug)]
pub(super) struct Legs {
    legs: Vec<Disk>,
    /// Those that hold what is to be read, by their place in `legs`.
    readable: Vec<usize>,
    name: String,
}

impl Legs {
    /// Those of `legs`, read from those that are `readable`, in that order.
    pub(super) fn new(legs: &[Disk], readable: &[usize]) -> Legs {
        let names: Vec<&str> = legs.iter().map(Disk::name).collect();
        Legs { legs: legs.to_vec(), readable: readable.to_vec(), name: names.join(" and ") }
    }

    /// Does the same to all, and fails where one has failed.
    fn all(&self, act: impl Fn(&Disk) -> io::Result<()>) -> io::Result<()> {
        let results: Vec<io::Result<()>> =
            self.legs.iter().map(|leg| act(leg).map_err(|source| of_leg(leg, source))).collect();
        results.into_iter().collect()
    }
}

/// What went wrong with a leg, which is named: the names of all do not lead to the one that fails.
#[derive(Debug)]
struct OfLeg {
    name: String,
    source: io::Error,
}

fn of_leg(leg: &Disk, source: io::Error) -> io::Error {
    io::Error::new(source.kind(), OfLeg { name: leg.name().to_owned(), source })
}

impl fmt::Display for OfLeg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl Error for OfLeg {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.source)
    }
}

impl Blocks for Legs {
    fn name(&self) -> &str {
        &self.name
    }

    fn size(&self) -> u64 {
        self.legs.iter().map(Disk::size).min().unwrap_or(0)
    }

    fn origin(&self) -> Option<u64> {
        self.legs.first().and_then(Disk::origin)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let mut result = Err(io::Error::other("none of its devices holds it"));
        for leg in self.readable.iter().filter_map(|at| self.legs.get(*at)) {
            result = leg.blocks().read_at(offset, buffer).map_err(|source| of_leg(leg, source));
            if result.is_ok() {
                break;
            }
        }
        result
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.all(|leg| leg.blocks().write_at(offset, bytes))
    }

    fn clear_at(&self, offset: u64, len: usize) -> io::Result<()> {
        self.all(|leg| leg.blocks().clear_at(offset, len))
    }

    fn flush(&self) -> io::Result<()> {
        self.all(|leg| leg.blocks().flush())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use dormouse_image::{BLOCK, Commit, Label, State, Uuid};

    use super::*;
    use crate::store::faulty::{Fault, Faulty};
    use crate::store::{Image, StoreError};

    const MIB: u64 = 1 << 20;

    fn pair() -> [Faulty; 2] {
        [Faulty::new(4 << 20), Faulty::new(4 << 20)]
    }

    fn disk(legs: &[Faulty]) -> Disk {
        let legs: Vec<Disk> = legs.iter().map(|leg| Disk::new(leg.clone())).collect();
        Disk::mirror(&legs, &(0..legs.len()).collect::<Vec<_>>())
    }

    fn label() -> Label {
        Label { uuid: Uuid([7; 16]), created_unix: 1, extents: Vec::new(), mirror: None, stack: Vec::new() }
    }

    fn image(legs: &[Faulty]) -> Image {
        Image::create(disk(legs), label()).unwrap()
    }

    fn open(legs: &[Faulty]) -> Result<Image, StoreError> {
        Image::open(disk(legs))
    }

    /// A record of the save `save`, as both slots of a leg have it.
    fn put(leg: &Faulty, seq: u64, state: State, save: u8) {
        let commit = Commit { seq, state, save_id: Uuid([save; 16]), ..Commit::empty(Uuid([7; 16])) };
        let commit = if matches!(state, State::Complete | State::Restoring) {
            let locator = dormouse_image::Locator { offset: 65536, len: 4096, checksum: 1, tag: [0; 16] };
            let last_index = dormouse_image::Locator { offset: MIB, ..locator };
            Commit { header: locator, last_index, data_end: MIB + 4096, ..commit }
        } else {
            commit
        };
        let bytes = commit.encode().unwrap();
        leg.put(4096, &bytes);
        leg.put(8192, &bytes);
    }

    #[test]
    fn writes_go_to_all_and_reads_come_from_the_first_that_answers() {
        let legs = pair();
        let disk = disk(&legs);
        disk.write_copy(MIB, &[7; BLOCK]).unwrap();
        for leg in &legs {
            assert!(leg.bytes(MIB..MIB + 4096).iter().all(|byte| *byte == 7));
        }
        assert_eq!(disk.name(), "/dev/faulty and /dev/faulty");
        legs[0].fail(Fault::Read(MIB));
        assert!(disk.read(MIB, BLOCK).unwrap().iter().all(|byte| *byte == 7));
        legs[1].fail(Fault::Read(MIB));
        assert!(disk.read(MIB, BLOCK).is_err());
        disk.clear(MIB, 4096).unwrap();
        assert!(legs.iter().all(|leg| leg.bytes(MIB..MIB + 4096).iter().all(|byte| *byte == 0)));
    }

    #[test]
    fn a_leg_that_fails_fails_the_write() {
        for at in 0..2 {
            let legs = pair();
            let mut image = image(&legs);
            legs[at].fail(Fault::Death(0));
            assert!(image.transition(State::Saving, "").is_err(), "{at}");
        }
    }

    #[test]
    fn the_leg_that_fails_is_named() {
        let legs = ["/dev/vda1", "/dev/sda1"].map(|name| Faulty::named(name, 4 << 20));
        legs[1].fail(Fault::Death(0));
        let both = Legs::new(&legs.each_ref().map(Faulty::disk), &[1]);
        let is_named = |error: io::Error| error.to_string() == "/dev/sda1";
        assert!(is_named(both.write_at(MIB, &[7; BLOCK]).unwrap_err()));
        assert!(is_named(both.flush().unwrap_err()));
        legs[1].fail(Fault::Read(MIB));
        assert!(is_named(both.read_at(MIB, &mut [0; BLOCK]).unwrap_err()));
    }

    #[test]
    fn a_change_is_on_both_legs_and_one_is_enough_to_read_it() {
        let legs = pair();
        let mut both = image(&legs);
        both.transition(State::Saving, "").unwrap();
        both.transition(State::Failed, "x").unwrap();
        for leg in &legs {
            assert_eq!(open(std::slice::from_ref(leg)).unwrap().commit(), both.commit());
        }
        assert_eq!(open(&legs).unwrap().commit(), both.commit());
        // One that cannot be read counts as one that is missing.
        legs[0].fail(Fault::Read(4096));
        assert_eq!(open(&legs).unwrap().commit(), both.commit());
    }

    #[test]
    fn the_newest_record_of_both_legs_counts() {
        for swap in [false, true] {
            let legs = pair();
            image(&legs);
            let (new, old) = if swap { (&legs[1], &legs[0]) } else { (&legs[0], &legs[1]) };
            put(old, 5, State::Complete, 3);
            put(new, 6, State::Restoring, 3);
            let mut image = open(&legs).unwrap();
            assert_eq!((image.commit().state, image.commit().seq), (State::Restoring, 6));
            // What is written next is newer than both.
            image.transition(State::Failed, "x").unwrap();
            for leg in &legs {
                let commit = open(std::slice::from_ref(leg)).unwrap().commit().clone();
                assert_eq!((commit.state, commit.seq), (State::Failed, 7));
            }
        }
    }

    #[test]
    fn a_leg_on_which_the_save_is_over_decides() {
        for over in [State::Consumed, State::Discarded, State::Failed] {
            for swap in [false, true] {
                let legs = pair();
                image(&legs);
                let (waiting, ended) = if swap { (&legs[1], &legs[0]) } else { (&legs[0], &legs[1]) };
                // It was tried again without the other one.
                put(waiting, 9, State::Restoring, 3);
                put(ended, 6, over, 3);
                let image = open(&legs).unwrap();
                assert_eq!((image.commit().state, image.commit().seq), (over, 9));
            }
        }
    }

    #[test]
    fn legs_with_different_saves_are_not_resumed() {
        for (seq, state, save) in [(4, State::Consumed, 2), (4, State::Complete, 2), (8, State::Consumed, 0)] {
            let legs = pair();
            image(&legs);
            put(&legs[0], 9, State::Complete, 3);
            put(&legs[1], seq, state, save);
            let image = open(&legs).unwrap();
            assert_eq!(image.commit().state, State::Failed, "{state} {save}");
            assert!(image.commit().reason.contains("another save"), "{}", image.commit().reason);
        }
        // A save that begins while the other leg still has the last one is no session yet.
        let legs = pair();
        image(&legs);
        put(&legs[0], 9, State::Saving, 3);
        put(&legs[1], 8, State::Consumed, 2);
        assert_eq!(open(&legs).unwrap().commit().state, State::Saving);
    }

    #[test]
    fn reads_come_from_a_leg_that_has_the_save() {
        let legs = pair();
        image(&legs);
        put(&legs[1], 9, State::Complete, 3);
        put(&legs[0], 8, State::Saving, 3);
        legs[1].put(65536, &[9; BLOCK]);
        let image = open(&legs).unwrap();
        assert_eq!(image.commit().state, State::Complete);
        assert!(image.disk().read(65536, BLOCK).unwrap().iter().all(|byte| *byte == 9));
    }

    #[test]
    fn power_that_fails_at_any_write_of_a_change_leaves_the_old_state_or_the_new_one() {
        for write in 0..4 {
            for is_lost in [false, true] {
                let legs = pair();
                let mut image = image(&legs);
                image.transition(State::Saving, "").unwrap();
                legs.iter().for_each(|leg| leg.fail(Fault::Death(write / 2)));
                let _ = image.transition(State::Failed, "x");
                legs.iter().for_each(|leg| leg.power_cycle(is_lost));
                for legs in [&legs[..], &legs[..1], &legs[1..]] {
                    let state = open(legs).unwrap().commit().state;
                    assert!(matches!(state, State::Saving | State::Failed), "{write} {is_lost}: {state}");
                }
            }
        }
    }

    #[test]
    fn legs_that_differ_are_made_alike() {
        let legs = pair();
        image(&legs);
        put(&legs[0], 9, State::Consumed, 3);
        put(&legs[1], 8, State::Restoring, 3);
        let mut image = open(&legs).unwrap();
        assert!(!image.are_legs_alike());
        image.settle_legs().unwrap();
        for leg in &legs {
            assert_eq!(open(std::slice::from_ref(leg)).unwrap().commit().state, State::Consumed);
        }
        let seq = open(&legs).unwrap().commit().seq;
        assert!(open(&legs).unwrap().are_legs_alike());
        open(&legs).unwrap().settle_legs().unwrap();
        assert_eq!(open(&legs).unwrap().commit().seq, seq);
    }
}
