//! Which state may follow which.

use dormouse_image::State::{self, Complete, Consumed, Discarded, Empty, Failed, Restoring, Saving, Snapshot};
use dormouse_image::{Commit, FormatError, Uuid};

use crate::values;

/// Each state with all that may follow it.
const LEGAL: [(State, &[State]); 8] = [
    (Empty, &[Saving, Discarded]),
    (Saving, &[Saving, Complete, Snapshot, Failed, Discarded]),
    (Complete, &[Saving, Restoring, Failed, Discarded]),
    (Snapshot, &[Saving, Discarded]),
    (Restoring, &[Saving, Restoring, Consumed, Failed, Discarded]),
    (Consumed, &[Saving]),
    (Failed, &[Saving, Discarded]),
    (Discarded, &[Saving]),
];

#[test]
fn a_change_that_the_table_does_not_list_is_refused() {
    for (from, allowed) in LEGAL {
        for to in State::ALL {
            let commit = Commit { state: from, ..values::commit() };
            assert_eq!(from.may_become(to), allowed.contains(&to), "{from:?} to {to:?}");
            let changed = commit.transition(to, "because");
            match allowed.contains(&to) {
                true => assert_eq!(
                    changed,
                    Ok(Commit { seq: commit.seq + 1, state: to, reason: "because".to_string(), ..commit })
                ),
                false => assert_eq!(changed, Err(FormatError::Transition { from, to })),
            }
        }
    }
}

#[test]
fn consumed_image_is_never_resumed_without_a_new_save() {
    // Everything that can be reached from there without saving.
    let mut reached = vec![Consumed];
    let mut at = 0;
    while let Some(from) = reached.get(at).copied() {
        for to in State::ALL {
            if to != Saving && from.may_become(to) && !reached.contains(&to) {
                reached.push(to);
            }
        }
        at += 1;
    }
    assert!(!reached.contains(&Complete) && !reached.contains(&Restoring), "{reached:?}");
}

#[test]
fn a_session_waits_where_a_restore_may_begin() {
    for state in State::ALL {
        assert_eq!(state.is_waiting(), state.may_become(Restoring), "{state:?}");
    }
}

#[test]
fn a_new_device_is_empty_and_every_state_survives_its_block() {
    let empty = Commit::empty(Uuid([1; 16]));
    assert_eq!(Commit::decode(&empty.encode().unwrap()), Ok(empty));
    for state in State::ALL {
        let commit = Commit { state, ..values::commit() };
        assert_eq!(Commit::decode(&commit.encode().unwrap()), Ok(commit));
    }
}
