//! The memory of what is in flight between CPUs and device: a fixed number of page-aligned buffers.
//!
//! Whoever wants one waits until one is free. That is all the back-pressure there is: workers stop when the device is
//! behind with writing, reading stops when the workers are behind with decoding.

use std::io;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use memmap2::MmapMut;

use crate::pipeline::lock::lock;

/// The size of each in bytes: enough in one request for every device to be at its full speed.
pub const BUFFER_LEN: usize = 1 << 20;

/// A pool of buffers of [`BUFFER_LEN`] bytes. Clones share it.
#[derive(Debug, Clone)]
pub struct Buffers(Arc<Pool>);

#[derive(Debug)]
struct Pool {
    limit: usize,
    /// How many are in use. It changes under the lock of `free`; each chunk's worker only looks.
    taken: AtomicUsize,
    free: Mutex<Vec<MmapMut>>,
    given_back: Condvar,
}

impl Buffers {
    /// A pool of at most `limit` buffers, at least one. Memory is taken when it is first needed.
    #[must_use]
    pub fn new(limit: usize) -> Buffers {
        Buffers(Arc::new(Pool {
            limit: limit.max(1),
            taken: AtomicUsize::new(0),
            free: Mutex::default(),
            given_back: Condvar::new(),
        }))
    }

    /// How many there can be.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.0.limit
    }

    /// How many are in use.
    #[must_use]
    pub fn taken(&self) -> usize {
        self.0.taken.load(Ordering::Relaxed)
    }

    /// A buffer, with whatever is in it, as soon as there is one.
    ///
    /// # Errors
    /// Out of memory.
    pub fn take(&self) -> io::Result<Buffer> {
        let free = lock(&self.0.free);
        let mut free = self
            .0
            .given_back
            .wait_while(free, |_| self.taken() >= self.0.limit)
            .unwrap_or_else(PoisonError::into_inner);
        let map = match free.pop() {
            Some(map) => map,
            None => MmapMut::map_anon(BUFFER_LEN)?,
        };
        self.0.taken.fetch_add(1, Ordering::Relaxed);
        Ok(Buffer { map: Some(map), pool: self.clone() })
    }
}

/// A buffer of a pool, to which it goes back when it is dropped.
#[derive(Debug)]
pub struct Buffer {
    /// Always there until the drop.
    map: Option<MmapMut>,
    pool: Buffers,
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.map.as_deref().unwrap_or_default()
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.map.as_deref_mut().unwrap_or_default()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut free = lock(&self.pool.0.free);
        free.extend(self.map.take());
        self.pool.0.taken.fetch_sub(1, Ordering::Relaxed);
        self.pool.0.given_back.notify_one();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn taking_waits_until_a_buffer_is_given_back() {
        let buffers = Buffers::new(2);
        let (first, _second) = (buffers.take().unwrap(), buffers.take().unwrap());
        assert_eq!((buffers.taken(), first.len()), (2, BUFFER_LEN));
        std::thread::scope(|scope| {
            let third = scope.spawn(|| buffers.take().unwrap().len());
            std::thread::sleep(std::time::Duration::from_millis(20));
            assert!(!third.is_finished());
            drop(first);
            assert_eq!(third.join().unwrap(), BUFFER_LEN);
        });
        assert_eq!(buffers.taken(), 1);
    }
}
