//! The way back into a stopped kernel: the bridge, loaded and crossed.

use std::io;

use dormouse_image::PhysRange;
use dormouse_linux::hibernation_events;
use dormouse_sys::kexec::{self, Context, Segment};
use dormouse_sys::module::Module;
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

/// The same by Dormouse's module. It takes the bridge only in memory of this kernel's own, so that goes into some of
/// `ram`, what this kernel uses as RAM; what is there comes back with the jump.
///
/// # Errors
/// A could not be entered, or the module is not there: this kernel goes on as before.
pub fn go_and_wait_by_module(way: WayBack, ram: &[PhysRange]) -> io::Result<()> {
    let way = WayBack { bridge: place_for_bridge(ram).ok_or(io::ErrorKind::OutOfMemory)?, ..way };
    let module = Module::open()?.ok_or_else(|| io::Error::other("the module is of another version"))?;
    module.load(way.bridge, &[segment(way)?])?;
    let announced = hibernation_events::announce().map_err(io::Error::other)?;
    let frozen = announced.freeze()?;
    let entered = module.jump();
    drop(frozen);
    entered.map(drop)
}

/// The highest one.
fn place_for_bridge(ram: &[PhysRange]) -> Option<u64> {
    let highest = |range: &PhysRange| {
        let start = range.end.checked_sub(BRIDGE_SIZE)? / BRIDGE_SIZE * BRIDGE_SIZE;
        (start >= range.start).then_some(start)
    };
    ram.iter().filter_map(highest).max()
}

fn load(way: WayBack, mut segments: Vec<Segment>, context: Context) -> io::Result<()> {
    segments.push(segment(way)?);
    kexec::load(way.bridge, &segments, context)
}

fn segment(way: WayBack) -> io::Result<Segment> {
    Ok(Segment { start: way.bridge, size: BRIDGE_SIZE, data: bridge::build(way)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bridge_goes_into_whole_memory() {
        let range = |start, end| PhysRange { start, end };
        assert_eq!(place_for_bridge(&[range(0x1000, 0x9_f000), range(0x100_0000, 0x8ff_f000)]), Some(0x8ff_0000));
        assert_eq!(place_for_bridge(&[range(0x1000, 0x9_f000), range(0x100_1000, 0x100_f000)]), Some(0x9_0000));
        assert_eq!(place_for_bridge(&[range(0x1000, 0xf000), range(0, 0x1000)]), None);
    }
}
