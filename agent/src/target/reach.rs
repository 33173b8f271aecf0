//! How a target is reached that a server has: the link to it, found out in a kernel that has a network, and brought up
//! in one that has none.

use std::time::Duration;

use dormouse_image::ImageDevice;
use dormouse_linux::link::Link;
use dormouse_linux::network::{NoWay, Up};

use crate::target::{Kind, Target, TargetError};

/// The least that a kernel waits that has nothing else to do: a switch may take so long to let a link that has just
/// come up take part (its spanning tree).
const LEAST: Duration = Duration::from_secs(30);

impl Target {
    /// The link by which this kernel reaches the server that has it; `None` where it is this machine's own.
    ///
    /// # Errors
    /// [`TargetError::NoWay`]: another kernel would not reach it so.
    pub fn link(&self) -> Result<Option<Link>, TargetError> {
        match &self.kind {
            Kind::Remote(remote) => Ok(Some(Link::towards(remote.server())?)),
            Kind::Device | Kind::Extents(_) | Kind::File => Ok(None),
        }
    }
}

/// The link to the target called `name`, for the kernel that is started next.
///
/// # Errors
/// As [`Target::link`].
pub fn link_to(name: &ImageDevice) -> Result<Option<Link>, TargetError> {
    match name {
        ImageDevice::Remote(remote) => Target::of_remote(remote).link(),
        _ => Ok(None),
    }
}

/// Sees to it that the target called `name` can be reached from a kernel that has no network: by the link that the
/// kernel before it has found. `alive` is called while it is waited for.
///
/// # Errors
/// [`TargetError::Down`], [`TargetError::NoLink`].
pub fn reach(name: &ImageDevice, link: Option<&Link>, wait: Duration, alive: &dyn Fn()) -> Result<(), TargetError> {
    // It stays up until PID 1 takes it down.
    bring_up(name, link, wait.max(LEAST), alive).map(drop)
}

fn bring_up(
    name: &ImageDevice,
    link: Option<&Link>,
    wait: Duration,
    alive: &dyn Fn(),
) -> Result<Option<Up>, TargetError> {
    let ImageDevice::Remote(remote) = name else { return Ok(None) };
    let link = link.ok_or_else(|| TargetError::NoLink { name: name.clone() })?;
    let up = link.bring_up(remote.server().ip(), wait, alive)?;
    log::info!("the network is up, as {} to {}", link.address, remote.server().ip());
    Ok(Some(up))
}

/// A network that was brought up for a target. It is taken down when this is dropped.
#[derive(Debug)]
#[must_use]
pub struct Reached(Option<Up>);

impl Drop for Reached {
    fn drop(&mut self) {
        if let Some(up) = &self.0 {
            up.take_down();
        }
    }
}

/// As [`reach`], in the initramfs of an ordinary boot, which may have set up a network of its own: that one is used
/// then, and stays. Otherwise the link is `recorded`.
///
/// # Errors
/// [`TargetError::NoWay`], [`TargetError::Down`].
pub fn reach_in_boot(name: &ImageDevice, recorded: Option<&Link>, wait: Duration) -> Result<Reached, TargetError> {
    match (link_to(name), recorded) {
        (Ok(_), _) => Ok(Reached(None)),
        (Err(TargetError::NoWay(NoWay::NoRoute { .. })), Some(link)) => {
            bring_up(name, Some(link), wait, &|| {}).map(Reached)
        }
        (Err(error), _) => Err(error),
    }
}
