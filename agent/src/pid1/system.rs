//! What every init does first.

use std::panic;

use nix::mount::{MsFlags, mount};
use nix::sys::reboot::set_cad_enabled;

use crate::kmsg;

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
    // /dev/kmsg takes ten lines in five seconds from user space unless told otherwise (kernel/printk/printk.c).
    let unlimited = std::fs::write("/proc/sys/kernel/printk_devkmsg", "on\n");
    kmsg::init();
    for failure in failures {
        log::error!("{failure}");
    }
    if let Err(error) = unlimited {
        log::warn!("/proc/sys/kernel/printk_devkmsg: {error}; some of these lines may get lost");
    }
    // A panic's own message would go to stderr alone.
    panic::set_hook(Box::new(|info| log::error!("{info}")));
    dormouse_sys::memory::limit_arenas();
    if let Err(error) = dormouse_sys::process::reap_children_automatically() {
        log::warn!("children will not be reaped: {error}");
    }
    // Ctrl-Alt-Del reboots at once by default; here it must not.
    if let Err(error) = set_cad_enabled(false) {
        log::warn!("Ctrl-Alt-Del stays enabled: {error}");
    }
}
