//! The way back into a stopped kernel: the bridge, loaded and crossed.

use std::io;

use dormouse_sys::kexec::{self, Context, Segment};
use dormouse_sys::power::{self, Command};

use crate::handoff::arguments::WayBack;
use crate::launch::BRIDGE_SIZE;
use crate::launch::arch::bridge;

/// Loads the bridge, so that what could keep the kernel from taking it is known before it is needed, and with it memory
/// that only the jump may write.
///
/// # Errors
/// What `kexec_load(2)` reports, or a way that no bridge can take.
pub fn load_bridge(way: WayBack, by_jump: Vec<Segment>) -> io::Result<()> {
    load(way, by_jump, Context::Discard)
}

/// Crosses the bridge that is loaded. Returns only if it could not, and has logged why.
pub fn jump_loaded() {
    let error = power::reboot(Command::Kexec).err().unwrap_or_else(|| io::Error::other("the jump returned"));
    log::error!("could not jump into the saved kernel: {error}");
}

/// Loads the bridge and crosses it. Returns only if it could not, and has logged why.
///
/// A plain load shuts the devices down first, which also stops whatever still writes to memory on its own. A preserved
/// context only freezes them; it is the second try.
pub fn jump_back(way: WayBack) {
    for context in [Context::Discard, Context::Preserve] {
        let jumped = load(way, Vec::new(), context).and_then(|()| power::reboot(Command::Kexec));
        let error = jumped.err().unwrap_or_else(|| io::Error::other("the jump returned"));
        log::error!("could not jump back into the stopped kernel at {:#x}: {error}", way.entry);
    }
}

/// Goes back to A and stays in memory. Returns when A has entered this kernel again.
///
/// # Errors
/// A could not be entered: this kernel goes on as before.
pub fn go_and_wait(way: WayBack) -> io::Result<()> {
    load(way, Vec::new(), Context::Preserve)?;
    let entered = power::reboot(Command::Kexec);
    // The bridge is loaded again for the next time, which may be another kind of jump.
    kexec::unload()?;
    entered
}

fn load(way: WayBack, mut segments: Vec<Segment>, context: Context) -> io::Result<()> {
    segments.push(Segment { start: way.bridge, size: BRIDGE_SIZE, data: bridge::build(way)? });
    kexec::load(way.bridge, &segments, context)
}
