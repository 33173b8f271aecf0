//! A filesystem in user space whose server never answers: whoever touches it waits, and cannot be frozen meanwhile.
//!
//! The kernel's first request is answered before any other is sent, and a process that waits for that can be killed and
//! nothing else (Linux 6.12, fs/fuse/dev.c, `fuse_get_req`).

use std::fs::OpenOptions;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};

/// Mounts it on `directory` and serves it, that is, does nothing until it is killed.
///
/// # Errors
/// Fails where the kernel has no FUSE or it cannot be mounted.
pub fn serve(directory: &Path) -> Result<()> {
    let device = OpenOptions::new().read(true).write(true).open("/dev/fuse").context("/dev/fuse")?;
    let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
    mount(Some("silent"), directory, Some("fuse"), MsFlags::empty(), Some(options.as_str()))
        .with_context(|| format!("{}: cannot be mounted", directory.display()))?;
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}
