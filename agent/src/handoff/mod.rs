//! What one kernel hands to another: the order, and the report back.

pub mod arguments;
pub mod boot_block;
pub mod inherited;
pub mod mailbox;
pub mod next_order;
pub mod order;
pub mod places;
pub mod report;
pub mod small_machine;
pub mod spent;
pub mod task;
