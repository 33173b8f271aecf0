//! The ends of PID 1: the only module that ends it.

use std::time::Duration;

use dormouse_linux::network;
use dormouse_sys::power::{self, Command};

use crate::console::phase::Phase;
use crate::handoff::arguments::WayBack;
use crate::launch;
use crate::policy::Power;

/// How B or D ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Go on in A.
    JumpBack(WayBack),
    /// The same, by the bridge that is loaded together with the rest of A's memory.
    JumpLoaded,
    /// Switch the machine off, this way.
    PowerOff(Power),
    /// Restart the machine; an ordinary boot follows.
    Reboot,
}

/// Ends this kernel. Never returns.
///
/// Where an ending fails, what comes closest is tried next: after a jump a reboot, after S4 a power-off, after a
/// power-off a reboot. The waits let a person read why.
pub fn end(ending: Ending) -> ! {
    if matches!(ending, Ending::JumpBack(_) | Ending::JumpLoaded) {
        network::take_down_all();
    }
    match ending {
        Ending::JumpBack(way) => launch::jump_back(way),
        Ending::JumpLoaded => launch::jump_loaded(),
        Ending::PowerOff(how) => {
            if how == Power::Platform {
                log::info!("{}: entering ACPI's sleep state S4", Phase::SaveEnd);
                log::warn!("S4 was not entered: {}; powering off without it", power::enter_s4());
            }
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
