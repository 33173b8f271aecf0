//! The machine's hardware watchdogs in B and D. They restart a machine whose kernel hangs; and one that a program in A
//! has started goes on counting in B, where that program does not run.

use std::path::{Path, PathBuf};
use std::time::Duration;

use dormouse_linux::procfs;
use dormouse_linux::watchdogs::HardwareWatchdog;
use dormouse_sys::watchdog::Watchdog;

use crate::handoff::mailbox::ArmedWatchdog;

/// After how long the hardware restarts a machine whose kernel hangs.
const TIMEOUT: Duration = Duration::from_secs(30);

const SYSFS: &str = "/sys";

/// All of them. Whatever is not stopped or left running on purpose is stopped in the end: in A, nobody would set it
/// back.
pub(super) struct Watchdogs {
    /// Whether those are used that A does not.
    wanted: bool,
    /// The one that A believes runs.
    pub(super) armed: Option<ArmedWatchdog>,
    running: Vec<Running>,
    /// Those that cannot be used.
    given_up: Vec<String>,
}

struct Running {
    name: String,
    identity: String,
    watchdog: Watchdog,
}

impl Watchdogs {
    /// None is running yet.
    pub(super) fn new(wanted: bool, armed: Option<ArmedWatchdog>) -> Watchdogs {
        Watchdogs { wanted, armed, running: Vec::new(), given_up: Vec::new() }
    }

    /// Sets all of them back, and starts those that have turned up.
    pub(super) fn tick(&mut self) {
        for found in HardwareWatchdog::all(Path::new(SYSFS)) {
            let is_known = self.running.iter().any(|running| running.name == found.name);
            if !is_known && !self.given_up.contains(&found.name) {
                self.start(found);
            }
        }
        for Running { name, watchdog, .. } in &mut self.running {
            if let Err(error) = watchdog.set_back() {
                log::warn!("{name} cannot be set back: {error}");
            }
        }
    }

    fn start(&mut self, found: HardwareWatchdog) {
        let is_armed = self.armed.is_some_and(|armed| armed.is(&found.identity));
        // One that cannot be stopped again is A's alone to start.
        let is_used = is_armed || self.wanted && can_be_stopped(&found.name);
        if !is_used {
            return;
        }
        let HardwareWatchdog { name, identity, .. } = found;
        match Watchdog::start(&Path::new("/dev").join(&name), TIMEOUT) {
            Ok(watchdog) => {
                let whose = if is_armed { ", which the session has started," } else { "" };
                log::info!("{name} ({identity}){whose} restarts the machine after {} s", watchdog.timeout.as_secs());
                self.running.push(Running { name, identity, watchdog });
            }
            Err(error) => {
                log::warn!("{name} ({identity}) cannot be used: {error}");
                self.given_up.push(name);
            }
        }
    }

    /// Leaves running what A believes runs, with A's timeout, and stops the others. Just before the jump into A.
    pub(super) fn leave_to_session(&mut self) {
        let Some(armed) = self.armed else { return self.stop() };
        for Running { name, identity, mut watchdog } in std::mem::take(&mut self.running) {
            if armed.is(&identity) {
                let timeout = Duration::from_secs(armed.seconds.into());
                let left = watchdog.set_timeout(timeout).and_then(|()| watchdog.leave());
                match left {
                    Ok(()) => log::info!("{name} is left running for the session, with {} s", armed.seconds),
                    Err(error) => log::warn!("{name} cannot be left running for the session: {error}"),
                }
            } else {
                stop(&name, watchdog);
            }
        }
    }

    /// Stops all of them.
    pub(super) fn stop(&mut self) {
        for Running { name, watchdog, .. } in std::mem::take(&mut self.running) {
            stop(&name, watchdog);
        }
    }
}

impl Drop for Watchdogs {
    fn drop(&mut self) {
        self.stop();
    }
}

fn stop(name: &str, watchdog: Watchdog) {
    if let Err(error) = watchdog.stop() {
        log::warn!("{name} cannot be stopped: {error}");
    }
}

/// Whether it can be stopped once it has been started (drivers/watchdog/watchdog_dev.c, `nowayout_show`).
fn can_be_stopped(name: &str) -> bool {
    let path: PathBuf = [SYSFS, "class/watchdog", name, "nowayout"].iter().collect();
    procfs::text(path).is_ok_and(|text| text.trim() == "0")
}
