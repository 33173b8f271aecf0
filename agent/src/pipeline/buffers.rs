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
    state: Mutex<State>,
    given_back: Condvar,
    /// How many are the device's. Each chunk's worker looks at it.
    handed_over: AtomicUsize,
}

#[derive(Debug, Default)]
struct State {
    free: Vec<MmapMut>,
    /// How many are in use.
    taken: usize,
}

impl Buffers {
    /// A pool of at most `limit` buffers, at least one. Memory is taken when it is first needed.
    #[must_use]
    pub fn new(limit: usize) -> Buffers {
        Buffers(Arc::new(Pool {
            limit: limit.max(1),
            state: Mutex::default(),
            given_back: Condvar::new(),
            handed_over: AtomicUsize::new(0),
        }))
    }

    /// How many there can be.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.0.limit
    }

    /// How many have been handed over to the device, which has not given them back yet.
    #[must_use]
    pub fn handed_over(&self) -> usize {
        self.0.handed_over.load(Ordering::Relaxed)
    }

    /// A buffer, with whatever is in it, as soon as there is one.
    ///
    /// # Errors
    /// Out of memory.
    pub fn take(&self) -> io::Result<Buffer> {
        let Pool { limit, state, given_back, .. } = &*self.0;
        let all_in_use = |state: &mut State| state.taken >= *limit;
        let mut state = lock(state);
        let is_late = all_in_use(&mut state);
        let mut state = given_back.wait_while(state, all_in_use).unwrap_or_else(PoisonError::into_inner);
        let map = match state.free.pop() {
            Some(map) => map,
            None => MmapMut::map_anon(BUFFER_LEN)?,
        };
        state.taken += 1;
        drop(state);
        Ok(Buffer { map: Some(map), pool: self.clone(), is_late, is_handed_over: false })
    }
}

/// A buffer of a pool, to which it goes back when it is dropped.
#[derive(Debug)]
pub struct Buffer {
    /// Always there until the drop.
    map: Option<MmapMut>,
    pool: Buffers,
    is_late: bool,
    is_handed_over: bool,
}

impl Buffer {
    /// Whether all were in use when it was asked for.
    #[must_use]
    pub fn is_late(&self) -> bool {
        self.is_late
    }

    /// From now on, until it is dropped, it is the device's.
    pub fn hand_over(&mut self) {
        if !std::mem::replace(&mut self.is_handed_over, true) {
            self.pool.0.handed_over.fetch_add(1, Ordering::Relaxed);
        }
    }
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
        if self.is_handed_over {
            self.pool.0.handed_over.fetch_sub(1, Ordering::Relaxed);
        }
        let mut state = lock(&self.pool.0.state);
        state.free.extend(self.map.take());
        state.taken -= 1;
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
        assert_eq!(first.len(), BUFFER_LEN);
        std::thread::scope(|scope| {
            let third = scope.spawn(|| buffers.take().unwrap().len());
            std::thread::sleep(std::time::Duration::from_millis(20));
            assert!(!third.is_finished());
            drop(first);
            assert_eq!(third.join().unwrap(), BUFFER_LEN);
        });
        assert_eq!(lock(&buffers.0.state).taken, 1);
    }

    #[test]
    fn a_buffer_knows_that_it_was_waited_for_and_that_it_is_the_devices() {
        let buffers = Buffers::new(2);
        let (mut first, second) = (buffers.take().unwrap(), buffers.take().unwrap());
        assert!(!first.is_late() && !second.is_late());
        first.hand_over();
        first.hand_over();
        assert_eq!(buffers.handed_over(), 1);
        std::thread::scope(|scope| {
            let third = scope.spawn(|| buffers.take().unwrap().is_late());
            std::thread::sleep(std::time::Duration::from_millis(20));
            drop((first, second));
            assert!(third.join().unwrap());
        });
        assert_eq!(buffers.handed_over(), 0);
    }
}
