//! Tests of the image format from outside: what is refused first, then what is kept.

#![allow(clippy::unwrap_used, clippy::panic)]

mod bytes;
mod coverage;
mod damage;
mod hostile_commit;
mod hostile_header;
mod hostile_index;
mod hostile_label;
mod index_builder;
mod keys;
mod records;
mod reserved;
mod round_trip;
mod slots;
mod states;
mod values;
mod version;
