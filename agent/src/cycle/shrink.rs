//! What A gives up of its memory before it is saved, as the policy wants it (`save.shrink`).

use std::time::Duration;

use dormouse_linux::shrink::{self, End};
use dormouse_linux::units::mib;

use crate::console::phase::Phase;
use crate::handoff::report::Shrunk;
use crate::policy::Shrink;

/// How long it may take. Somebody waits for it, and a disk that writes 100 MiB/s saves a gigabyte in that time: what is
/// slower than that does not spare any.
const LIMIT: Duration = Duration::from_secs(10);

/// Gives up what the policy wants given up, and returns what that was. A courtesy: the hibernation goes on with what
/// was reached.
pub(super) fn shrink(wanted: Shrink) -> Option<Shrunk> {
    let result = match wanted {
        Shrink::None => return None,
        Shrink::Cache => shrink::drop_caches(),
        Shrink::To(size) => shrink::to(size, LIMIT),
    };
    match result {
        Ok(shrunk) => Some(reported(wanted, shrunk)),
        Err(error) => {
            log::warn!("{}: memory is not given up (save.shrink): {error}", Phase::HibernatePrepare);
            None
        }
    }
}

/// What goes to the report; the log says what was reached, and why it was not more.
fn reported(wanted: Shrink, shrunk: shrink::Shrunk) -> Shrunk {
    let given_up_bytes = shrunk.before.saturating_sub(shrunk.now);
    let (given_up, seconds) = (mib(given_up_bytes), shrunk.took.as_secs_f64());
    let done = format!("{given_up} of memory given up in {seconds:.2} s, {} in use", mib(shrunk.now));
    let phase = Phase::HibernatePrepare;
    match (short(shrunk.end), wanted) {
        (Some(why), Shrink::To(size)) => log::warn!("{phase}: {done}, not {} (save.shrink): {why}", mib(size)),
        _ => log::info!("{phase}: {done}"),
    }
    Shrunk { given_up_bytes, in_use_bytes: shrunk.now, seconds }
}

/// Why less was given up than wanted.
fn short(end: End) -> Option<&'static str> {
    match end {
        End::Done => None,
        End::Exhausted => Some("the rest can neither be read again nor swapped out"),
        End::Late => Some("the time for it was over"),
        End::CachesAlone => Some("only caches were, since /sys/fs/cgroup has no memory.reclaim (control groups v2)"),
    }
}
