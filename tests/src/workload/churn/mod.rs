//! Processes that work all the time, one checked operation after the other, and count them.
//!
//! Unlike the rest of the workload they leave nothing in its place: whatever moment a machine is stopped at, some of
//! their operations are under way.

pub mod children;
pub mod files;
pub mod memory;

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;

use super::DIRECTORY;
use super::report::Churn;
use super::role::{self, Answer};

/// The rest after an operation that failed, so that its repetition does not fill the console.
const REST_AFTER_ERROR: Duration = Duration::from_secs(1);

/// What has been done so far.
#[derive(Debug, Default)]
struct Progress {
    churn: Churn,
    /// The first error.
    fault: Option<String>,
}

/// Repeats `operation` with a `rest` in between, counts, and answers as the role `name`, for ever.
fn run(name: &str, rest: Duration, mut operation: impl FnMut() -> Result<()> + Send + 'static) -> Result<()> {
    let progress = Arc::new(Mutex::new(Progress::default()));
    std::thread::spawn({
        let progress = Arc::clone(&progress);
        move || {
            loop {
                let done = operation();
                let failed = done.is_err();
                count(&mut progress.lock().unwrap_or_else(PoisonError::into_inner), done);
                std::thread::sleep(if failed { REST_AFTER_ERROR } else { rest });
            }
        }
    });
    role::serve(Path::new(DIRECTORY), name, || {
        let progress = progress.lock().unwrap_or_else(PoisonError::into_inner);
        Answer { evidence: progress.churn.clone(), fault: progress.fault.clone() }
    })
}

fn count(progress: &mut Progress, done: Result<()>) {
    progress.churn.operations += 1;
    if let Err(error) = done {
        progress.churn.errors += 1;
        let number = progress.churn.operations;
        progress.fault.get_or_insert_with(|| format!("operation {number}: {error:#}"));
        eprintln!("workload: operation {number}: {error:#}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_error_is_told_and_all_are_counted() {
        let mut progress = Progress::default();
        for done in [Ok(()), Err(anyhow::anyhow!("first")), Ok(()), Err(anyhow::anyhow!("second"))] {
            count(&mut progress, done);
        }
        assert_eq!(progress.churn, Churn { operations: 4, errors: 2 });
        assert_eq!(progress.fault.as_deref(), Some("operation 2: first"));
    }
}
