//! A network between the host and one guest that takes large packets, as real ones do: a tap device. It needs root.

use std::net::Ipv4Addr;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::nbd_server::HOST;

/// The device, which goes away with this.
#[derive(Debug)]
pub struct Tap {
    name: String,
}

impl Tap {
    /// A device of which the host has the address that it has in QEMU's user network, too.
    ///
    /// # Errors
    /// Fails where this is not root, or the kernel has no such devices.
    pub fn create() -> Result<Tap> {
        let tap = Tap { name: format!("dormouse{}", std::process::id() % 1_000_000) };
        ip(&["tuntap", "add", "dev", &tap.name, "mode", "tap", "vnet_hdr"])?;
        ip(&["address", "add", &format!("{HOST}/24"), "dev", &tap.name])?;
        ip(&["link", "set", &tap.name, "up"])?;
        Ok(tap)
    }

    /// What the guest's link is connected to, for [`crate::machine::GuestConfig::link`].
    #[must_use]
    pub fn netdev(&self) -> String {
        format!("tap,ifname={},script=no,downscript=no", self.name)
    }

    /// The host's address there.
    #[must_use]
    pub fn host(&self) -> Ipv4Addr {
        HOST
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        let _ = ip(&["link", "delete", &self.name]);
    }
}

fn ip(arguments: &[&str]) -> Result<()> {
    let output = Command::new("ip").args(arguments).output().context("ip (iproute2) cannot be started")?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ip {}: {}", arguments.join(" "), error.trim());
    Ok(())
}
