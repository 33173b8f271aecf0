//! Waiting for what turns up in its own time, such as a disk.

use std::thread;
use std::time::{Duration, Instant};

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(50);

/// Looks until something is found or `limit` has passed; at least once.
pub fn wait_for<T>(limit: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let began = Instant::now();
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        let left = limit.saturating_sub(began.elapsed());
        if left.is_zero() {
            return None;
        }
        thread::sleep(PAUSE.min(left));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_until_it_is_found() {
        let mut looks = 0;
        let third = || {
            looks += 1;
            (looks == 3).then_some(looks)
        };
        assert_eq!(wait_for(Duration::from_secs(60), third), Some(3));
    }

    #[test]
    fn looks_once_without_time_and_once_more_at_the_end() {
        for (limit, expected) in [(0, 1), (1, 2)] {
            let mut looks = 0;
            let nothing: Option<()> = wait_for(Duration::from_millis(limit), || {
                looks += 1;
                None
            });
            assert_eq!((nothing, looks), (None, expected));
        }
    }
}
