//! The five conductors: one for each kernel of a hibernation, and `export`. Each reads as its half of the protocol does
//! and wires the stages together; they do not import one another.

pub(crate) mod around;
pub mod boots;
mod budget;
pub(crate) mod direct;
pub mod disk;
pub mod drivers;
pub mod evidence;
pub mod export;
pub mod hibernate;
pub mod in_clear;
mod judge;
pub(crate) mod jump;
pub mod keys;
pub mod last;
mod leftover;
pub(crate) mod lock;
pub mod look;
pub(crate) mod module_file;
pub mod outcome;
mod place;
pub mod refusal;
pub mod region_size;
mod rehearsal;
pub mod restore;
pub mod resume;
pub mod save;
mod shrink;
pub mod verdict;
pub(crate) mod waiting;
pub mod warm;
pub mod wipe;
