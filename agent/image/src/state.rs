//! The states of an image, and what may follow what.

use std::fmt;

/// What an image is good for. The state decides what the next boot does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// Nothing has been saved since `image init`. A boot goes on.
    Empty,
    /// A save is under way, or died. Whatever was in the image before is gone. A boot says so and goes on.
    Saving,
    /// A session waits to be resumed. A boot resumes it.
    Complete,
    /// A whole image of a session that went on, and may therefore never be resumed: its filesystems have changed.
    Snapshot,
    /// A restore is under way, or died before its jump. A boot may try again, within limits.
    Restoring,
    /// The session was resumed. A boot goes on, and nothing resumes this image again.
    Consumed,
    /// A save or a restore failed; the record says why. A boot says so and goes on.
    Failed,
    /// The image was given up on purpose. A boot goes on.
    Discarded,
}

impl State {
    /// All states, in the order of their definition.
    pub const ALL: [State; 8] = [
        State::Empty,
        State::Saving,
        State::Complete,
        State::Snapshot,
        State::Restoring,
        State::Consumed,
        State::Failed,
        State::Discarded,
    ];

    /// Whether an image in this state may be given the state `next`.
    ///
    /// Only a save makes an image complete, only a complete one is restored, and from what was consumed, failed or
    /// discarded only a new save leads out.
    #[must_use]
    pub fn may_become(self, next: State) -> bool {
        use State::{Complete, Consumed, Discarded, Empty, Failed, Restoring, Saving, Snapshot};
        match next {
            Empty => false,
            Saving => true,
            Complete | Snapshot => self == Saving,
            Restoring => self.is_waiting(),
            Consumed => self == Restoring,
            Failed => self.is_waiting() || self == Saving,
            Discarded => matches!(self, Empty | Saving | Complete | Snapshot | Restoring | Failed),
        }
    }

    /// Whether a session waits in the image: the next boot resumes it, or has to give it up.
    #[must_use]
    pub fn is_waiting(self) -> bool {
        matches!(self, State::Complete | State::Restoring)
    }

    /// Whether the image has a whole session, that waits or went on.
    #[must_use]
    pub fn holds_a_session(self) -> bool {
        self.is_waiting() || self == State::Snapshot
    }

    /// The eight bytes that stand for it on the device.
    pub(crate) const fn marker(self) -> [u8; 8] {
        match self {
            State::Empty => *b"EMPTY   ",
            State::Saving => *b"SAVING  ",
            State::Complete => *b"COMPLETE",
            State::Snapshot => *b"SNAPSHOT",
            State::Restoring => *b"RESTORE ",
            State::Consumed => *b"CONSUMED",
            State::Failed => *b"FAILED  ",
            State::Discarded => *b"DISCARD ",
        }
    }

    pub(crate) fn from_marker(marker: [u8; 8]) -> Option<State> {
        State::ALL.into_iter().find(|state| state.marker() == marker)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            State::Empty => "empty",
            State::Saving => "being saved",
            State::Complete => "complete",
            State::Snapshot => "a snapshot",
            State::Restoring => "being restored",
            State::Consumed => "consumed",
            State::Failed => "failed",
            State::Discarded => "discarded",
        })
    }
}
