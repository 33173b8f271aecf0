//! Where things lie in the initramfs of B and D, for those who make it and those who read it.

/// The order in which modules are loaded: on each line a module's name or its file's, which is anywhere under
/// [`MODULES_DIR`].
pub const MODULES_LIST: &str = "/etc/dormouse/modules";
/// The same for the drivers of hardware watchdogs, which B and D load after those: without one of them they go on.
pub const WATCHDOG_MODULES_LIST: &str = "/etc/dormouse/modules.watchdogs";
/// The same for the drivers of the session's other disks, which B alone loads.
pub const DISK_MODULES_LIST: &str = "/etc/dormouse/modules.disks";
/// The same for Dormouse's own module, by which D and B reach A's memory; without it they go another way.
pub const MEMORY_MODULES_LIST: &str = "/etc/dormouse/modules.memory";
/// The name of Dormouse's own module.
pub const MODULE: &str = "dormouse";
/// The modules.
pub const MODULES_DIR: &str = "/lib/modules";
