//! The two slots of the commit record: which one counts, whatever happened to the other.

use dormouse_image::layout::SLOT_OFFSETS;
use dormouse_image::{BLOCK, Block, Commit, FormatError, Slot, State, Version, newest};
use proptest::prelude::*;

use crate::bytes::with;
use crate::values;

fn record(seq: u64) -> Commit {
    Commit { seq, ..values::commit() }
}

/// What a slot may be found to hold.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Found {
    Good(u64),
    Torn,
    Blank,
}

impl Found {
    fn bytes(self) -> Vec<u8> {
        match self {
            Found::Good(seq) => record(seq).encode().unwrap(),
            Found::Torn => {
                let mut bytes = record(9).encode().unwrap();
                bytes[512..].fill(0xff);
                bytes
            }
            Found::Blank => vec![0; BLOCK],
        }
    }
}

#[test]
fn the_newest_good_record_counts_in_every_combination() {
    use Found::{Blank, Good, Torn};
    let all = [Good(1), Good(2), Good(u64::MAX), Torn, Blank];
    for first in all {
        for second in all {
            let found = newest(&first.bytes(), &second.bytes());
            let expected = match (first, second) {
                (Good(a), Good(b)) if b > a => Some((b, Slot::Second)),
                (Good(a), _) => Some((a, Slot::First)),
                (_, Good(b)) => Some((b, Slot::Second)),
                _ => None,
            };
            match (expected, found) {
                (Some((seq, slot)), found) => {
                    assert_eq!(found, Ok((record(seq), slot)), "{first:?} {second:?}")
                }
                // Damage tells more than nothing at all.
                (None, Err(FormatError::Magic(Block::Commit))) => assert_eq!((first, second), (Blank, Blank)),
                (None, Err(FormatError::Checksum { block, .. })) => {
                    assert_eq!(block, Block::Commit);
                    assert!(first == Torn || second == Torn);
                }
                (None, other) => panic!("{first:?} {second:?}: {other:?}"),
            }
        }
    }
}

#[test]
fn a_slot_that_is_cut_short_does_not_hide_the_other() {
    let good = record(3).encode().unwrap();
    for len in [0, 1, 24, BLOCK - 1] {
        assert_eq!(newest(&good[..len], &good), Ok((record(3), Slot::Second)));
        assert_eq!(newest(&good, &good[..len]), Ok((record(3), Slot::First)));
    }
}

#[test]
fn a_whole_record_that_needs_a_newer_version_is_not_passed_over() {
    let good = record(3).encode().unwrap();
    let newer = with(&with(&good, 10, &[2]), 236, &[3]);
    for found in [newest(&good, &newer), newest(&newer, &good), newest(&newer, &newer)] {
        let written = Version { major: 1, minor: 2 };
        assert!(matches!(found, Err(FormatError::Newer { written: w, .. }) if w == written), "{found:?}");
    }
}

#[test]
fn the_slots_lie_where_the_layout_says() {
    assert_eq!([Slot::First.offset(), Slot::Second.offset()], SLOT_OFFSETS);
    assert_eq!([Slot::First.other(), Slot::Second.other()], [Slot::Second, Slot::First]);
}

/// A device with the two slots, which may lose power in the middle of a write.
struct Device {
    slots: [Vec<u8>; 2],
}

impl Device {
    fn newest(&self) -> (Commit, Slot) {
        newest(&self.slots[0], &self.slots[1]).unwrap()
    }

    /// Changes the record as a writer must. With `power` the supply ends after that many written sectors of 512 bytes.
    fn change(&mut self, next: &Commit, power: Option<usize>) {
        let (_, newest) = self.newest();
        let bytes = next.encode().unwrap();
        let mut left = power.unwrap_or(usize::MAX);
        for slot in [newest.other(), newest] {
            let slot = &mut self.slots[usize::from(slot == Slot::Second)];
            for at in (0..BLOCK).step_by(512) {
                if left == 0 {
                    return;
                }
                slot[at..at + 512].copy_from_slice(&bytes[at..at + 512]);
                left -= 1;
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Power may be lost at any sector of any change: what is found then is the old record or the new one.
    #[test]
    fn a_change_is_made_or_not_made_wherever_power_is_lost(
        lost in proptest::collection::vec(proptest::option::of(0_usize..16), 1..12),
        reasons in proptest::collection::vec("[a-z]{0,1024}", 12),
    ) {
        let first = Commit::empty(values::commit().image);
        let bytes = first.encode().unwrap();
        let mut device = Device { slots: [bytes.clone(), bytes] };
        for (power, reason) in lost.iter().zip(&reasons) {
            let (old, _) = device.newest();
            let next = old.transition(State::Saving, reason).unwrap();
            device.change(&next, *power);
            let (found, _) = device.newest();
            match power {
                None => {
                    prop_assert_eq!(&found, &next);
                    // Nothing older is left to come back.
                    prop_assert_eq!(&device.slots[0], &device.slots[1]);
                }
                Some(sectors) if *sectors >= 8 => prop_assert_eq!(&found, &next),
                Some(_) => prop_assert!(found == old || found == next),
            }
        }
    }
}
