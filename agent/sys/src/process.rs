//! What PID 1 says to the kernel about processes and signals.

#![expect(unsafe_code, reason = "signal(2)")]

use std::io;

use nix::sys::signal::{SigHandler, Signal, signal};

/// Has the kernel reap every child as it ends: orphans of a vanished parent become PID 1's children, and
/// nobody here waits for them.
///
/// # Errors
/// None that `signal(2)` documents for `SIGCHLD`.
pub fn reap_children_automatically() -> io::Result<()> {
    // SAFETY: `SigIgn` installs no handler, so no code of ours runs in signal context.
    unsafe { signal(Signal::SIGCHLD, SigHandler::SigIgn) }?;
    Ok(())
}
