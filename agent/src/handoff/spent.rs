//! What the threads of a save or a restore spent their time on, as a report has it.

use std::fmt;

use dormouse_image::SPENT;
use serde::{Deserialize, Serialize};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// What all threads of a pipeline together have spent, in milliseconds but for the last; in the order in which an
/// image has them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Spent {
    /// Workers without a buffer, or without chunks.
    pub waiting_ms: u32,
    /// Mapping the session's memory, and waiting for it.
    pub mapping_ms: u32,
    /// Looking at pages and copying them.
    pub pages_ms: u32,
    /// Compressing, decompressing, or copying what is stored as it is.
    pub coding_ms: u32,
    /// Computing checksums.
    pub checking_ms: u32,
    /// Sealing and opening.
    pub sealing_ms: u32,
    /// Writing zeroes.
    pub zeroing_ms: u32,
    /// Reading the device, or writing to it.
    pub device_ms: u32,
    /// Readers of the device without a buffer.
    pub buffers_ms: u32,
    /// What the worker with the least to do has worked, waiting not counted.
    pub least_busy_ms: u32,
    /// The same of the one with the most.
    pub most_busy_ms: u32,
    /// How often one of them had to wait for another one's lock.
    pub lock_waits: u32,
}

impl fmt::Display for Spent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [
            ("waiting for the device", self.waiting_ms),
            ("mapping", self.mapping_ms),
            ("pages", self.pages_ms),
            ("coding", self.coding_ms),
            ("checksums", self.checking_ms),
            ("sealing", self.sealing_ms),
            ("zeroes", self.zeroing_ms),
        ];
        f.write_str("workers:")?;
        for (what, millis) in parts.into_iter().filter(|(_, millis)| *millis > 0) {
            write!(f, " {what} {millis} ms,")?;
        }
        write!(f, " each {} to {} ms busy; device: {} ms", self.least_busy_ms, self.most_busy_ms, self.device_ms)?;
        if self.buffers_ms > 0 {
            write!(f, ", and {} ms without a buffer", self.buffers_ms)?;
        }
        if self.lock_waits > 0 {
            write!(f, "; {} waits for a lock", self.lock_waits)?;
        }
        Ok(())
    }
}

impl Spent {
    /// The values in their order, as an image has them.
    #[must_use]
    pub fn to_values(self) -> [u32; SPENT] {
        zerocopy::transmute!(self)
    }

    /// From the values in their order.
    #[must_use]
    pub fn from_values(values: [u32; SPENT]) -> Spent {
        zerocopy::transmute!(values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_in_their_order() {
        let values = std::array::from_fn(|at| u32::try_from(at).unwrap_or(0) + 1);
        let spent = Spent::from_values(values);
        assert_eq!((spent.waiting_ms, spent.most_busy_ms), (1, 11));
        assert_eq!(spent.to_values(), values);
        assert_eq!(
            spent.to_string(),
            "workers: waiting for the device 1 ms, mapping 2 ms, pages 3 ms, coding 4 ms, checksums 5 ms, \
             sealing 6 ms, zeroes 7 ms, each 10 to 11 ms busy; device: 8 ms, and 9 ms without a \
             buffer; 12 waits for a lock"
        );
    }
}
