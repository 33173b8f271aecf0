//! What a kernel does: its order, and what only the jump into it made known. Pure.

use thiserror::Error;

use crate::handoff::arguments::{LoaderArguments, WayBack};
use crate::handoff::order::{LookOrder, Order, RestoreOrder, SaveOrder, WaitOrder};

/// What this kernel is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task<'a> {
    /// This is B.
    Save(SaveTask<'a>),
    /// This is D.
    Restore(RestoreTask<'a>),
    /// This is B, long before a save.
    Wait(WaitTask<'a>),
    /// This is D, and a boot loader has started it.
    Look(LookTask<'a>),
}

/// What B is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SaveTask<'a> {
    /// What A wants.
    pub order: &'a SaveOrder,
    /// The way back into A.
    pub way: WayBack,
}

/// What B is to do before it waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WaitTask<'a> {
    /// What A wants.
    pub order: &'a WaitOrder,
    /// The way back into A.
    pub way: WayBack,
}

/// What D is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RestoreTask<'a> {
    /// What C wants.
    pub order: &'a RestoreOrder,
    /// Where the bridge may be put; the entry to which it leads is in the image.
    pub bridge: u64,
    /// Whether a boot loader has started it, with no C before it.
    pub is_direct: bool,
}

/// What D is to do that a boot loader has started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LookTask<'a> {
    /// What A has left for it.
    pub order: &'a LookOrder,
    /// Where the bridge may be put; the entry to which it leads is in the image.
    pub bridge: u64,
}

/// Why an order cannot be carried out in this kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Decline {
    /// The entry stub did not run.
    #[error("dormouse.entry was not filled in: this kernel was not entered by a jump that preserves its caller")]
    NoEntry,
    /// An argument is missing that the loader always gives.
    #[error("the kernel command line has no dormouse.bridge")]
    NoBridge,
    /// A kernel waits to be returned to, and its memory was to be overwritten.
    #[error("the order is to restore a session, but the kernel that gave it is still in memory and waits")]
    Occupied,
}

impl<'a> Task<'a> {
    /// Decides what `order` means in a kernel that was started with `arguments`.
    ///
    /// A jump-back entry alone proves nothing: other loaders leave one on the command lines of ordinary boots too.
    ///
    /// # Errors
    /// [`Decline`] says what is missing.
    pub fn new(order: &'a Order, arguments: LoaderArguments) -> Result<Task<'a>, Decline> {
        let bridge = arguments.bridge.ok_or(Decline::NoBridge)?;
        match (order, arguments.way_back()) {
            (Order::Save(order), Some(way)) => Ok(Task::Save(SaveTask { order, way })),
            (Order::Wait(order), Some(way)) => Ok(Task::Wait(WaitTask { order, way })),
            (Order::Save(_) | Order::Wait(_), None) => Err(Decline::NoEntry),
            (Order::Restore(order), None) => Ok(Task::Restore(RestoreTask { order, bridge, is_direct: false })),
            (Order::Look(order), None) => Ok(Task::Look(LookTask { order, bridge })),
            (Order::Restore(_) | Order::Look(_), Some(_)) => Err(Decline::Occupied),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handoff::order::tests::{look_order, restore_order, save_order, wait_order};

    const WAY: WayBack = WayBack { entry: 0x2f1e_3050, bridge: 0x8ff_0000 };

    fn arguments(entry: Option<u64>, bridge: Option<u64>) -> LoaderArguments {
        LoaderArguments { entry, bridge }
    }

    #[test]
    fn saving_and_waiting_need_a_way_back() {
        let order = Order::Save(Box::new(save_order()));
        let task = Task::new(&order, arguments(Some(WAY.entry), Some(WAY.bridge)));
        assert_eq!(task, Ok(Task::Save(SaveTask { order: &save_order(), way: WAY })));
        assert_eq!(Task::new(&order, arguments(None, Some(WAY.bridge))), Err(Decline::NoEntry));
        assert_eq!(Task::new(&order, arguments(Some(0), Some(WAY.bridge))), Err(Decline::NoEntry));
        assert_eq!(Task::new(&order, arguments(Some(WAY.entry), None)), Err(Decline::NoBridge));
        let order = Order::Wait(wait_order());
        let task = Task::Wait(WaitTask { order: &wait_order(), way: WAY });
        assert_eq!(Task::new(&order, arguments(Some(WAY.entry), Some(WAY.bridge))), Ok(task));
        assert_eq!(Task::new(&order, arguments(None, Some(WAY.bridge))), Err(Decline::NoEntry));
    }

    #[test]
    fn restore_needs_a_bridge_and_no_kernel_that_waits() {
        let order = Order::Restore(restore_order());
        let task = Task::Restore(RestoreTask { order: &restore_order(), bridge: WAY.bridge, is_direct: false });
        assert_eq!(Task::new(&order, arguments(None, Some(WAY.bridge))), Ok(task));
        assert_eq!(Task::new(&order, arguments(None, None)), Err(Decline::NoBridge));
        assert_eq!(Task::new(&order, arguments(Some(WAY.entry), Some(WAY.bridge))), Err(Decline::Occupied));
        let order = Order::Look(look_order());
        let task = Task::Look(LookTask { order: &look_order(), bridge: WAY.bridge });
        assert_eq!(Task::new(&order, arguments(None, Some(WAY.bridge))), Ok(task));
        assert_eq!(Task::new(&order, arguments(None, None)), Err(Decline::NoBridge));
        assert_eq!(Task::new(&order, arguments(Some(WAY.entry), Some(WAY.bridge))), Err(Decline::Occupied));
    }
}
