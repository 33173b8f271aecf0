//! Locks of which is counted how often a thread had to wait for another one.

use std::cell::Cell;
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

thread_local!(static WAITS: Cell<u32> = const { Cell::new(0) });

/// The lock, poisoned or not: what is behind these is whole after every single change.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    match mutex.try_lock() {
        Ok(guard) => guard,
        Err(TryLockError::Poisoned(error)) => error.into_inner(),
        Err(TryLockError::WouldBlock) => {
            WAITS.set(waits().saturating_add(1));
            mutex.lock().unwrap_or_else(PoisonError::into_inner)
        }
    }
}

/// How often this thread has waited, since it began.
pub(super) fn waits() -> u32 {
    WAITS.get()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn only_waiting_counts() {
        let mutex = Mutex::new(());
        std::thread::scope(|scope| {
            let other = scope.spawn(|| {
                // Until it comes while the lock is held.
                while waits() == 0 {
                    drop(lock(&mutex));
                }
            });
            while !other.is_finished() {
                let held = lock(&mutex);
                std::thread::sleep(Duration::from_millis(1));
                drop(held);
            }
        });
        let before = waits();
        drop(lock(&mutex));
        assert_eq!(waits(), before);
    }
}
