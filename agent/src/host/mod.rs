//! A machine made ready to hibernate, and kept so.

pub mod boot_initramfs;
pub mod doctor;
pub mod initramfs;
pub mod layers;
pub mod loader;
pub mod map_history;
pub mod missed;
pub mod save_kernel;
pub mod setup;
pub mod sleep_hooks;
pub mod systemd;
pub mod update;
