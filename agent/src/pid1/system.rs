//! What every init does first.

use std::panic;

use dormouse_linux::kmsg;
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::set_cad_enabled;

/// The filesystems of the kernel's own, in order: type, place, and why.
const MOUNTS: [(&str, &str); 3] = [
    // The command line, the vmcore, iomem, memory figures.
    ("proc", "/proc"),
    // Block devices.
    ("sysfs", "/sys"),
    // Block devices' nodes, /dev/mem, /dev/kmsg.
    ("devtmpfs", "/dev"),
];

/// Mounts, the log, the kernel's settings.
pub(super) fn begin() {
    let failures: Vec<String> = MOUNTS
        .into_iter()
        .filter_map(|(kind, place)| {
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
            let mounted = std::fs::create_dir_all(place)
                .map_err(|error| error.to_string())
                .and_then(|()| mount(Some(kind), place, Some(kind), flags, None::<&str>).map_err(|e| e.to_string()));
            mounted.err().map(|error| format!("cannot mount {place}: {error}"))
        })
        .collect();
    // /dev/kmsg takes ten lines in five seconds from user space unless set otherwise (kernel/printk/printk.c).
    let unlimited = std::fs::write("/proc/sys/kernel/printk_devkmsg", "on\n");
    // A kernel that hangs, and has found out, must not keep the machine; where it cannot find out, these are missing.
    // Under load a CPU may well be busy for long, so it has two minutes (kernel/watchdog.c: twice the threshold).
    for (name, value) in [("watchdog_thresh", "60\n"), ("softlockup_panic", "1\n"), ("hardlockup_panic", "1\n")] {
        let _ = std::fs::write(format!("/proc/sys/kernel/{name}"), value);
    }
    kmsg::init();
    for failure in failures {
        log::error!("{failure}");
    }
    if let Err(error) = unlimited {
        log::warn!("/proc/sys/kernel/printk_devkmsg: {error}; some of these lines may get lost");
    }
    panics_to_log();
    // Ctrl-Alt-Del reboots at once by default; here it must not.
    if let Err(error) = set_cad_enabled(false) {
        log::warn!("Ctrl-Alt-Del stays enabled: {error}");
    }
}

/// What the worker does first, in a system that PID 1 has begun.
pub(super) fn begin_worker() {
    kmsg::init();
    panics_to_log();
    dormouse_sys::memory::limit_arenas();
}

/// A panic's own message would go to stderr alone.
fn panics_to_log() {
    panic::set_hook(Box::new(|info| log::error!("{info}")));
}
