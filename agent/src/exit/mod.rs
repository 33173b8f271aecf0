//! The ends of PID 1: the only module that stops the kernel it runs in.

mod bridge;

use std::time::Duration;

use dormouse_sys::kexec::{self, Context, Segment};
use dormouse_sys::power::{self, Command};

pub use bridge::SIZE as BRIDGE_SIZE;

/// Where A is to be re-entered, and from where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WayBack {
    /// A's jump-back entry, a physical address inside A's kexec control page.
    pub entry: u64,
    /// The [`BRIDGE_SIZE`] bytes inside the region that are reserved for the bridge, a physical address.
    pub bridge: u64,
}

/// How B or D ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Go on in A.
    JumpBack(WayBack),
    /// Switch the machine off.
    PowerOff,
    /// Restart the machine; an ordinary boot follows.
    Reboot,
}

/// Ends this kernel. Never returns.
///
/// Where an ending fails, what comes closest is tried next: after a jump a reboot, after a power-off a reboot. The
/// waits let a person read why.
pub fn end(ending: Ending) -> ! {
    match ending {
        Ending::JumpBack(way) => {
            for context in [Context::Discard, Context::Preserve] {
                if let Err(error) = jump_back(way, context) {
                    log::error!("could not jump back into the stopped kernel at {:#x}: {error}", way.entry);
                }
            }
        }
        Ending::PowerOff => {
            if let Err(error) = power::reboot(Command::PowerOff) {
                log::error!("could not power off: {error}; the image is complete, the power may be cut");
                std::thread::sleep(Duration::from_secs(60));
            }
        }
        Ending::Reboot => {}
    }
    loop {
        if let Err(error) = power::reboot(Command::Restart) {
            log::error!("could not reboot: {error}; switch the machine off and on");
        }
        std::thread::sleep(Duration::from_secs(10));
    }
}

/// Loads the bridge, so that what could keep the kernel from taking it is known before it is needed.
///
/// # Errors
/// What `kexec_load(2)` says, or a way that no bridge can take.
pub fn load_bridge(way: WayBack) -> std::io::Result<()> {
    load(way, Context::Discard)
}

/// Loads the bridge and crosses it. Returns only with the reason why it could not.
///
/// A plain load shuts the devices down first, which also stops whatever still writes to memory on its own. A
/// preserved context only freezes them; it is the second try.
fn jump_back(way: WayBack, context: Context) -> std::io::Result<()> {
    load(way, context)?;
    power::reboot(Command::Kexec)?;
    Err(std::io::Error::other("the jump returned"))
}

fn load(way: WayBack, context: Context) -> std::io::Result<()> {
    let bridge = Segment { start: way.bridge, size: BRIDGE_SIZE, data: bridge::build(way)? };
    kexec::load(way.bridge, &[bridge], context)
}
