//! What a person sees while it happens: phases, progress, the screen.

pub mod phase;
pub mod progress;
pub mod screen;
