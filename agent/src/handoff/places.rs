//! Where things lie in the initramfs of B and D, for those who make it and those who read it.

/// The order in which modules are loaded: on each line a module's name or its file's, which is anywhere under
/// [`MODULES_DIR`].
pub const MODULES_LIST: &str = "/etc/dormouse/modules";
/// The modules.
pub const MODULES_DIR: &str = "/lib/modules";
