//! The five conductors: one for each kernel of a hibernation, and `export`. Each reads as its half of the protocol does
//! and wires the stages together; they do not import one another.

mod budget;
pub mod disk;
pub mod export;
pub mod hibernate;
pub mod last;
pub(crate) mod lock;
pub mod outcome;
pub mod refusal;
pub mod region_size;
mod rehearsal;
pub mod restore;
pub mod resume;
pub mod save;
pub mod verdict;
